// ops/kv_tile.isa.h: reading and writing the storage of ops/kv_storage.h, for the attention kernels of one level.
#pragma once

#include "ops/kernels.h"
#include "ops/simd.h"

namespace polyspan::POLYSPAN_ISA {

POLYSPAN_INLINE const std::byte* key_tile(const KvRun& run, KvType type, int64_t head_dim_padded, int64_t tile) {
  return run.storage + tile * kv_tile_bytes(type, head_dim_padded);
}
POLYSPAN_INLINE const std::byte* value_tile(const KvRun& run, KvType type, int64_t head_dim_padded, int64_t tile) {
  return run.storage + (run.capacity / kTileSlots + tile) * kv_tile_bytes(type, head_dim_padded);
}

// 16 consecutive f16 or bf16 values.
template <KvType kType>
static POLYSPAN_INLINE F32x16 load_half(const std::byte* p) {
  if constexpr (kType == KvType::kBF16) return load_bf16(reinterpret_cast<const uint16_t*>(p));
  return load_f16(reinterpret_cast<const uint16_t*>(p));
}

// The lanes of 16 keys that a query may see. Lane i holds position first_position + i, lanes [begin, end) belong to the run.
struct LaneVisibility {
  int64_t sink_end, window_begin, end, begin;  // visible: [begin, sink_end) and [window_begin, end)
  POLYSPAN_INLINE LaneVisibility(const AttentionSpan& span, int64_t query_position, int64_t first_position,
                                 int64_t run_begin, int64_t run_end) {
    begin = run_begin;
    end = query_position - first_position + 1 < run_end ? query_position - first_position + 1 : run_end;
    sink_end = span.n_sink_tokens - first_position < end ? span.n_sink_tokens - first_position : end;
    window_begin = query_position - span.span + 1 - first_position;
    if (window_begin < begin) window_begin = begin;
  }
  POLYSPAN_INLINE bool all(int64_t n) const {
    return begin <= 0 && end >= n && (window_begin <= 0 || sink_end >= n || window_begin <= sink_end);
  }
  POLYSPAN_INLINE F32x16 mask(F32x16 scores, int64_t lane) const {
    const float minus_infinity = -__builtin_inff();
    return max(keep_lanes(scores, begin - lane, sink_end - lane, minus_infinity),
               keep_lanes(scores, window_begin - lane, end - lane, minus_infinity));
  }
};

}  // namespace polyspan::POLYSPAN_ISA
