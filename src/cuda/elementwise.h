// cuda/elementwise.h: the row operations of a transformer. Bound by reading and writing their rows; most of their time is
// the launch.
#pragma once

#include <cstdint>

#include "cuda/decode_attention.h"
#include "cuda/weights.h"

namespace polyspan::cuda {

// out [n_tokens, d_model] = rows `tokens` of the table [vocab_size, d_model].
void embed(const DeviceMatrix& table, const int32_t* tokens, int64_t n_tokens, float* out, const Stream& stream);

// out [n_rows, d] = x * weight / sqrt(mean(x^2) + eps) of row rows[i] (row i where `rows` is null).
void rmsnorm(const float* x, const int32_t* rows, const float* weight, int64_t n_rows, int64_t d, float eps,
             ActivationType out_type, void* out, const Stream& stream);
// REQUIRES: d % 32 == 0.
void rmsnorm(const float* x, const int32_t* rows, const float* weight, int64_t n_rows, int64_t d, float eps,
             const QuantizedRows& out, const Stream& stream);

// out [n_tokens, d_ff] = silu(gate) * up; gate_up [n_tokens, 2 * d_ff] of F32, F16 or BF16, gate first. Infinite F16 counts as
// the largest finite one.
void swiglu(DType type, const void* gate_up, int64_t n_tokens, int64_t d_ff, ActivationType out_type, void* out,
            const Stream& stream);
// REQUIRES: d_ff % 32 == 0.
void swiglu(const float* gate_up, int64_t n_tokens, int64_t d_ff, const QuantizedRows& out, const Stream& stream);

// REQUIRES: d_in % 32 == 0.
void quantize(const float* x, int64_t n_tokens, int64_t d_in, const QuantizedRows& out, const Stream& stream);
void convert(const float* x, int64_t n, ActivationType out_type, void* out, const Stream& stream);

// Cosines and sines [n_tokens, n_pairs] of first_position + t, or of positions[t] where `positions` is not null;
// frequencies [n_pairs] in radians a token. Computed in double.
struct RopeTurn {
  float cosine, sine;
};
void rope_table(const double* frequencies, int64_t n_pairs, const int32_t* positions, int64_t first_position,
                int64_t n_tokens, RopeTurn* table, const Stream& stream);

struct AppendArgs {
  KvType type = KvType::kF16;
  int64_t n_tokens = 0, n_heads = 0, n_kv_heads = 0, head_dim = 0;
  const float* qkv = nullptr;      // [n_tokens, (n_heads + 2 * n_kv_heads) * head_dim]
  const float* bias = nullptr;     // of a row of qkv, or null
  const RopeTurn* rope = nullptr;  // [n_tokens, n_pairs]
  int64_t n_pairs = 0;             // rotated pairs of a head
  bool interleaved = true;         // pairs (2i, 2i + 1), else (i, i + n_pairs)
  // Each token another sequence: heads [n_tokens, n_kv_heads], written at the slot of positions[t]. One sequence's chunk
  // (`positions` null): heads [n_kv_heads], token t written into slot t.
  const KvHeadView* heads = nullptr;
  const int32_t* positions = nullptr;
  float* q = nullptr;  // [n_tokens, n_heads, head_dim]
};
// Adds the bias, rotates queries and keys (RoPE, arXiv 2104.09864), writes keys and values into the caches.
void append(const AppendArgs& args, const Stream& stream);

// Copies from a chunk (slot t: position first_position + t) what the ring keeps of it after n_tokens.
void keep_chunk(KvType type, int64_t n_kv_heads, int64_t head_dim, const KvHeadView* chunk, const KvHeadView* heads,
                int64_t first_position, int64_t n_tokens, const Stream& stream);

// Uniform values of mean 0 and the given deviation, as `type` (F32, F16 or BF16).
void fill_random(DType type, void* out, int64_t n, float deviation, uint64_t seed, const Stream& stream);

}  // namespace polyspan::cuda
