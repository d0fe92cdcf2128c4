// hydra/ssm.h: the state-space path of a block: Mamba-2's layer (arXiv 2405.21060, section 7), or the diagonal one.
#pragma once

#include "hydra/parameters.h"

namespace polyspan {

// What a sequence carries from call to call; undefined: nothing before.
struct SsmState {
  torch::Tensor conv;  // [n_seqs, d_conv - 1, d_conv_channels]: the last inputs of the convolution
  torch::Tensor scan;  // [n_seqs, n_ssm_heads, ssm_head_dim, d_state]; diagonal: [n_seqs, d_model]
};

// x [n_seqs, n_tokens, d_model] (normed) -> the same shape. `state` is read and written when given.
torch::Tensor ssm(const HydraConfig& config, const BlockParameters& w, const torch::Tensor& x,
                  SsmState* state = nullptr);

// What lies between the layer's two products: in [n_seqs, n_tokens, d_ssm_in] -> [n_seqs, n_tokens, d_inner], normed.
torch::Tensor ssm_middle(const HydraConfig& config, const BlockParameters& w, const torch::Tensor& in,
                         SsmState* state = nullptr);

}  // namespace polyspan
