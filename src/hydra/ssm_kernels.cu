// The parts of hydra/ssm_kernels.h around the scan: time steps, convolution, gate and norm. Bound by memory, all of them.
#include "hydra/kernel_util.cuh"
#include "hydra/scan_kernels.h"
#include "hydra/ssm_kernels.h"

namespace polyspan::hydra {
namespace {

constexpr int kTaps = 4;  // a shorter convolution has zeros in front
constexpr int kForwardTokens = 32, kBackwardTokens = 64, kNormRows = 64;
constexpr int kMostQuads = 4;  // of a thread in norm_backward: d_inner <= 4 * 4 * 256

__device__ float softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }

// dt = softplus(.), and the sums of dt A within the chunk, added in double. A block a chunk; shared: a float a (head, token).
__global__ void time_steps_kernel(SsmSizes s, const bf16* in, const float* bias, const float* a_log, float* dt,
                                  float* sums) {
  extern __shared__ float shared_dt[];
  const int64_t chunk = blockIdx.x, seq = chunk / s.n_chunks(), first = chunk % s.n_chunks() * kScanChunk;
  const int n = static_cast<int>(s.n_heads * kScanChunk), n_heads = static_cast<int>(s.n_heads);
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    const int token = i / n_heads, head = i % n_heads;
    float value = 0;
    if (first + token < s.n_tokens) {
      value = softplus(__bfloat162float(in[(seq * s.n_tokens + first + token) * s.d_in() + s.d_in() - n_heads + head]) +
                       bias[head]);
    }
    shared_dt[head * kScanChunk + token] = value;
  }
  __syncthreads();
  for (int head = threadIdx.x; head < n_heads; head += blockDim.x) {
    const double a = -static_cast<double>(expf(a_log[head]));
    double sum = 0;
    for (int64_t token = 0; token < kScanChunk; ++token) {
      sum += a * static_cast<double>(shared_dt[head * kScanChunk + token]);
      sums[chunk * n + head * kScanChunk + token] = static_cast<float>(sum);
    }
  }
  for (int i = threadIdx.x; i < n; i += blockDim.x) dt[chunk * n + i] = shared_dt[i];
}

// The gradient of what dt is the softplus of.
__global__ void time_steps_backward_kernel(SsmSizes s, const bf16* in, const float* bias, const float* d_dt, bf16* d_in,
                                           float* d_bias) {
  extern __shared__ float shared_dt[];
  const int64_t chunk = blockIdx.x, seq = chunk / s.n_chunks(), first = chunk % s.n_chunks() * kScanChunk;
  const int n = static_cast<int>(s.n_heads * kScanChunk), n_heads = static_cast<int>(s.n_heads);
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    const int token = i / n_heads, head = i % n_heads;
    float value = 0;
    if (first + token < s.n_tokens) {
      const int64_t at = (seq * s.n_tokens + first + token) * s.d_in() + s.d_in() - n_heads + head;
      value = d_dt[chunk * n + head * kScanChunk + token] * sigmoid(__bfloat162float(in[at]) + bias[head]);
      d_in[at] = __float2bfloat16(value);
    }
    shared_dt[head * kScanChunk + token] = value;
  }
  __syncthreads();
  for (int head = threadIdx.x; head < n_heads; head += blockDim.x) {
    float sum = 0;
    for (int64_t token = 0; token < kScanChunk; ++token) sum += shared_dt[head * kScanChunk + token];
    d_bias[chunk * n_heads + head] = sum;
  }
}

// The taps of four channels: [tap][channel].
struct Taps {
  float w[kTaps][4], bias[4];
  __device__ Taps(const SsmSizes& s, const float* weight, const float* conv_bias, int64_t channel) {
    const int d_conv = static_cast<int>(s.d_conv);
    for (int c = 0; c < 4; ++c) {
      bias[c] = conv_bias[channel + c];
      for (int tap = 0; tap < kTaps; ++tap)
        w[tap][c] = tap < kTaps - d_conv ? 0.0f : weight[(channel + c) * d_conv + tap - (kTaps - d_conv)];
    }
  }
};

