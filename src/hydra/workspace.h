// hydra/workspace.h: a working memory of a few slots beside the residual stream (arXiv 2508.15099).
//
// Tokens of chunk c read the slots as they were after chunk c - 1; at the chunk's end each slot attends to its tokens and
// takes what it found through a learned gate: slot <- (1 - z) slot + z u. Gradients flow through the chunks.
#pragma once

#include "hydra/parameters.h"

namespace polyspan {

struct WorkspaceOutput {
  torch::Tensor y;        // as x
  torch::Tensor slots;    // [n_seqs, n_slots, d_slot] after the last chunk
  torch::Tensor touched;  // share of (chunk, slot) pairs whose gate is mostly above 0.1; no gradient
};

// x [n_seqs, n_tokens, d_model] (normed), n_tokens a multiple of chunk_len. truncate_chunks > 0 cuts the gradient every so
// many chunks.
WorkspaceOutput workspace(const HydraConfig& config, const BlockParameters& w, const torch::Tensor& x,
                          int64_t truncate_chunks = 0);

}  // namespace polyspan
