#include "core/dtype.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

namespace polyspan {
namespace {

TEST(DType, TableIsConsistent) {
  for (const DTypeInfo& info : all_dtypes()) {
    SCOPED_TRACE(info.name);
    EXPECT_EQ(dtype_info(info.type).name, info.name);
    EXPECT_EQ(find_dtype(static_cast<uint32_t>(info.type))->type, info.type);
    EXPECT_EQ(find_dtype(info.name)->type, info.type);
    EXPECT_EQ(gguf_type_name(static_cast<uint32_t>(info.type)), info.name);
    EXPECT_EQ(row_bytes(info.type, info.block_len * 3), info.block_bytes * 3);
  }
  EXPECT_FALSE(find_dtype("Q4_2"));
  for (const uint32_t id : {4u, 9u, 15u, 16u, 24u, 31u, 39u, 40u, 99u, 0xffffffffu}) EXPECT_FALSE(find_dtype(id)) << id;
  EXPECT_EQ(gguf_type_name(16), "IQ2_XXS");
  EXPECT_EQ(gguf_type_name(39), "MXFP4");
  EXPECT_EQ(gguf_type_name(40), "type 40");
  EXPECT_EQ(gguf_type_name(0xffffffffu), "type 4294967295");
}

// The value of a finite f16, from the definition of the format.
double f16_value(int bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double magnitude = exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
  return bits & 0x8000 ? -magnitude : magnitude;
}

TEST(DType, EveryF16ReadsBack) {
  for (int bits = 0; bits < 0x10000; ++bits) {
    const float value = f16_to_f32(static_cast<uint16_t>(bits));
    const bool is_nan = (bits & 0x7fff) > 0x7c00;
    ASSERT_EQ(std::isnan(value), is_nan) << bits;
    if (is_nan) {
      ASSERT_EQ(f32_to_f16(value), bits | 0x200) << bits;  // made quiet
      continue;
    }
    if ((bits & 0x7fff) == 0x7c00) {
      ASSERT_EQ(value, bits & 0x8000 ? -INFINITY : INFINITY);
    } else {
      ASSERT_EQ(value, f16_value(bits)) << bits;
    }
    ASSERT_EQ(f32_to_f16(value), bits);
  }
}

// Between every two neighbours: just below the middle, the middle itself (to the even one), just above. The last pair
// is 65504 and what would be 65536, which is infinity.
TEST(DType, F32ToF16RoundsToNearestEven) {
  for (int lower = 0; lower < 0x7c00; ++lower) {
    const double above = lower + 1 == 0x7c00 ? 65536.0 : f16_value(lower + 1);
    const float middle = static_cast<float>((f16_value(lower) + above) / 2);  // exact: one more bit
    for (const int sign : {0, 0x8000}) {
      const float signed_middle = sign ? -middle : middle;
      const int even = lower % 2 == 0 ? lower : lower + 1;
      ASSERT_EQ(f32_to_f16(std::nextafter(signed_middle, 0.0f)), sign | lower) << lower;
      ASSERT_EQ(f32_to_f16(signed_middle), sign | even) << lower;
      ASSERT_EQ(f32_to_f16(std::nextafter(signed_middle, sign ? -INFINITY : INFINITY)), sign | (lower + 1)) << lower;
    }
  }
  EXPECT_EQ(f32_to_f16(std::numeric_limits<float>::max()), 0x7c00);
  EXPECT_EQ(f32_to_f16(std::numeric_limits<float>::denorm_min()), 0);
  EXPECT_EQ(f32_to_f16(-std::numeric_limits<float>::denorm_min()), 0x8000);
}

TEST(DType, Bf16RoundsToNearestEven) {
  for (int bits = 0; bits < 0x10000; ++bits) {
    const float value = bf16_to_f32(static_cast<uint16_t>(bits));
    const uint32_t wide = std::bit_cast<uint32_t>(value);
    ASSERT_EQ(wide, static_cast<uint32_t>(bits) << 16);
    if (std::isnan(value)) {
      ASSERT_EQ(f32_to_bf16(value), bits | 0x40) << bits;
      continue;
    }
    ASSERT_EQ(f32_to_bf16(value), bits);
    if (std::isinf(value)) continue;
    const auto rounded = [&](uint32_t fraction) { return f32_to_bf16(std::bit_cast<float>(wide | fraction)); };
    ASSERT_EQ(rounded(0x7fff), bits);
    ASSERT_EQ(rounded(0x8000), bits % 2 == 0 ? bits : bits + 1);  // past the largest: infinity
    ASSERT_EQ(rounded(0x8001), bits + 1);
  }
  EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(std::bit_cast<float>(0x7f800001u)))));  // its payload rounds away
}