// Where a thread works: four channels of some tokens of a sequence.
struct Walk {
  int64_t channel, seq, first, end;
  __device__ Walk(const SsmSizes& s, int64_t tile_tokens) {
    const int64_t n_tiles = (s.n_tokens + tile_tokens - 1) / tile_tokens;
    channel = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * 4;
    seq = blockIdx.y / n_tiles;
    first = blockIdx.y % n_tiles * tile_tokens;
    end = first + tile_tokens < s.n_tokens ? first + tile_tokens : s.n_tokens;
  }
};

// A thread walks over kForwardTokens tokens with the last inputs in registers.
__global__ void conv_kernel(SsmSizes s, const bf16* in, const float* weight, const float* bias, bf16* xbc) {
  const Walk walk(s, kForwardTokens);
  if (walk.channel >= s.d_channels()) return;
  const Taps taps(s, weight, bias, walk.channel);
  const bf16* from = in + walk.seq * s.n_tokens * s.d_in() + s.d_inner() + walk.channel;
  bf16* to = xbc + walk.seq * s.n_tokens * s.d_channels() + walk.channel;
  Four x[kTaps] = {};
  for (int i = 0; i < kTaps - 1; ++i)
    if (const int64_t token = walk.first - (kTaps - 1) + i; token >= 0) x[i + 1] = load4(from + token * s.d_in());
  for (int64_t token = walk.first; token < walk.end; ++token) {
#pragma unroll
    for (int i = 0; i < kTaps - 1; ++i) x[i] = x[i + 1];
    x[kTaps - 1] = load4(from + token * s.d_in());
    Four y;
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      float sum = taps.bias[c];
#pragma unroll
      for (int i = 0; i < kTaps; ++i) sum += taps.w[i][c] * x[i].v[c];
      y.v[c] = silu(sum);
    }
    store4(to + token * s.d_channels(), y);
  }
}

// The same walk, three tokens further: an input's gradient comes from its own output and the three behind it.
__global__ void conv_backward_kernel(SsmSizes s, const bf16* in, const float* weight, const float* bias,
                                     const bf16* d_x, const float* d_bc, int n_groups, bf16* d_in, float* d_conv) {
  const Walk walk(s, kBackwardTokens);
  if (walk.channel >= s.d_channels()) return;
  const Taps taps(s, weight, bias, walk.channel);
  const int64_t in_at = walk.seq * s.n_tokens * s.d_in() + s.d_inner() + walk.channel;
  const int64_t n_bc = 2 * s.d_state, group_stride = s.all_chunks() * kScanChunk * n_bc;
  const auto gradient = [&](int64_t token) {  // of the activation
    if (walk.channel < s.d_inner()) return load4(d_x + (walk.seq * s.n_tokens + token) * s.d_inner() + walk.channel);
    const float* at = d_bc + (walk.seq * s.n_chunks() * kScanChunk + token) * n_bc + walk.channel - s.d_inner();
    Four sum = load4(at);
    for (int group = 1; group < n_groups; ++group) {
      const Four more = load4(at + group * group_stride);
      for (int c = 0; c < 4; ++c) sum.v[c] += more.v[c];
    }
    return sum;
  };
  Four x[kTaps] = {}, du[kTaps] = {};
  float d_weight[kTaps][4] = {}, d_bias[4] = {};
  for (int i = 0; i < kTaps - 1; ++i)
    if (const int64_t token = walk.first - (kTaps - 1) + i; token >= 0) x[i + 1] = load4(in + in_at + token * s.d_in());
  for (int64_t token = walk.first; token < walk.end + kTaps - 1; ++token) {
#pragma unroll
    for (int i = 0; i < kTaps - 1; ++i) x[i] = x[i + 1], du[i] = du[i + 1];
    du[kTaps - 1] = {};
    if (token < s.n_tokens) {
      x[kTaps - 1] = load4(in + in_at + token * s.d_in());
      du[kTaps - 1] = gradient(token);
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        float sum = taps.bias[c];
#pragma unroll
        for (int i = 0; i < kTaps; ++i) sum += taps.w[i][c] * x[i].v[c];
        du[kTaps - 1].v[c] *= silu_slope(sum);
        if (token < walk.end) {
          d_bias[c] += du[kTaps - 1].v[c];
#pragma unroll
          for (int i = 0; i < kTaps; ++i) d_weight[i][c] += du[kTaps - 1].v[c] * x[i].v[c];
        }
      }
    }
    const int64_t done = token - (kTaps - 1);
    if (done < walk.first) continue;
    Four dx;
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      dx.v[c] = 0;
#pragma unroll
      for (int i = 0; i < kTaps; ++i) dx.v[c] += taps.w[kTaps - 1 - i][c] * du[i].v[c];
    }
    store4(d_in + in_at + done * s.d_in(), dx);
  }
  const int d_taps = static_cast<int>(s.d_conv);
  float* partial = d_conv + int64_t{blockIdx.y} * (d_taps + 1) * s.d_channels() + walk.channel;
  for (int c = 0; c < 4; ++c) {
#pragma unroll
    for (int i = 0; i < kTaps; ++i)
      if (i >= kTaps - d_taps) partial[(i - (kTaps - d_taps)) * s.d_channels() + c] = d_weight[i][c];
    partial[d_taps * s.d_channels() + c] = d_bias[c];
  }
}

