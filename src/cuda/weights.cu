#include "cuda/weights.h"

#include <algorithm>

#include "core/error.h"
#include "cuda/blocks.cuh"
#include "cuda/number.cuh"
#include "cuda/overlap.cuh"
#include "cuda/tile_product.h"

namespace polyspan::cuda {
namespace {

// Where a part of a block goes: `bytes` from `from` in the block to the plane at `plane`, block after block.
struct Part {
  int64_t plane;
  int from, bytes;
};
struct Parts {
  int n, block_bytes;
  Part part[4];
};

Parts parts_of(DType type, int64_t n_values) {
  switch (type) {
    case DType::kQ8_0: return {2, 34, {{0, 2, 32}, {n_values, 0, 2}}};
    case DType::kQ4_0: return {2, 18, {{0, 2, 16}, {n_values / 2, 0, 2}}};
    case DType::kQ4_1: return {2, 20, {{0, 4, 16}, {n_values / 2, 0, 4}}};
    case DType::kQ4_K: return {2, 144, {{0, 16, 128}, {n_values / 2, 0, 16}}};
    case DType::kQ6_K:
      return {4,
              210,
              {{0, 0, 128},
               {n_values / 2, 128, 64},
               {n_values / 2 + n_values / 4, 192, 16},
               {n_values / 2 + n_values / 4 + n_values / 16, 208, 2}}};
    default: break;
  }
  POLYSPAN_CHECK(false, "no planes for this type");
  return {};
}

// One thread a pair of bytes: all parts are even.
__global__ void sort_blocks_kernel(const uint16_t* rows, int64_t n_blocks, int64_t first_block, Parts parts,
                                   std::byte* planes) {
  const int pairs = parts.block_bytes / 2;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n_blocks * pairs;
       i += int64_t{gridDim.x} * blockDim.x) {
    const int64_t block = i / pairs;
    const int at = static_cast<int>(i % pairs) * 2;
    for (int p = 0; p < parts.n; ++p) {
      const Part& part = parts.part[p];
      if (at >= part.from && at < part.from + part.bytes)
        *reinterpret_cast<uint16_t*>(planes + part.plane + (first_block + block) * part.bytes + at - part.from) =
            rows[i];
    }
  }
}

// 16 values to aligned memory.
__device__ void store_run(const float (&values)[16], __half* out) {
  uint4* const to = reinterpret_cast<uint4*>(out);
  uint32_t words[8];
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const __half2 pair = __half2(from_float<__half>(values[2 * j]), from_float<__half>(values[2 * j + 1]));
    words[j] = *reinterpret_cast<const uint32_t*>(&pair);
  }
  to[0] = make_uint4(words[0], words[1], words[2], words[3]);
  to[1] = make_uint4(words[4], words[5], words[6], words[7]);
}
__device__ void store_run(const float (&values)[16], float* out) {
#pragma unroll
  for (int j = 0; j < 16; j += 4)
    *reinterpret_cast<float4*>(out + j) = make_float4(values[j], values[j + 1], values[j + 2], values[j + 3]);
}

template <typename T>
__global__ void widen_kernel(const T* values, int64_t n, float* out) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += int64_t{gridDim.x} * blockDim.x)
    out[i] = to_float(values[i]);
}

template <DType kType, typename T>
__global__ void dequantize_kernel(DeviceMatrix w, int64_t first_row, int64_t n_rows, T* out) {
  const int64_t units = w.d_in / 32;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n_rows * units;
       i += int64_t{gridDim.x} * blockDim.x) {
    const int64_t row = i / units;
    const Unit u = load_unit<kType>(w, first_row + row, static_cast<int>(i % units));
    float values[2][16];
    decode_unit(u, values);
#pragma unroll
    for (int run = 0; run < 2; ++run) store_run(values[run], out + row * w.d_in + u.at[run]);
  }
}

constexpr int kVectorWarps = 4, kVectorThreads = 32 * kVectorWarps, kRowsPerWarp = 2;

// What a lane asks for of each row before the kernels before it have ended: no kernel writes weights. With it a step of one
// token reads memory from one product to the next without a pause.
constexpr int kBlocksAhead = 4, kFloatsAhead = 4;  // units

