// cuda/blocks.cuh: 32 values of a quantised row as integers with scales: what the products and the decoder share.
#pragma once

#include <cuda_fp16.h>

#include "cuda/weights.h"

namespace polyspan::cuda {

// Two runs of 16 values: value = scale * code - minimum; four codes (int8) a word.
struct Unit {
  uint32_t codes[2][4];
  float scale[2], minimum[2];
  int at[2];  // of the run's first value in the row
};

template <DType kType>
inline constexpr bool kHasMinimum = kType == DType::kQ4_0 || kType == DType::kQ4_1 || kType == DType::kQ4_K;

// Where run `run` of a unit begins in the row.
template <DType kType>
__device__ inline int unit_at(int unit, int run) {
  // Q4_K: 64 values share 32 bytes, the first 32 in the lower halves; a unit has 16 of these bytes.
  if constexpr (kType == DType::kQ4_K) return unit / 2 * 64 + unit % 2 * 16 + 32 * run;
  // Q6_K: half a block is 64 bytes of lower bits, whose nibbles are quarters 0, 1 and 2, 3, and 32 bytes of upper bits, two for
  // each quarter. A unit has 16 lower bytes: columns of a quarter and of the one after next.
  if constexpr (kType == DType::kQ6_K)
    return unit / 8 * 256 + unit % 8 / 4 * 128 + unit % 4 / 2 * 32 + unit % 2 * 16 + 64 * run;
  return unit * 32 + 16 * run;
}

// Scale and minimum of a run of Q4_K, from bytes 0-3, 4-7 and 8-11 behind the header's d and dmin (core/dequantize.cpp:
// scale_min).
__device__ inline uint2 q4k_scale(const uint4& header, int unit, int run) {
  const uint32_t packed[3] = {header.y, header.z, header.w};
  const int index = unit / 2 % 4 * 2 + run;
  if (index < 4) return make_uint2(packed[0] >> 8 * index & 63, packed[1] >> 8 * index & 63);
  const int shift = 8 * (index - 4);
  return make_uint2((packed[2] >> shift & 0xf) | (packed[0] >> shift >> 6 & 3) << 4,
                    (packed[2] >> shift >> 4 & 0xf) | (packed[1] >> shift >> 6 & 3) << 4);
}

// A unit's bytes as they lie in the planes: asked for early, unpacked where they are used.
template <DType kType>
struct UnitBytes {
  uint4 codes;
  uint4 more;       // Q8_0: the second half of the codes; Q6_K: the upper bits; Q4_K: the block's header
  uint32_t scales;  // Q8_0, Q4_0: f16; Q4_1: f16 scale and minimum; Q6_K: f16 d and two int8 scales
};

// REQUIRES: 0 <= row < d_out, 0 <= unit < d_in / 32.
template <DType kType>
__device__ inline UnitBytes<kType> load_unit_bytes(const DeviceMatrix& w, int64_t row, int unit) {
  UnitBytes<kType> u = {};
  const int64_t n = w.d_out * w.d_in, first = row * w.d_in;  // values of the matrix; before the row
  const auto load16 = [](const std::byte* at) { return __ldg(reinterpret_cast<const uint4*>(at)); };
  const auto load2 = [](const std::byte* at) { return uint32_t{__ldg(reinterpret_cast<const uint16_t*>(at))}; };
  if constexpr (kType == DType::kQ8_0) {
    u.codes = load16(w.data + first + unit * 32);
    u.more = load16(w.data + first + unit * 32 + 16);
    u.scales = load2(w.data + n + (first / 32 + unit) * 2);
  } else {
    u.codes = load16(w.data + first / 2 + unit * 16);
  }
  if constexpr (kType == DType::kQ4_0) u.scales = load2(w.data + n / 2 + (first / 32 + unit) * 2);
  if constexpr (kType == DType::kQ4_1)
    u.scales = __ldg(reinterpret_cast<const uint32_t*>(w.data + n / 2 + (first / 32 + unit) * 4));
  if constexpr (kType == DType::kQ4_K) u.more = load16(w.data + n / 2 + (first / 256 + unit / 8) * 16);
  if constexpr (kType == DType::kQ6_K) {
    const int block = unit / 8, half = unit % 8 / 4, quarter = unit % 4 / 2, column = unit % 2 * 16;
    u.more = load16(w.data + n / 2 + first / 4 + block * 64 + half * 32 + column);
    const std::byte* const scales = w.data + n / 2 + n / 4 + first / 16 + block * 16 + half * 8 + column / 16;
    const auto scale = [&](int at) { return uint32_t{__ldg(reinterpret_cast<const uint8_t*>(scales) + at)}; };
    u.scales = load2(w.data + n / 2 + n / 4 + n / 16 + (first / 256 + block) * 2) | scale(quarter * 2) << 16 |
               scale((quarter + 2) * 2) << 24;
  }
  return u;
}

__device__ inline int8_t q6k_scale(uint32_t scales, int run) { return static_cast<int8_t>(scales >> (16 + 8 * run)); }

// The codes of a run, four a word.
template <DType kType>
__device__ inline void unpack_codes(const UnitBytes<kType>& bytes, int unit, int run, uint32_t (&words)[4]) {
  const uint32_t codes[4] = {bytes.codes.x, bytes.codes.y, bytes.codes.z, bytes.codes.w};
  const uint32_t more[4] = {bytes.more.x, bytes.more.y, bytes.more.z, bytes.more.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    words[i] = kType == DType::kQ8_0 ? (run == 0 ? codes[i] : more[i]) : codes[i] >> 4 * run & 0x0f0f0f0fu;
    if constexpr (kType == DType::kQ6_K)
      words[i] = __vsub4(words[i] | (more[i] >> 2 * (unit % 4 / 2 + 2 * run) & 0x03030303u) << 4, 0x20202020u);
  }
}

__device__ inline __half2 as_halves(uint32_t word) { return *reinterpret_cast<const __half2*>(&word); }

template <DType kType>
__device__ inline Unit unpack_unit(const UnitBytes<kType>& bytes, int unit) {
  Unit u;
  const __half2 pair = as_halves(kType == DType::kQ4_K ? bytes.more.x : bytes.scales);
#pragma unroll
  for (int run = 0; run < 2; ++run) {
    unpack_codes(bytes, unit, run, u.codes[run]);
    u.scale[run] = __low2float(pair);
    u.minimum[run] = 0.0f;
    u.at[run] = unit_at<kType>(unit, run);
    if constexpr (kType == DType::kQ4_0) u.minimum[run] = 8.0f * u.scale[run];  // value = d * (code - 8)
    if constexpr (kType == DType::kQ4_1) u.minimum[run] = -__high2float(pair);
    if constexpr (kType == DType::kQ6_K) u.scale[run] *= static_cast<float>(q6k_scale(bytes.scales, run));
    if constexpr (kType == DType::kQ4_K) {
      const uint2 of_run = q4k_scale(bytes.more, unit, run);
      u.scale[run] *= static_cast<float>(of_run.x);
      u.minimum[run] = __high2float(pair) * static_cast<float>(of_run.y);
    }
  }
  return u;
}

template <DType kType>
__device__ inline Unit load_unit(const DeviceMatrix& w, int64_t row, int unit) {
  return unpack_unit(load_unit_bytes<kType>(w, row, unit), unit);
}

// The unit's values, run by run.
__device__ inline void decode_unit(const Unit& u, float (&values)[2][16]) {
#pragma unroll
  for (int run = 0; run < 2; ++run)
#pragma unroll
    for (int i = 0; i < 16; ++i)
      values[run][i] =
          u.scale[run] * static_cast<float>(static_cast<int8_t>(u.codes[run][i / 4] >> i % 4 * 8)) - u.minimum[run];
}

// Calls visit.operator()<kType>() for a type that has blocks here.
template <typename Visit>
void visit_block_type(DType type, Visit visit) {
  if (type == DType::kQ8_0) return visit.template operator()<DType::kQ8_0>();
  if (type == DType::kQ4_0) return visit.template operator()<DType::kQ4_0>();
  if (type == DType::kQ4_1) return visit.template operator()<DType::kQ4_1>();
  if (type == DType::kQ4_K) return visit.template operator()<DType::kQ4_K>();
  if (type == DType::kQ6_K) return visit.template operator()<DType::kQ6_K>();
}

}  // namespace polyspan::cuda
