// hydra/language_model.h: what the trainer trains: tokens in, logits out, and what it says about itself on the way.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "hydra/parameters.h"

namespace polyspan {

// How a stage of the curriculum uses the parts of the model.
struct StageSwitches {
  std::map<HydraPart, double>
      share;                // of a part's output that is added: 0 leaves it out (it is not computed); default 1
  double router_noise = 0;  // deviation of the noise on the experts' logits
  uint64_t noise_seed = 0;
  int64_t first_sequence = 0;  // of the batch, where several processes share it: their noise differs
  // Of a vector that every process has, the mean over them; none: one process.
  std::function<torch::Tensor(const torch::Tensor&)> mean_over_processes;
  double share_of(HydraPart part) const {
    const auto found = share.find(part);
    return found == share.end() ? 1.0 : found->second;
  }
};

struct ForwardOutput {
  torch::Tensor logits;                // [n_seqs, n_tokens, vocab_size]
  torch::Tensor balance_loss, z_loss;  // sums over the blocks that have experts; undefined without any
  std::map<std::string, torch::Tensor>
      statistics;  // scalars or short vectors, no gradients: "moe.use", "gate.ssm", ...
};

class LanguageModel {
 public:
  virtual ~LanguageModel() = default;
  // tokens [n_seqs, n_tokens], int64, each sequence from position 0.
  virtual ForwardOutput forward(const torch::Tensor& tokens, const StageSwitches& switches) = 0;
  Parameters& parameters() { return parameters_; }
  const Parameters& parameters() const { return parameters_; }

 protected:
  explicit LanguageModel(Parameters parameters) : parameters_(std::move(parameters)) {}
  Parameters parameters_;
};

}  // namespace polyspan