template <int kCols>
__device__ void write_sums(const float (&sum)[kRowsPerWarp][kCols], int64_t first_row, int64_t d_out, float* out,
                           int64_t out_stride, bool add) {
#pragma unroll
  for (int r = 0; r < kRowsPerWarp; ++r)
#pragma unroll
    for (int c = 0; c < kCols; ++c) {
      const float all = warp_sum(sum[r][c]);
      if (threadIdx.x % 32 == 0 && first_row + r < d_out) {
        float* const at = out + c * out_stride + first_row + r;
        *at = add ? *at + all : all;
      }
    }
}

// One warp: kRowsPerWarp rows times kCols tokens; a lane takes every 32nd unit. Integer products of four values an
// instruction. Bound by reading the weights.
template <DType kType, int kCols>
__global__ void __launch_bounds__(kVectorThreads)
    vector_blocks_kernel(DeviceMatrix w, const int8_t* codes, const float* scales, float* out, int64_t out_stride,
                         bool add) {
  let_next_kernel_start();
  const int lane = threadIdx.x % 32, units = static_cast<int>(w.d_in / 32);
  const int64_t first_row = (int64_t{blockIdx.x} * kVectorWarps + threadIdx.x / 32) * kRowsPerWarp;
  if (first_row >= w.d_out) return;
  const auto load = [&](int r, int unit) { return load_unit_bytes<kType>(w, min(first_row + r, w.d_out - 1), unit); };
  UnitBytes<kType> ahead[kBlocksAhead][kRowsPerWarp];
#pragma unroll
  for (int i = 0; i < kBlocksAhead; ++i)
#pragma unroll
    for (int r = 0; r < kRowsPerWarp; ++r)
      if (lane + 32 * i < units) ahead[i][r] = load(r, lane + 32 * i);
  wait_for_earlier_kernels();

  float sum[kRowsPerWarp][kCols] = {};
  const auto accumulate = [&](int r, const Unit& u) {
#pragma unroll
    for (int c = 0; c < kCols; ++c)
#pragma unroll
      for (int run = 0; run < 2; ++run) {
        const int4 x = *reinterpret_cast<const int4*>(codes + c * w.d_in + u.at[run]);
        const float scale = scales[int64_t{c} * units + u.at[run] / 32];
        int dot = __dp4a(static_cast<int>(u.codes[run][0]), x.x, 0);
        dot = __dp4a(static_cast<int>(u.codes[run][1]), x.y, dot);
        dot = __dp4a(static_cast<int>(u.codes[run][2]), x.z, dot);
        dot = __dp4a(static_cast<int>(u.codes[run][3]), x.w, dot);
        float value = u.scale[run] * static_cast<float>(dot);
        if constexpr (kHasMinimum<kType>) {
          int ones = __dp4a(0x01010101, x.x, 0);
          ones = __dp4a(0x01010101, x.y, ones);
          ones = __dp4a(0x01010101, x.z, ones);
          ones = __dp4a(0x01010101, x.w, ones);
          value -= u.minimum[run] * static_cast<float>(ones);
        }
        sum[r][c] += scale * value;
      }
  };
#pragma unroll
  for (int i = 0; i < kBlocksAhead; ++i)
#pragma unroll
    for (int r = 0; r < kRowsPerWarp; ++r)
      if (lane + 32 * i < units) accumulate(r, unpack_unit(ahead[i][r], lane + 32 * i));
  for (int unit = lane + 32 * kBlocksAhead; unit < units; unit += 32)
#pragma unroll
    for (int r = 0; r < kRowsPerWarp; ++r) accumulate(r, unpack_unit(load(r, unit), unit));
  write_sums(sum, first_row, w.d_out, out, out_stride, add);
}

