// cuda/span_gradient.h: ops/span_gradient.h on a GPU: span attention over a whole sequence of floats, its gradients, and
// what the keys beyond every candidate span were worth to the loss (MoA, arXiv 2406.14909, section 4.2).
//
// Queries in chunks whose scores against all earlier keys fit kMostScoreBytes: products by cuBLAS in f32, one warp a row
// between them. The query heads of a KV head are further rows of its products: dk and dv add them up by themselves.
// "Head rows": [n_kv_heads][n_tokens * n_rep][head_dim], row t * n_rep + r is query head kv_head * n_rep + r of token t.
// Products: 4 * head_dim operations a (row, key) pair forward, 10 * head_dim backward, half of the pairs (causal).
#pragma once

#include <cstdint>

#include "cuda/blas.h"
#include "cuda/runtime.h"
#include "ops/span_gradient.h"

namespace polyspan::cuda {

struct HeadSpan {
  int32_t span, n_sink;
};

struct SpanGradientInputs {
  const float* q = nullptr;                // head rows, after RoPE, scaled by 1 / sqrt(head_dim)
  const float *k = nullptr, *v = nullptr;  // [n_kv_heads][n_tokens][head_dim]
  const HeadSpan* spans = nullptr;         // [n_heads]
};

struct SpanGradientOutputs {
  const float* d_out = nullptr;                       // head rows
  float *dq = nullptr, *dk = nullptr, *dv = nullptr;  // as q, k, v; written. All null: no gradients wanted
  const int32_t* candidates = nullptr;                // [n_candidates], ascending, >= 1
  int64_t n_candidates = 0;                           // <= kMostCandidates
  // [n_heads][n_candidates], added to: sums over rows of e_i, of |e_i|, of e_i^2, and over rows and removed keys of |E_ij|.
  double *span = nullptr, *span_abs = nullptr, *span_square = nullptr, *pairwise = nullptr;
};

// All pointers are to GPU memory. Results repeat to the bit.
class CudaSpanGradient {
 public:
  static constexpr int64_t kMostCandidates = 64;
  static constexpr int64_t kMostScoreBytes = 512 << 20;  // of each of two buffers, unless 16 queries need more

  // `memory`: bytes_needed(shape), aligned to 256 bytes. All must outlive it.
  CudaSpanGradient(const GradientShape& shape, std::byte* memory, const Blas& blas, const Stream& stream);
  static int64_t bytes_needed(const GradientShape& shape);

  void forward(const SpanGradientInputs& in, float* out) const;  // out: head rows
  void backward(const SpanGradientInputs& in, const SpanGradientOutputs& out) const;

 private:
  struct Chunk {
    int64_t first_query, n_queries, n_keys;  // keys [0, n_keys): those up to the last query
  };
  static int64_t queries_per_chunk(const GradientShape& shape);
  // scores = rows of `queries` times the keys or values, of a chunk.
  void multiply_keys(const Chunk& chunk, const float* queries, const float* keys, float* scores) const;
  // out of the chunk's rows = weights times keys or values.
  void combine(const Chunk& chunk, const float* weights, const float* keys, float* out) const;
  // out [n_kv_heads][n_keys][head_dim] = or += the transposed weights times the chunk's rows.
  void collect(const Chunk& chunk, const float* weights, const float* rows, float* out, bool add) const;

  GradientShape shape_;
  int64_t n_rep_, per_chunk_, stride_;  // of scores: [n_kv_heads][per_chunk * n_rep][stride]
  const Blas& blas_;
  const Stream& stream_;
  float *scores_, *d_weights_, *effects_;
};

}  // namespace polyspan::cuda
