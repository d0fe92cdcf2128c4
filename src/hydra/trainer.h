// hydra/trainer.h: a training run in a folder: steps, evaluations, metrics, checkpoints (docs/hydra.md: the files).
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "core/progress.h"
#include "hydra/language_model.h"
#include "recipe/train_config.h"

namespace polyspan {

std::unique_ptr<LanguageModel> make_model(const TrainConfig& config, const torch::TensorOptions& options);

// As the stage's model is evaluated: the parts that are off left out, no noise, nothing ramped.
StageSwitches evaluation_switches(const TrainStage& stage);

struct TrainOptions {
  std::filesystem::path config_file, folder;
  bool resume = false;
  std::string device = "cpu";  // or "cuda"; of several processes each takes the GPU of its number
  int64_t stop_after = 0;      // steps of this call, then a checkpoint and a clean end; 0: to the end of the run
};

struct TrainResult {
  int64_t steps = 0;     // done in all, with those before a resume
  bool is_first = true;  // of several processes: the one that evaluates and writes
  int64_t parameters = 0;
  double loss = 0;  // of the last step
  double eval_loss = 0, eval_accuracy = 0;
  double tokens_per_s = 0;  // of this call
};

// Trains and writes into the folder; as one of several processes (hydra/processes.h) where the environment says so. The same seed, machine and number of threads give the same losses to the bit, resumed
// or not. Throws Error: kBadInput (configuration, data, a folder that holds another run), kBadFile (a damaged checkpoint),
// kIo; a loss that is not finite or jumps is kBadInput naming the step and the part, and leaves the last checkpoint.
TrainResult train(const TrainOptions& options, Progress& progress);

}  // namespace polyspan