// out = rmsnorm(y silu(z)) weight. A block a token.
__global__ void norm_kernel(SsmSizes s, const bf16* in, const bf16* y, const float* weight, float eps, float* scale,
                            bf16* out) {
  __shared__ float shared[32];
  const int64_t token = blockIdx.x, d = s.d_inner();
  const bf16 *z_at = in + token * s.d_in(), *y_at = y + token * d;
  const auto gated = [&](int64_t channel) {
    Four g = load4(y_at + channel);
    const Four z = load4(z_at + channel);
    for (int c = 0; c < 4; ++c) g.v[c] *= silu(z.v[c]);
    return g;
  };
  float sum = 0;
  for (int64_t channel = threadIdx.x * 4; channel < d; channel += blockDim.x * 4)
    for (const float g : gated(channel).v) sum += g * g;
  const float r = rsqrtf(block_sum(sum, shared) / static_cast<float>(d) + eps);
  for (int64_t channel = threadIdx.x * 4; channel < d; channel += blockDim.x * 4) {
    Four g = gated(channel);
    const Four w = load4(weight + channel);
    for (int c = 0; c < 4; ++c) g.v[c] *= r * w.v[c];
    store4(out + token * d + channel, g);
  }
  if (threadIdx.x == 0) scale[token] = r;
}

