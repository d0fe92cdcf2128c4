// ops/gradient_number.isa.h: the numbers that the gradients of attention are multiplied in: floats, or, at the level
// avx512bf16, pairs of bfloat16 along the inner dimension, of which one instruction multiplies 16 and adds the products
// to 16 floats. Written once for both: the functions that make pairs leave floats where they are.
#pragma once

#include "ops/simd.h"

namespace polyspan::POLYSPAN_ISA {

#if defined(POLYSPAN_ISA_AVX512BF16)

struct Bf16Pair {
  uint16_t values[2];
};
struct Bf16PairX16 {
  __m512i v;
};
using GradientNumber = Bf16Pair;
constexpr int64_t kPerNumber = 2;

static POLYSPAN_INLINE Bf16PairX16 load(const Bf16Pair* p) { return {_mm512_loadu_si512(p)}; }
static POLYSPAN_INLINE Bf16PairX16 broadcast(Bf16Pair x) { return {_mm512_set1_epi32(__builtin_bit_cast(int32_t, x))}; }
static POLYSPAN_INLINE F32x16 fma(Bf16PairX16 a, Bf16PairX16 b, F32x16 c) {
  return {_mm512_dpbf16_ps(c.v, __builtin_bit_cast(__m512bh, a.v), __builtin_bit_cast(__m512bh, b.v))};
}
// 32 floats, rounded to nearest even.
static POLYSPAN_INLINE __m512i to_bf16(F32x16 first, F32x16 second) {
  return __builtin_bit_cast(__m512i, _mm512_cvtne2ps_pbh(second.v, first.v));
}
// 16 values as floats.
static POLYSPAN_INLINE F32x16 load_values(const Bf16Pair* p) { return load_bf16(p->values); }

// Of rows [n_rows][width], two with each other: [n_rows / 2][width] pairs, written to `to`. REQUIRES: n_rows even, width a
// multiple of 16.
static inline const Bf16Pair* pair_rows(const float* rows, int64_t n_rows, int64_t width, Bf16Pair* to) {
  alignas(64) static constexpr uint16_t kInterleaved[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                            21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                            11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i order = _mm512_load_si512(kInterleaved);
  for (int64_t row = 0; row < n_rows; row += 2, rows += 2 * width)
    for (int64_t i = 0; i < width; i += kLanes, to += kLanes)
      _mm512_storeu_si512(to, _mm512_permutexvar_epi16(order, to_bf16(load(rows + i), load(rows + width + i))));
  return to - n_rows / 2 * width;
}
// Neighbours with each other: [n / 2] pairs. REQUIRES: n a multiple of 32.
static inline const Bf16Pair* pair_neighbours(const float* x, int64_t n, Bf16Pair* to) {
  for (int64_t i = 0; i < n; i += 2 * kLanes)
    _mm512_storeu_si512(to + i / 2, to_bf16(load(x + i), load(x + i + kLanes)));
  return to;
}
// Where the floats are written that pair_rows makes `paired` of.
static POLYSPAN_INLINE float* floats_of(Bf16Pair*, float* floats) { return floats; }

#else

using GradientNumber = float;
constexpr int64_t kPerNumber = 1;

static POLYSPAN_INLINE F32x16 load_values(const float* p) { return load(p); }
static POLYSPAN_INLINE const float* pair_rows(const float* rows, int64_t, int64_t, float*) { return rows; }
static POLYSPAN_INLINE const float* pair_neighbours(const float* x, int64_t, float*) { return x; }
static POLYSPAN_INLINE float* floats_of(float* paired, float*) { return paired; }

#endif

}  // namespace polyspan::POLYSPAN_ISA
