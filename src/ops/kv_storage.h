// ops/kv_storage.h: how the keys and values of one KV head lie in memory.
//
// A storage has `capacity` slots (a multiple of 16) in tiles of 16: first all key tiles, then all value tiles.
//   key tile,   f16 / bf16: [head_dim_padded][16 slots]          one multiply-add serves 16 keys, no sum across lanes
//               q8:         [head_dim_padded / 4][16 slots][4] unsigned bytes (code + 128), then f32 scales [16 slots]
//   value tile, f16 / bf16: [16 slots][head_dim_padded]
//               q8:         [4][head_dim_padded][4 slots] signed bytes, then f32 scales [16 slots]: a dot-product instruction
//                           adds four values of 16 dimensions
// f8 (e4m3, OCP 8-bit floating point) is in GPU memory only: cuda/kv_view.h.
// head_dim_padded is head_dim rounded up to 16; the padding holds zeros. A q8 row is scale * code, scale = max |x| / 127.
#pragma once

#include <cstdint>

namespace polyspan {

enum class KvType : int32_t { kF16, kBF16, kQ8, kF8 };

inline constexpr int64_t kTileSlots = 16;

constexpr int64_t round_up_to(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
constexpr int64_t kv_head_dim_padded(int64_t head_dim) { return round_up_to(head_dim, kTileSlots); }
// Bytes of one key tile, and of one value tile.
constexpr int64_t kv_tile_bytes(KvType type, int64_t head_dim_padded) {
  if (type == KvType::kF8) return kTileSlots * head_dim_padded;
  return kTileSlots * (type == KvType::kQ8 ? head_dim_padded + 4 : 2 * head_dim_padded);
}
constexpr int64_t kv_storage_bytes(KvType type, int64_t head_dim_padded, int64_t capacity) {
  return 2 * (capacity / kTileSlots) * kv_tile_bytes(type, head_dim_padded);
}

}  // namespace polyspan
