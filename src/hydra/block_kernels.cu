#include "hydra/block_kernels.h"

#include "hydra/kernel_util.cuh"

namespace polyspan::hydra {
namespace {

constexpr int kPartialRows = 64, kMostQuads = 4, kRopeThreads = 128;

__global__ void norm_forward_kernel(const float* x, const float* weight, float eps, int64_t d, float* y, float* scale) {
  __shared__ float shared[32];
  const int64_t row = blockIdx.x;
  float sum = 0;
  for (int64_t i = threadIdx.x * 4; i < d; i += blockDim.x * 4)
    for (const float value : load4(x + row * d + i).v) sum += value * value;
  const float r = rsqrtf(block_sum(sum, shared) / static_cast<float>(d) + eps);
  for (int64_t i = threadIdx.x * 4; i < d; i += blockDim.x * 4) {
    Four value = load4(x + row * d + i);
    const Four w = load4(weight + i);
    for (int c = 0; c < 4; ++c) value.v[c] *= r * w.v[c];
    store4(y + row * d + i, value);
  }
  if (threadIdx.x == 0) scale[row] = r;
}

// A block takes kPartialRows rows; a thread keeps the weight's gradient of its columns.
__global__ void __launch_bounds__(256)
    norm_backward_kernel(const float* x, const float* weight, const float* scale, const float* d_y, int64_t n_rows,
                         int64_t d, float* d_x, float* d_weight) {
  __shared__ float shared[32];
  const int64_t first = int64_t{blockIdx.x} * kPartialRows;
  const int64_t end = first + kPartialRows < n_rows ? first + kPartialRows : n_rows;
  Four sums[kMostQuads] = {};
  for (int64_t row = first; row < end; ++row) {
    const float r = scale[row];
    float sum = 0;
    for (int64_t i = threadIdx.x * 4; i < d; i += blockDim.x * 4) {
      const Four value = load4(x + row * d + i), w = load4(weight + i), dy = load4(d_y + row * d + i);
      for (int c = 0; c < 4; ++c) sum += dy.v[c] * w.v[c] * value.v[c];
    }
    const float share = block_sum(sum, shared) * r * r * r / static_cast<float>(d);
#pragma unroll
    for (int quad = 0; quad < kMostQuads; ++quad) {
      const int64_t i = (quad * int64_t{blockDim.x} + threadIdx.x) * 4;
      if (i >= d) break;
      const Four value = load4(x + row * d + i), w = load4(weight + i), dy = load4(d_y + row * d + i);
      Four dx;
      for (int c = 0; c < 4; ++c) {
        sums[quad].v[c] += dy.v[c] * value.v[c] * r;
        dx.v[c] = r * dy.v[c] * w.v[c] - value.v[c] * share;
      }
      store4(d_x + row * d + i, dx);
    }
  }
#pragma unroll
  for (int quad = 0; quad < kMostQuads; ++quad)
    if (const int64_t i = (quad * int64_t{blockDim.x} + threadIdx.x) * 4; i < d)
      store4(d_weight + int64_t{blockIdx.x} * d + i, sums[quad]);
}

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(bf16 x) { return __bfloat162float(x); }
__device__ inline void put(float* to, float x) { *to = x; }
__device__ inline void put(bf16* to, float x) { *to = __float2bfloat16(x); }

// A block a row. Shared: the row's angles.
template <class T>
__global__ void rope_kernel(const T* x, int64_t n_tokens, int n_heads, int head_dim, double base, bool back, T* y) {
  __shared__ float cosine[256], sine[256];
  const int half = head_dim / 2;
  const double position = static_cast<double>(int64_t{blockIdx.x} % n_tokens);
  for (int i = threadIdx.x; i < half; i += kRopeThreads) {
    const double angle = position * pow(base, -static_cast<double>(i) / half);
    cosine[i] = static_cast<float>(cos(angle));
    sine[i] = static_cast<float>(back ? -sin(angle) : sin(angle));
  }
  __syncthreads();
  const int64_t row = int64_t{blockIdx.x} * n_heads * head_dim;
  for (int i = threadIdx.x; i < n_heads * half; i += kRopeThreads) {
    const int pair = i % half;
    const float a = to_float(x[row + 2 * i]), b = to_float(x[row + 2 * i + 1]);
    put(y + row + 2 * i, a * cosine[pair] - b * sine[pair]);
    put(y + row + 2 * i + 1, a * sine[pair] + b * cosine[pair]);
  }
}

// A warp a row, eight rows a block.
__global__ void swiglu_forward_kernel(const bf16* gate, const bf16* up, const float* factor, int64_t n_rows, int64_t d,
                                      bf16* h) {
  const int64_t row = int64_t{blockIdx.x} * 8 + threadIdx.x / 32;
  if (row >= n_rows) return;
  for (int64_t i = threadIdx.x % 32 * 4; i < d; i += 128) {
    const Four g = load4(gate + row * d + i);
    Four u = load4(up + row * d + i);
    for (int c = 0; c < 4; ++c) u.v[c] *= silu(g.v[c]) * factor[row];
    store4(h + row * d + i, u);
  }
}

__global__ void swiglu_backward_kernel(const bf16* gate, const bf16* up, const float* factor, const bf16* d_h,
                                       int64_t n_rows, int64_t d, bf16* d_gate, bf16* d_up, bf16* h, float* d_factor) {
  const int64_t row = int64_t{blockIdx.x} * 8 + threadIdx.x / 32;
  if (row >= n_rows) return;
  const float f = factor[row];
  float sum = 0;
  for (int64_t i = threadIdx.x % 32 * 4; i < d; i += 128) {
    const Four g = load4(gate + row * d + i), u = load4(up + row * d + i), dh = load4(d_h + row * d + i);
    Four to_gate, to_up, value;
    for (int c = 0; c < 4; ++c) {
      const float s = silu(g.v[c]);
      sum += s * u.v[c] * dh.v[c];
      value.v[c] = s * u.v[c] * f;
      to_up.v[c] = dh.v[c] * f * s;
      to_gate.v[c] = dh.v[c] * f * u.v[c] * silu_slope(g.v[c]);
    }
    store4(d_gate + row * d + i, to_gate);
    store4(d_up + row * d + i, to_up);
    store4(h + row * d + i, value);
  }
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) d_factor[row] = sum;
}

__device__ inline Four path4(const PathSum& s, int path, int64_t at) {
  return s.is_bf16[path] ? load4(static_cast<const bf16*>(s.paths[path]) + at)
                         : load4(static_cast<const float*>(s.paths[path]) + at);
}

__global__ void path_sum_forward_kernel(PathSum s, const float* x, const float* multipliers, float* y) {
  const int64_t i = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * 4;
  if (i >= s.n_chunks * s.chunk_len * s.d) return;
  const int64_t chunk = i / (s.chunk_len * s.d);
  Four sum = load4(x + i);
  for (int path = 0; path < s.n_paths; ++path) {
    const float factor =
        s.share[path] * (s.multiplier[path] < 0 ? 1.0f : multipliers[chunk * s.n_multipliers + s.multiplier[path]]);
    const Four more = path4(s, path, i);
    for (int c = 0; c < 4; ++c) sum.v[c] += factor * more.v[c];
  }
  store4(y + i, sum);
}

struct PathGradients {
  void* d_paths[kMostPaths];
};

// A block a chunk.
__global__ void path_sum_backward_kernel(PathSum s, const float* multipliers, const float* d_y, PathGradients to,
                                         float* d_multipliers) {
  __shared__ float shared[32];
  const int64_t chunk = blockIdx.x, n = s.chunk_len * s.d;
  float sums[kMostPaths] = {};
  for (int64_t i = threadIdx.x * 4; i < n; i += blockDim.x * 4) {
    const int64_t at = chunk * n + i;
    const Four dy = load4(d_y + at);
#pragma unroll
    for (int path = 0; path < kMostPaths; ++path) {
      if (path >= s.n_paths) break;
      const int which = s.multiplier[path];
      const float factor = s.share[path] * (which < 0 ? 1.0f : multipliers[chunk * s.n_multipliers + which]);
      Four d;
      for (int c = 0; c < 4; ++c) d.v[c] = factor * dy.v[c];
      if (s.is_bf16[path])
        store4(static_cast<bf16*>(to.d_paths[path]) + at, d);
      else
        store4(static_cast<float*>(to.d_paths[path]) + at, d);
      if (which < 0) continue;
      const Four value = path4(s, path, at);
      for (int c = 0; c < 4; ++c) sums[path] += s.share[path] * value.v[c] * dy.v[c];
    }
  }
  for (int which = 0; which < s.n_multipliers; ++which) {
    float sum = 0;
#pragma unroll
    for (int path = 0; path < kMostPaths; ++path)
      if (path < s.n_paths && s.multiplier[path] == which) sum += sums[path];
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) d_multipliers[chunk * s.n_multipliers + which] = sum;
  }
}