// Four blocks of random bytes each, scales set to powers of two: every value is exact, so the hash of all of them holds
// for any compiler. Made by gguf 0.19.0 (pip install gguf numpy), an implementation that is not ours:
//
//   data = bytes x >> 24 of x = (x * 1103515245 + 12345) % 2**32 from x = 1; 4 * block_bytes of them
//   for block in range(4):
//     for i, at in enumerate(scales):  # np.float16, two bytes at data[block * block_bytes + at:]
//       scale = (-1) ** (block + i) * 2.0 ** -(4 + block + 3 * i)
//   x = gguf.quants.dequantize(np.frombuffer(data, np.uint8), type).astype(np.float32) + np.float32(0)
//   FNV-1a, 64 bits, over x.tobytes(); and x[:4]
struct KnownBlocks {
  DType type;
  std::vector<size_t> scales;  // where the f16 scales of a block are
  uint64_t hash;
  std::vector<float> first;
};
const KnownBlocks kKnownBlocks[] = {
    {DType::kQ4_0, {0}, 0xa158269faf9bfd5bu, {-0.0625f, -0.25f, 0.0625f, -0.1875f}},
    {DType::kQ4_1, {0, 2}, 0x535b7cd7964380efu, {0.5546875f, 0.3046875f, 0.5546875f, 0.7421875f}},
    {DType::kQ5_0, {0}, 0x3300c7f995484852u, {0.5625f, 0.75f, 0.9375f, -0.0625f}},
    {DType::kQ5_1, {0, 2}, 0x6104d98da3f0c170u, {1.9296875f, 0.9296875f, 0.6171875f, 1.0546875f}},
    {DType::kQ8_0, {0}, 0xa3bfbbed2a0cbec3u, {2.4375f, -3.75f, -0.4375f, -6.6875f}},
    {DType::kQ2_K, {80, 82}, 0x7889b5e015845b56u, {0.15625f, 0.15625f, 0.15625f, 0.21875f}},
    {DType::kQ3_K, {108}, 0x6c22adc300c7ed92u, {-3.625f, 3.625f, -1.8125f, 3.625f}},
    {DType::kQ4_K, {0, 2}, 0x1e2d0b53af92f8aeu, {7.6171875f, 7.6171875f, 7.6171875f, 11.1796875f}},
    {DType::kQ5_K, {0, 2}, 0x3e9fbef584cb2619u, {11.1796875f, 4.0546875f, 36.1171875f, 68.1796875f}},
    {DType::kQ6_K, {208}, 0x18ca74c2681ad34au, {-0.875f, -5.25f, 7.875f, -3.5f}},
};

std::vector<uint8_t> known_bytes(const KnownBlocks& known) {
  const size_t block_bytes = static_cast<size_t>(dtype_info(known.type).block_bytes);
  std::vector<uint8_t> data(block_bytes * 4);
  uint32_t x = 1;
  for (uint8_t& byte : data) {
    x = x * 1103515245u + 12345u;
    byte = static_cast<uint8_t>(x >> 24);
  }
  for (size_t block = 0; block < 4; ++block) {
    for (size_t i = 0; i < known.scales.size(); ++i) {
      const float magnitude = std::ldexp(1.0f, -static_cast<int>(4 + block + 3 * i));
      const uint16_t scale = f32_to_f16((block + i) % 2 == 0 ? magnitude : -magnitude);
      std::memcpy(data.data() + block * block_bytes + known.scales[i], &scale, sizeof scale);
    }
  }
  return data;
}

uint64_t hash_of(const std::vector<float>& values) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const float value : values) {
    const uint32_t bits = std::bit_cast<uint32_t>(value + 0.0f);  // minus zero becomes zero
    for (int shift = 0; shift < 32; shift += 8) hash = (hash ^ (bits >> shift & 0xff)) * 0x100000001b3u;
  }
  return hash;
}

TEST(DequantizeRow, MatchesIndependentImplementation) {
  size_t n_known = 0;
  for (const KnownBlocks& known : kKnownBlocks) {
    SCOPED_TRACE(dtype_name(known.type));
    const std::vector<uint8_t> data = known_bytes(known);
    const int64_t n_values = dtype_info(known.type).block_len * 4;
    std::vector<float> values(static_cast<size_t>(n_values), NAN);
    dequantize_row(known.type, data.data(), n_values, values.data());
    for (size_t i = 0; i < known.first.size(); ++i) EXPECT_EQ(values[i], known.first[i]) << "value " << i;
    EXPECT_EQ(hash_of(values), known.hash);
    ++n_known;
  }
  EXPECT_EQ(n_known + 3, all_dtypes().size());  // all but F32, F16, BF16
}

TEST(DequantizeRow, PlainTypes) {
  const std::vector<float> expected = {0.0f, -0.0f, 1.5f, -2.0f, 0x1p-24f, INFINITY, -65504.0f};
  const int64_t n_values = std::ssize(expected);
  std::vector<float> actual(expected.size());
  const auto same_bits = [&](size_t n) { return std::memcmp(actual.data(), expected.data(), n * sizeof(float)) == 0; };
  std::vector<uint16_t> halves, brains;
  for (const float value : expected) {
    halves.push_back(f32_to_f16(value));
    brains.push_back(f32_to_bf16(value));
  }
  dequantize_row(DType::kF32, expected.data(), n_values, actual.data());
  EXPECT_TRUE(same_bits(expected.size()));
  actual.assign(expected.size(), NAN);
  dequantize_row(DType::kF16, halves.data(), n_values, actual.data());
  EXPECT_TRUE(same_bits(expected.size()));
  actual.assign(expected.size(), NAN);
  dequantize_row(DType::kBF16, brains.data(), n_values, actual.data());
  EXPECT_TRUE(same_bits(expected.size() - 1));  // 65504 does not fit 8 bits
  EXPECT_EQ(actual.back(), -65536.0f);
}

TEST(DequantizeRow, NoValuesReadNothing) {
  for (const DTypeInfo& info : all_dtypes()) dequantize_row(info.type, nullptr, 0, nullptr);
}

}  // namespace
}  // namespace polyspan
