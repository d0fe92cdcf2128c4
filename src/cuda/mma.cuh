// cuda/mma.cuh: the matrix instructions m16n8k16 on f16 and bf16 with sums in f32, and what feeds them.
//
// With g = lane / 4 and c = lane % 4, a lane holds (PTX ISA, mma.m16n8k16):
//   a [16 x 16]: a[0] row g, columns 2c, 2c + 1; a[1] row g + 8; a[2] row g, columns 2c + 8, 2c + 9; a[3] row g + 8
//   b [16 x 8]:  b[0] rows 2c, 2c + 1 of column g; b[1] rows 2c + 8, 2c + 9
//   c [16 x 8]:  c[0], c[1] row g, columns 2c, 2c + 1; c[2], c[3] row g + 8
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace polyspan::cuda {

// c += a b
template <typename T>
__device__ inline void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<T, __half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
        "%3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, "
        "%2, %3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

template <typename T>
__device__ inline uint32_t pack(float low, float high) {
  if constexpr (std::is_same_v<T, __half>) {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  } else {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
}

template <typename T>
__device__ inline float2 unpack(uint32_t pair) {
  if constexpr (std::is_same_v<T, __half>) {
    return __half22float2(*reinterpret_cast<const __half2*>(&pair));
  } else {
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
  }
}

// Two floats as the sum of two pairs of T: what the second holds of them, the first rounded away.
template <typename T>
__device__ inline void pack_in_two(float low, float high, uint32_t& rounded, uint32_t& rest) {
  rounded = pack<T>(low, high);
  const float2 back = unpack<T>(rounded);
  rest = pack<T>(low - back.x, high - back.y);
}

// Transposes an 8 x 8 matrix of 2-byte values, of which lane 4g + c holds row g, columns 2c and 2c + 1.
__device__ inline uint32_t transpose(uint32_t pair) {
  uint32_t out;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;\n" : "=r"(out) : "r"(pair));
  return out;
}

}  // namespace polyspan::cuda
