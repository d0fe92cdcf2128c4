// hydra/scan.h: the selective state-space recurrence (Mamba-2, arXiv 2405.21060, section 6: SSD), trained in chunks.
//
//   S_t = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T        S [head_dim, d_state] a head
//   y_t = S_t C_t
// Within a chunk of L tokens y is a masked product, (C B^T * decay) (dt x), and chunks pass one state on: T L products of
// vectors instead of T steps. The decay between two tokens of a chunk is the difference of two sums in double: in float32
// it would lose the digits of a slow decay after a fast one.
#pragma once

#include "hydra/torch.h"

#include <cstdint>

namespace polyspan {

struct ScanInput {
  torch::Tensor x;      // [n_seqs, n_tokens, n_heads, head_dim]
  torch::Tensor dt;     // [n_seqs, n_tokens, n_heads], >= 0; 0 leaves the state as it is
  torch::Tensor A;      // [n_heads], < 0
  torch::Tensor B, C;   // [n_seqs, n_tokens, d_state], shared by the heads
  torch::Tensor state;  // [n_seqs, n_heads, head_dim, d_state] before the first token; undefined: zeros
};
struct ScanOutput {
  torch::Tensor y;      // as x
  torch::Tensor state;  // after the last token
};

// Any number of tokens. Its backward computes the chunks again: what is kept for it is the input alone.
ScanOutput chunked_scan(const ScanInput& input, int64_t chunk_len);
// The same through autograd's own record (kept for the tests: about chunk_len / head_dim times the input's memory).
ScanOutput chunked_scan_recorded(const ScanInput& input, int64_t chunk_len);
// Token by token: the oracle of the tests (in double) and what decode computes.
ScanOutput recurrent_scan(const ScanInput& input);

}  // namespace polyspan
