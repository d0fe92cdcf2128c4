// cuda/gradient.h: the row operations of a profile on a GPU: heads apart and together, gradients of norm and SwiGLU, the
// loss. Bound by reading and writing their rows.
#pragma once

#include <cstdint>

#include "cuda/elementwise.h"
#include "model/span_profiler.h"

namespace polyspan::cuda {

// Of a whole sequence. "Head rows" of queries (cuda/span_gradient.h): [n_kv_heads][n_tokens * n_rep][head_dim], row
// t * n_rep + r; keys and values: [n_kv_heads][n_tokens][head_dim].
struct HeadRows {
  int64_t n_tokens = 0, n_heads = 0, n_kv_heads = 0, head_dim = 0;
  const RopeTurn* rope = nullptr;  // [n_tokens, n_pairs]
  int64_t n_pairs = 0;             // rotated pairs of a head
  bool interleaved = true;         // pairs (2i, 2i + 1), else (i, i + n_pairs)
  float q_scale = 1.0f;            // 1 / sqrt(head_dim)
  float *q = nullptr, *k = nullptr, *v = nullptr;
};
// q, k, v of qkv [n_tokens, (n_heads + 2 * n_kv_heads) * head_dim] and the bias of such a row (or null): rotated, queries
// scaled.
void split_heads(const HeadRows& heads, const float* qkv, const float* bias, const Stream& stream);
// Its transpose: q, k, v as gradients -> d_qkv.
void join_gradients(const HeadRows& heads, float* d_qkv, const Stream& stream);

// Between [n_tokens, n_heads, head_dim] and head rows.
void to_head_rows(int64_t n_tokens, int64_t n_heads, int64_t n_kv_heads, int64_t head_dim, const float* x, float* out,
                  const Stream& stream);
void from_head_rows(int64_t n_tokens, int64_t n_heads, int64_t n_kv_heads, int64_t head_dim, const float* x, float* out,
                    const Stream& stream);

// d_x += the gradient of rmsnorm; row i of d_y belongs to row rows[i] of x and d_x (row i where `rows` is null; no row
// twice).
void rmsnorm_gradient(const float* x, const int32_t* rows, const float* weight, const float* d_y, int64_t n_rows,
                      int64_t d, float eps, float* d_x, const Stream& stream);
// gate_up [n_tokens, 2 * d_ff], gate first -> their gradients in place, d_y [n_tokens, d_ff] that of silu(gate) * up.
void swiglu_gradient(float* gate_up, const float* d_y, int64_t n_tokens, int64_t d_ff, const Stream& stream);

// score_target() of each row of logits [n_rows, vocab_size]; the share of the other tokens is summed by itself.
void score_targets(const float* logits, const int32_t* targets, int64_t n_rows, int64_t vocab_size, TargetScore* scores,
                   const Stream& stream);
// logits [n_rows, vocab_size] -> the gradient of share * loss in place.
void loss_gradient(ProfileLoss loss, float share, const int32_t* targets, int64_t n_rows, int64_t vocab_size,
                   float* logits, const Stream& stream);

}  // namespace polyspan::cuda
