#include "ops/span_attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/error.h"

namespace polyspan {
namespace {

// Queries of one prefill item: about 96 rows, so that turning a tile of keys into floats costs little.
int64_t queries_per_item(int64_t n_rep) { return std::max<int64_t>(8, 96 / n_rep); }

}  // namespace

// Cuts the runs into pieces of kDecodePieceSlots keys: the same pieces whatever the thread count.
void SpanAttention::add_decode_items(const SpanAttentionArgs& args, int64_t sequence, int64_t kv_head) {
  const AttentionHead& head = args.sequences[static_cast<size_t>(sequence)].heads[kv_head];
  Item item{sequence, kv_head, 0, 0, {}, 0, 0};
  int64_t room = kDecodePieceSlots;
  const auto flush = [&] {
    if (item.n_runs == 0) return;
    items_.push_back(item);
    item.n_runs = 0;
    room = kDecodePieceSlots;
  };
  for (int64_t i = 0; i < head.n_runs; ++i) {
    KvRun run = head.runs[static_cast<size_t>(i)];
    while (run.n_keys > 0) {
      KvRun part = run;
      part.n_keys = std::min(run.n_keys, room);
      item.runs[static_cast<size_t>(item.n_runs++)] = part;
      room -= part.n_keys;
      run.first_slot += part.n_keys;
      run.first_position += part.n_keys;
      run.n_keys -= part.n_keys;
      if (room == 0) flush();
    }
  }
  flush();
}

// out = sum of the pieces, each weighed by exp(its max - the largest max); in order.
void SpanAttention::combine(const SpanAttentionArgs& args, int64_t sequence, int64_t kv_head, int64_t first_partial,
                            int64_t n_partials) {
  const int64_t n_rep = args.n_heads / args.n_kv_heads, d_padded = kv_head_dim_padded(args.head_dim);
  const int64_t row = args.sequences[static_cast<size_t>(sequence)].first_row;
  for (int64_t r = 0; r < n_rep; ++r) {
    float* out = args.out + (row * args.n_heads + kv_head * n_rep + r) * args.head_dim;
    float largest = -std::numeric_limits<float>::infinity();
    for (int64_t p = 0; p < n_partials; ++p)
      largest = std::max(largest, partial_max_[static_cast<size_t>((first_partial + p) * n_rep + r)]);
    float total = 0;
    std::fill_n(out, args.head_dim, 0.0f);
    for (int64_t p = 0; p < n_partials; ++p) {
      const size_t at = static_cast<size_t>((first_partial + p) * n_rep + r);
      const float weight = std::exp(partial_max_[at] - largest);
      if (!(weight > 0)) continue;  // nothing visible in this piece
      total += weight * partial_sum_[at];
      const float* part = partial_out_.data() + at * static_cast<size_t>(d_padded);
      for (int64_t i = 0; i < args.head_dim; ++i) out[i] += weight * part[i];
    }
    const float inverse = 1.0f / total;
    for (int64_t i = 0; i < args.head_dim; ++i) out[i] *= inverse;
  }
}

void SpanAttention::run(const SpanAttentionArgs& args, OpContext& context) {
  POLYSPAN_CHECK(args.n_heads % args.n_kv_heads == 0 && args.head_dim >= 1 && args.head_dim <= 512);
  const int64_t n_rep = args.n_heads / args.n_kv_heads, d_padded = kv_head_dim_padded(args.head_dim);
  const int64_t n_sequences = static_cast<int64_t>(args.sequences.size());
  int64_t n_tokens = 0;
  for (const AttentionSequence& sequence : args.sequences)
    n_tokens = std::max(n_tokens, sequence.first_row + sequence.n_rows);
  const bool padded = d_padded != args.head_dim;
  const float* q = args.q;
  if (padded) {
    padded_q_.assign(static_cast<size_t>(n_tokens * args.n_heads * d_padded), 0.0f);
    for (int64_t i = 0; i < n_tokens * args.n_heads; ++i)
      std::memcpy(&padded_q_[static_cast<size_t>(i * d_padded)], args.q + i * args.head_dim,
                  sizeof(float) * static_cast<size_t>(args.head_dim));
    padded_out_.resize(padded_q_.size());
    q = padded_q_.data();
  }
  float* out = padded ? padded_out_.data() : args.out;

  items_.clear();
  first_partial_.clear();
  const int64_t per_item = queries_per_item(n_rep);
  bool any_prefill = false;
  for (int64_t s = 0; s < n_sequences; ++s) {  // decode pieces first: their partial results are counted by item
    if (args.sequences[static_cast<size_t>(s)].n_rows != 1) continue;
    for (int64_t kv_head = 0; kv_head < args.n_kv_heads; ++kv_head) {
      first_partial_.push_back(static_cast<int64_t>(items_.size()));
      add_decode_items(args, s, kv_head);
    }
  }
  const int64_t n_partials = static_cast<int64_t>(items_.size());
  first_partial_.push_back(n_partials);
  for (int64_t i = 0; i < n_partials; ++i) items_[static_cast<size_t>(i)].partial = i;
  for (int64_t s = 0; s < n_sequences; ++s) {
    const int64_t n_rows = args.sequences[static_cast<size_t>(s)].n_rows;
    if (n_rows <= 1) continue;
    any_prefill = true;
    // Late queries see more keys: long items first.
    for (int64_t block = (n_rows + per_item - 1) / per_item - 1; block >= 0; --block)
      for (int64_t kv_head = 0; kv_head < args.n_kv_heads; ++kv_head)
        items_.push_back({s, kv_head, block * per_item, std::min(per_item, n_rows - block * per_item), {}, 0, -1});
  }
  partial_out_.resize(static_cast<size_t>(n_partials * n_rep * d_padded));
  partial_max_.resize(static_cast<size_t>(n_partials * n_rep));
  partial_sum_.resize(static_cast<size_t>(n_partials * n_rep));
  context.reserve_scratch(static_cast<int64_t>(sizeof(float)) *
                          std::max(decode_scratch_floats(std::min<int64_t>(n_rep, 8)),
                                   any_prefill ? prefill_scratch_floats(per_item * n_rep, d_padded) : 0));

  context.team().each(static_cast<int64_t>(items_.size()), [&](int64_t index, int thread) {
    const Item& item = items_[static_cast<size_t>(index)];
    const AttentionSequence& sequence = args.sequences[static_cast<size_t>(item.sequence)];
    const AttentionHead& head = sequence.heads[item.kv_head];
    const int64_t at = ((sequence.first_row + item.first_query) * args.n_heads + item.kv_head * n_rep) * d_padded;
    float* scratch = reinterpret_cast<float*>(context.scratch(thread));
    if (item.partial >= 0) {
      const size_t p = static_cast<size_t>(item.partial * n_rep);
      kernels().decode_attention({args.type, d_padded, n_rep, q + at, head.spans, sequence.first_position,
                                  item.runs.data(), item.n_runs,
                                  partial_out_.data() + p * static_cast<size_t>(d_padded), partial_max_.data() + p,
                                  partial_sum_.data() + p, scratch});
    } else {
      kernels().prefill_attention({args.type, d_padded, n_rep, item.n_queries,
                                   sequence.first_position + item.first_query, q + at, args.n_heads * d_padded,
                                   head.spans, head.runs.data(), head.n_runs, out + at, args.n_heads * d_padded,
                                   scratch});
    }
  });

  if (padded && any_prefill)
    for (const AttentionSequence& sequence : args.sequences) {
      if (sequence.n_rows <= 1) continue;
      for (int64_t i = sequence.first_row * args.n_heads; i < (sequence.first_row + sequence.n_rows) * args.n_heads;
           ++i)
        std::memcpy(args.out + i * args.head_dim, &padded_out_[static_cast<size_t>(i * d_padded)],
                    sizeof(float) * static_cast<size_t>(args.head_dim));
    }
  size_t group = 0;
  for (int64_t s = 0; s < n_sequences; ++s) {
    if (args.sequences[static_cast<size_t>(s)].n_rows != 1) continue;
    for (int64_t kv_head = 0; kv_head < args.n_kv_heads; ++kv_head, ++group)
      combine(args, s, kv_head, first_partial_[group], first_partial_[group + 1] - first_partial_[group]);
  }
}

}  // namespace polyspan
