// ops/block_multiply.isa.h: small products for the attention kernels of one level: a block of rows of C stays in
// registers while it runs over the inner dimension. Of floats, or of any number with load(), broadcast() and fma() into
// floats (ops/gradient_number.isa.h).
#pragma once

#include "ops/simd.h"

namespace polyspan::POLYSPAN_ISA {

#if defined(POLYSPAN_ISA_AVX512)
constexpr int kBlockWidth = 4;  // 6 x 4 accumulators of 16 floats in 32 registers
#else
constexpr int kBlockWidth = 1;  // 6 x 1 accumulators of two registers each, of 16 registers
#endif

// A [.., n] by its strides in numbers: element (row, i) at a + row * row_stride + i * col_stride. So A may be
// transposed.
template <typename T>
struct Factor {
  const T* at;
  int64_t row_stride, col_stride;
};

// c[kRows][kWidth * 16] (+)= a[kRows][n] b[n][kWidth * 16]; strides of b in numbers, of c in floats.
template <int kRows, int kWidth, bool kAccumulate, typename T>
POLYSPAN_INLINE void multiply_block(const Factor<T>& a, const T* b, int64_t b_stride, int64_t n, float* c,
                                    int64_t c_stride) {
  F32x16 acc[kRows][kWidth];
  for (int row = 0; row < kRows; ++row)
    for (int col = 0; col < kWidth; ++col)
      acc[row][col] = kAccumulate ? load(c + row * c_stride + 16 * col) : zero_f32();
  for (int64_t i = 0; i < n; ++i) {
    decltype(load(b)) b_row[kWidth];
    for (int col = 0; col < kWidth; ++col) b_row[col] = load(b + i * b_stride + 16 * col);
    for (int row = 0; row < kRows; ++row) {
      const auto a_value = broadcast(a.at[row * a.row_stride + i * a.col_stride]);
      for (int col = 0; col < kWidth; ++col) acc[row][col] = fma(a_value, b_row[col], acc[row][col]);
    }
  }
  for (int row = 0; row < kRows; ++row)
    for (int col = 0; col < kWidth; ++col) store(c + row * c_stride + 16 * col, acc[row][col]);
}

// The same for any width that is a multiple of 16.
template <int kRows, bool kAccumulate, typename T>
void multiply_rows(const Factor<T>& a, const T* b, int64_t b_stride, int64_t n, float* c, int64_t c_stride,
                   int64_t width) {
  int64_t col = 0;
  for (; col + 16 * kBlockWidth <= width; col += 16 * kBlockWidth)
    multiply_block<kRows, kBlockWidth, kAccumulate>(a, b + col, b_stride, n, c + col, c_stride);
  for (; col < width; col += 16) multiply_block<kRows, 1, kAccumulate>(a, b + col, b_stride, n, c + col, c_stride);
}

}  // namespace polyspan::POLYSPAN_ISA
