// hydra/fused_block.h: the kernels of block_kernels.h as operations of LibTorch, with gradients. Each has a plain form
// beside its caller, which is computed where there are no kernels and is what the tests hold these to.
#pragma once

#include <vector>

#include "hydra/torch.h"

namespace polyspan {

// What a block adds to the residual stream: value * share * the chunk's multiplier.
struct Path {
  torch::Tensor value;      // [n_seqs, n_tokens, d_model]
  int64_t multiplier = -1;  // its column; -1: none
  double share = 1.0;
};

// x + the paths. x [n_seqs, n_tokens, d_model], multipliers [n_seqs, n_chunks, n].
torch::Tensor add_paths(const torch::Tensor& x, const std::vector<Path>& paths, const torch::Tensor& multipliers,
                        int64_t chunk_len);
torch::Tensor add_paths_plain(const torch::Tensor& x, const std::vector<Path>& paths, const torch::Tensor& multipliers,
                              int64_t chunk_len);

bool fused_norm_takes(const torch::Tensor& x, const torch::Tensor& weight);  // float32
torch::Tensor fused_norm(const torch::Tensor& x, const torch::Tensor& weight, double eps);

bool fused_rope_takes(const torch::Tensor& x);  // float32 or bf16, and so is what comes out
torch::Tensor fused_rope(const torch::Tensor& x, double base);

bool fused_swiglu_takes(const torch::Tensor& gate);  // bf16
// silu(gate) up factor. gate, up [n, d]; factor [n], float32.
torch::Tensor fused_swiglu(const torch::Tensor& gate, const torch::Tensor& up, const torch::Tensor& factor);
struct SwigluGradients {
  torch::Tensor gate, up, h, factor;
};
SwigluGradients fused_swiglu_backward(const torch::Tensor& gate, const torch::Tensor& up, const torch::Tensor& factor,
                                      const torch::Tensor& d_h);

}  // namespace polyspan
