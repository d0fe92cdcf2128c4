// cuda/cuda_test_util.h: what the GPU tests share: skipping without a GPU, caches in GPU memory written from the
// description in cuda/kv_view.h, and the error of a result. Included by tests and by nothing else.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <span>
#include <vector>

#include "cuda/decode_attention.h"
#include "cuda/device.h"
#include "cuda/runtime.h"
#include "ops/kv_test_util.h"
#include "ops/span_attention.h"
#include "ops/test_util.h"

#define POLYSPAN_NEEDS_GPU() \
  if (!has_usable_gpu()) GTEST_SKIP() << "no GPU on this machine, or one that is too old"

namespace polyspan::testing_util {

inline constexpr std::array<KvType, 4> kCudaKvTypes = {KvType::kF16, KvType::kBF16, KvType::kQ8, KvType::kF8};

// The byte of the nearest e4m3 value (the even one of two, 448 beyond), by search among all of them: 4 bits of exponent with bias 7,
// 3 of mantissa, 0x7f is NaN.
inline float f8_value(int byte) {
  const int exponent = byte >> 3 & 15, mantissa = byte & 7;
  const float size = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                   : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  return byte >= 128 ? -size : size;
}
inline uint8_t f8_byte(float value) {
  static const std::vector<float> sizes = [] {
    std::vector<float> all;
    for (int byte = 0; byte < 0x7f; ++byte) all.push_back(f8_value(byte));
    return all;
  }();
  const float size = std::abs(value);
  int byte =
      static_cast<int>(std::lower_bound(sizes.begin(), sizes.end() - 1, size) - sizes.begin());  // the next above
  if (byte > 0 && size < sizes[static_cast<size_t>(byte)]) {
    const float below = size - sizes[static_cast<size_t>(byte - 1)], above = sizes[static_cast<size_t>(byte)] - size;
    if (below < above || (below == above && byte % 2 != 0)) --byte;
  }
  return static_cast<uint8_t>(byte + (std::signbit(value) ? 128 : 0));
}

// Norm of the difference over the norm of what was expected. NaN anywhere gives NaN, which no bound accepts.
inline double error_norm(std::span<const float> actual, std::span<const float> expected) {
  EXPECT_EQ(actual.size(), expected.size());
  double difference = 0, size = 0;
  for (size_t i = 0; i < std::min(actual.size(), expected.size()); ++i) {
    const double e = static_cast<double>(actual[i]) - static_cast<double>(expected[i]);
    difference += e * e;
    size += static_cast<double>(expected[i]) * static_cast<double>(expected[i]);
  }
  return std::sqrt(difference / std::max(size, 1e-60));
}

// f32 in GPU memory filled with NaN, with NaN behind it that must stay.
class PoisonedDevice {
 public:
  PoisonedDevice(int64_t n, const cuda::Stream& stream) : n_(n), stream_(stream), buffer_((n + kGuard) * 4, "a test") {
    cuda::fill_bytes(buffer_.data(), 0xff, buffer_.size_bytes(), stream);
  }
  float* data() { return buffer_.as<float>(); }
  std::vector<float> values() {
    std::vector<float> all = cuda::to_host<float>(buffer_.data(), n_ + kGuard, stream_);
    for (int64_t i = 0; i < kGuard; ++i)
      EXPECT_TRUE(std::isnan(all[static_cast<size_t>(n_ + i)]))
          << "written " << i << " floats behind the output of " << n_;
    all.resize(static_cast<size_t>(n_));
    return all;
  }

 private:
  static constexpr int64_t kGuard = 64;
  int64_t n_;
  const cuda::Stream& stream_;
  cuda::DeviceBuffer buffer_;
};

// Where a KV head's slots are.
struct SlotLayout {
  int32_t n_sink = 0, sink_slots = 0, ring_slots = 0;
  int32_t capacity() const { return sink_slots + ring_slots; }
  int64_t slot(int64_t position) const {
    return position < n_sink ? position : sink_slots + (position - n_sink) % ring_slots;
  }
};

// A storage as bytes, every value NaN (q8: the scales) until it is written.
class HostStorage {
 public:
  HostStorage(KvType type, int64_t head_dim, int64_t capacity)
      : type_(type),
        d_(head_dim),
        capacity_(capacity),
        bytes_(static_cast<size_t>(kv_storage_bytes(type, head_dim, capacity))) {
    std::memset(bytes_.data(), 0xff, bytes_.size());
  }
  // The row as the cache holds it.
  std::vector<float> write(int64_t slot, bool is_value, std::vector<float> row) {
    if (type_ == KvType::kQ8) {
      float largest = 0;
      for (const float value : row) largest = std::max(largest, std::abs(value));
      const float scale = largest / 127.0f;
      for (int64_t i = 0; i < d_; ++i) {
        const int8_t code = static_cast<int8_t>(std::lrint(row[static_cast<size_t>(i)] * (127.0f / largest)));
        std::memcpy(bytes_.data() + ((is_value ? capacity_ : 0) + slot) * d_ + i, &code, 1);
        row[static_cast<size_t>(i)] = scale * static_cast<float>(code);
      }
      std::memcpy(bytes_.data() + 2 * capacity_ * d_ + ((is_value ? capacity_ : 0) + slot) * 4, &scale, 4);
      return row;
    }
    for (int64_t i = 0; type_ == KvType::kF8 && i < d_; ++i) {
      float& value = row[static_cast<size_t>(i)];
      const uint8_t byte = f8_byte(value);
      std::memcpy(bytes_.data() + ((is_value ? capacity_ : 0) + slot) * d_ + i, &byte, 1);
      value = f8_value(byte);
    }
    for (int64_t i = 0; type_ != KvType::kF8 && i < d_; ++i) {
      float& value = row[static_cast<size_t>(i)];
      const uint16_t bits = type_ == KvType::kF16 ? f32_to_f16(value) : f32_to_bf16(value);
      std::memcpy(bytes_.data() + (((is_value ? capacity_ : 0) + slot) * d_ + i) * 2, &bits, 2);
      value = type_ == KvType::kF16 ? f16_to_f32(bits) : bf16_to_f32(bits);
    }
    return row;
  }
  const std::vector<std::byte>& bytes() const { return bytes_; }

