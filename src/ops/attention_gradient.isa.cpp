// ops/attention_gradient.isa.cpp: whole-sequence attention on floats, its gradients, and the running sums from which
// the loss of every candidate span is read (MoA, arXiv 2406.14909, section 4.2; docs/compress.md).
//
// Backward after FlashAttention (arXiv 2205.14135, algorithm 4) in tiles of 64 keys. With A the softmax, dA_ij = dO_i .
// V_j and D_i = dO_i . O_i, the weights w_ij = A_ij (dA_ij - D_i) are the gradient of the scores; for each row and each
// bucket of distances between two candidate spans the sums of A, w and |w| / (1 - A) are kept. Bound by multiply-adds:
// 10 * head_dim operations a visible (row, key) pair, 4 * head_dim one that is only asked about. Scores, softmax and sums are
// floats at every level; the other four products are of GradientNumber.
#include "ops/block_multiply.isa.h"
#include "ops/gradient_number.isa.h"
#include "ops/isa_tables.h"
#include "ops/kv_tile.isa.h"
#include "ops/softmax_row.isa.h"

namespace polyspan::POLYSPAN_ISA {
namespace {

constexpr int kRows = kPrefillRowBlock;
constexpr int64_t kKeys = kPrefillKeyTile;
constexpr int kParts = kKeys / kLanes;
constexpr float kLeastKept = kLeastKeptShare;
constexpr float kLargestAdded = 20.0f;  // log of an added key's weight against all that is seen

struct SpanRange {
  int64_t longest, shortest, most_sink, least_sink;
  explicit SpanRange(const WholeAttentionArgs& args)
      : longest(args.spans[0].span), shortest(longest), most_sink(args.spans[0].n_sink_tokens), least_sink(most_sink) {
    for (int64_t r = 1; r < args.n_rep; ++r) {
      const AttentionSpan& s = args.spans[r];
      longest = s.span > longest ? s.span : longest;
      shortest = s.span < shortest ? s.span : shortest;
      most_sink = s.n_sink_tokens > most_sink ? s.n_sink_tokens : most_sink;
      least_sink = s.n_sink_tokens < least_sink ? s.n_sink_tokens : least_sink;
    }
  }
};

int64_t n_padded_rows(const WholeAttentionArgs& args) { return round_up_to(args.n_queries * args.n_rep, kRows); }

// The positions of a block of kRows rows; rows past the end repeat the last query.
struct RowBlock {
  int64_t first_position, last_position;
  RowBlock(const WholeAttentionArgs& args, int64_t row) {
    const int64_t n_rows = args.n_queries * args.n_rep;
    const int64_t last = row + kRows - 1 < n_rows ? row + kRows - 1 : n_rows - 1;
    first_position = args.first_position + row / args.n_rep;
    last_position = args.first_position + last / args.n_rep;
  }
};

// Sums over the lanes [begin, end) of 64.
POLYSPAN_INLINE float sum_lanes(const F32x16 (&values)[kParts], int64_t begin, int64_t end) {
  F32x16 total = zero_f32();
  for (int part = 0; part < kParts; ++part)
    total = total + keep_lanes(values[part], begin - 16 * part, end - 16 * part, 0.0f);
  return reduce_add(total);
}

// The sums of one row: five rows of n_candidates + 1 buckets; bucket b holds the distances from candidate b - 1 (0 for
// the first) up to, but not including, candidate b. The sink's keys are in none.
struct RowSums {
  float *seen_a, *seen_w, *seen_pairs, *unseen_a, *unseen_w;
  RowSums(float* sums, int64_t row, int64_t n_buckets)
      : seen_a(sums + row * 5 * n_buckets),
        seen_w(seen_a + n_buckets),
        seen_pairs(seen_w + n_buckets),
        unseen_a(seen_pairs + n_buckets),
        unseen_w(unseen_a + n_buckets) {}
};

// Rows and, at a level of pairs, what is paired of them.
struct Scratch {
  float* d;                                     // [rows]: D_i = dO_i . O_i
  float* sums;                                  // [rows][5][n_candidates + 1]
  float *p, *ds, *d_a;                          // [kRows][64]
  GradientNumber* all_p;                        // [rows / kPerNumber][64]: rows paired
  GradientNumber* all_ds;                       // likewise
  GradientNumber *q, *d_out, *keys, *values_t;  // rows paired
  GradientNumber *d_out_rows, *ds_rows;         // neighbours paired

