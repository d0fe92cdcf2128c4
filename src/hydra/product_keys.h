// hydra/product_keys.h: a large memory of values, looked up by product keys (arXiv 1907.05242, section 3).
//
// A query's two halves each score n sub-keys; the pkm_top best of either make pkm_top^2 candidates of the n^2 values, of
// which the pkm_top best sums are weighted by a softmax. A token reads pkm_heads * pkm_top values, and gradients touch
// those alone (they are sparse tensors).
#pragma once

#include "hydra/parameters.h"

namespace polyspan {

struct MemoryOutput {
  torch::Tensor y;        // as x
  torch::Tensor indices;  // [n_seqs * n_tokens, pkm_heads * pkm_top]: the values read
  torch::Tensor gate;     // mean of the output gate; no gradient
};

// x [n_seqs, n_tokens, d_model] (normed).
MemoryOutput product_keys(const HydraConfig& config, const BlockParameters& w, const torch::Tensor& x);

}  // namespace polyspan