// The same for weights and activations of T. REQUIRES: d_in % kN == 0.
template <typename T, int kCols>
__global__ void __launch_bounds__(kVectorThreads)
    vector_floats_kernel(const T* w, int64_t d_out, int64_t d_in, const T* x, float* out, int64_t out_stride,
                         bool add) {
  constexpr int kN = Vec16<T>::kN;
  let_next_kernel_start();
  const int lane = threadIdx.x % 32, units = static_cast<int>(d_in / kN);
  const int64_t first_row = (int64_t{blockIdx.x} * kVectorWarps + threadIdx.x / 32) * kRowsPerWarp;
  if (first_row >= d_out) return;
  const uint4* rows[kRowsPerWarp];
#pragma unroll
  for (int r = 0; r < kRowsPerWarp; ++r)
    rows[r] = reinterpret_cast<const uint4*>(w + min(first_row + r, d_out - 1) * d_in);
  uint4 ahead[kFloatsAhead][kRowsPerWarp];
#pragma unroll
  for (int i = 0; i < kFloatsAhead; ++i)
#pragma unroll
    for (int r = 0; r < kRowsPerWarp; ++r)
      if (lane + 32 * i < units) ahead[i][r] = __ldcs(rows[r] + lane + 32 * i);
  wait_for_earlier_kernels();

  float sum[kRowsPerWarp][kCols] = {};
  const auto accumulate = [&](int unit, const uint4(&loaded)[kRowsPerWarp]) {
    float x_values[kCols][kN];
#pragma unroll
    for (int c = 0; c < kCols; ++c)
      Vec16<T>::unpack(*(reinterpret_cast<const uint4*>(x + c * d_in) + unit), x_values[c]);
#pragma unroll
    for (int r = 0; r < kRowsPerWarp; ++r) {
      float values[kN];
      Vec16<T>::unpack(loaded[r], values);
#pragma unroll
      for (int c = 0; c < kCols; ++c)
#pragma unroll
        for (int i = 0; i < kN; ++i) sum[r][c] += values[i] * x_values[c][i];
    }
  };
#pragma unroll
  for (int i = 0; i < kFloatsAhead; ++i)
    if (lane + 32 * i < units) accumulate(lane + 32 * i, ahead[i]);
#pragma unroll 4
  for (int unit = lane + 32 * kFloatsAhead; unit < units; unit += 32) {
    uint4 loaded[kRowsPerWarp];
#pragma unroll
    for (int r = 0; r < kRowsPerWarp; ++r) loaded[r] = __ldcs(rows[r] + unit);
    accumulate(unit, loaded);
  }
  write_sums(sum, first_row, d_out, out, out_stride, add);
}

unsigned vector_grid(int64_t d_out) {
  constexpr int64_t kRows = kVectorWarps * kRowsPerWarp;
  return static_cast<unsigned>((d_out + kRows - 1) / kRows);
}

unsigned grid_of(int64_t n) { return static_cast<unsigned>(std::clamp<int64_t>((n + 255) / 256, 1, 1 << 16)); }

template <DType kType>
void vector_blocks(const DeviceMatrix& w, const DeviceInput& x, float* out, int64_t out_stride, bool add,
                   const Stream& stream) {
  POLYSPAN_CHECK(x.n_tokens == 1 || x.n_tokens == 2);
  launch_overlapping(x.n_tokens == 1 ? vector_blocks_kernel<kType, 1> : vector_blocks_kernel<kType, 2>,
                     vector_grid(w.d_out), kVectorThreads, 0, stream.get(), w, x.quantized.codes, x.quantized.scales,
                     out, out_stride, add);
}

template <typename T>
void vector_floats(const DeviceMatrix& w, const void* x, int64_t n_tokens, float* out, int64_t out_stride, bool add,
                   const Stream& stream) {
  POLYSPAN_CHECK(n_tokens == 1 || n_tokens == 2);
  launch_overlapping(n_tokens == 1 ? vector_floats_kernel<T, 1> : vector_floats_kernel<T, 2>, vector_grid(w.d_out),
                     kVectorThreads, 0, stream.get(), reinterpret_cast<const T*>(w.data), w.d_out, w.d_in,
                     static_cast<const T*>(x), out, out_stride, add);
}

}  // namespace

bool has_device_blocks(DType type) {
  return type == DType::kQ8_0 || type == DType::kQ4_0 || type == DType::kQ4_1 || type == DType::kQ4_K ||
         type == DType::kQ6_K;
}

void sort_blocks(DType type, const std::byte* rows, int64_t n_rows, int64_t first_row, int64_t d_out, int64_t d_in,
                 std::byte* planes, const Stream& stream) {
  const int64_t blocks = d_in / dtype_info(type).block_len;
  const Parts parts = parts_of(type, d_out * d_in);
  sort_blocks_kernel<<<grid_of(n_rows * blocks * parts.block_bytes / 2), 256, 0, stream.get()>>>(
      reinterpret_cast<const uint16_t*>(rows), n_rows * blocks, first_row * blocks, parts, planes);
  check_launch("sort_blocks");
}