// A block takes kNormRows tokens; a thread keeps the weight's gradient of its channels.
__global__ void __launch_bounds__(256)
    norm_backward_kernel(SsmSizes s, const bf16* in, const bf16* y, const float* weight, const float* scale,
                         const bf16* d_out, bf16* d_y, bf16* d_in, float* d_norm) {
  __shared__ float shared[32];
  const int64_t d = s.d_inner(), first = int64_t{blockIdx.x} * kNormRows;
  const int64_t end = first + kNormRows < s.all_tokens() ? first + kNormRows : s.all_tokens();
  Four d_weight[kMostQuads] = {};
  for (int64_t token = first; token < end; ++token) {
    const float r = scale[token];
    float sum = 0;  // of d_out weight y silu(z)
    for (int64_t channel = threadIdx.x * 4; channel < d; channel += blockDim.x * 4) {
      const Four g = load4(y + token * d + channel), z = load4(in + token * s.d_in() + channel),
                 w = load4(weight + channel), dy = load4(d_out + token * d + channel);
      for (int c = 0; c < 4; ++c) sum += dy.v[c] * w.v[c] * g.v[c] * silu(z.v[c]);
    }
    const float share = block_sum(sum, shared) * r * r * r / static_cast<float>(d);
#pragma unroll
    for (int quad = 0; quad < kMostQuads; ++quad) {
      const int64_t channel = (quad * int64_t{blockDim.x} + threadIdx.x) * 4;
      if (channel >= d) break;
      const Four value = load4(y + token * d + channel), z = load4(in + token * s.d_in() + channel),
                 w = load4(weight + channel), dy = load4(d_out + token * d + channel);
      Four to_y, to_z;
      for (int c = 0; c < 4; ++c) {
        const float gate = silu(z.v[c]), g = value.v[c] * gate;
        d_weight[quad].v[c] += dy.v[c] * g * r;
        const float dg = r * dy.v[c] * w.v[c] - g * share;
        to_y.v[c] = dg * gate;
        to_z.v[c] = dg * value.v[c] * silu_slope(z.v[c]);
      }
      store4(d_y + token * d + channel, to_y);
      store4(d_in + token * s.d_in() + channel, to_z);
    }
  }
#pragma unroll
  for (int quad = 0; quad < kMostQuads; ++quad)
    if (const int64_t channel = (quad * int64_t{blockDim.x} + threadIdx.x) * 4; channel < d)
      store4(d_norm + int64_t{blockIdx.x} * d + channel, d_weight[quad]);
}

// A thread a channel.
__global__ void conv_step_kernel(SsmSizes s, const bf16* in, const float* weight, const float* bias, float* past,
                                 float* xbc) {
  const int64_t channel = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, n = s.d_channels();
  if (channel >= n) return;
  const float* taps = weight + channel * s.d_conv;
  float sum = bias[channel];
  for (int64_t i = 0; i < s.d_conv; ++i) {
    const float x = i + 1 < s.d_conv ? past[i * n + channel] : __bfloat162float(in[s.d_inner() + channel]);
    sum += taps[i] * x;
    if (i > 0) past[(i - 1) * n + channel] = x;
  }
  xbc[channel] = silu(sum);
}

// A warp a row of a head's state.
__global__ void scan_step_kernel(SsmSizes s, SsmWeights w, const bf16* in, const float* xbc, float* scan, float* y) {
  const int64_t row = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / 32, head = row / s.head_dim;
  if (row >= s.d_inner()) return;  // a whole warp
  const float dt = softplus(__bfloat162float(in[s.d_inner() + s.d_channels() + head]) + w.dt_bias[head]),
              decay = expf(-expf(w.a_log[head]) * dt), dt_x = dt * xbc[row];
  const float *b = xbc + s.d_inner(), *c = b + s.d_state;
  float* state = scan + row * s.d_state;
  float sum = 0;
  for (int64_t i = threadIdx.x % 32; i < s.d_state; i += 32) {
    const float value = state[i] * decay + dt_x * b[i];
    state[i] = value;
    sum += value * c[i];
  }
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) y[row] = (sum + w.d[head] * xbc[row]) * silu(__bfloat162float(in[row]));
}

int norm_threads(const SsmSizes& s) {  // a warp at least, 256 at most
  const int64_t quads = (s.d_inner() / 4 + 31) / 32 * 32;
  return static_cast<int>(quads < 256 ? quads : 256);
}
dim3 conv_grid(const SsmSizes& s, int64_t tile_tokens) {
  return dim3(static_cast<unsigned>((s.d_channels() / 4 + 127) / 128),
              static_cast<unsigned>(s.n_seqs * ((s.n_tokens + tile_tokens - 1) / tile_tokens)));
}

}  // namespace

