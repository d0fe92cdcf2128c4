// hydra/fused_ssm.h: what lies between the two products of the state-space path, in the kernels of ssm_kernels.h: on a GPU,
// where products are in bf16. hydra/ssm.cpp has the plain form, which is computed everywhere else and is the oracle.
#pragma once

#include "hydra/ssm.h"

namespace polyspan {

// Whether the kernels are compiled in and take these sizes. in [n_seqs, n_tokens, d_ssm_in].
bool fused_ssm_takes(const HydraConfig& config, const torch::Tensor& in);

// [n_seqs, n_tokens, d_inner], bf16, normed. From the beginning of the sequences; nothing is carried in or out.
// REQUIRES: fused_ssm_takes(config, in).
torch::Tensor fused_ssm(const HydraConfig& config, const BlockParameters& w, const torch::Tensor& in);

// The same for one token of one sequence, from state to state: in [1, 1, d_ssm_in] -> [1, 1, d_inner], float32, normed. What
// `state` has is changed where it lies; float32. No gradients. REQUIRES: ssm_step_takes(config, in).
bool ssm_step_takes(const HydraConfig& config, const torch::Tensor& in);
torch::Tensor ssm_step(const HydraConfig& config, const BlockParameters& w, const torch::Tensor& in, SsmState& state);

}  // namespace polyspan
