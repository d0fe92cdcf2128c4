// ops/kernels.h: the table of kernels that each instruction level provides. Plain data: included by *.isa.cpp.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "ops/kv_storage.h"
#include "ops/packed_layout.h"

namespace polyspan {

enum class Epilogue {
  kStore,   // out = W x + bias
  kAdd,     // out += W x + bias
  kSwiglu,  // out[0] = silu(W0 x) * (W1 x)
};

// One or two tiles of 16 rows times all tokens.
struct MatmulTilesArgs {
  DType type;
  int64_t d_in;
  int64_t n_tiles;  // 1 or 2 (2 for kSwiglu)
  const std::byte* tiles[2];
  int64_t n_rows[2];         // valid rows of each tile, 1..16
  const float* bias[2];      // [n_rows] or null
  const ActBlock* x_blocks;  // [n_tokens, d_in / 32]: quantised types
  const float* x;            // [n_tokens, d_in]: float types
  int64_t n_tokens;
  float* out[2];          // first row of the tile in the output of token 0
  int64_t out_stride[2];  // floats from token to token
  Epilogue epilogue;
  std::byte* scratch;  // matmul_scratch_bytes(d_in), aligned to 64
};

// A run of keys with consecutive positions in consecutive slots of one KV head's storage.
struct KvRun {
  const std::byte* storage;  // of that KV head, see ops/kv_storage.h
  int64_t capacity;          // slots of that storage (multiple of 16)
  int64_t first_slot;
  int64_t first_position;
  int64_t n_keys;
};

struct AttentionSpan {
  int64_t span;  // keys that the head sees, the query's own included
  int64_t n_sink_tokens;
};

// Decode: one query position, the query heads of one KV head, keys of one piece of the work.
struct DecodeAttentionArgs {
  KvType type;
  int64_t head_dim_padded;
  int64_t n_rep;               // query heads of this KV head
  const float* q;              // [n_rep, head_dim_padded], scaled
  const AttentionSpan* spans;  // [n_rep]
  int64_t position;
  const KvRun* runs;
  int64_t n_runs;
  float* out;      // [n_rep, head_dim_padded]: sum of exp(s - max) V
  float* max;      // [n_rep]: -inf where no key was visible
  float* sum;      // [n_rep]
  float* scratch;  // decode_scratch_floats()
};

// Prefill: rows = (query, head of the group) of one KV head; queries have consecutive positions.
struct PrefillAttentionArgs {
  KvType type;
  int64_t head_dim_padded;
  int64_t n_rep;
  int64_t n_queries;
  int64_t first_position;  // of query 0
  const float* q;          // query i, head r of the group: q + i * q_stride + r * head_dim_padded; scaled
  int64_t q_stride;
  const AttentionSpan* spans;  // [n_rep]
  const KvRun* runs;           // every run that any row may see
  int64_t n_runs;
  float* out;  // same addressing as q with out_stride, rows of head_dim_padded
  int64_t out_stride;
  float* scratch;  // prefill_scratch_floats()
};

// Whole-sequence attention on floats, for the profile (ops/span_gradient.h): rows = (query, head of the group) of one KV
// head; queries have consecutive positions, keys the positions from 0 on. Head rows are padded to head_dim_padded with zeros.
struct WholeAttentionArgs {
  int64_t head_dim_padded;
  int64_t n_rep;
  int64_t n_queries;
  int64_t first_position;      // of query 0
  const float* q;              // [n_queries * n_rep, head_dim_padded], scaled; padded to kPrefillRowBlock rows
  const AttentionSpan* spans;  // [n_rep]
  const float* keys_t;         // [n_tiles][head_dim_padded][64]
  const float* values;         // [n_tiles * 64][head_dim_padded]
  float* out;                  // as q
  float* log_sum;  // [n_queries * n_rep], padded likewise: log of the sum of exp(score) over the visible keys
  float* scratch;  // whole_attention_scratch_floats()
};

// The share of a row's weight that is left when keys are removed is not taken as less: its inverse would overwhelm all else.
inline constexpr float kLeastKeptShare = 1e-4f;

// Its gradients, and what the keys were worth. Sums are added to what is there.
struct AttentionGradientArgs {
  WholeAttentionArgs forward;  // out is read, scratch larger: attention_gradient_scratch_floats()
  const float* d_out;          // as q
  const float* keys;           // [n_tiles * 64][head_dim_padded]
  const float* values_t;       // [n_tiles][head_dim_padded][64]
  float* dq;                   // as q, written; null: no gradients, the sums only
  float* dk;                   // [n_tiles * 64][head_dim_padded]
  float* dv;
  const int64_t* candidates;  // [n_candidates] spans, ascending
  int64_t n_candidates;
  double* span;  // [n_rep, n_candidates]: model/span_profiler.h
  double* span_abs;
  double* span_square;
  double* pairwise;
};

// Rotary embedding of one token's heads, in place: pairs (i, i + half) or (2i, 2i + 1) of the first 2 * n_pairs values.
struct RopeRowArgs {
  float* x;  // [n_heads, head_dim]
  int64_t n_heads;
  int64_t head_dim;
  int64_t n_pairs;
  const float* cos;  // [n_pairs]
  const float* sin;
  bool interleaved;  // pairs (2i, 2i + 1)
  float scale;       // multiplies every value (rotated or not)
};

// The selective state-space recurrence of one head over consecutive tokens (hydra/scan.h has the equations):
//   S = decay_t S + dt_t x_t B_t^T, y_t = S C_t + D x_t.
// The state is kept transposed, so that 16 channels of a head fill a vector and no sum runs across lanes.
struct ScanArgs {
  int64_t n_tokens, head_dim, d_state;
  const float* x;  // token t: x + t * x_stride, [head_dim]
  int64_t x_stride;
  const float* B;  // token t: B + t * bc_stride, [d_state]
  const float* C;
  int64_t bc_stride;
  const float* decay;  // token t: decay[t * dt_stride]
  const float* dt;
  int64_t dt_stride;
  float D;
  float* y;  // token t: y + t * y_stride, [head_dim]
  int64_t y_stride;
  float* state;  // [d_state, head_dim], in and out
};

// out = silu(bias + sum_k weight[k] * rows[k]), elementwise: a depthwise causal convolution at one token.
struct ConvRowArgs {
  int64_t n_channels, d_conv;
  const float* const* rows;  // [d_conv], the oldest first
  const float* weight;       // [d_conv, n_channels]
  const float* bias;
  float* out;
};

// Attention of one query over float keys in up to two runs, with a bias on the logits of a run.
struct AttendRun {
  const float* keys;    // [n_keys, head_dim]
  const float* values;  // [n_keys, value_dim]
  const float* bias;    // [n_keys] or null; -inf: the key is not seen
  int64_t n_keys;
};
struct AttendRowArgs {
  int64_t head_dim, value_dim;
  const float* q;  // [head_dim], scaled
  const AttendRun* runs;
  int64_t n_runs;  // at least one key is seen
  float* out;      // [value_dim]
  float* scratch;  // as many floats as keys
};

inline constexpr int64_t kDecodePieceSlots = 512;  // keys of one piece of a decode attention
inline constexpr int64_t kDecodeScratchSlots =
    kDecodePieceSlots + 2 * 16 * 4;  // each run may start and end inside a tile
constexpr int64_t decode_scratch_floats(int64_t n_rep) { return n_rep * kDecodeScratchSlots; }
inline constexpr int64_t kPrefillRowBlock = 6, kPrefillKeyTile = 64;
constexpr int64_t prefill_scratch_floats(int64_t n_rows, int64_t head_dim_padded) {
  const int64_t rows = (n_rows + kPrefillRowBlock - 1) / kPrefillRowBlock * kPrefillRowBlock;
  return rows * (2 * head_dim_padded + 2) + 2 * kPrefillKeyTile * head_dim_padded + kPrefillRowBlock * kPrefillKeyTile +
         64;
}

constexpr int64_t whole_attention_scratch_floats(int64_t n_rows) {
  return 2 * round_up_to(n_rows, kPrefillRowBlock) + kPrefillRowBlock * kPrefillKeyTile;
}
// As many as the level that needs most: the one of bf16 pairs.
constexpr int64_t attention_gradient_scratch_floats(int64_t n_rows, int64_t head_dim_padded, int64_t n_candidates) {
  return round_up_to(n_rows, kPrefillRowBlock) *
             (1 + 2 * kPrefillKeyTile + 3 * head_dim_padded / 2 + 5 * (n_candidates + 1)) +
         4 * kPrefillRowBlock * kPrefillKeyTile + kPrefillKeyTile * head_dim_padded;
}

struct Kernels {
  void (*quantize_activations)(const float* x, int64_t n, ActBlock* out);  // n % 32 == 0
  void (*matmul_tiles)(const MatmulTilesArgs& args);
  void (*rmsnorm_row)(const float* x, const float* weight, int64_t n, float eps, float* out);
  void (*swiglu_row)(const float* gate, const float* up, int64_t n, float* out);
  // Of rmsnorm_row: d_x += its gradient. Of swiglu_row: written; d_gate and d_up may be gate and up.
  void (*rmsnorm_gradient_row)(const float* x, const float* weight, const float* d_y, int64_t n, float eps, float* d_x);
  void (*swiglu_gradient_row)(const float* gate, const float* up, const float* d_y, int64_t n, float* d_gate,
                              float* d_up);
  // Floats as f16 (what is beyond its largest, 65,504, becomes that) and back. out[i] of x[i].
  void (*to_f16_row)(const float* x, int64_t n, uint16_t* out);
  void (*from_f16_row)(const uint16_t* x, int64_t n, float* out);
  void (*rope_row)(const RopeRowArgs& args);
  void (*add_row)(const float* x, int64_t n, float* out);  // out += x
  // Writes one key and one value row [head_dim] (rest of the padding is 0) into a slot.
  void (*write_kv_slot)(KvType type, const float* k, const float* v, int64_t head_dim, int64_t head_dim_padded,
                        int64_t capacity, int64_t slot, std::byte* storage);
  void (*decode_attention)(const DecodeAttentionArgs& args);
  void (*prefill_attention)(const PrefillAttentionArgs& args);
  void (*whole_attention)(const WholeAttentionArgs& args);
  void (*attention_gradient)(const AttentionGradientArgs& args);
  void (*scan_head)(const ScanArgs& args);
  void (*conv_silu_row)(const ConvRowArgs& args);
  void (*attend_row)(const AttendRowArgs& args);
  void (*add_scaled_row)(const float* x, float scale, int64_t n, float* out);  // out += scale * x
  float (*max_value)(const float* x, int64_t n);
  // sum of exp(x - max): for log-softmax. In double per lane group.
  double (*sum_exp)(const float* x, int64_t n, float max);
};

const Kernels& kernels();  // of the selected level
int64_t matmul_scratch_bytes(int64_t d_in);

}  // namespace polyspan