void dequantize(const DeviceMatrix& w, int64_t first_row, int64_t n_rows, void* out, const Stream& stream) {
  POLYSPAN_CHECK(has_device_blocks(w.type) && w.d_in % 32 == 0);
  visit_block_type(w.type, [&]<DType kType>() {
    dequantize_kernel<kType, __half>
        <<<grid_of(n_rows * (w.d_in / 32)), 256, 0, stream.get()>>>(w, first_row, n_rows, static_cast<__half*>(out));
  });
  check_launch("dequantize");
}

void decode(const DeviceMatrix& w, int64_t first_row, int64_t n_rows, float* out, const Stream& stream) {
  const int64_t n = n_rows * w.d_in;
  const auto widen = [&]<typename T>(const T* values) {
    widen_kernel<<<grid_of(n), 256, 0, stream.get()>>>(values + first_row * w.d_in, n, out);
  };
  if (w.type == DType::kF32) widen(reinterpret_cast<const float*>(w.data));
  if (w.type == DType::kF16) widen(reinterpret_cast<const __half*>(w.data));
  if (w.type == DType::kBF16) widen(reinterpret_cast<const __nv_bfloat16*>(w.data));
  visit_block_type(w.type, [&]<DType kType>() {
    dequantize_kernel<kType, float><<<grid_of(n / 32), 256, 0, stream.get()>>>(w, first_row, n_rows, out);
  });
  check_launch("decode");
}

InputForm input_form(DType type, int64_t n_tokens) {
  if (type == DType::kF32) return InputForm::kF32;
  if (type == DType::kBF16) return InputForm::kBF16;
  return has_device_blocks(type) && n_tokens <= kMostVectorTokens ? InputForm::kBlocks : InputForm::kF16;
}

DType output_type(DType type, int64_t n_tokens) {
  if (n_tokens <= (has_device_blocks(type) ? kMostTileTokens : kMostVectorTokens)) return DType::kF32;
  return has_device_blocks(type) ? DType::kF16 : type;
}

void Products::multiply(const DeviceMatrix& w, const DeviceInput& x, DType out_type, void* out, int64_t out_stride,
                        bool add) const {
  POLYSPAN_CHECK(x.d_in == w.d_in && x.n_tokens >= 1);
  POLYSPAN_CHECK(out_type == DType::kF32 || out_type == output_type(w.type, x.n_tokens));
  const InputForm form = input_form(w.type, x.n_tokens);
  float* const floats = static_cast<float*>(out);
  if (form == InputForm::kBlocks) {
    POLYSPAN_CHECK(x.quantized.codes != nullptr && x.quantized.scales != nullptr);
    visit_block_type(w.type, [&]<DType kType>() { vector_blocks<kType>(w, x, floats, out_stride, add, stream_); });
    return check_launch("a matrix-vector product");
  }
  const void* const values = form == InputForm::kF32   ? static_cast<const void*>(x.f32)
                             : form == InputForm::kF16 ? x.f16
                                                       : x.bf16;
  POLYSPAN_CHECK(values != nullptr);
  if (!has_device_blocks(w.type)) {
    if (x.n_tokens <= kMostVectorTokens && w.d_in % 8 == 0 && w.type != DType::kF32) {
      if (w.type == DType::kF16) vector_floats<__half>(w, values, x.n_tokens, floats, out_stride, add, stream_);
      if (w.type == DType::kBF16) vector_floats<__nv_bfloat16>(w, values, x.n_tokens, floats, out_stride, add, stream_);
      return check_launch("a matrix-vector product");
    }
    return blas_.multiply(w.type, w.data, values, x.n_tokens, w.d_out, w.d_in, out_type, out, out_stride, add);
  }
  if (x.n_tokens <= kMostTileTokens) return multiply_tiles(w, values, x.n_tokens, floats, out_stride, add, stream_);
  const int64_t rows_at_once = std::max<int64_t>(1, kDequantizeBytes / (2 * w.d_in));
  for (int64_t row = 0; row < w.d_out; row += rows_at_once) {
    const int64_t n = std::min(rows_at_once, w.d_out - row);
    dequantize(w, row, n, decoded_.data(), stream_);
    blas_.multiply(DType::kF16, decoded_.data(), values, x.n_tokens, n, w.d_in, out_type,
                   static_cast<std::byte*>(out) + row * row_bytes(out_type, 1), out_stride, add);
  }
}

}  // namespace polyspan::cuda
