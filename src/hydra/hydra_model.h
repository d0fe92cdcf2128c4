// hydra/hydra_model.h: the Hydra language model (arXiv 2508.15099; docs/hydra.md), in training's form.
#pragma once

#include "hydra/language_model.h"

namespace polyspan {

class HydraModel final : public LanguageModel {
 public:
  HydraModel(HydraConfig config, uint64_t seed, const torch::TensorOptions& options);
  // Any number of tokens: the last chunk is padded, which earlier tokens cannot see.
  ForwardOutput forward(const torch::Tensor& tokens, const StageSwitches& switches) override;
  const HydraConfig& config() const { return config_; }

 private:
  torch::Tensor block(int64_t layer, const torch::Tensor& x, const StageSwitches& switches, ForwardOutput& out) const;
  HydraConfig config_;
};

}  // namespace polyspan
