// hydra/optimizer.h: AdamW (arXiv 1711.05101) with global-norm clipping; rows of a table with sparse gradients are moved
// only when they were read (the moments of the others stay as they are).
#pragma once

#include "hydra/parameters.h"

namespace polyspan {

struct AdamSettings {
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1, clip = 1.0, value_lr_scale = 4.0;
  bool fused = true;  // on a GPU: dense tensors in one kernel, where LibTorch has it
};

class AdamW {
 public:
  AdamW(Parameters& parameters, AdamSettings settings);
  // Uses and then drops the gradients; returns their norm before clipping (not finite: nothing was changed).
  double step(double lr);
  void drop_gradients();

  // For checkpoints: two moments for each parameter, and how often each was stepped.
  std::vector<torch::Tensor>& first_moments() { return m_; }
  std::vector<torch::Tensor>& second_moments() { return v_; }
  std::vector<int64_t>& counts() { return counts_; }

 private:
  void add_squares(const std::vector<torch::Tensor>& grads, std::vector<torch::Tensor>& squares) const;
  void step_dense_fused(const std::vector<torch::Tensor>& grads, double lr, double scale);
  Parameters& parameters_;
  AdamSettings settings_;
  std::vector<torch::Tensor> m_, v_;
  std::vector<int64_t> counts_;
  bool fused_ = false;
};

}  // namespace polyspan
