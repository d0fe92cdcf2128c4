// hydra/sparse_attention.h: attention over a window and a bounded set of older tokens (the paper's sparse global
// attention, arXiv 2508.15099). No n_tokens x n_tokens anywhere: O(window + n_global) keys a token.
//
// Every token has a score, linear in its normed state. The query at t, in chunk c, sees the `window` keys up to its own and
// the global set of c: the n_global best scores among the tokens of chunks that have begun to leave the window
// (chunk <= c - window / chunk_len; those still inside a query's window are not seen twice). The score is added to the
// logit of a global key: that trains it. A score never changes, so decode keeps the n_global best so far and no more.
#pragma once

#include "hydra/parameters.h"

namespace polyspan {

// x [n_seqs, n_tokens, d_model] (normed), n_tokens a multiple of chunk_len, from position 0 on. `with_globals` off: the
// window alone. Position j's best-first order breaks ties by the earlier position.
torch::Tensor sparse_attention(const HydraConfig& config, const BlockParameters& w, const torch::Tensor& x,
                               bool with_globals = true);

#if TORCH_VERSION_MAJOR > 2 || (TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 4)
#define POLYSPAN_HAS_FUSED_ATTENTION 1
// The same through LibTorch's attention kernels, which write no logits; sparse_attention calls it in bf16
// where the kernels are (hydra/device_stream.h).
torch::Tensor sparse_attention_fused(const HydraConfig& config, const BlockParameters& w, const torch::Tensor& x,
                                     bool with_globals = true);
#endif

// The global set of each chunk: positions [n_seqs, n_chunks, n_global], ascending, -1 where there are fewer.
torch::Tensor global_sets(const torch::Tensor& scores, int64_t chunk_len, int64_t window, int64_t n_global);

// Rotates pairs (2i, 2i + 1) of x [n_seqs, n_tokens, n_heads, head_dim]; token t is at position t. Of bf16: float32 on a CPU,
// bf16 where a kernel does it.
torch::Tensor rope(const torch::Tensor& x, double base);

}  // namespace polyspan