unsigned blocks(int64_t n, int64_t of) { return static_cast<unsigned>((n + of - 1) / of); }
int norm_threads(int64_t d) {  // a warp at least, 256 at most
  const int64_t quads = (d / 4 + 31) / 32 * 32;
  return static_cast<int>(quads < 256 ? quads : 256);
}

}  // namespace

void norm_forward(const float* x, const float* weight, float eps, int64_t n_rows, int64_t d, float* y, float* scale,
                  Stream stream) {
  norm_forward_kernel<<<static_cast<unsigned>(n_rows), norm_threads(d), 0, static_cast<cudaStream_t>(stream)>>>(
      x, weight, eps, d, y, scale);
}

int64_t norm_partial_rows(int64_t n_rows) { return (n_rows + kPartialRows - 1) / kPartialRows; }

void norm_backward(const float* x, const float* weight, const float* scale, const float* d_y, int64_t n_rows, int64_t d,
                   float* d_x, float* d_weight, Stream stream) {
  norm_backward_kernel<<<blocks(n_rows, kPartialRows), norm_threads(d), 0, static_cast<cudaStream_t>(stream)>>>(
      x, weight, scale, d_y, n_rows, d, d_x, d_weight);
}

void rope(const void* x, bool is_bf16, int64_t n_rows, int64_t n_tokens, int64_t n_heads, int64_t head_dim, double base,
          bool back, void* y, Stream stream_) {
  const auto stream = static_cast<cudaStream_t>(stream_);
  const unsigned rows = static_cast<unsigned>(n_rows);
  const int heads = static_cast<int>(n_heads), dim = static_cast<int>(head_dim);
  if (is_bf16)
    rope_kernel<bf16><<<rows, kRopeThreads, 0, stream>>>(static_cast<const bf16*>(x), n_tokens, heads, dim, base, back,
                                                         static_cast<bf16*>(y));
  else
    rope_kernel<float><<<rows, kRopeThreads, 0, stream>>>(static_cast<const float*>(x), n_tokens, heads, dim, base,
                                                          back, static_cast<float*>(y));
}

