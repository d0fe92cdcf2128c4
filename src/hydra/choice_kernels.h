// hydra/choice_kernels.h: choices of the best, made on a GPU so that nothing waits for the host.
#pragma once

#include "hydra/ssm_kernels.h"

namespace polyspan::hydra {

// sparse_attention.h's global_sets: scores [n_seqs, n_tokens] -> sets [n_seqs, n_tokens / chunk_len, n_global].
void global_sets(const float* scores, int64_t n_seqs, int64_t n_tokens, int64_t chunk_len, int64_t window,
                 int64_t n_global, int64_t* sets, Stream stream);

// The `top` best of the sums of one number of each half: scores [n, 2, n_keys] -> indices [n, top] into [n_keys, n_keys], the
// best first (product_keys.h). Equal numbers: the earlier first. REQUIRES: top <= 32.
void best_pairs(const float* scores, int64_t n, int64_t n_keys, int64_t top, int64_t* indices, Stream stream);

}  // namespace polyspan::hydra
