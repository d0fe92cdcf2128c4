// hydra/controller.h: what a block decides once a chunk, before the chunk's first token has been worked on.
#pragma once

#include "hydra/parameters.h"

namespace polyspan {

// The causal summary of each chunk: the mean of the last chunk's normed states (zeros before chunk 0) and the normed state
// of the chunk's first token. x [n_seqs, n_tokens, d_model] -> [n_seqs, n_chunks, 2 d_model].
torch::Tensor chunk_summary(const torch::Tensor& x, int64_t chunk_len);

// Multipliers of the three paths, 2 sigmoid(up silu(down summary)): [n_seqs, n_chunks, 3], 1 at the start of training.
torch::Tensor path_multipliers(const BlockParameters& w, const torch::Tensor& summary);

}  // namespace polyspan
