// cuda/number.cuh: number types of caches, weights and activations, read and written in vectors of 16 bytes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>

#include "cuda/kv_view.h"

namespace polyspan::cuda {

inline constexpr float kLargestHalf = 65504.0f;

// What one 16-byte vector of T holds, and its values as floats.
template <typename T>
struct Vec16;

template <>
struct Vec16<float> {
  static constexpr int kN = 4;
  static __device__ void unpack(const uint4& v, float (&out)[4]) {
    out[0] = __uint_as_float(v.x);
    out[1] = __uint_as_float(v.y);
    out[2] = __uint_as_float(v.z);
    out[3] = __uint_as_float(v.w);
  }
};

template <>
struct Vec16<__half> {
  static constexpr int kN = 8;
  static __device__ void unpack(const uint4& v, float (&out)[8]) {
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(&words[i]));
      out[2 * i] = pair.x;
      out[2 * i + 1] = pair.y;
    }
  }
};

template <>
struct Vec16<__nv_bfloat16> {
  static constexpr int kN = 8;
  static __device__ void unpack(const uint4& v, float (&out)[8]) {
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      out[2 * i] = __uint_as_float(words[i] << 16);
      out[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
  }
};

template <>
struct Vec16<int8_t> {
  static constexpr int kN = 16;
  static __device__ void unpack(const uint4& v, float (&out)[16]) {
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) out[4 * i + j] = static_cast<float>(static_cast<int8_t>(words[i] >> 8 * j));
  }
};

template <typename T>
__device__ inline T from_float(float value);
template <>
__device__ inline float from_float<float>(float value) {
  return value;
}
// Finite values stay finite: a product of infinities would make NaN of a row. NaN stays NaN.
template <>
__device__ inline __half from_float<__half>(float value) {
  if (value > kLargestHalf) value = kLargestHalf;
  if (value < -kLargestHalf) value = -kLargestHalf;
  return __float2half_rn(value);
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

template <>
__device__ inline __nv_fp8_e4m3 from_float<__nv_fp8_e4m3>(float value) {
  __nv_fp8_e4m3 out;
  out.__x = __nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3);
  return out;
}

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__half value) { return __half2float(value); }
__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

// The element type of a cache.
template <KvType kType>
struct KvElement;
template <>
struct KvElement<KvType::kF16> {
  using type = __half;
};
template <>
struct KvElement<KvType::kBF16> {
  using type = __nv_bfloat16;
};
template <>
struct KvElement<KvType::kQ8> {
  using type = int8_t;
};
template <>
struct KvElement<KvType::kF8> {
  using type = __nv_fp8_e4m3;
};

// Two e4m3 as f16, which has them all: byte 0 in the lower half.
__device__ inline uint32_t f8_to_halves(uint32_t bytes) {
  const __half2_raw pair = __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(bytes & 0xffff), __NV_E4M3);
  return static_cast<uint32_t>(pair.x) | static_cast<uint32_t>(pair.y) << 16;
}

// Where the parts of a storage begin.
template <typename T>
__device__ inline const T* keys_of(const KvHeadView& head) {
  return reinterpret_cast<const T*>(head.data);
}
template <typename T>
__device__ inline const T* values_of(const KvHeadView& head, int head_dim) {
  return keys_of<T>(head) + int64_t{head.capacity} * head_dim;
}
__device__ inline float* key_scales_of(const KvHeadView& head, int head_dim) {
  return reinterpret_cast<float*>(head.data + int64_t{2} * head.capacity * head_dim);
}
__device__ inline float* value_scales_of(const KvHeadView& head, int head_dim) {
  return key_scales_of(head, head_dim) + head.capacity;
}

// The newest position <= `position` that a slot may hold, or -1 where the slot is empty or padding.
__device__ inline int slot_position(const KvHeadView& head, int slot, int position) {
  if (slot < head.sink_slots) return slot < head.n_sink && slot <= position ? slot : -1;
  const int offset = slot - head.sink_slots, newest = position - head.n_sink;  // in ring coordinates
  if (offset > newest) return -1;
  return head.n_sink + newest - (newest - offset) % head.ring_slots;
}

// 2^x, relative error below 2^-22 (PTX ISA, ex2.approx); 0 at -infinity.
__device__ inline float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ inline float warp_sum(float value) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) value += __shfl_xor_sync(0xffffffffu, value, lane);
  return value;
}
__device__ inline float warp_max(float value) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, lane));
  return value;
}

}  // namespace polyspan::cuda
