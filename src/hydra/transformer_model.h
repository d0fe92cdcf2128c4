// hydra/transformer_model.h: the baseline of the experiments, in the same trainer: pre-norm, RoPE, grouped queries, SwiGLU.
#pragma once

#include "hydra/language_model.h"
#include "recipe/train_config.h"

namespace polyspan {

class TransformerModel final : public LanguageModel {
 public:
  TransformerModel(TransformerSizes sizes, uint64_t seed, const torch::TensorOptions& options);
  ForwardOutput forward(const torch::Tensor& tokens, const StageSwitches& switches) override;

 private:
  torch::Tensor attention(const BlockParameters& w, const torch::Tensor& x) const;
  TransformerSizes sizes_;
};

}  // namespace polyspan
