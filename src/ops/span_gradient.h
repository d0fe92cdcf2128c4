// ops/span_gradient.h: span attention over a whole sequence of floats, its gradients, and what the keys beyond every
// candidate span were worth to the loss (MoA, arXiv 2406.14909, section 4.2). For the profile: no cache, no chunks, no
// N x N matrix; positions are the rows' indices.
//
// With A the softmax of row i, dA_ij = dO_i . V_j, D_i = dO_i . O_i, and for the keys that span S removes (j beyond the
// sink, i - j >= S) m_i = sum A_ij, g_i = sum A_ij dA_ij:
//   E_ij   = -A_ij (dA_ij - D_i) / (1 - A_ij)          one key removed, the row renormalised (the paper's influence)
//   e_i(S) = (m_i D_i - g_i) / (1 - m_i)               all of them removed together
// (1 - A and 1 - m are not taken as less than kLeastKeptShare),
// and for keys that a longer span would add, with A_ij = exp(score - log_sum): e_i(S) = (g_i - m_i D_i) / (1 + m_i).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/huge_buffer.h"
#include "ops/context.h"
#include "ops/kernels.h"

namespace polyspan {

struct GradientShape {
  int64_t n_tokens = 0, n_heads = 0, n_kv_heads = 0, head_dim = 0;
};

struct SpanGradientArgs {
  const float* q = nullptr;              // [n_tokens, n_heads, head_dim], scaled by 1 / sqrt(head_dim)
  const AttentionSpan* spans = nullptr;  // [n_heads]
  const float* out = nullptr;            // of forward()
  const float* log_sum = nullptr;
  const float* d_out = nullptr;                       // [n_tokens, n_heads, head_dim]
  float *dq = nullptr, *dk = nullptr, *dv = nullptr;  // as q, k, v; written. All null: no gradients wanted
  std::span<const int64_t> candidates = {};           // ascending spans
  // [n_heads, candidates.size()], added to: sums over rows of e_i, of |e_i|, of e_i^2, and over rows and removed keys of
  // |E_ij|.
  double *span = nullptr, *span_abs = nullptr, *span_square = nullptr, *pairwise = nullptr;
};

// Results do not depend, to the bit, on the number of threads.
class SpanGradient {
 public:
  // Throws Error (kOutOfMemory). REQUIRES: n_heads % n_kv_heads == 0.
  explicit SpanGradient(const GradientShape& shape);
  static int64_t bytes_needed(const GradientShape& shape);

  // k, v [n_tokens, n_kv_heads, head_dim], keys after RoPE: what the calls below attend to. At the level avx512bf16 values
  // are rounded to bfloat16, as a cache would hold them: where next to nothing of a row is left (1 - m), dA - D is of use
  // only if both are of the same values.
  void set_keys(const float* k, const float* v, OpContext& context);
  // out [n_tokens, n_heads, head_dim]; log_sum [n_tokens, n_heads]: log of the sum of exp(score) over what a head sees.
  void forward(const float* q, const AttentionSpan* spans, float* out, float* log_sum, OpContext& context);
  void backward(const SpanGradientArgs& args, OpContext& context);

 private:
  float* part(int64_t kv_head, int64_t part, bool values) const;  // [n_padded, d]: one item's share of dk or dv

  GradientShape shape_;
  int64_t n_rep_, d_, n_padded_, n_parts_;
  HugeBuffer memory_;
  float *keys_, *keys_t_, *values_, *values_t_;  // [n_kv_heads][n_padded * d]
  float* parts_;                                 // [n_kv_heads][n_parts][2][n_padded * d]
};

// Plain loops in double with whole [n_tokens] rows: the oracle. k, v as in set_keys.
void span_gradient_reference(const GradientShape& shape, const float* k, const float* v, const SpanGradientArgs& args);

}  // namespace polyspan
