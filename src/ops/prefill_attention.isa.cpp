// ops/prefill_attention.isa.cpp: attention of many query rows over one KV head as a tiled online softmax
// (FlashAttention, arXiv 2205.14135, algorithm 1). Tiles of 64 keys are turned into floats once for all rows; a tile that
// no row may see is never read. Bound by multiply-adds: 4 * head_dim operations a visible (row, key) pair.
#include "ops/block_multiply.isa.h"
#include "ops/isa_tables.h"
#include "ops/kv_tile.isa.h"
#include "ops/softmax_row.isa.h"

namespace polyspan::POLYSPAN_ISA {
namespace {

constexpr int kRows = kPrefillRowBlock;
constexpr int64_t kKeys = kPrefillKeyTile;

// The 64 keys from slot on as floats: keys [head_dim][64], values [64][head_dim]. Slots past the storage become zeros.
template <KvType kType>
void expand_tile(const KvRun& run, int64_t first_slot, int64_t head_dim, float* keys, float* values) {
  for (int64_t part = 0; part < kKeys / kTileSlots; ++part) {
    const int64_t tile = first_slot / kTileSlots + part;
    float* k_out = keys + part * kTileSlots;
    float* v_out = values + part * kTileSlots * head_dim;
    if (tile >= run.capacity / kTileSlots) {
      for (int64_t i = 0; i < head_dim; ++i) store(k_out + i * kKeys, zero_f32());
      for (int64_t i = 0; i < kTileSlots * head_dim; i += kLanes) store(v_out + i, zero_f32());
      continue;
    }
    const std::byte* k = key_tile(run, kType, head_dim, tile);
    const std::byte* v = value_tile(run, kType, head_dim, tile);
    if constexpr (kType == KvType::kQ8) {
      const F32x16 k_scale = load(reinterpret_cast<const float*>(k + 16 * head_dim));
      const uint8_t* codes = reinterpret_cast<const uint8_t*>(k);
      for (int64_t i = 0; i < head_dim; ++i) {
        uint8_t lanes[kTileSlots];  // every fourth byte
        for (int64_t lane = 0; lane < kTileSlots; ++lane) lanes[lane] = codes[i / 4 * 64 + lane * 4 + i % 4];
        store(k_out + i * kKeys, (load_u8(lanes) - broadcast(128.0f)) * k_scale);
      }
      const float* v_scale = reinterpret_cast<const float*>(v + 16 * head_dim);
      const int8_t* v_codes = reinterpret_cast<const int8_t*>(v);
      for (int64_t lane = 0; lane < kTileSlots; ++lane)
        for (int64_t i = 0; i < head_dim; i += kLanes) {
          int8_t row[kLanes];
          for (int64_t j = 0; j < kLanes; ++j) row[j] = v_codes[(lane / 4 * head_dim + i + j) * 4 + lane % 4];
          store(v_out + lane * head_dim + i, load_i8(row) * broadcast(v_scale[lane]));
        }
    } else {
      for (int64_t i = 0; i < head_dim; ++i) store(k_out + i * kKeys, load_half<kType>(k + i * 32));
      for (int64_t i = 0; i < kTileSlots * head_dim; i += kLanes) store(v_out + i, load_half<kType>(v + 2 * i));
    }
  }
}

struct Scratch {
  float* q;       // [rows][head_dim]
  float* out;     // [rows][head_dim]
  float* max;     // [rows]
  float* sum;     // [rows]
  float* keys;    // [head_dim][64]
  float* values;  // [64][head_dim]
  float* scores;  // [kRows][64]
};

Scratch carve(const PrefillAttentionArgs& args, int64_t n_rows) {
  Scratch s{};
  float* at = args.scratch;
  const auto take = [&at](int64_t n) {
    float* part = at;
    at += n;
    return part;
  };
  s.keys = take(kKeys * args.head_dim_padded);
  s.values = take(kKeys * args.head_dim_padded);
  s.scores = take(kRows * kKeys);
  s.q = take(n_rows * args.head_dim_padded);
  s.out = take(n_rows * args.head_dim_padded);
  s.max = take(n_rows);
  s.sum = take(n_rows);
  return s;
}

template <KvType kType>
void prefill(const PrefillAttentionArgs& args) {
  const int64_t head_dim = args.head_dim_padded, n_rep = args.n_rep, n_rows = args.n_queries * n_rep;
  const int64_t n_padded = (n_rows + kRows - 1) / kRows * kRows;
  const Scratch s = carve(args, n_padded);
  for (int64_t row = 0; row < n_padded; ++row) {
    for (int64_t i = 0; i < head_dim; i += kLanes) {
      const float* q = args.q + row / n_rep * args.q_stride + row % n_rep * head_dim;
      store(s.q + row * head_dim + i, row < n_rows ? load(q + i) : zero_f32());
      store(s.out + row * head_dim + i, zero_f32());
    }
    s.max[row] = -__builtin_inff();
    s.sum[row] = 0;
  }
  int64_t longest = 0, shortest = args.spans[0].span, n_sink = 0, sink_min = args.spans[0].n_sink_tokens;
  for (int64_t r = 0; r < n_rep; ++r) {
    longest = args.spans[r].span > longest ? args.spans[r].span : longest;
    shortest = args.spans[r].span < shortest ? args.spans[r].span : shortest;
    n_sink = args.spans[r].n_sink_tokens > n_sink ? args.spans[r].n_sink_tokens : n_sink;
    sink_min = args.spans[r].n_sink_tokens < sink_min ? args.spans[r].n_sink_tokens : sink_min;
  }
  const int64_t last_position = args.first_position + args.n_queries - 1;
  for (int64_t i = 0; i < args.n_runs; ++i) {
    const KvRun& run = args.runs[i];
    const int64_t run_end_slot = run.first_slot + run.n_keys;
    for (int64_t slot = run.first_slot / kTileSlots * kTileSlots; slot < run_end_slot; slot += kKeys) {
      const int64_t tile_position = run.first_position + slot - run.first_slot;  // of lane 0, may precede the run
      const int64_t begin = run.first_slot > slot ? run.first_slot - slot : 0;
      const int64_t end = run_end_slot - slot < kKeys ? run_end_slot - slot : kKeys;
      const int64_t first = tile_position + begin, last = tile_position + end - 1;
      if (first > last_position) continue;
      if (first >= n_sink && last <= args.first_position - longest) continue;
      expand_tile<kType>(run, slot, head_dim, s.keys, s.values);
      for (int64_t row = 0; row < n_padded; row += kRows) {
        const int64_t p_first = args.first_position + row / n_rep;
        const int64_t row_last = row + kRows - 1 < n_rows ? row + kRows - 1 : n_rows - 1;
        const int64_t p_last = args.first_position + row_last / n_rep;
        if (first > p_last || (first >= n_sink && last <= p_first - longest)) continue;
        multiply_rows<kRows, false>({s.q + row * head_dim, head_dim, 1}, s.keys, kKeys, head_dim, s.scores, kKeys,
                                    kKeys);
        const bool all =
            begin == 0 && end == kKeys && last <= p_first && (first > p_last - shortest || last < sink_min);
        for (int r = 0; r < kRows; ++r) {
          float* scores = s.scores + r * kKeys;
          if (!all) {
            const int64_t query = row + r < n_rows ? (row + r) / n_rep : 0;
            const LaneVisibility visible(args.spans[(row + r) % n_rep], args.first_position + query, tile_position,
                                         begin, end);
            for (int part = 0; part < 4; ++part)
              store(scores + 16 * part, visible.mask(load(scores + 16 * part), 16 * part));
          }
          softmax_row(scores, s.max + row + r, s.sum + row + r, s.out + (row + r) * head_dim, head_dim);
        }
        multiply_rows<kRows, true>({s.scores, kKeys, 1}, s.values, head_dim, kKeys, s.out + row * head_dim, head_dim,
                                   head_dim);
      }
    }
  }
  for (int64_t row = 0; row < n_rows; ++row) {
    const F32x16 inverse = broadcast(s.sum[row] > 0 ? 1.0f / s.sum[row] : 0.0f);
    float* out = args.out + row / n_rep * args.out_stride + row % n_rep * head_dim;
    for (int64_t i = 0; i < head_dim; i += kLanes) store(out + i, load(s.out + row * head_dim + i) * inverse);
  }
}

}  // namespace

void prefill_attention(const PrefillAttentionArgs& args) {
  switch (args.type) {
    case KvType::kF16: return prefill<KvType::kF16>(args);
    case KvType::kBF16: return prefill<KvType::kBF16>(args);
    case KvType::kQ8: return prefill<KvType::kQ8>(args);
    case KvType::kF8: break;  // no such cache is made here (model/kv_cache.h)
  }
}

}  // namespace polyspan::POLYSPAN_ISA
