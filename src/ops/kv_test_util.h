// ops/kv_test_util.h: reading and filling KV storages in tests, written from the description in ops/kv_storage.h and
// sharing no code with the kernels.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/dtype.h"
#include "ops/kv_storage.h"
#include "ops/test_util.h"

namespace polyspan::testing_util {

inline constexpr std::array<KvType, 3> kKvTypes = {KvType::kF16, KvType::kBF16, KvType::kQ8};  // of the CPU
inline const char* kv_type_text(KvType type) {
  return type == KvType::kF16 ? "f16" : type == KvType::kBF16 ? "bf16" : type == KvType::kQ8 ? "q8" : "f8";
}

// One row as a cache of `type` holds it.
inline std::vector<float> round_as(KvType type, std::vector<float> row) {
  float largest = 0;
  for (const float value : row) largest = std::max(largest, std::abs(value));
  const float scale = largest / 127.0f, inverse = largest > 0 ? 127.0f / largest : 0.0f;
  for (float& value : row) {
    if (type == KvType::kF16) value = f16_to_f32(f32_to_f16(value));
    if (type == KvType::kBF16) value = bf16_to_f32(f32_to_bf16(value));
    if (type == KvType::kQ8) value = scale * std::nearbyint(value * inverse);
  }
  return row;
}

// Channel i of the key or value in a slot.
inline float read_slot(KvType type, int64_t padded, int64_t capacity, const std::byte* storage, int64_t slot, int64_t i,
                       bool is_value) {
  const int64_t tile = slot / 16 + (is_value ? capacity / 16 : 0), lane = slot % 16;
  const std::byte* at = storage + tile * kv_tile_bytes(type, padded);
  if (type == KvType::kQ8) {
    float scale;
    std::memcpy(&scale, at + 16 * padded + 4 * lane, sizeof scale);
    const int raw =
        static_cast<int>(at[is_value ? (lane / 4 * padded + i) * 4 + lane % 4 : i / 4 * 64 + lane * 4 + i % 4]);
    return scale * static_cast<float>(is_value ? static_cast<int8_t>(raw) : raw - 128);
  }
  uint16_t bits;
  std::memcpy(&bits, at + 2 * (is_value ? lane * padded + i : i * 16 + lane), sizeof bits);
  return type == KvType::kF16 ? f16_to_f32(bits) : bf16_to_f32(bits);
}

// What a cache may hold in slots that no run covers: any finite numbers, large ones among them.
inline void fill_garbage(KvType type, int64_t padded, int64_t capacity, Random& random, std::byte* storage) {
  const int64_t tile_bytes = kv_tile_bytes(type, padded);
  for (int64_t tile = 0; tile < 2 * (capacity / 16); ++tile) {
    std::byte* at = storage + tile * tile_bytes;
    if (type == KvType::kQ8) {
      for (int64_t i = 0; i < 16 * padded; ++i) at[i] = static_cast<std::byte>(random.next() >> 56);
      for (int64_t lane = 0; lane < 16; ++lane) {
        const float scale = 100.0f * random.unit();
        std::memcpy(at + 16 * padded + 4 * lane, &scale, sizeof scale);
      }
      continue;
    }
    for (int64_t i = 0; i < 16 * padded; ++i) {
      const float value = 60000.0f * random.unit();
      const uint16_t bits = type == KvType::kF16 ? f32_to_f16(value) : f32_to_bf16(value);
      std::memcpy(at + 2 * i, &bits, sizeof bits);
    }
  }
}

}  // namespace polyspan::testing_util