int64_t SsmSizes::n_head_groups() const {
  constexpr int64_t kWanted = 264;  // blocks: two for each multiprocessor of an H100
  const int64_t wanted = (kWanted + all_chunks() - 1) / all_chunks();
  const int64_t groups = wanted < n_heads ? wanted : n_heads, heads = (n_heads + groups - 1) / groups;
  return (n_heads + heads - 1) / heads;
}

bool SsmSizes::supported() const {
  return (head_dim == 32 || head_dim == 64) && (d_state == 64 || d_state == 128) && d_conv <= kTaps &&
         d_in() % 4 == 0 && d_inner() <= kMostQuads * 4 * 256 && n_tokens > 0 && all_tokens() <= int64_t{1} << 20;
}

int64_t ssm_norm_rows(const SsmSizes& s) { return (s.all_tokens() + kNormRows - 1) / kNormRows; }
int64_t ssm_conv_rows(const SsmSizes& s) { return s.n_seqs * ((s.n_tokens + kBackwardTokens - 1) / kBackwardTokens); }

void use_device(int index) { cudaSetDevice(index); }

void ssm_forward(const SsmSizes& s, const SsmWeights& w, const SsmActivations& a, Stream stream_) {
  const auto stream = static_cast<cudaStream_t>(stream_);
  const unsigned n_chunks = static_cast<unsigned>(s.all_chunks());
  const size_t dt_bytes = static_cast<size_t>(s.n_heads * kScanChunk) * sizeof(float);
  time_steps_kernel<<<n_chunks, 256, dt_bytes, stream>>>(s, typed(a.in), w.dt_bias, w.a_log, a.dt, a.sums);
  conv_kernel<<<conv_grid(s, kForwardTokens), 128, 0, stream>>>(s, typed(a.in), w.conv, w.conv_bias, typed(a.xbc));
  scan_forward(s, w, a, stream_);
  norm_kernel<<<static_cast<unsigned>(s.all_tokens()), norm_threads(s), 0, stream>>>(s, typed(a.in), typed(a.y), w.norm,
                                                                                     w.eps, a.scale, typed(a.out));
}

void ssm_backward(const SsmSizes& s, const SsmWeights& w, const SsmActivations& a, const SsmGradients& g,
                  Stream stream_) {
  const auto stream = static_cast<cudaStream_t>(stream_);
  const unsigned n_chunks = static_cast<unsigned>(s.all_chunks());
  const size_t dt_bytes = static_cast<size_t>(s.n_heads * kScanChunk) * sizeof(float);
  norm_backward_kernel<<<static_cast<unsigned>(ssm_norm_rows(s)), norm_threads(s), 0, stream>>>(
      s, typed(a.in), typed(a.y), w.norm, a.scale, typed(g.d_out), typed(g.d_y), typed(g.d_in), g.d_norm);
  scan_backward(s, w, a, g, stream_);
  conv_backward_kernel<<<conv_grid(s, kBackwardTokens), 128, 0, stream>>>(
      s, typed(a.in), w.conv, w.conv_bias, typed(g.d_x), g.d_bc, static_cast<int>(s.n_head_groups()), typed(g.d_in),
      g.d_conv);
  time_steps_backward_kernel<<<n_chunks, 256, dt_bytes, stream>>>(s, typed(a.in), w.dt_bias, g.d_dt, typed(g.d_in),
                                                                  g.d_dt_bias);
}

void ssm_step(const SsmSizes& s, const SsmWeights& w, const SsmStep& step, Stream stream_) {
  const auto stream = static_cast<cudaStream_t>(stream_);
  const bf16* in = typed(step.in);
  conv_step_kernel<<<static_cast<unsigned>((s.d_channels() + 127) / 128), 128, 0, stream>>>(s, in, w.conv, w.conv_bias,
                                                                                            step.conv, step.xbc);
  scan_step_kernel<<<static_cast<unsigned>((s.d_inner() + 7) / 8), 256, 0, stream>>>(s, w, in, step.xbc, step.scan,
                                                                                     step.y);
}

}  // namespace polyspan::hydra
