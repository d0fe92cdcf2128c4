#include "ops/packed_matrix.h"

#include <gtest/gtest.h>

#include "ops/packed_layout.h"
#include "ops/test_util.h"

namespace polyspan {
namespace {
using namespace testing_util;

constexpr int64_t kRowCounts[] = {1, 15, 16, 17, 33};  // around the tile of 16
constexpr int64_t kWidths[] = {1, 32, 64, 96, 256, 512, 768};

bool fits(DType type, int64_t d_in) {
  const PackedMatrix matrix{type, 1, d_in, nullptr};
  return d_in % dtype_info(type).block_len == 0 && (!matrix.is_quantized() || d_in % 32 == 0);
}

// To the bit: unpack_row does the same float operations as dequantize_row, in the same order.
TEST(PackedMatrix, UnpacksToTheFilesValues) {
  for (const DTypeInfo& info : all_dtypes())
    for (const int64_t d_out : kRowCounts)
      for (const int64_t d_in : kWidths) {
        if (!fits(info.type, d_in)) continue;
        const uint64_t seed = static_cast<uint64_t>(d_out * 1000 + d_in);
        SCOPED_TRACE(testing::Message() << info.name << " d_out " << d_out << " d_in " << d_in << " seed " << seed);
        Random random(seed);
        const std::vector<std::byte> rows = random_rows(info.type, d_out, d_in, random);
        const size_t n_bytes = static_cast<size_t>(packed_bytes(info.type, d_out, d_in));
        std::vector<std::byte> packed(n_bytes + 64, std::byte{0xa5});
        PackedMatrix matrix{info.type, d_out, d_in, packed.data()};
        ASSERT_EQ(matrix.n_tiles() * matrix.tile_bytes(), std::ssize(packed) - 64);
        // In two calls, as the loader's threads do.
        const int64_t middle = matrix.n_tiles() / 2;
        pack_tiles(info.type, rows.data(), d_out, d_in, middle, matrix.n_tiles(), packed.data());
        pack_tiles(info.type, rows.data(), d_out, d_in, 0, middle, packed.data());
        for (size_t i = n_bytes; i < packed.size(); ++i) ASSERT_EQ(packed[i], std::byte{0xa5}) << "behind the matrix";
        for (int64_t row = 0; row < d_out; ++row) {
          std::vector<float> expected(static_cast<size_t>(d_in));
          dequantize_row(info.type, rows.data() + row * row_bytes(info.type, d_in), d_in, expected.data());
          Poisoned actual(d_in);
          unpack_row(matrix, row, actual.data());
          for (size_t i = 0; i < expected.size(); ++i)  // == and not bits: a zero may have another sign
            ASSERT_EQ(actual.values()[i], expected[i]) << "row " << row << ", column " << i;
        }
      }
}

TEST(PackedMatrix, ViewsOfRowsAreThoseRows) {
  constexpr int64_t kRows = 40, kWidth = 256, kFirst = 16;
  for (const DType type : {DType::kF32, DType::kQ8_0}) {
    Random random(3);
    const std::vector<std::byte> rows = random_rows(type, kRows, kWidth, random);
    std::vector<std::byte> packed(static_cast<size_t>(packed_bytes(type, kRows, kWidth)));
    pack_tiles(type, rows.data(), kRows, kWidth, 0, 3, packed.data());
    const PackedMatrix all{type, kRows, kWidth, packed.data()};
    const PackedMatrix first = first_rows(all, kFirst), others = rows_from(all, kFirst);
    EXPECT_EQ(first.d_out, kFirst);
    EXPECT_EQ(others.d_out, kRows - kFirst);
    for (int64_t row = 0; row < kRows; ++row) {
      std::vector<float> expected(kWidth), actual(kWidth, NAN);
      unpack_row(all, row, expected.data());
      unpack_row(row < kFirst ? first : others, row < kFirst ? row : row - kFirst, actual.data());
      EXPECT_TRUE(actual == expected) << "row " << row;
    }
  }
}

// Rows of the last tile past d_out are zeros whatever lay there: their products are computed and thrown away, and must
// not be NaN, which is slow on some machines.
TEST(PackedMatrix, PadsTheLastTileWithZeros) {
  for (const DTypeInfo& info : all_dtypes()) {
    SCOPED_TRACE(info.name);
    Random random(7);
    constexpr int64_t kRows = 17, kWidth = 256;
    const std::vector<std::byte> rows = random_rows(info.type, kRows, kWidth, random);
    std::vector<std::byte> packed(static_cast<size_t>(packed_bytes(info.type, kRows, kWidth)), std::byte{0xff});
    pack_tiles(info.type, rows.data(), kRows, kWidth, 0, 2, packed.data());
    const PackedMatrix all{info.type, 32, kWidth, packed.data()};
    for (int64_t row = kRows; row < 32; ++row) {
      Poisoned values(kWidth);
      unpack_row(all, row, values.data());
      for (const float value : values.values()) ASSERT_EQ(value, 0.0f) << "row " << row;
    }
  }
}

// The claim of ops/packed_layout.h: a packed matrix is as large as the file's, but for 6-bit scales.
TEST(PackedMatrix, BytesFollowTheFile) {
  for (const DTypeInfo& info : all_dtypes()) {
    SCOPED_TRACE(info.name);
    const double ratio =
        static_cast<double>(packed_bytes(info.type, 64, 1024)) / static_cast<double>(64 * row_bytes(info.type, 1024));
    const bool k6 = info.type == DType::kQ3_K || info.type == DType::kQ4_K || info.type == DType::kQ5_K;
    if (k6) {
      EXPECT_GT(ratio, 1.0);
      EXPECT_LT(ratio, 1.04);
    } else {
      EXPECT_EQ(ratio, 1.0);
    }
  }
}

}  // namespace
}  // namespace polyspan