void swiglu_forward(const Bf16* gate, const Bf16* up, const float* factor, int64_t n_rows, int64_t d, Bf16* h,
                    Stream stream) {
  swiglu_forward_kernel<<<blocks(n_rows, 8), 256, 0, static_cast<cudaStream_t>(stream)>>>(typed(gate), typed(up),
                                                                                          factor, n_rows, d, typed(h));
}

void swiglu_backward(const Bf16* gate, const Bf16* up, const float* factor, const Bf16* d_h, int64_t n_rows, int64_t d,
                     Bf16* d_gate, Bf16* d_up, Bf16* h, float* d_factor, Stream stream) {
  swiglu_backward_kernel<<<blocks(n_rows, 8), 256, 0, static_cast<cudaStream_t>(stream)>>>(
      typed(gate), typed(up), factor, typed(d_h), n_rows, d, typed(d_gate), typed(d_up), typed(h), d_factor);
}

void path_sum_forward(const PathSum& s, const float* x, const float* multipliers, float* y, Stream stream) {
  path_sum_forward_kernel<<<blocks(s.n_chunks * s.chunk_len * s.d, 4 * 256), 256, 0,
                            static_cast<cudaStream_t>(stream)>>>(s, x, multipliers, y);
}

void path_sum_backward(const PathSum& s, const float* multipliers, const float* d_y, void* const* d_paths,
                       float* d_multipliers, Stream stream) {
  PathGradients to{};
  for (int path = 0; path < s.n_paths; ++path) to.d_paths[path] = d_paths[path];
  path_sum_backward_kernel<<<static_cast<unsigned>(s.n_chunks), 256, 0, static_cast<cudaStream_t>(stream)>>>(
      s, multipliers, d_y, to, d_multipliers);
}

}  // namespace polyspan::hydra
