// hydra/kernel_util.cuh: what the kernels of src/hydra share: four bf16 at a time, tiles in shared memory, products of tiles on
// the tensor cores (wmma: bf16 in, float32 sums), sums over a block.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <mma.h>

#include <cstdint>
#include <type_traits>

namespace polyspan::hydra {

using bf16 = __nv_bfloat16;
inline const bf16* typed(const uint16_t* bits) { return reinterpret_cast<const bf16*>(bits); }
inline bf16* typed(uint16_t* bits) { return reinterpret_cast<bf16*>(bits); }

struct Four {
  float v[4];
};

__device__ inline Four load4(const bf16* from) {  // 8 bytes, aligned
  const uint2 bits = *reinterpret_cast<const uint2*>(from);
  return {{__uint_as_float(bits.x << 16), __uint_as_float(bits.x & 0xffff0000u), __uint_as_float(bits.y << 16),
           __uint_as_float(bits.y & 0xffff0000u)}};
}
__device__ inline Four load4(const float* from) {  // 16 bytes, aligned
  const float4 x = *reinterpret_cast<const float4*>(from);
  return {{x.x, x.y, x.z, x.w}};
}
__device__ inline uint32_t bits_of(float value) { return __bfloat16_as_ushort(__float2bfloat16(value)); }
__device__ inline void store4(bf16* to, const Four& x) {
  uint2 bits;
  bits.x = bits_of(x.v[0]) | bits_of(x.v[1]) << 16;
  bits.y = bits_of(x.v[2]) | bits_of(x.v[3]) << 16;
  *reinterpret_cast<uint2*>(to) = bits;
}
__device__ inline void store4(float* to, const Four& x) {
  *reinterpret_cast<float4*>(to) = make_float4(x.v[0], x.v[1], x.v[2], x.v[3]);
}

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + __expf(-x)); }
__device__ inline float silu(float x) { return x * sigmoid(x); }
// d silu(x) / dx
__device__ inline float silu_slope(float x) {
  const float s = sigmoid(x);
  return s * (1.0f + x * (1.0f - s));
}

__device__ inline float warp_sum(float x) {
  for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(0xffffffffu, x, lanes);
  return x;
}
// The sum over a block, for each of its threads. `shared`: a float a warp; a barrier before and after its use.
__device__ inline float block_sum(float x, float* shared) {
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = 0;
  for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) sum += shared[warp];
  __syncthreads();
  return sum;
}

// Tiles in shared memory have rows of kColumns + 8 bf16, so that the rows of a tile of 16 lie in different banks.
inline constexpr int kTileThreads = 256, kTileWarps = kTileThreads / 32;
template <int kColumns>
inline constexpr int kStride = kColumns + 8;

// Rows of a matrix of `stride` elements a row, zeros behind `n_rows`.
template <int kRows, int kColumns>
__device__ inline void load_tile(bf16* to, const bf16* from, int64_t stride, int n_rows) {
  for (int i = threadIdx.x; i < kRows * kColumns / 4; i += kTileThreads) {
    const int row = i / (kColumns / 4), column = i % (kColumns / 4) * 4;
    uint2 bits = {0, 0};
    if (row < n_rows) bits = *reinterpret_cast<const uint2*>(from + row * stride + column);
    *reinterpret_cast<uint2*>(to + row * kStride<kColumns> + column) = bits;
  }
}
// to = from, row by row times a factor.
template <int kRows, int kColumns>
__device__ inline void scale_tile(bf16* to, const bf16* from, const float* factors) {
  for (int i = threadIdx.x; i < kRows * kColumns / 4; i += kTileThreads) {
    const int row = i / (kColumns / 4), column = i % (kColumns / 4) * 4;
    Four x = load4(from + row * kStride<kColumns> + column);
    for (float& value : x.v) value *= factors[row];
    store4(to + row * kStride<kColumns> + column, x);
  }
}

using Rows = nvcuda::wmma::row_major;
using Transposed = nvcuda::wmma::col_major;
using Sums = nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float>;

// A [kM, kN] product by a block of 8 warps: each has kTiles tiles of 16 x 16, side by side in one row of tiles.
template <int kM, int kN>
struct Product {
  static constexpr int kTiles = kM * kN / 256 / kTileWarps;
  static_assert(kTiles >= 1 && kN / 16 % kTiles == 0 && kM * kN == kTiles * 256 * kTileWarps);
  Sums sums[kTiles];

  __device__ static int row() { return static_cast<int>(threadIdx.x) / 32 * kTiles / (kN / 16) * 16; }
  __device__ static int column(int tile) {
    return (static_cast<int>(threadIdx.x) / 32 * kTiles + tile) % (kN / 16) * 16;
  }
  __device__ void clear() {
    for (Sums& tile : sums) nvcuda::wmma::fill_fragment(tile, 0.0f);
  }
  // sums += A B, A [kM, kK], B [kK, kN]. Transposed: a (b) holds A^T (B^T). Strides in elements.
  template <class LayoutA, class LayoutB>
  __device__ void add(const bf16* a, int stride_a, const bf16* b, int stride_b, int n_inner) {
    constexpr bool a_rows = std::is_same_v<LayoutA, Rows>, b_rows = std::is_same_v<LayoutB, Rows>;
    for (int k = 0; k < n_inner; k += 16) {
      nvcuda::wmma::fragment<nvcuda::wmma::matrix_a, 16, 16, 16, bf16, LayoutA> left;
      nvcuda::wmma::load_matrix_sync(left, a + (a_rows ? row() * stride_a + k : k * stride_a + row()), stride_a);
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        nvcuda::wmma::fragment<nvcuda::wmma::matrix_b, 16, 16, 16, bf16, LayoutB> right;
        nvcuda::wmma::load_matrix_sync(right, b + (b_rows ? k * stride_b + column(tile) : column(tile) * stride_b + k),
                                       stride_b);
        nvcuda::wmma::mma_sync(sums[tile], left, right, sums[tile]);
      }
    }
  }
  __device__ void store(float* to, int stride) const {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
      nvcuda::wmma::store_matrix_sync(to + int64_t{row()} * stride + column(tile), sums[tile], stride,
                                      nvcuda::wmma::mem_row_major);
  }
};

}  // namespace polyspan::hydra
