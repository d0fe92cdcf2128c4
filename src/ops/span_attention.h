// ops/span_attention.h: causal attention in which every head has its own span (MoA, arXiv 2406.14909), over KV storages
// that may keep only a part of the past (a sink and a ring). Reads the keys that a span includes and no others.
//
// The query at position p of a head with (span, n_sink_tokens) sees key j <= p when j < n_sink_tokens or p - j < span.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "ops/context.h"
#include "ops/kernels.h"

namespace polyspan {

// What one KV head of one sequence offers and what its query heads may see of it.
struct AttentionHead {
  static constexpr int kMaxRuns = 4;  // sink, two parts of a ring, the chunk itself
  std::array<KvRun, kMaxRuns> runs;   // together: every key that a query of this call may see, each once
  int64_t n_runs = 0;
  const AttentionSpan* spans = nullptr;  // [n_heads / n_kv_heads]
};

struct AttentionSequence {
  int64_t first_row = 0;  // its queries are rows [first_row, first_row + n_rows) of q and out
  int64_t n_rows = 0;
  int64_t first_position = 0;            // of row first_row; the following rows are at the following positions
  const AttentionHead* heads = nullptr;  // [n_kv_heads]
};

struct SpanAttentionArgs {
  KvType type = KvType::kF16;
  int64_t n_heads = 0, n_kv_heads = 0, head_dim = 0;
  const float* q = nullptr;  // [n_tokens, n_heads, head_dim], already scaled by 1 / sqrt(head_dim)
  float* out = nullptr;      // [n_tokens, n_heads, head_dim]
  std::span<const AttentionSequence> sequences;
};

// Keeps its working memory from call to call. A sequence's result does not depend, to the bit, on the other sequences or
// on the number of threads.
class SpanAttention {
 public:
  // REQUIRES: n_heads % n_kv_heads == 0; head_dim <= 512; out overlaps no input.
  void run(const SpanAttentionArgs& args, OpContext& context);

 private:
  struct Item {
    int64_t sequence, kv_head;
    int64_t first_query, n_queries;                   // prefill
    std::array<KvRun, AttentionHead::kMaxRuns> runs;  // decode: this piece
    int64_t n_runs;
    int64_t partial;  // decode: index of the piece's partial result
  };
  void add_decode_items(const SpanAttentionArgs& args, int64_t sequence, int64_t kv_head);
  void combine(const SpanAttentionArgs& args, int64_t sequence, int64_t kv_head, int64_t first_partial,
               int64_t n_partials);

  std::vector<Item> items_;
  std::vector<int64_t> first_partial_;  // of (sequence, kv_head)
  std::vector<float> partial_out_, partial_max_, partial_sum_;
  std::vector<float> padded_q_, padded_out_;
};

// Plain loops in double over whole keys and values, for one sequence: k, v [n_keys, n_kv_heads, head_dim] with k[0] at
// position 0; spans [n_heads]; q, out [n_queries, n_heads, head_dim], q not scaled.
struct SpanAttentionReferenceArgs {
  int64_t n_heads, n_kv_heads, head_dim, n_queries, first_position;
  const float *q, *k, *v;
  const AttentionSpan* spans;
};
void span_attention_reference(const SpanAttentionReferenceArgs& args, float* out);

}  // namespace polyspan