  Scratch(float* memory, int64_t n_rows, int64_t head_dim, int64_t n_buckets) {
    const auto take = [&](int64_t n) {
      float* const at = memory;
      memory += n;
      return at;
    };
    const auto take_numbers = [&](int64_t n) { return reinterpret_cast<GradientNumber*>(take(n / kPerNumber)); };
    d = take(n_rows), d_a = take(kRows * kKeys);
    all_p = take_numbers(n_rows * kKeys), all_ds = take_numbers(n_rows * kKeys);
    if constexpr (kPerNumber > 1) {
      p = take(kRows * kKeys), ds = take(kRows * kKeys), ds_rows = take_numbers(kRows * kKeys);
      q = take_numbers(n_rows * head_dim), d_out = take_numbers(n_rows * head_dim);
      d_out_rows = take_numbers(n_rows * head_dim);
      keys = take_numbers(kKeys * head_dim), values_t = take_numbers(kKeys * head_dim);
    } else {
      p = ds = nullptr;
      q = d_out = keys = values_t = d_out_rows = ds_rows = nullptr;
    }
    sums = take(n_rows * 5 * n_buckets);
  }
};

// One row of a tile: p and ds of the seen keys, and the sums. scores and d_a: [64]; base: the position of lane 0.
POLYSPAN_INLINE void row_of_tile(const AttentionGradientArgs& args, const AttentionSpan& span, int64_t position,
                                 int64_t base, float log_sum, float d, const float* scores, const float* d_a, float* p,
                                 float* ds, const RowSums& sums) {
  const LaneVisibility visible(span, position, base, 0, kKeys);
  const int64_t causal_end = visible.end < 0 ? 0 : visible.end;
  const int64_t sink_end = span.n_sink_tokens - base;
  F32x16 a[kParts], w[kParts], pairs[kParts];
  for (int part = 0; part < kParts; ++part) {
    const int64_t lane = 16 * part;
    const F32x16 shifted = min(load(scores + lane) - broadcast(log_sum), broadcast(kLargestAdded));
    a[part] = keep_lanes(exp(shifted), -lane, causal_end - lane, 0.0f);
    w[part] = a[part] * (load(d_a + lane) - broadcast(d));
    pairs[part] = abs(w[part]) / max(broadcast(1.0f) - a[part], broadcast(kLeastKept));
    if (p != nullptr) {
      const F32x16 seen = visible.mask(broadcast(0.0f), lane);  // 0 or -infinity
      const F32x16 low = broadcast(-1.0f);
      store(p + lane, keep_above(a[part], seen, low));
      store(ds + lane, keep_above(w[part], seen, low));
    }
  }
  const int64_t first = sink_end > 0 ? sink_end : 0;  // lanes before are the sink's
  if (first >= causal_end) return;
  const int64_t nearest = position - base - (causal_end - 1), farthest = position - base - first;
  int64_t bucket = 0;
  while (bucket < args.n_candidates && args.candidates[bucket] <= nearest) ++bucket;
  const int64_t seen_begin = visible.window_begin > first ? visible.window_begin : first;
  for (;; ++bucket) {
    const bool last = bucket == args.n_candidates || args.candidates[bucket] > farthest;
    // Distances [candidates[bucket - 1], candidates[bucket]): lanes from the one of the longest distance on.
    int64_t begin = last ? first : position - base - args.candidates[bucket] + 1;
    int64_t end = bucket == 0 ? causal_end : position - base - args.candidates[bucket - 1] + 1;
    begin = begin < first ? first : begin;
    end = end > causal_end ? causal_end : end;
    const int64_t seen_from = begin > seen_begin ? begin : seen_begin;
    if (seen_from < end) {
      sums.seen_a[bucket] += sum_lanes(a, seen_from, end);
      sums.seen_w[bucket] += sum_lanes(w, seen_from, end);
      sums.seen_pairs[bucket] += sum_lanes(pairs, seen_from, end);
    }
    const int64_t unseen_end = end < seen_begin ? end : seen_begin;
    if (begin < unseen_end) {
      sums.unseen_a[bucket] += sum_lanes(a, begin, unseen_end);
      sums.unseen_w[bucket] += sum_lanes(w, begin, unseen_end);
    }
    if (last) return;
  }
}

// e_i(S) = (m_i D_i - g_i) / (1 - m_i) of the keys that a shorter span removes, (g_i - m_i D_i) / (1 + m_i) of those
// that a longer one adds; the sums of w are g_i - m_i D_i.
void add_effects(const AttentionGradientArgs& args, int64_t head, const RowSums& sums) {
  const int64_t n = args.n_candidates, span = args.forward.spans[head].span;
  double a = 0, w = 0, pairs = 0;
  for (int64_t c = n - 1; c >= 0; --c) {
    a += static_cast<double>(sums.seen_a[c + 1]), w += static_cast<double>(sums.seen_w[c + 1]);
    pairs += static_cast<double>(sums.seen_pairs[c + 1]);
    if (args.candidates[c] >= span) continue;
    const double kept = 1.0 - a > static_cast<double>(kLeastKept) ? 1.0 - a : static_cast<double>(kLeastKept),
                 effect = -w / kept;
    args.span[head * n + c] += effect;
    args.span_abs[head * n + c] += effect < 0 ? -effect : effect;
    args.span_square[head * n + c] += effect * effect;
    args.pairwise[head * n + c] += pairs;
  }
  a = w = 0;
  for (int64_t c = 0; c < n; ++c) {
    a += static_cast<double>(sums.unseen_a[c]), w += static_cast<double>(sums.unseen_w[c]);
    if (args.candidates[c] <= span) continue;
    const double effect = w / (1.0 + a);
    args.span[head * n + c] += effect;
    args.span_abs[head * n + c] += effect < 0 ? -effect : effect;
    args.span_square[head * n + c] += effect * effect;
  }
}

}  // namespace

void whole_attention(const WholeAttentionArgs& args) {
  const int64_t head_dim = args.head_dim_padded, n_padded = n_padded_rows(args), n_rows = args.n_queries * args.n_rep;
  const SpanRange range(args);
  float *largest = args.scratch, *total = largest + n_padded, *scores = total + n_padded;
  for (int64_t row = 0; row < n_padded; ++row) {
    largest[row] = -__builtin_inff();
    total[row] = 0;
    for (int64_t i = 0; i < head_dim; i += kLanes) store(args.out + row * head_dim + i, zero_f32());
  }
  const int64_t last_position = args.first_position + args.n_queries - 1;
  for (int64_t base = 0; base <= last_position; base += kKeys) {
    const int64_t last_key = base + kKeys - 1;
    if (base >= range.most_sink && last_key <= args.first_position - range.longest) continue;
    const float *keys = args.keys_t + base * head_dim, *values = args.values + base * head_dim;
    for (int64_t row = 0; row < n_padded; row += kRows) {
      const RowBlock block(args, row);
      if (base > block.last_position || (base >= range.most_sink && last_key <= block.first_position - range.longest))
        continue;
      multiply_rows<kRows, false>({args.q + row * head_dim, head_dim, 1}, keys, kKeys, head_dim, scores, kKeys, kKeys);
      const bool all = last_key <= block.first_position &&
                       (base > block.last_position - range.shortest || last_key < range.least_sink);
      for (int r = 0; r < kRows; ++r) {
        if (!all) {
          const int64_t query = row + r < n_rows ? (row + r) / args.n_rep : args.n_queries - 1;
          const LaneVisibility visible(args.spans[(row + r) % args.n_rep], args.first_position + query, base, 0, kKeys);
          for (int part = 0; part < kParts; ++part)
            store(scores + r * kKeys + 16 * part, visible.mask(load(scores + r * kKeys + 16 * part), 16 * part));
        }
        softmax_row(scores + r * kKeys, largest + row + r, total + row + r, args.out + (row + r) * head_dim, head_dim);
      }
      multiply_rows<kRows, true>({scores, kKeys, 1}, values, head_dim, kKeys, args.out + row * head_dim, head_dim,
                                 head_dim);
    }
  }
  for (int64_t row = 0; row < n_padded; ++row) {
    const F32x16 inverse = broadcast(1.0f / total[row]);
    float* out = args.out + row * head_dim;
    for (int64_t i = 0; i < head_dim; i += kLanes) store(out + i, load(out + i) * inverse);
    args.log_sum[row] = largest[row] + __builtin_logf(total[row]);
  }
}

void attention_gradient(const AttentionGradientArgs& args) {
  const WholeAttentionArgs& f = args.forward;
  const int64_t head_dim = f.head_dim_padded, n_padded = n_padded_rows(f), n_rows = f.n_queries * f.n_rep,
                n_buckets = args.n_candidates + 1, row_numbers = head_dim / kPerNumber;
  const SpanRange range(f);
  const Scratch s(f.scratch, n_padded, head_dim, n_buckets);
  const GradientNumber *q = pair_rows(f.q, n_padded, head_dim, s.q),
                       *d_out = pair_rows(args.d_out, n_padded, head_dim, s.d_out),
                       *d_out_rows = pair_neighbours(args.d_out, n_padded * head_dim, s.d_out_rows);
  for (int64_t row = 0; row < n_padded; ++row) {
    F32x16 d = zero_f32();
    for (int64_t i = 0; i < head_dim; i += kLanes) {
      // Of the rounded dO, as dA is: its rounding then leaves dA - D in step.
      d = fma(load_values(d_out_rows + (row * head_dim + i) / kPerNumber), load(f.out + row * head_dim + i), d);
      if (args.dq != nullptr) store(args.dq + row * head_dim + i, zero_f32());
    }
    s.d[row] = reduce_add(d);
  }
  for (int64_t i = 0; i < n_padded * 5 * n_buckets; ++i) s.sums[i] = 0;

  const bool asks_for_more = args.n_candidates > 0 && args.candidates[args.n_candidates - 1] > range.shortest;
  const int64_t last_position = f.first_position + f.n_queries - 1;
  for (int64_t base = 0; base <= last_position; base += kKeys) {
    const int64_t last_key = base + kKeys - 1;
    const bool seen = base < range.most_sink || last_key > f.first_position - range.longest;
    const bool gradient = seen && args.dq != nullptr;
    if (!seen && !(asks_for_more && last_key > f.first_position - args.candidates[args.n_candidates - 1])) continue;
    const float* keys_t = f.keys_t + base * head_dim;
    const GradientNumber* values_t = pair_rows(args.values_t + base * head_dim, head_dim, kKeys, s.values_t);
    const GradientNumber* keys = gradient ? pair_rows(args.keys + base * head_dim, kKeys, head_dim, s.keys) : nullptr;
    int64_t first_row = n_padded;  // of the rows that reach this tile
    for (int64_t row = 0; row < n_padded; row += kRows) {
      const RowBlock block(f, row);
      if (base > block.last_position) continue;
      first_row = row < first_row ? row : first_row;
      GradientNumber *block_p = s.all_p + row / kPerNumber * kKeys, *block_ds = s.all_ds + row / kPerNumber * kKeys;
      float *p = floats_of(block_p, s.p), *ds = floats_of(block_ds, s.ds);
      multiply_rows<kRows, false>({f.q + row * head_dim, head_dim, 1}, keys_t, kKeys, head_dim, p, kKeys, kKeys);
      multiply_rows<kRows, false>({d_out_rows + row * row_numbers, row_numbers, 1}, values_t, kKeys, row_numbers, s.d_a,
                                  kKeys, kKeys);
      for (int r = 0; r < kRows; ++r) {
        float *p_row = p + r * kKeys, *ds_row = ds + r * kKeys;
        if (row + r >= n_rows) {
          for (int part = 0; part < kParts; ++part)
            store(p_row + 16 * part, zero_f32()), store(ds_row + 16 * part, zero_f32());
          continue;
        }
        row_of_tile(args, f.spans[(row + r) % f.n_rep], f.first_position + (row + r) / f.n_rep, base,
                    f.log_sum[row + r], s.d[row + r], p_row, s.d_a + r * kKeys, gradient ? p_row : nullptr, ds_row,
                    RowSums(s.sums, row + r, n_buckets));
      }
      if (!gradient) continue;
      pair_rows(p, kRows, kKeys, block_p), pair_rows(ds, kRows, kKeys, block_ds);
      multiply_rows<kRows, true>({pair_neighbours(ds, kRows * kKeys, s.ds_rows), kKeys / kPerNumber, 1}, keys, head_dim,
                                 kKeys / kPerNumber, args.dq + row * head_dim, head_dim, head_dim);
    }
    if (!gradient) continue;
    // dk += ds^T q, dv += p^T d_out, over the rows that reach the tile: 64 = 10 x 6 + 4 rows of the transposed factors.
    const int64_t first = first_row / kPerNumber, n = n_padded / kPerNumber - first;
    const GradientNumber *p = s.all_p + first * kKeys, *ds = s.all_ds + first * kKeys;
    const GradientNumber *seen_q = q + first * head_dim, *seen_d_out = d_out + first * head_dim;
    float *dk = args.dk + base * head_dim, *dv = args.dv + base * head_dim;
    int64_t key = 0;
    for (; key + kRows <= kKeys; key += kRows) {
      multiply_rows<kRows, true>({ds + key, 1, kKeys}, seen_q, head_dim, n, dk + key * head_dim, head_dim, head_dim);
      multiply_rows<kRows, true>({p + key, 1, kKeys}, seen_d_out, head_dim, n, dv + key * head_dim, head_dim, head_dim);
    }
    constexpr int kRest = kKeys % kRows;
    multiply_rows<kRest, true>({ds + key, 1, kKeys}, seen_q, head_dim, n, dk + key * head_dim, head_dim, head_dim);
    multiply_rows<kRest, true>({p + key, 1, kKeys}, seen_d_out, head_dim, n, dv + key * head_dim, head_dim, head_dim);
  }
  for (int64_t row = 0; row < n_rows; ++row) add_effects(args, row % f.n_rep, RowSums(s.sums, row, n_buckets));
}

}  // namespace polyspan::POLYSPAN_ISA
