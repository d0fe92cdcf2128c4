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

// Bytes of the code planes that hold whole rows, in values: where the next plane starts.
template <DType kType>
__device__ inline Unit load_unit(const DeviceMatrix& w, int64_t row, int unit) {
  Unit u;
  const int64_t n = w.d_out * w.d_in, first = row * w.d_in;  // of the matrix; of the row
  const auto load16 = [](const std::byte* at) { return __ldg(reinterpret_cast<const uint4*>(at)); };
  const auto half_at = [](const std::byte* at) { return __half2float(*reinterpret_cast<const __half*>(at)); };
  if constexpr (kType == DType::kQ8_0) {
    const uint4 a = load16(w.data + first + unit * 32), b = load16(w.data + first + unit * 32 + 16);
    u.codes[0][0] = a.x, u.codes[0][1] = a.y, u.codes[0][2] = a.z, u.codes[0][3] = a.w;
    u.codes[1][0] = b.x, u.codes[1][1] = b.y, u.codes[1][2] = b.z, u.codes[1][3] = b.w;
    u.scale[0] = u.scale[1] = half_at(w.data + n + (first / 32 + unit) * 2);
    u.minimum[0] = u.minimum[1] = 0.0f;
    u.at[0] = unit * 32;
    u.at[1] = unit * 32 + 16;
  } else {
    const uint4 q = load16(w.data + first / 2 + unit * 16);
    const uint32_t words[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      u.codes[0][i] = words[i] & 0x0f0f0f0fu;
      u.codes[1][i] = words[i] >> 4 & 0x0f0f0f0fu;
    }
    if constexpr (kType == DType::kQ4_0) {  // value = d * (code - 8)
      u.scale[0] = u.scale[1] = half_at(w.data + n / 2 + (first / 32 + unit) * 2);
      u.minimum[0] = u.minimum[1] = 8.0f * u.scale[0];
    } else if constexpr (kType == DType::kQ4_1) {
      const __half2 pair = *reinterpret_cast<const __half2*>(w.data + n / 2 + (first / 32 + unit) * 4);
      u.scale[0] = u.scale[1] = __low2float(pair);
      u.minimum[0] = u.minimum[1] = -__high2float(pair);
    }
    if constexpr (kType == DType::kQ4_0 || kType == DType::kQ4_1) {
      u.at[0] = unit * 32;
      u.at[1] = unit * 32 + 16;
    }
    if constexpr (kType == DType::kQ4_K) {
      // 64 values share 32 bytes, the first 32 in the lower halves; a unit has 16 of these bytes.
      const int group = unit / 2 % 4, sub = 2 * group;
      u.at[0] = unit / 2 * 64 + unit % 2 * 16;
      u.at[1] = u.at[0] + 32;
      const uint4 header = load16(w.data + n / 2 + (first / 256 + unit / 8) * 16);
      const __half2 pair = *reinterpret_cast<const __half2*>(&header.x);
      const float d = __low2float(pair), dmin = __high2float(pair);
      // Bytes 0-3, 4-7 and 8-11 of the packed scales and minima (core/dequantize.cpp: scale_min).
      const uint32_t packed[3] = {header.y, header.z, header.w};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int s = sub + i;
        uint32_t scale, minimum;
        if (s < 4) {
          scale = packed[0] >> 8 * s & 63;
          minimum = packed[1] >> 8 * s & 63;
        } else {
          const int shift = 8 * (s - 4);
          scale = (packed[2] >> shift & 0xf) | (packed[0] >> shift >> 6 & 3) << 4;
          minimum = (packed[2] >> shift >> 4 & 0xf) | (packed[1] >> shift >> 6 & 3) << 4;
        }
        u.scale[i] = d * static_cast<float>(scale);
        u.minimum[i] = dmin * static_cast<float>(minimum);
      }
    }
    if constexpr (kType == DType::kQ6_K) {
      // Half `half` of a block: 64 bytes of lower bits, whose nibbles are quarters 0, 1 and 2, 3; 32 bytes of upper bits,
      // two for each quarter. A unit has 16 lower bytes: columns of quarter `quarter` and of quarter + 2.
      const int block = unit / 8, half = unit % 8 / 4, quarter = unit % 4 / 2, column = unit % 2 * 16;
      const uint4 upper = load16(w.data + n / 2 + first / 4 + block * 64 + half * 32 + column);
      const uint32_t upper_words[4] = {upper.x, upper.y, upper.z, upper.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        u.codes[0][i] = __vsub4(u.codes[0][i] | (upper_words[i] >> 2 * quarter & 0x03030303u) << 4, 0x20202020u);
        u.codes[1][i] = __vsub4(u.codes[1][i] | (upper_words[i] >> 2 * (quarter + 2) & 0x03030303u) << 4, 0x20202020u);
      }
      const int8_t* const scales =
          reinterpret_cast<const int8_t*>(w.data + n / 2 + n / 4) + first / 16 + block * 16 + half * 8 + column / 16;
      const float d = half_at(w.data + n / 2 + n / 4 + n / 16 + (first / 256 + block) * 2);
      u.scale[0] = d * static_cast<float>(scales[quarter * 2]);
      u.scale[1] = d * static_cast<float>(scales[(quarter + 2) * 2]);
      u.minimum[0] = u.minimum[1] = 0.0f;
      u.at[0] = block * 256 + half * 128 + quarter * 32 + column;
      u.at[1] = u.at[0] + 64;
    }
  }
  return u;
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
