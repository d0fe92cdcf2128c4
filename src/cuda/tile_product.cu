#include "cuda/tile_product.h"

#include <algorithm>

#include "core/error.h"
#include "cuda/blocks.cuh"
#include "cuda/mma.cuh"
#include "cuda/overlap.cuh"

namespace polyspan::cuda {
namespace {

constexpr int kMostWarps = 8, kLeastWarps = 4, kTileRows = 16;  // warps of a block
constexpr int kUnitsPerStep = 4;              // of a row: one for each of the four lanes that share it
constexpr int64_t kResidentWarps = 132 * 16;  // of an H100, at 128 registers a thread

__device__ inline uint32_t as_word(__half2 pair) { return *reinterpret_cast<const uint32_t*>(&pair); }

// What makes values of a run's codes, in f16: (code - offset) * factor * scale - minimum. Exact but for the last rounding, as if
// decoded in f32, except that the minimum of Q4_K and the product with Q6_K's factor are rounded too.
template <DType kType>
struct RunScale {
  static constexpr bool kSigned = kType == DType::kQ8_0 || kType == DType::kQ6_K;
  static constexpr bool kHasFactor = kType == DType::kQ4_K || kType == DType::kQ6_K;
  static constexpr bool kMinimumApart = kType == DType::kQ4_K || kType == DType::kQ4_1;
  __half2 factor = {}, scale = {}, minus_minimum = {};

  __device__ RunScale(const UnitBytes<kType>& bytes, int unit, int run) {
    if constexpr (kType == DType::kQ4_K) {
      const uint2 of_run = q4k_scale(bytes.more, unit, run);
      const __half2 of_block = as_halves(bytes.more.x);
      factor = __half2half2(__uint2half_rn(of_run.x));
      scale = __low2half2(of_block);
      minus_minimum = __hneg2(__hmul2(__high2half2(of_block), __half2half2(__uint2half_rn(of_run.y))));
    } else {
      const __half2 of_unit = as_halves(bytes.scales);
      scale = __low2half2(of_unit);
      if constexpr (kType == DType::kQ4_1) minus_minimum = __high2half2(of_unit);
      if constexpr (kType == DType::kQ6_K) factor = __half2half2(__int2half_rn(q6k_scale(bytes.scales, run)));
    }
  }

