// hydra/checkpoint.h: all that a run needs to go on, in one safetensors file: parameters by name, "adam_m." and "adam_v."
// moments, and in the metadata the step and what the run is (docs/hydra.md).
#pragma once

#include <filesystem>

#include "hydra/optimizer.h"
#include "recipe/train_config.h"

namespace polyspan {

struct TrainState {
  int64_t step = 0;  // steps done
  double smoothed_loss = 0;
  std::string tokenizer;  // fingerprint of the training tokens' (recipe/token_file.h)
};

void save_checkpoint(const std::filesystem::path& path, const TrainConfig& config, const std::string& config_text,
                     const Parameters& parameters, AdamW& optimizer, const TrainState& state);
// Throws Error (kBadFile: damaged, or of another configuration: the message says which).
TrainState load_checkpoint(const std::filesystem::path& path, const TrainConfig& config, Parameters& parameters,
                           AdamW& optimizer);

}  // namespace polyspan
