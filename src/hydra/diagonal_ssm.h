// hydra/diagonal_ssm.h: the diagonal state space of the Hydra paper (arXiv 2508.15099, its equation taken literally), one
// number of state a channel. `*` below is by channel.
//
//   [Delta, B, C, U] = W x        W [4 d_model, d_model]
//   alpha = exp(-softplus(Delta) * lambda), lambda > 0
//   s_{t+1} = alpha * s_t + B * U
//   y = C * s_t + W_skip x        a token reads what came before it; itself it sees through W_skip
// lambda begins log-uniform in (0.01, 1), the paper does not say: at Delta = 0 a channel forgets in 1 to 140 tokens.
#pragma once

#include "hydra/ssm.h"

namespace polyspan {

// x [n_seqs, n_tokens, d_model] (normed) -> the same shape, float32 or wider. Of `state` only `scan` is used.
torch::Tensor diagonal_ssm(const BlockParameters& w, const torch::Tensor& x, SsmState* state = nullptr);

// The states after each token, s_t = exp(log_decay_t) s_{t-1} + added_t; all [n_seqs, n_tokens, n_channels], log_decay <= 0,
// initial [n_seqs, n_channels]. Groups of 16 tokens at once and the groups likewise, so that no exponent is ever positive:
// stable at any length. Kept for the backward: what comes in and goes out.
torch::Tensor decayed_sums(const torch::Tensor& log_decay, const torch::Tensor& added, const torch::Tensor& initial);
// The same token by token: the oracle of the tests.
torch::Tensor decayed_sums_by_token(const torch::Tensor& log_decay, const torch::Tensor& added,
                                    const torch::Tensor& initial);

}  // namespace polyspan