  // Of four codes, a byte each. A byte under the exponent of 2^10 is that power plus the byte.
  __device__ void decode(uint32_t word, uint32_t (&halves)[2]) const {
    constexpr float kOffset = 1024.0f + (kSigned ? 128.0f : kType == DType::kQ4_0 ? 8.0f : 0.0f);
    if constexpr (kSigned) word ^= 0x80808080u;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      __half2 value =
          __hsub2(as_halves(__byte_perm(word, 0x64646464u, i == 0 ? 0x4140u : 0x4342u)), __float2half2_rn(kOffset));
      if constexpr (kHasFactor) value = __hmul2(value, factor);
      value = kMinimumApart ? __hfma2(value, scale, minus_minimum) : __hmul2(value, scale);
      halves[i] = as_word(value);
    }
  }
};

// With g = lane / 4 and c = lane % 4 a lane has units 4 s + c of rows g and g + 8 in step s. The order of the values that a sum
// runs over is free, if both factors have it: instruction j of a run takes values 4j to 4j + 3 of the run from each of the four
// units. Warps of a block: n_splits that share 16 rows, step by step, for each 16 rows.
template <DType kType, int kCols>  // kCols * 8 tokens
__global__ void __launch_bounds__(32 * kMostWarps, 2)
    tile_product_kernel(DeviceMatrix w, const __half* x, int n_tokens, int n_splits, float* out, int64_t out_stride,
                        bool add) {
  constexpr int kStepsAhead = kCols > 2 ? 1 : 2;  // what registers hold
  constexpr int kSums = kCols == 1 ? 2 : 1;       // one for each run, so that fewer instructions wait for one another
  __shared__ float partial[kMostWarps][kCols * 4][32];
  let_next_kernel_start();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, n_warps = blockDim.x / 32, g = lane / 4, c = lane % 4;
  const int split = warp % n_splits, units = static_cast<int>(w.d_in / 32);
  const int n_steps = (units + kUnitsPerStep - 1) / kUnitsPerStep;
  const int64_t first_row = (int64_t{blockIdx.x} * (n_warps / n_splits) + warp / n_splits) * kTileRows;
  const auto load = [&](int step, UnitBytes<kType>(&to)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
      to[half] = load_unit_bytes<kType>(w, min(first_row + 8 * half + g, w.d_out - 1),
                                        min(kUnitsPerStep * step + c, units - 1));
  };
  UnitBytes<kType> ahead[kStepsAhead][2];
#pragma unroll
  for (int i = 0; i < kStepsAhead; ++i)  // no kernel writes weights
    if (split + i * n_splits < n_steps) load(split + i * n_splits, ahead[i]);
  wait_for_earlier_kernels();

  const __half* tokens[kCols];
#pragma unroll
  for (int col = 0; col < kCols; ++col) tokens[col] = x + int64_t{min(8 * col + g, n_tokens - 1)} * w.d_in;
  float sum[kSums][kCols][4] = {};
  const auto multiply = [&](int step, const UnitBytes<kType>(&bytes)[2]) {
    const int unit = kUnitsPerStep * step + c;
    const auto load_x = [&](int run, int col, uint4(&b)[2]) {
      const uint4* const from = reinterpret_cast<const uint4*>(tokens[col] + unit_at<kType>(unit, run));
      b[0] = unit < units ? from[0] : uint4{};
      b[1] = unit < units ? from[1] : uint4{};
    };
    constexpr bool kEarly = kCols <= 2;  // all of the step's x is asked for before weights are decoded
    uint4 early[2][kEarly ? kCols : 1][2];
    if constexpr (kEarly)
#pragma unroll
      for (int run = 0; run < 2; ++run)
#pragma unroll
        for (int col = 0; col < kCols; ++col) load_x(run, col, early[run][col]);
#pragma unroll
    for (int run = 0; run < 2; ++run) {
      uint32_t a[4][4];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const RunScale<kType> scale(bytes[half], unit, run);
        uint32_t words[4];
        unpack_codes(bytes[half], unit, run, words);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          uint32_t halves[2];
          scale.decode(words[j], halves);
          a[j][half] = halves[0];
          a[j][2 + half] = halves[1];
        }
      }
#pragma unroll
      for (int col = 0; col < kCols; ++col) {
        uint4 b[2];
        if constexpr (kEarly) {
          b[0] = early[run][col][0], b[1] = early[run][col][1];
        } else {
          load_x(run, col, b);
        }
        float(&to)[4] = sum[run % kSums][col];
        multiply_add<__half>(to, a[0], b[0].x, b[0].y);
        multiply_add<__half>(to, a[1], b[0].z, b[0].w);
        multiply_add<__half>(to, a[2], b[1].x, b[1].y);
        multiply_add<__half>(to, a[3], b[1].z, b[1].w);
      }
    }
  };
  for (int step = split; step < n_steps; step += kStepsAhead * n_splits) {
#pragma unroll
    for (int i = 0; i < kStepsAhead; ++i) {
      const int at = step + i * n_splits;
      if (at >= n_steps) break;
      const UnitBytes<kType> bytes[2] = {ahead[i][0], ahead[i][1]};
      if (at + kStepsAhead * n_splits < n_steps) load(at + kStepsAhead * n_splits, ahead[i]);
      multiply(at, bytes);
    }
  }

  const auto sum_at = [&](int col, int i) {
    float all = sum[0][col][i];
    if constexpr (kSums == 2) all += sum[1][col][i];
    return all;
  };
  if (n_splits > 1) {
#pragma unroll
    for (int col = 0; col < kCols; ++col)
#pragma unroll
      for (int i = 0; i < 4; ++i) partial[warp][4 * col + i][lane] = sum_at(col, i);
    __syncthreads();
    if (split != 0) return;
  }
#pragma unroll
  for (int col = 0; col < kCols; ++col)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float all = sum_at(col, i);
      for (int other = 1; other < n_splits; ++other) all += partial[warp + other][4 * col + i][lane];
      const int64_t row = first_row + g + (i < 2 ? 0 : 8), token = 8 * col + 2 * c + i % 2;
      if (row >= w.d_out || token >= n_tokens) continue;
      float* const to = out + token * out_stride + row;
      *to = add ? *to + all : all;
    }
}

}  // namespace

void multiply_tiles(const DeviceMatrix& w, const void* x, int64_t n_tokens, float* out, int64_t out_stride, bool add,
                    const Stream& stream) {
  POLYSPAN_CHECK(has_device_blocks(w.type) && w.d_in % 32 == 0);
  const int64_t tiles = (w.d_out + kTileRows - 1) / kTileRows;
  int n_splits = kMostWarps;
  while (n_splits > 1 && tiles * n_splits > kResidentWarps) n_splits /= 2;
  const int n_warps = std::max(n_splits, kLeastWarps), tiles_of_block = n_warps / n_splits;
  const auto grid = static_cast<unsigned>((tiles + tiles_of_block - 1) / tiles_of_block);
  visit_block_type(w.type, [&]<DType kType>() {
    for (int64_t first = 0; first < n_tokens;) {
      const auto launch = [&]<int kCols>() {
        const int64_t n = std::min<int64_t>(n_tokens - first, 8 * kCols);
        launch_overlapping(tile_product_kernel<kType, kCols>, grid, 32 * n_warps, 0, stream.get(), w,
                           static_cast<const __half*>(x) + first * w.d_in, static_cast<int>(n), n_splits,
                           out + first * out_stride, out_stride, add);
        first += n;
      };
      const int64_t left = n_tokens - first;
      if (left > 16) {
        launch.template operator()<4>();
      } else if (left > 8) {
        launch.template operator()<2>();
      } else {
        launch.template operator()<1>();
      }
    }
  });
  check_launch("a product of tiles");
}

}  // namespace polyspan::cuda
