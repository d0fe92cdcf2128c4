// ops/decode_attention.isa.cpp: attention of one query position over one piece of a KV head's keys, all query heads of
// the group at once (each key and value is loaded once for the group), and the writing of a cache slot.
// Bound by reading K and V: 4 * head_dim bytes a key in f16, 2 * head_dim + 8 in q8.
#include "ops/isa_tables.h"
#include "ops/kv_tile.isa.h"

namespace polyspan::POLYSPAN_ISA {
namespace {

// Query heads at once; larger groups take several passes. The plain level keeps few: each count is compiled on its own.
#if defined(POLYSPAN_ISA_SCALAR)
constexpr int kMaxRep = 3;
#else
constexpr int kMaxRep = 8;
#endif

// 2 KiB to 8 KiB ahead: the same within noise on Zen 5 (195.8, 197.0, 196.9 tokens/s with q8); 12 KiB 192.0.
constexpr int64_t kPrefetchBytes = 4096;

// Scores of 16 keys for kRep heads. Two partial sums a head hide the latency of the multiply-add.
template <KvType kType, int kRep>
POLYSPAN_INLINE void half_scores(const std::byte* tile, const float* q, int64_t head_dim, F32x16 (&scores)[kRep]) {
  F32x16 even[kRep], odd[kRep];
  for (int r = 0; r < kRep; ++r) even[r] = odd[r] = zero_f32();
  for (int64_t i = 0; i < head_dim; i += 2) {
    const F32x16 k0 = load_half<kType>(tile + i * 32), k1 = load_half<kType>(tile + i * 32 + 32);
    prefetch(tile + i * 32 + kPrefetchBytes);
    for (int r = 0; r < kRep; ++r) {
      even[r] = fma(k0, broadcast(q[r * head_dim + i]), even[r]);
      odd[r] = fma(k1, broadcast(q[r * head_dim + i + 1]), odd[r]);
    }
  }
  for (int r = 0; r < kRep; ++r) scores[r] = even[r] + odd[r];
}

// A query as two 8-bit parts: q = scale * (128 * high + low), so that 8-bit products keep 15 bits of it.
struct SplitQuery {
  int8_t high[512], low[512];
  float scale;
  int32_t sum_high, sum_low;
};
void split_query(const float* q, int64_t head_dim, SplitQuery& out) {
  float largest = 0;
  for (int64_t i = 0; i < head_dim; ++i) {
    const float magnitude = __builtin_fabsf(q[i]);
    largest = magnitude > largest ? magnitude : largest;
  }
  out.scale = largest / 16256.0f;  // 127 * 128
  out.sum_high = out.sum_low = 0;
  const float inverse = largest > kLeastScaled ? 16256.0f / largest : 0.0f;
  for (int64_t i = 0; i < head_dim; ++i) {
    const int32_t value = static_cast<int32_t>(__builtin_rintf(q[i] * inverse));
    const int32_t high = (value + 64) >> 7, low = value - 128 * high;  // low in [-64, 63]
    out.high[i] = static_cast<int8_t>(high);
    out.low[i] = static_cast<int8_t>(low);
    out.sum_high += high;
    out.sum_low += low;
  }
}

template <int kRep>
POLYSPAN_INLINE void q8_scores(const std::byte* tile, const SplitQuery* q, int64_t head_dim, F32x16 (&scores)[kRep]) {
  I32x16 high[kRep], low[kRep];
  for (int r = 0; r < kRep; ++r) {
    high[r] = broadcast_i32(-128 * q[r].sum_high);  // keys are stored as code + 128
    low[r] = broadcast_i32(-128 * q[r].sum_low);
  }
  const uint8_t* codes = reinterpret_cast<const uint8_t*>(tile);
  for (int64_t quad = 0; quad < head_dim / 4; ++quad) {
    const U8x64 k = load_bytes(codes + quad * 64);
    prefetch(codes + quad * 64 + kPrefetchBytes);
    for (int r = 0; r < kRep; ++r) {
      high[r] = dot4<true>(high[r], k, broadcast_quad(q[r].high + 4 * quad));
      low[r] = dot4<true>(low[r], k, broadcast_quad(q[r].low + 4 * quad));
    }
  }
  const F32x16 key_scale = load(reinterpret_cast<const float*>(tile + 16 * head_dim));
  for (int r = 0; r < kRep; ++r)
    scores[r] = fma(to_f32(high[r]), broadcast(128.0f), to_f32(low[r])) * broadcast(q[r].scale) * key_scale;
}

// out[kRep][kCols * 16] += weights x values for the slots of one run (f16, bf16). weights: [kRep], kDecodeScratchSlots
// apart; index 0 is the first slot of the run's first tile.
template <KvType kType, int kRep, int kCols>
POLYSPAN_INLINE void add_half_values(const KvRun& run, const float* weights, int64_t head_dim, int64_t col,
                                     float* out) {
  F32x16 acc[kRep][kCols];
  for (int r = 0; r < kRep; ++r)
    for (int c = 0; c < kCols; ++c) acc[r][c] = load(out + r * head_dim + col + 16 * c);
  const int64_t first_tile = run.first_slot / kTileSlots;
  for (int64_t slot = run.first_slot; slot < run.first_slot + run.n_keys; ++slot) {
    const int64_t row = slot % kTileSlots, at = slot - first_tile * kTileSlots;
    const std::byte* values = value_tile(run, kType, head_dim, slot / kTileSlots) + 2 * (row * head_dim + col);
    F32x16 v[kCols];
    for (int c = 0; c < kCols; ++c) v[c] = load_half<kType>(values + 32 * c);
    prefetch(values + kPrefetchBytes);
    if constexpr (kCols > 2) prefetch(values + kPrefetchBytes + 64);
    for (int r = 0; r < kRep; ++r) {
      const F32x16 w = broadcast(weights[r * kDecodeScratchSlots + at]);
      for (int c = 0; c < kCols; ++c) acc[r][c] = fma(w, v[c], acc[r][c]);
    }
  }
  for (int r = 0; r < kRep; ++r)
    for (int c = 0; c < kCols; ++c) store(out + r * head_dim + col + 16 * c, acc[r][c]);
}

// The weights of one head as 16-bit integers in two bytes: weight = scale * (256 * high + low).
struct SplitWeights {
  uint8_t high[kDecodeScratchSlots], low[kDecodeScratchSlots];
  float scale;
};
// weights [n] (multiple of 16) are not negative.
void split_weights(const float* weights, int64_t n, SplitWeights& out) {
  const float largest = max_value(weights, n);
  out.scale = largest / 65280.0f;  // 255 * 256: low never carries into high
  const F32x16 inverse = broadcast(largest > kLeastScaled ? 65280.0f / largest : 0.0f);
  for (int64_t i = 0; i < n; i += kLanes) store_u16_split(out.high + i, out.low + i, load(weights + i) * inverse);
}

// The same for q8 values, in integers: exact but for the 16-bit weights.
template <int kRep, int kCols>
POLYSPAN_INLINE void add_q8_values(const KvRun& run, const SplitWeights* weights, int64_t at, int64_t head_dim,
                                   int64_t col, float* out) {
  I32x16 high[kRep][kCols], low[kRep][kCols];
  for (int r = 0; r < kRep; ++r)
    for (int c = 0; c < kCols; ++c) high[r][c] = low[r][c] = broadcast_i32(0);
  const int64_t first_tile = run.first_slot / kTileSlots, last_tile = (run.first_slot + run.n_keys - 1) / kTileSlots;
  for (int64_t tile = first_tile; tile <= last_tile; ++tile) {
    const uint8_t* codes = reinterpret_cast<const uint8_t*>(value_tile(run, KvType::kQ8, head_dim, tile)) + 4 * col;
    for (int64_t four = 0; four < 4; ++four, codes += 4 * head_dim, at += 4) {
      U8x64 v[kCols];
      for (int c = 0; c < kCols; ++c) {
        v[c] = load_bytes(codes + 64 * c);
        prefetch(codes + 64 * c + kPrefetchBytes);
      }
      for (int r = 0; r < kRep; ++r) {
        const U8x64 w_high = broadcast_quad(reinterpret_cast<const int8_t*>(weights[r].high + at));
        const U8x64 w_low = broadcast_quad(reinterpret_cast<const int8_t*>(weights[r].low + at));
        for (int c = 0; c < kCols; ++c) {
          high[r][c] = dot4<true>(high[r][c], w_high, v[c]);
          low[r][c] = dot4<true>(low[r][c], w_low, v[c]);
        }
      }
    }
  }
  for (int r = 0; r < kRep; ++r)
    for (int c = 0; c < kCols; ++c) {
      float* o = out + r * head_dim + col + 16 * c;
      store(o,
            fma(fma(to_f32(high[r][c]), broadcast(256.0f), to_f32(low[r][c])), broadcast(weights[r].scale), load(o)));
    }
}

// body(run, index of the run's first tile in the scores).
template <typename Body>
POLYSPAN_INLINE void for_each_run(const DecodeAttentionArgs& args, Body body) {
  int64_t at = 0;
  for (int64_t i = 0; i < args.n_runs; ++i) {
    const KvRun& run = args.runs[i];
    body(run, at);
    at += ((run.first_slot + run.n_keys - 1) / kTileSlots - run.first_slot / kTileSlots + 1) * kTileSlots;
  }
}

// A value's scale goes into its weight.
template <int kRep>
void scale_weights(const DecodeAttentionArgs& args, float* weights) {
  for_each_run(args, [&](const KvRun& run, int64_t at) POLYSPAN_LAMBDA_INLINE {
    const int64_t first_tile = run.first_slot / kTileSlots, last_tile = (run.first_slot + run.n_keys - 1) / kTileSlots;
    for (int64_t tile = first_tile; tile <= last_tile; ++tile, at += kTileSlots) {
      const std::byte* values = value_tile(run, KvType::kQ8, args.head_dim_padded, tile);
      const F32x16 scale = load(reinterpret_cast<const float*>(values + 16 * args.head_dim_padded));
      for (int r = 0; r < kRep; ++r) {
        float* w = weights + r * kDecodeScratchSlots + at;
        store(w, load(w) * scale);
      }
    }
  });
}

template <KvType kType, int kRep>
void decode_group(const DecodeAttentionArgs& args, int64_t first_head) {
  const int64_t head_dim = args.head_dim_padded;
  const float* q = args.q + first_head * head_dim;
  const AttentionSpan* spans = args.spans + first_head;
  float* scores = args.scratch;  // [kRep][kDecodeScratchSlots]
  SplitQuery split[kType == KvType::kQ8 ? kRep : 1];
  if constexpr (kType == KvType::kQ8)
    for (int r = 0; r < kRep; ++r) split_query(q + r * head_dim, head_dim, split[r]);

  int64_t n_slots = 0;
  F32x16 largest[kRep];
  for (int r = 0; r < kRep; ++r) largest[r] = broadcast(-__builtin_inff());
  for (int64_t i = 0; i < args.n_runs; ++i) {
    const KvRun& run = args.runs[i];
    const int64_t last_tile = (run.first_slot + run.n_keys - 1) / kTileSlots;
    for (int64_t tile = run.first_slot / kTileSlots; tile <= last_tile; ++tile, n_slots += kTileSlots) {
      F32x16 s[kRep];
      if constexpr (kType == KvType::kQ8) {
        q8_scores<kRep>(key_tile(run, kType, head_dim, tile), split, head_dim, s);
        prefetch(value_tile(run, kType, head_dim, tile) + 16 * head_dim);  // its scales are read before its values
      } else {
        half_scores<kType, kRep>(key_tile(run, kType, head_dim, tile), q, head_dim, s);
      }
      const int64_t run_begin = run.first_slot - tile * kTileSlots;
      for (int r = 0; r < kRep; ++r) {
        const LaneVisibility visible(spans[r], args.position, run.first_position - run_begin, run_begin,
                                     run_begin + run.n_keys);
        if (!visible.all(kTileSlots)) s[r] = visible.mask(s[r], 0);
        largest[r] = max(largest[r], s[r]);
        store(scores + r * kDecodeScratchSlots + n_slots, s[r]);
      }
    }
  }
  for (int r = 0; r < kRep; ++r) {
    const float max_score = reduce_max(largest[r]);
    const bool any = max_score > -__builtin_inff();
    F32x16 sum = zero_f32();
    float* row = scores + r * kDecodeScratchSlots;
    for (int64_t slot = 0; slot < n_slots; slot += kTileSlots) {
      const F32x16 p = any ? exp(load(row + slot) - broadcast(max_score)) : zero_f32();
      sum = sum + p;
      store(row + slot, p);
    }
    args.max[first_head + r] = max_score;
    args.sum[first_head + r] = reduce_add(sum);
  }
  float* out = args.out + first_head * head_dim;
  for (int64_t i = 0; i < kRep * head_dim; i += kLanes) store(out + i, zero_f32());
  if constexpr (kType == KvType::kQ8) {
    scale_weights<kRep>(args, scores);
    SplitWeights weights[kRep];
    for (int r = 0; r < kRep; ++r) split_weights(scores + r * kDecodeScratchSlots, n_slots, weights[r]);
    constexpr int kCols = kRep <= 3 ? 4 : kRep <= 6 ? 2 : 1;  // 24 accumulators at most
    for_each_run(args, [&](const KvRun& run, int64_t at) POLYSPAN_LAMBDA_INLINE {
      int64_t col = 0;
      for (; col + 16 * kCols <= head_dim; col += 16 * kCols)
        add_q8_values<kRep, kCols>(run, weights, at, head_dim, col, out);
      for (; col < head_dim; col += 16) add_q8_values<kRep, 1>(run, weights, at, head_dim, col, out);
    });
  } else {
    constexpr int kCols = kRep <= 6 ? 4 : 2;  // 24 accumulators at most
    for_each_run(args, [&](const KvRun& run, int64_t at) POLYSPAN_LAMBDA_INLINE {
      int64_t col = 0;
      for (; col + 16 * kCols <= head_dim; col += 16 * kCols)
        add_half_values<kType, kRep, kCols>(run, scores + at, head_dim, col, out);
      for (; col < head_dim; col += 16) add_half_values<kType, kRep, 1>(run, scores + at, head_dim, col, out);
    });
  }
}

template <KvType kType>
void decode_all(const DecodeAttentionArgs& args) {
  int64_t head = 0;
  for (; head + kMaxRep <= args.n_rep; head += kMaxRep) decode_group<kType, kMaxRep>(args, head);
  const int64_t rest = args.n_rep - head;
  if (rest == 1) decode_group<kType, 1>(args, head);
  if (rest == 2) decode_group<kType, 2>(args, head);
  if constexpr (kMaxRep == 8) {
    if (rest == 3) decode_group<kType, 3>(args, head);
    if (rest == 4) decode_group<kType, 4>(args, head);
    if (rest == 5) decode_group<kType, 5>(args, head);
    if (rest == 6) decode_group<kType, 6>(args, head);
    if (rest == 7) decode_group<kType, 7>(args, head);
  }
}

// Value of x within f16's finite range (an infinity in the cache would poison masked keys: 0 * inf).
POLYSPAN_INLINE F32x16 clamp_to_f16(F32x16 x) { return min(max(x, broadcast(-65504.0f)), broadcast(65504.0f)); }

void encode_row(KvType type, const float* x, int64_t n, int64_t n_padded, uint16_t* half, int8_t* codes, float* scale) {
  if (type == KvType::kQ8) {
    F32x16 largest = zero_f32();
    for (int64_t i = 0; i < n_padded; i += kLanes)
      largest = max(largest, abs(load_first(x + i, n - i < 0 ? 0 : n - i > 16 ? 16 : n - i)));
    const float max_x = reduce_max(largest);
    *scale = max_x / 127.0f;
    const float inverse = max_x > kLeastScaled ? 127.0f / max_x : 0.0f;
    for (int64_t i = 0; i < n_padded; i += kLanes)
      store_i8(codes + i, round(load_first(x + i, n - i < 0 ? 0 : n - i > 16 ? 16 : n - i) * broadcast(inverse)));
    return;
  }
  for (int64_t i = 0; i < n_padded; i += kLanes) {
    const F32x16 v = load_first(x + i, n - i < 0 ? 0 : n - i > 16 ? 16 : n - i);
    if (type == KvType::kF16) {
      store_f16(half + i, clamp_to_f16(v));
    } else {
      store_bf16(half + i, v);
    }
  }
}

}  // namespace

void decode_attention(const DecodeAttentionArgs& args) {
  switch (args.type) {
    case KvType::kF16: return decode_all<KvType::kF16>(args);
    case KvType::kBF16: return decode_all<KvType::kBF16>(args);
    case KvType::kQ8: return decode_all<KvType::kQ8>(args);
    case KvType::kF8: break;  // no such cache is made here (model/kv_cache.h)
  }
}

void write_kv_slot(KvType type, const float* k, const float* v, int64_t head_dim, int64_t head_dim_padded,
                   int64_t capacity, int64_t slot, std::byte* storage) {
  const int64_t tile_bytes = kv_tile_bytes(type, head_dim_padded), tile = slot / kTileSlots, lane = slot % kTileSlots;
  std::byte* key = storage + tile * tile_bytes;
  std::byte* value = storage + (capacity / kTileSlots + tile) * tile_bytes;
  uint16_t half[512];
  int8_t codes[512];
  float scale = 0;
  encode_row(type, k, head_dim, head_dim_padded, half, codes, &scale);
  if (type == KvType::kQ8) {
    uint8_t* out = reinterpret_cast<uint8_t*>(key);
    for (int64_t i = 0; i < head_dim_padded; ++i)
      out[i / 4 * 64 + lane * 4 + i % 4] = static_cast<uint8_t>(codes[i] ^ 0x80);
    reinterpret_cast<float*>(key + 16 * head_dim_padded)[lane] = scale;
    encode_row(type, v, head_dim, head_dim_padded, half, codes, &scale);
    int8_t* values = reinterpret_cast<int8_t*>(value) + lane / 4 * 4 * head_dim_padded + lane % 4;
    for (int64_t i = 0; i < head_dim_padded; ++i) values[4 * i] = codes[i];
    reinterpret_cast<float*>(value + 16 * head_dim_padded)[lane] = scale;
    return;
  }
  uint16_t* out = reinterpret_cast<uint16_t*>(key);
  for (int64_t i = 0; i < head_dim_padded; ++i) out[i * kTileSlots + lane] = half[i];
  encode_row(type, v, head_dim, head_dim_padded, half, codes, &scale);
  std::memcpy(value + 2 * lane * head_dim_padded, half, static_cast<size_t>(2 * head_dim_padded));
}

}  // namespace polyspan::POLYSPAN_ISA
