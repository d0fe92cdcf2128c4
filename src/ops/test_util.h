// ops/test_util.h: what the tests of the ops share: fresh random inputs, poisoned outputs with canaries behind them,
// and the walk over the instruction levels of this machine. Included by tests and by nothing else.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "ops/isa.h"

namespace polyspan::testing_util {

// SplitMix64: the same numbers with every library.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }
  // Uniform in [-1, 1).
  float unit() { return static_cast<float>(static_cast<int64_t>(next()) >> 40) * 0x1p-23f; }
  int64_t below(int64_t n) { return static_cast<int64_t>(next() % static_cast<uint64_t>(n)); }
  std::vector<float> vector(int64_t n, float scale = 1.0f) {
    std::vector<float> values(static_cast<size_t>(n));
    for (float& value : values) value = scale * unit();
    return values;
  }

 private:
  uint64_t state_;
};

// n floats of NaN and, behind them, 32 canaries: a kernel that writes a vector too far kills one.
class Poisoned {
 public:
  explicit Poisoned(int64_t n) : n_(static_cast<size_t>(n)), values_(n_ + kCanaries, kCanary) {
    std::fill_n(values_.begin(), n_, std::numeric_limits<float>::quiet_NaN());
  }
  float* data() { return values_.data(); }
  std::span<const float> values() const { return {values_.data(), n_}; }
  ~Poisoned() {
    for (size_t i = n_; i < values_.size(); ++i)
      EXPECT_EQ(values_[i], kCanary) << "written " << i - n_ << " floats behind the output of " << n_;
  }
  Poisoned(const Poisoned&) = delete;
  Poisoned& operator=(const Poisoned&) = delete;

 private:
  static constexpr size_t kCanaries = 32;
  static constexpr float kCanary = 12345.678f;
  size_t n_;
  std::vector<float> values_;
};

// Every |actual - expected| <= tolerance(i); the first that is not is printed.
template <typename Expected, typename Tolerance>
void expect_close(std::span<const float> actual, const Expected& expected, Tolerance tolerance) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    const double difference = std::abs(static_cast<double>(actual[i]) - static_cast<double>(expected[i]));
    ASSERT_TRUE(difference <= tolerance(i)) << "value " << i << " of " << actual.size() << ": found " << actual[i]
                                            << ", wanted " << expected[i] << " within " << tolerance(i);
  }
}
inline void expect_same_bits(std::span<const float> actual, std::span<const float> expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i)
    ASSERT_EQ(std::memcmp(&actual[i], &expected[i], sizeof(float)), 0)
        << "value " << i << " of " << actual.size() << ": found " << actual[i] << ", wanted " << expected[i];
}

// Runs body(level) at every level of this machine, then goes back to the level that was selected.
template <typename Body>
void for_each_isa(Body body) {
  const IsaLevel before = current_isa();
  for (const IsaLevel level : supported_isa_levels()) {
    SCOPED_TRACE(std::string("isa ") + std::string(isa_name(level)));
    select_isa(level);
    body();
    if (testing::Test::HasFatalFailure()) break;
  }
  select_isa(before);
}

// Until its end, the level that was selected or, of it, the one whose products are of floats throughout.
class FloatLevel {
 public:
  FloatLevel() : before_(current_isa()) {
    if (before_ == IsaLevel::kAvx512Bf16) select_isa(IsaLevel::kAvx512);
  }
  ~FloatLevel() { select_isa(before_); }
  FloatLevel(const FloatLevel&) = delete;
  FloatLevel& operator=(const FloatLevel&) = delete;

 private:
  IsaLevel before_;
};

// Where the f16 scales of a block are (ggml's block structs); empty for float types.
inline std::vector<int64_t> f16_scale_offsets(DType type) {
  switch (type) {
    case DType::kQ4_0:
    case DType::kQ5_0:
    case DType::kQ8_0: return {0};
    case DType::kQ4_1:
    case DType::kQ5_1:
    case DType::kQ4_K:
    case DType::kQ5_K: return {0, 2};
    case DType::kQ2_K: return {80, 82};
    case DType::kQ3_K: return {108};
    case DType::kQ6_K: return {208};
    default: return {};
  }
}

// Rows in file layout: random bytes, f16 scales of either sign within [0.25, 1) / 64; float types: values in [-1, 1).
inline std::vector<std::byte> random_rows(DType type, int64_t n_rows, int64_t d_in, Random& random) {
  const DTypeInfo& info = dtype_info(type);
  std::vector<std::byte> rows(static_cast<size_t>(n_rows * row_bytes(type, d_in)));
  for (std::byte& byte : rows) byte = static_cast<std::byte>(random.next() >> 56);
  const auto put = [&](size_t at, auto bits) { std::memcpy(rows.data() + at, &bits, sizeof bits); };
  for (size_t at = 0; at < rows.size(); at += static_cast<size_t>(info.block_bytes)) {
    if (type == DType::kF32) put(at, random.unit());
    if (type == DType::kF16) put(at, f32_to_f16(random.unit()));
    if (type == DType::kBF16) put(at, f32_to_bf16(random.unit()));
    for (const int64_t offset : f16_scale_offsets(type)) {
      const float value = random.unit();
      put(at + static_cast<size_t>(offset), f32_to_f16((value < 0 ? value - 0.25f : value + 0.25f) / 80.0f));
    }
  }
  return rows;
}

}  // namespace polyspan::testing_util
