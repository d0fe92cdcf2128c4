// ops/simd.h: sixteen-lane vectors for the kernels, in three versions: AVX-512 (with VNNI), AVX2 + FMA + F16C, plain C++.
//
// Included only by *.isa.cpp files, which are compiled once for each level with POLYSPAN_ISA naming the namespace.
// Everything in such a file has internal linkage or lives in that namespace, and it includes no header with inline code
// of external linkage (no <vector>, <algorithm>, ...): the linker would be free to keep the copy compiled for AVX-512
// and run it on a machine without.
//
// F32x16: 16 floats. I32x16: 16 int32. U8x64: 64 bytes, seen as 16 lanes of 4. Loads and stores are unaligned.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(POLYSPAN_ISA_AVX2) || defined(POLYSPAN_ISA_AVX512)
#include <immintrin.h>
#endif

#define POLYSPAN_INLINE inline __attribute__((always_inline))
#define POLYSPAN_LAMBDA_INLINE __attribute__((always_inline))

namespace polyspan::POLYSPAN_ISA {

constexpr int64_t kLanes = 16;
// What is scaled to 8 bits and not larger than this becomes zeros: 127 / x would overflow to infinity near 1e-37.
constexpr float kLeastScaled = 1e-30f;

#if defined(POLYSPAN_ISA_AVX512)

struct F32x16 {
  __m512 v;
};
struct I32x16 {
  __m512i v;
};
struct U8x64 {
  __m512i v;
};

static POLYSPAN_INLINE F32x16 zero_f32() { return {_mm512_setzero_ps()}; }
static POLYSPAN_INLINE F32x16 broadcast(float x) { return {_mm512_set1_ps(x)}; }
static POLYSPAN_INLINE F32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
static POLYSPAN_INLINE void store(float* p, F32x16 x) { _mm512_storeu_ps(p, x.v); }
static POLYSPAN_INLINE __mmask16 first_lanes(int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }
// The first n lanes (0..16); the others are 0 and are not read.
static POLYSPAN_INLINE F32x16 load_first(const float* p, int64_t n) {
  return {_mm512_maskz_loadu_ps(first_lanes(n), p)};
}
static POLYSPAN_INLINE void store_first(float* p, F32x16 x, int64_t n) {
  _mm512_mask_storeu_ps(p, first_lanes(n), x.v);
}
static POLYSPAN_INLINE F32x16 load_f16(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
static POLYSPAN_INLINE void store_f16(uint16_t* p, F32x16 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
}
static POLYSPAN_INLINE F32x16 load_bf16(const uint16_t* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
static POLYSPAN_INLINE void store_bf16(uint16_t* p, F32x16 x) {  // round to nearest even; NaN is not expected here
  const __m512i bits = _mm512_castps_si512(x.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}
static POLYSPAN_INLINE F32x16 load_i8(const int8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
static POLYSPAN_INLINE F32x16 load_u8(const uint8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
// Rounds to the nearest integer (even at ties) and stores the low byte; values are within [-128, 127].
static POLYSPAN_INLINE void store_i8(int8_t* p, F32x16 x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x.v)));
}
// Rounds values within [0, 65535] to integers and stores their high and low bytes.
static POLYSPAN_INLINE void store_u16_split(uint8_t* high, uint8_t* low, F32x16 x) {
  const __m512i bits = _mm512_cvtps_epi32(x.v);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(low), _mm512_cvtepi32_epi8(bits));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(high), _mm512_cvtepi32_epi8(_mm512_srli_epi32(bits, 8)));
}
static POLYSPAN_INLINE F32x16 operator+(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
static POLYSPAN_INLINE F32x16 operator-(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
static POLYSPAN_INLINE F32x16 operator*(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
static POLYSPAN_INLINE F32x16 operator/(F32x16 a, F32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
static POLYSPAN_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
static POLYSPAN_INLINE F32x16 max(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
static POLYSPAN_INLINE F32x16 min(F32x16 a, F32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
static POLYSPAN_INLINE F32x16 abs(F32x16 a) { return {_mm512_abs_ps(a.v)}; }
static POLYSPAN_INLINE float reduce_add(F32x16 a) { return _mm512_reduce_add_ps(a.v); }
static POLYSPAN_INLINE float reduce_max(F32x16 a) { return _mm512_reduce_max_ps(a.v); }
static POLYSPAN_INLINE F32x16 round(F32x16 a) { return {_mm512_roundscale_ps(a.v, 0)}; }
// 2^n * a for integral n.
static POLYSPAN_INLINE F32x16 scale_by_power(F32x16 a, F32x16 n) { return {_mm512_scalef_ps(a.v, n.v)}; }
// Lane i is a[i] where low <= i < high, else `otherwise`.
static POLYSPAN_INLINE F32x16 keep_lanes(F32x16 a, int64_t low, int64_t high, float otherwise) {
  const int64_t first = low < 0 ? 0 : low > 16 ? 16 : low, last = high < first ? first : high > 16 ? 16 : high;
  const __mmask16 mask = static_cast<__mmask16>(((1u << last) - 1u) & ~((1u << first) - 1u));
  return {_mm512_mask_mov_ps(_mm512_set1_ps(otherwise), mask, a.v)};
}

// Lane i is a[i] where x[i] > low, else 0.
static POLYSPAN_INLINE F32x16 keep_above(F32x16 a, F32x16 x, F32x16 low) {
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, low.v, _CMP_GT_OQ), a.v)};
}

static POLYSPAN_INLINE I32x16 broadcast_i32(int32_t x) { return {_mm512_set1_epi32(x)}; }
static POLYSPAN_INLINE I32x16 operator+(I32x16 a, I32x16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
static POLYSPAN_INLINE F32x16 to_f32(I32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
static POLYSPAN_INLINE U8x64 load_bytes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
static POLYSPAN_INLINE void store_bytes(uint8_t* p, U8x64 x) { _mm512_storeu_si512(p, x.v); }
static POLYSPAN_INLINE U8x64 broadcast_quad(const int8_t* p) {
  int32_t quad;
  std::memcpy(&quad, p, 4);
  return {_mm512_set1_epi32(quad)};
}
static POLYSPAN_INLINE U8x64 operator&(U8x64 a, U8x64 b) { return {_mm512_and_si512(a.v, b.v)}; }
static POLYSPAN_INLINE U8x64 operator|(U8x64 a, U8x64 b) { return {_mm512_or_si512(a.v, b.v)}; }
static POLYSPAN_INLINE U8x64 broadcast_byte(uint8_t x) { return {_mm512_set1_epi8(static_cast<char>(x))}; }
// Shifts 16-bit lanes: the caller masks the bits that cross a byte.
template <int kBits>
static POLYSPAN_INLINE U8x64 shift_right(U8x64 a) {
  return {_mm512_srli_epi16(a.v, kBits)};
}
template <int kBits>
static POLYSPAN_INLINE U8x64 shift_left(U8x64 a) {
  return {_mm512_slli_epi16(a.v, kBits)};
}
// acc[i] += sum over the 4 bytes of lane i of unsigned w x signed a. kWide: w may exceed 127 (AVX2 then needs more steps).
template <bool kWide>
static POLYSPAN_INLINE I32x16 dot4(I32x16 acc, U8x64 w, U8x64 a) {
  return {_mm512_dpbusd_epi32(acc.v, w.v, a.v)};
}
static POLYSPAN_INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

#elif defined(POLYSPAN_ISA_AVX2)

struct F32x16 {
  __m256 lo, hi;
};
struct I32x16 {
  __m256i lo, hi;
};
struct U8x64 {
  __m256i lo, hi;
};

static POLYSPAN_INLINE F32x16 zero_f32() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
static POLYSPAN_INLINE F32x16 broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
static POLYSPAN_INLINE F32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
static POLYSPAN_INLINE void store(float* p, F32x16 x) {
  _mm256_storeu_ps(p, x.lo);
  _mm256_storeu_ps(p + 8, x.hi);
}
static POLYSPAN_INLINE __m256i lanes_before(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
static POLYSPAN_INLINE F32x16 load_first(const float* p, int64_t n) {
  return {_mm256_maskload_ps(p, lanes_before(n)), _mm256_maskload_ps(p + 8, lanes_before(n - 8))};
}
static POLYSPAN_INLINE void store_first(float* p, F32x16 x, int64_t n) {
  _mm256_maskstore_ps(p, lanes_before(n), x.lo);
  _mm256_maskstore_ps(p + 8, lanes_before(n - 8), x.hi);
}
static POLYSPAN_INLINE __m128i load128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
static POLYSPAN_INLINE __m128i load64(const void* p) { return _mm_loadl_epi64(static_cast<const __m128i*>(p)); }
static POLYSPAN_INLINE F32x16 load_f16(const uint16_t* p) {
  return {_mm256_cvtph_ps(load128(p)), _mm256_cvtph_ps(load128(p + 8))};
}
static POLYSPAN_INLINE void store_f16(uint16_t* p, F32x16 x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x.lo, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(x.hi, _MM_FROUND_TO_NEAREST_INT));
}
static POLYSPAN_INLINE F32x16 load_bf16(const uint16_t* p) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load128(p)), 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load128(p + 8)), 16))};
}
static POLYSPAN_INLINE __m128i half_to_bf16(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i top = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1));
}
static POLYSPAN_INLINE void store_bf16(uint16_t* p, F32x16 x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), half_to_bf16(x.lo));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), half_to_bf16(x.hi));
}
static POLYSPAN_INLINE F32x16 load_i8(const int8_t* p) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(load64(p))), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(load64(p + 8)))};
}
static POLYSPAN_INLINE F32x16 load_u8(const uint8_t* p) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(load64(p))), _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(load64(p + 8)))};
}
static POLYSPAN_INLINE void store_i8(int8_t* p, F32x16 x) {
  const __m256i lo = _mm256_cvtps_epi32(x.lo), hi = _mm256_cvtps_epi32(x.hi);
  const __m128i lo16 = _mm_packs_epi32(_mm256_castsi256_si128(lo), _mm256_extracti128_si256(lo, 1));
  const __m128i hi16 = _mm_packs_epi32(_mm256_castsi256_si128(hi), _mm256_extracti128_si256(hi, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(lo16, hi16));
}
static POLYSPAN_INLINE void store_u16_split(uint8_t* high, uint8_t* low, F32x16 x) {
  const __m256i lo = _mm256_cvtps_epi32(x.lo), hi = _mm256_cvtps_epi32(x.hi);
  const __m128i lo16 = _mm_packus_epi32(_mm256_castsi256_si128(lo), _mm256_extracti128_si256(lo, 1));
  const __m128i hi16 = _mm_packus_epi32(_mm256_castsi256_si128(hi), _mm256_extracti128_si256(hi, 1));
  const __m128i byte = _mm_set1_epi16(0xff);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(low),
                   _mm_packus_epi16(_mm_and_si128(lo16, byte), _mm_and_si128(hi16, byte)));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(high),
                   _mm_packus_epi16(_mm_srli_epi16(lo16, 8), _mm_srli_epi16(hi16, 8)));
}
static POLYSPAN_INLINE F32x16 operator+(F32x16 a, F32x16 b) {
  return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
static POLYSPAN_INLINE F32x16 operator-(F32x16 a, F32x16 b) {
  return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
static POLYSPAN_INLINE F32x16 operator*(F32x16 a, F32x16 b) {
  return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
static POLYSPAN_INLINE F32x16 operator/(F32x16 a, F32x16 b) {
  return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
static POLYSPAN_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
static POLYSPAN_INLINE F32x16 max(F32x16 a, F32x16 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
static POLYSPAN_INLINE F32x16 min(F32x16 a, F32x16 b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
static POLYSPAN_INLINE F32x16 abs(F32x16 a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
static POLYSPAN_INLINE float reduce_add(F32x16 a) {
  const __m256 s = _mm256_add_ps(a.lo, a.hi);
  __m128 t = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  t = _mm_add_ps(t, _mm_movehl_ps(t, t));
  return _mm_cvtss_f32(_mm_add_ss(t, _mm_movehdup_ps(t)));
}
static POLYSPAN_INLINE float reduce_max(F32x16 a) {
  const __m256 s = _mm256_max_ps(a.lo, a.hi);
  __m128 t = _mm_max_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  t = _mm_max_ps(t, _mm_movehl_ps(t, t));
  return _mm_cvtss_f32(_mm_max_ss(t, _mm_movehdup_ps(t)));
}
static POLYSPAN_INLINE F32x16 round(F32x16 a) {
  return {_mm256_round_ps(a.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
          _mm256_round_ps(a.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
static POLYSPAN_INLINE __m256 half_scale(__m256 a, __m256 n) {  // n within [-126, 127]
  const __m256i bits = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(a, _mm256_castsi256_ps(bits));
}
static POLYSPAN_INLINE F32x16 scale_by_power(F32x16 a, F32x16 n) {
  return {half_scale(a.lo, n.lo), half_scale(a.hi, n.hi)};
}
static POLYSPAN_INLINE F32x16 keep_lanes(F32x16 a, int64_t low, int64_t high, float otherwise) {
  const __m256 other = _mm256_set1_ps(otherwise);
  const int64_t first = low < 0 ? 0 : low > 16 ? 16 : low, last = high < 0 ? 0 : high > 16 ? 16 : high;
  const __m256i lo = _mm256_andnot_si256(lanes_before(first), lanes_before(last));
  const __m256i hi = _mm256_andnot_si256(lanes_before(first - 8), lanes_before(last - 8));
  return {_mm256_blendv_ps(other, a.lo, _mm256_castsi256_ps(lo)),
          _mm256_blendv_ps(other, a.hi, _mm256_castsi256_ps(hi))};
}

static POLYSPAN_INLINE F32x16 keep_above(F32x16 a, F32x16 x, F32x16 low) {
  return {_mm256_and_ps(a.lo, _mm256_cmp_ps(x.lo, low.lo, _CMP_GT_OQ)),
          _mm256_and_ps(a.hi, _mm256_cmp_ps(x.hi, low.hi, _CMP_GT_OQ))};
}

static POLYSPAN_INLINE I32x16 broadcast_i32(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
static POLYSPAN_INLINE I32x16 operator+(I32x16 a, I32x16 b) {
  return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)};
}
static POLYSPAN_INLINE F32x16 to_f32(I32x16 a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
static POLYSPAN_INLINE U8x64 load_bytes(const uint8_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
}
static POLYSPAN_INLINE void store_bytes(uint8_t* p, U8x64 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.lo);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 32), x.hi);
}
static POLYSPAN_INLINE U8x64 broadcast_quad(const int8_t* p) {
  int32_t quad;
  std::memcpy(&quad, p, 4);
  return {_mm256_set1_epi32(quad), _mm256_set1_epi32(quad)};
}
static POLYSPAN_INLINE U8x64 operator&(U8x64 a, U8x64 b) {
  return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)};
}
static POLYSPAN_INLINE U8x64 operator|(U8x64 a, U8x64 b) {
  return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)};
}
static POLYSPAN_INLINE U8x64 broadcast_byte(uint8_t x) {
  return {_mm256_set1_epi8(static_cast<char>(x)), _mm256_set1_epi8(static_cast<char>(x))};
}
template <int kBits>
static POLYSPAN_INLINE U8x64 shift_right(U8x64 a) {
  return {_mm256_srli_epi16(a.lo, kBits), _mm256_srli_epi16(a.hi, kBits)};
}
template <int kBits>
static POLYSPAN_INLINE U8x64 shift_left(U8x64 a) {
  return {_mm256_slli_epi16(a.lo, kBits), _mm256_slli_epi16(a.hi, kBits)};
}
template <bool kWide>
static POLYSPAN_INLINE __m256i half_dot4(__m256i acc, __m256i w, __m256i a) {
  if constexpr (kWide) {  // maddubs would saturate at 255 x 127 x 2: even and odd bytes as 16-bit lanes instead
    const __m256i w_even = _mm256_and_si256(w, _mm256_set1_epi16(0xff)), w_odd = _mm256_srli_epi16(w, 8);
    const __m256i a_even = _mm256_srai_epi16(_mm256_slli_epi16(a, 8), 8), a_odd = _mm256_srai_epi16(a, 8);
    acc = _mm256_add_epi32(acc, _mm256_madd_epi16(w_even, a_even));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(w_odd, a_odd));
  } else {
    return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(w, a), _mm256_set1_epi16(1)));
  }
}
template <bool kWide>
static POLYSPAN_INLINE I32x16 dot4(I32x16 acc, U8x64 w, U8x64 a) {
  return {half_dot4<kWide>(acc.lo, w.lo, a.lo), half_dot4<kWide>(acc.hi, w.hi, a.hi)};
}
static POLYSPAN_INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

#else  // plain C++: the compiler's vector types, which it maps to whatever the machine has

typedef float VecF32 __attribute__((vector_size(64)));
typedef int32_t VecI32 __attribute__((vector_size(64)));
typedef uint32_t VecU32 __attribute__((vector_size(64)));
typedef uint16_t VecU16 __attribute__((vector_size(32)));
typedef uint16_t VecU16x32 __attribute__((vector_size(64)));
typedef uint8_t VecU8x16 __attribute__((vector_size(16)));
typedef int8_t VecI8x16 __attribute__((vector_size(16)));
typedef uint8_t VecU8x64 __attribute__((vector_size(64)));

struct F32x16 {
  VecF32 v;
};
struct I32x16 {
  VecI32 v;
};
struct U8x64 {
  VecU8x64 v;
};

template <typename To, typename From>
static POLYSPAN_INLINE To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
template <typename Vector>
static POLYSPAN_INLINE Vector load_vector(const void* p) {
  Vector v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
// Lane i of a where mask is all ones, else of b.
static POLYSPAN_INLINE F32x16 select(VecI32 mask, const F32x16& a, const F32x16& b) {
  return {bits_as<VecF32>((bits_as<VecI32>(a.v) & mask) | (bits_as<VecI32>(b.v) & ~mask))};
}
static POLYSPAN_INLINE VecI32 lane_indices() { return VecI32{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}; }

static POLYSPAN_INLINE F32x16 zero_f32() { return {VecF32{}}; }
static POLYSPAN_INLINE F32x16 broadcast(float x) { return {VecF32{} + x}; }
static POLYSPAN_INLINE F32x16 load(const float* p) { return {load_vector<VecF32>(p)}; }
static POLYSPAN_INLINE void store(float* p, const F32x16& x) { std::memcpy(p, &x.v, sizeof x.v); }
static POLYSPAN_INLINE F32x16 load_first(const float* p, int64_t n) {
  F32x16 x = zero_f32();
  std::memcpy(&x.v, p, static_cast<size_t>(n < 16 ? n : 16) * 4);
  return x;
}
static POLYSPAN_INLINE void store_first(float* p, const F32x16& x, int64_t n) {
  std::memcpy(p, &x.v, static_cast<size_t>(n < 16 ? n : 16) * 4);
}
static POLYSPAN_INLINE F32x16 load_f16(const uint16_t* p) {
  const VecU32 h = __builtin_convertvector(load_vector<VecU16>(p), VecU32);
  const VecU32 sign = (h & 0x8000u) << 16, magnitude = h & 0x7fffu;
  // Multiplying by 2^112 moves the exponent's bias and makes denormals normal.
  const VecF32 finite = bits_as<VecF32>(magnitude << 13) * bits_as<VecF32>(VecU32{} + 0x77800000u);
  const VecU32 special = 0x7f800000u | ((magnitude & 0x3ffu) << 13);
  const VecU32 is_special = bits_as<VecU32>(magnitude >= 0x7c00u);
  return {bits_as<VecF32>(sign | (bits_as<VecU32>(finite) & ~is_special) | (special & is_special))};
}
static POLYSPAN_INLINE void store_f16(uint16_t* p, const F32x16& x) {  // round to nearest even
  const VecU32 bits = bits_as<VecU32>(x.v), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  const VecU32 normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
  // A denormal half: the float adder rounds at 2^-24.
  const VecU32 denormal = bits_as<VecU32>(bits_as<VecF32>(magnitude) + 0.5f) - 0x3f000000u;
  const VecU32 is_denormal = bits_as<VecU32>(magnitude < 0x38800000u);
  const VecU32 is_large = bits_as<VecU32>(magnitude >= 0x477ff000u), is_nan = bits_as<VecU32>(magnitude > 0x7f800000u);
  VecU32 half = (normal & ~is_denormal) | (denormal & is_denormal);
  half = (half & ~is_large) | (0x7c00u & is_large) | (0x0200u & is_nan);
  const VecU16 out = __builtin_convertvector(sign | half, VecU16);
  std::memcpy(p, &out, sizeof out);
}
static POLYSPAN_INLINE F32x16 load_bf16(const uint16_t* p) {
  return {bits_as<VecF32>(__builtin_convertvector(load_vector<VecU16>(p), VecU32) << 16)};
}
static POLYSPAN_INLINE void store_bf16(uint16_t* p, const F32x16& x) {
  const VecU32 bits = bits_as<VecU32>(x.v);
  const VecU16 out = __builtin_convertvector((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16, VecU16);
  std::memcpy(p, &out, sizeof out);
}
static POLYSPAN_INLINE F32x16 load_i8(const int8_t* p) {
  return {__builtin_convertvector(__builtin_convertvector(load_vector<VecI8x16>(p), VecI32), VecF32)};
}
static POLYSPAN_INLINE F32x16 load_u8(const uint8_t* p) {
  return {__builtin_convertvector(__builtin_convertvector(load_vector<VecU8x16>(p), VecI32), VecF32)};
}
// To the nearest integer, even at ties: adding 1.5 * 2^23 leaves no bits for a fraction. |x| < 2^22.
static POLYSPAN_INLINE VecI32 nearest(const F32x16& x) {
  return bits_as<VecI32>(x.v + 12582912.0f) - bits_as<VecI32>(VecF32{} + 12582912.0f);
}
static POLYSPAN_INLINE void store_i8(int8_t* p, const F32x16& x) {
  const VecI8x16 out = __builtin_convertvector(nearest(x), VecI8x16);
  std::memcpy(p, &out, sizeof out);
}
static POLYSPAN_INLINE void store_u16_split(uint8_t* high, uint8_t* low, const F32x16& x) {
  const VecI32 value = nearest(x);
  const VecU8x16 low_bytes = __builtin_convertvector(value & 0xff, VecU8x16),
                 high_bytes = __builtin_convertvector(value >> 8, VecU8x16);
  std::memcpy(low, &low_bytes, sizeof low_bytes);
  std::memcpy(high, &high_bytes, sizeof high_bytes);
}
static POLYSPAN_INLINE F32x16 operator+(const F32x16& a, const F32x16& b) { return {a.v + b.v}; }
static POLYSPAN_INLINE F32x16 operator-(const F32x16& a, const F32x16& b) { return {a.v - b.v}; }
static POLYSPAN_INLINE F32x16 operator*(const F32x16& a, const F32x16& b) { return {a.v * b.v}; }
static POLYSPAN_INLINE F32x16 operator/(const F32x16& a, const F32x16& b) { return {a.v / b.v}; }
static POLYSPAN_INLINE F32x16 fma(const F32x16& a, const F32x16& b, const F32x16& c) { return {a.v * b.v + c.v}; }
static POLYSPAN_INLINE F32x16 max(const F32x16& a, const F32x16& b) { return select(a.v > b.v, a, b); }
static POLYSPAN_INLINE F32x16 min(const F32x16& a, const F32x16& b) { return select(a.v < b.v, a, b); }
static POLYSPAN_INLINE F32x16 abs(const F32x16& a) { return {bits_as<VecF32>(bits_as<VecU32>(a.v) & 0x7fffffffu)}; }
static POLYSPAN_INLINE float reduce_add(const F32x16& a) {
  float lanes[16];
  std::memcpy(lanes, &a.v, sizeof lanes);
  for (int width = 8; width >= 1; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}
static POLYSPAN_INLINE float reduce_max(const F32x16& a) {
  float lanes[16];
  std::memcpy(lanes, &a.v, sizeof lanes);
  float best = lanes[0];
  for (int i = 1; i < 16; ++i) best = lanes[i] > best ? lanes[i] : best;
  return best;
}
static POLYSPAN_INLINE F32x16 round(const F32x16& a) { return {__builtin_convertvector(nearest(a), VecF32)}; }
static POLYSPAN_INLINE F32x16 scale_by_power(const F32x16& a, const F32x16& n) {  // n within [-126, 127]
  return {a.v * bits_as<VecF32>((__builtin_convertvector(n.v, VecI32) + 127) << 23)};
}
static POLYSPAN_INLINE F32x16 keep_lanes(const F32x16& a, int64_t low, int64_t high, float otherwise) {
  const int32_t first = static_cast<int32_t>(low < 0 ? 0 : low > 16 ? 16 : low);
  const int32_t last = static_cast<int32_t>(high < 0 ? 0 : high > 16 ? 16 : high);
  return select((lane_indices() >= first) & (lane_indices() < last), a, broadcast(otherwise));
}
static POLYSPAN_INLINE F32x16 keep_above(const F32x16& a, const F32x16& x, const F32x16& low) {
  return {bits_as<VecF32>(bits_as<VecI32>(a.v) & (x.v > low.v))};
}

static POLYSPAN_INLINE I32x16 broadcast_i32(int32_t x) { return {VecI32{} + x}; }
static POLYSPAN_INLINE I32x16 operator+(const I32x16& a, const I32x16& b) { return {a.v + b.v}; }
static POLYSPAN_INLINE F32x16 to_f32(const I32x16& a) { return {__builtin_convertvector(a.v, VecF32)}; }
static POLYSPAN_INLINE U8x64 load_bytes(const uint8_t* p) { return {load_vector<VecU8x64>(p)}; }
static POLYSPAN_INLINE void store_bytes(uint8_t* p, const U8x64& x) { std::memcpy(p, &x.v, 64); }
static POLYSPAN_INLINE U8x64 broadcast_quad(const int8_t* p) {
  uint32_t quad;
  std::memcpy(&quad, p, 4);
  return {bits_as<VecU8x64>(VecU32{} + quad)};
}
static POLYSPAN_INLINE U8x64 operator&(const U8x64& a, const U8x64& b) { return {a.v & b.v}; }
static POLYSPAN_INLINE U8x64 operator|(const U8x64& a, const U8x64& b) { return {a.v | b.v}; }
static POLYSPAN_INLINE U8x64 broadcast_byte(uint8_t x) { return {VecU8x64{} + x}; }
template <int kBits>
static POLYSPAN_INLINE U8x64 shift_right(const U8x64& a) {
  return {bits_as<VecU8x64>(bits_as<VecU16x32>(a.v) >> kBits)};
}
template <int kBits>
static POLYSPAN_INLINE U8x64 shift_left(const U8x64& a) {
  return {bits_as<VecU8x64>(bits_as<VecU16x32>(a.v) << kBits)};
}
template <bool kWide>
static POLYSPAN_INLINE I32x16 dot4(const I32x16& acc, const U8x64& w, const U8x64& a) {
  const VecI32 w_lanes = bits_as<VecI32>(w.v);
  const VecU32 a_lanes = bits_as<VecU32>(a.v);
  VecI32 sum = acc.v;
  sum += (w_lanes & 0xff) * (bits_as<VecI32>(a_lanes << 24) >> 24);
  sum += ((w_lanes >> 8) & 0xff) * (bits_as<VecI32>(a_lanes << 16) >> 24);
  sum += ((w_lanes >> 16) & 0xff) * (bits_as<VecI32>(a_lanes << 8) >> 24);
  sum += ((w_lanes >> 24) & 0xff) * (bits_as<VecI32>(a_lanes) >> 24);
  return {sum};
}
static POLYSPAN_INLINE void prefetch(const void*) {}

#endif

// e^x to about 2 units in the last place for x <= 88; 0 below -87 (Cephes' split of ln 2 and minimax polynomial degree 5).
static POLYSPAN_INLINE F32x16 exp(F32x16 x) {
  const F32x16 low = broadcast(-87.0f);
  const F32x16 clamped = min(max(x, low), broadcast(88.0f));
  const F32x16 n = round(clamped * broadcast(1.44269504088896341f));
  F32x16 r = fma(n, broadcast(-0.693359375f), clamped);
  r = fma(n, broadcast(2.12194440e-4f), r);
  F32x16 p = broadcast(1.9875691500e-4f);
  p = fma(p, r, broadcast(1.3981999507e-3f));
  p = fma(p, r, broadcast(8.3334519073e-3f));
  p = fma(p, r, broadcast(4.1665795894e-2f));
  p = fma(p, r, broadcast(1.6666665459e-1f));
  p = fma(p, r, broadcast(5.0000001201e-1f));
  p = fma(p, r * r, r + broadcast(1.0f));
  return keep_above(scale_by_power(p, n), x, low);
}
static POLYSPAN_INLINE F32x16 sigmoid(F32x16 x) {
  return broadcast(1.0f) / (broadcast(1.0f) + exp(broadcast(0.0f) - x));
}

}  // namespace polyspan::POLYSPAN_ISA