 private:
  KvType type_;
  int64_t d_, capacity_;
  std::vector<std::byte> bytes_;
};

// One sequence's keys and values, all of them as floats for the reference, and what the caches keep.
struct TestSequence {
  int64_t n_positions = 0;
  std::vector<float> k = {}, v = {};      // [n_positions, n_kv_heads, head_dim], rounded as the cache rounds
  std::vector<AttentionSpan> spans = {};  // [n_heads]
  std::vector<SlotLayout> layouts = {};   // [n_kv_heads]
};

// Writes positions [0, n) of a random sequence into storages [n_kv_heads], in order: later ones overwrite the ring.
// Spans are 1 to `longest_span`, by default some longer than the `planned` positions.
inline TestSequence random_sequence(KvType type, int64_t n_heads, int64_t n_kv_heads, int64_t d, int64_t n,
                                    int64_t planned, int64_t n_sink, Random& random, std::vector<HostStorage>& storages,
                                    int64_t longest_span = 0) {
  TestSequence s{.n_positions = n};
  const int64_t n_rep = n_heads / n_kv_heads;
  if (longest_span == 0) longest_span = planned + planned / 4;
  for (int64_t head = 0; head < n_heads; ++head) s.spans.push_back({1 + random.below(longest_span), n_sink});
  for (int64_t kv_head = 0; kv_head < n_kv_heads; ++kv_head) {
    int64_t longest = 0;
    for (int64_t r = 0; r < n_rep; ++r)
      longest = std::max(longest, s.spans[static_cast<size_t>(kv_head * n_rep + r)].span);
    SlotLayout layout;
    layout.n_sink = static_cast<int32_t>(std::min(n_sink, planned));
    layout.sink_slots = static_cast<int32_t>(round_up_to(layout.n_sink, 16));
    layout.ring_slots = static_cast<int32_t>(round_up_to(std::min(longest, planned - layout.n_sink), 16));
    s.layouts.push_back(layout);
    storages.emplace_back(type, d, layout.capacity());
  }
  s.k.resize(static_cast<size_t>(n * n_kv_heads * d));
  s.v.resize(s.k.size());
  for (int64_t position = 0; position < n; ++position)
    for (int64_t kv_head = 0; kv_head < n_kv_heads; ++kv_head)
      for (const bool is_value : {false, true}) {
        HostStorage& storage = storages[storages.size() - static_cast<size_t>(n_kv_heads - kv_head)];
        const std::vector<float> row =
            storage.write(s.layouts[static_cast<size_t>(kv_head)].slot(position), is_value, random.vector(d, 2.0f));
        std::copy(row.begin(), row.end(), (is_value ? s.v : s.k).begin() + (position * n_kv_heads + kv_head) * d);
      }
  return s;
}

// Storages in GPU memory, one behind the other.
struct DeviceStorages {
  cuda::DeviceBuffer memory, views;
  DeviceStorages(const std::vector<HostStorage>& storages, const std::vector<SlotLayout>& layouts,
                 const cuda::Stream& stream) {
    std::vector<std::byte> all;
    std::vector<int64_t> offsets;
    for (const HostStorage& storage : storages) {
      offsets.push_back(static_cast<int64_t>(all.size()));
      all.insert(all.end(), storage.bytes().begin(), storage.bytes().end());
      all.resize(static_cast<size_t>(round_up_to(static_cast<int64_t>(all.size()), 64)), std::byte{0xff});
    }
    memory = cuda::to_device(std::span<const std::byte>(all), "a test", stream);
    std::vector<cuda::KvHeadView> host;
    for (size_t i = 0; i < storages.size(); ++i)
      host.push_back({memory.data() + offsets[i], layouts[i].n_sink, layouts[i].sink_slots, layouts[i].ring_slots,
                      layouts[i].capacity()});
    views = cuda::to_device(std::span<const cuda::KvHeadView>(host), "a test", stream);
    stream.synchronize();
  }
};

}  // namespace polyspan::testing_util
