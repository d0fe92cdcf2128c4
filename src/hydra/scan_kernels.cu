// Mamba-2's scan in chunks (arXiv 2405.21060, section 6) on the tensor cores, with its gradient. What lies in front of a
// chunk reaches it through one state a head; states are passed on by a kernel that is bound by memory.
//
// Of a chunk and a head, with s_t the sum of dt A up to t, S = C B^T [t, s] and L_ts = exp(s_t - s_s) for s <= t:
//   y = (S L dt) x + exp(s_t) C before^T + D x          after = exp(s_end) before + sum_s q_s x_s B_s^T, q_s = exp(s_end - s_s) dt_s
#include "hydra/kernel_util.cuh"
#include "hydra/scan_kernels.h"

namespace polyspan::hydra {
namespace {

constexpr int kL = static_cast<int>(kScanChunk);

// The chunk and the heads of a block; rows of the chunk that there are.
struct Place {
  int64_t chunk, first_token;
  int n_rows, first_head, end_head;
  __device__ explicit Place(const SsmSizes& s) {
    chunk = blockIdx.x;
    const int64_t first = chunk % s.n_chunks() * kL;
    first_token = chunk / s.n_chunks() * s.n_tokens + first;
    n_rows = static_cast<int>(s.n_tokens - first < kL ? s.n_tokens - first : kL);
    const int n_heads = static_cast<int>(s.n_heads);
    const int heads = (n_heads + static_cast<int>(gridDim.y) - 1) / static_cast<int>(gridDim.y);
    first_head = static_cast<int>(blockIdx.y) * heads;
    end_head = first_head + heads < n_heads ? first_head + heads : n_heads;
  }
};

// Forward: what a chunk adds to the state, sum_s q_s x_s B_s^T. Backward: what its outputs add to the gradient of the state
// in front of it, sum_t exp(s_t) dy_t C_t^T. Shared: 19 KB (64, 64), 28 KB (64, 128).
template <int kP, int kN, bool kBackward>
__global__ void __launch_bounds__(kTileThreads)
    added_kernel(SsmSizes s, const bf16* left, int64_t left_stride, const bf16* right, const float* dt,
                 const float* sums, float* added) {
  alignas(32) __shared__ bf16 right_tile[kL * kStride<kN>];
  alignas(32) __shared__ bf16 left_tile[kL * kStride<kP>];
  __shared__ float factors[kL];
  const Place place(s);
  load_tile<kL, kN>(right_tile, right + place.first_token * s.d_channels(), s.d_channels(), place.n_rows);
  for (int head = place.first_head; head < place.end_head; ++head) {
    const int64_t at = place.chunk * s.n_heads + head;
    if (threadIdx.x < kL) {
      const float sum = sums[at * kL + threadIdx.x];
      factors[threadIdx.x] = kBackward ? __expf(sum) : __expf(sums[at * kL + kL - 1] - sum) * dt[at * kL + threadIdx.x];
    }
    load_tile<kL, kP>(left_tile, left + place.first_token * left_stride + head * kP, left_stride, place.n_rows);
    __syncthreads();
    scale_tile<kL, kP>(left_tile, left_tile, factors);
    __syncthreads();
    Product<kP, kN> product;
    product.clear();
    product.template add<Transposed, Rows>(left_tile, kStride<kP>, right_tile, kStride<kN>, kL);
    product.store(added + at * kP * kN, kN);
    __syncthreads();  // the next head's tile takes this one's place
  }
}

// state <- exp(s_end) state + added, chunk after chunk (backward: from the last), 0 at first; writes what the state was.
// A thread has four numbers of a head's state and reads kAhead chunks at once. grid.y: sequences.
template <bool kBackward>
__global__ void pass_kernel(SsmSizes s, const float* added, const float* sums, bf16* states) {
  constexpr int kAhead = 8;
  const int64_t n_state = s.head_dim * s.d_state, n = s.n_heads * n_state;
  const int64_t i = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * 4, n_chunks = s.n_chunks();
  if (i >= n) return;
  const int64_t head = i / n_state, first = blockIdx.y * n_chunks;
  const auto chunk_of = [&](int64_t step) { return first + (kBackward ? n_chunks - 1 - step : step); };
  Four state = {};
  for (int64_t step = 0; step < n_chunks; step += kAhead) {
    Four more[kAhead];
    float sum[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      if (step + j >= n_chunks) break;
      more[j] = load4(added + chunk_of(step + j) * n + i);
      sum[j] = sums[(chunk_of(step + j) * s.n_heads + head) * kL + kL - 1];
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      if (step + j >= n_chunks) break;
      store4(states + chunk_of(step + j) * n + i, state);
      const float decay = __expf(sum[j]);
      for (int c = 0; c < 4; ++c) state.v[c] = decay * state.v[c] + more[j].v[c];
    }
  }
}

template <int kP, int kN>
struct OutputTiles {
  alignas(32) bf16 b[kL * kStride<kN>];  // later exp(s_t) C
  alignas(32) bf16 c[kL * kStride<kN>];
  alignas(32) bf16 x[kL * kStride<kP>];
  alignas(32) bf16 before[kP * kStride<kN>];
  alignas(32) bf16 weights[kL * kStride<kL>];  // S L dt
  alignas(32) float scores[kL * (kL + 4)];     // S
  alignas(32) float y[kL * (kP + 4)];
  float dt[kL], sums[kL], decays[kL];
};

// A block a chunk and some heads, which share S. Shared: 83 KB (64, 64), 110 KB (64, 128).
template <int kP, int kN>
__global__ void __launch_bounds__(kTileThreads)
    output_kernel(SsmSizes s, const bf16* xbc, const float* dt, const float* sums, const float* d, const bf16* before,
                  bf16* y) {
  extern __shared__ __align__(32) unsigned char shared[];
  auto& tiles = *reinterpret_cast<OutputTiles<kP, kN>*>(shared);
  const Place place(s);
  const bf16* rows = xbc + place.first_token * s.d_channels();
  load_tile<kL, kN>(tiles.b, rows + s.d_inner(), s.d_channels(), place.n_rows);
  load_tile<kL, kN>(tiles.c, rows + s.d_inner() + kN, s.d_channels(), place.n_rows);
  __syncthreads();
  {
    Product<kL, kL> scores;
    scores.clear();
    scores.template add<Rows, Transposed>(tiles.c, kStride<kN>, tiles.b, kStride<kN>, kN);
    scores.store(tiles.scores, kL + 4);
  }
  for (int head = place.first_head; head < place.end_head; ++head) {
    const int64_t at = place.chunk * s.n_heads + head;
    __syncthreads();  // S is whole; the last head's tiles are done with
    if (threadIdx.x < kL) {
      tiles.dt[threadIdx.x] = dt[at * kL + threadIdx.x];
      tiles.sums[threadIdx.x] = sums[at * kL + threadIdx.x];
      tiles.decays[threadIdx.x] = __expf(sums[at * kL + threadIdx.x]);
    }
    load_tile<kL, kP>(tiles.x, rows + head * kP, s.d_channels(), place.n_rows);
    load_tile<kP, kN>(tiles.before, before + at * kP * kN, kN, kP);
    __syncthreads();
    for (int i = threadIdx.x; i < kL * kL; i += kTileThreads) {
      const int t = i / kL, from = i % kL;
      const float weight =
          from > t ? 0.0f
                   : tiles.scores[t * (kL + 4) + from] * __expf(tiles.sums[t] - tiles.sums[from]) * tiles.dt[from];
      tiles.weights[t * kStride<kL> + from] = __float2bfloat16(weight);
    }
    scale_tile<kL, kN>(tiles.b, tiles.c, tiles.decays);
    __syncthreads();
    Product<kL, kP> product;
    product.clear();
    product.template add<Rows, Rows>(tiles.weights, kStride<kL>, tiles.x, kStride<kP>, kL);
    product.template add<Rows, Transposed>(tiles.b, kStride<kN>, tiles.before, kStride<kN>, kN);
    product.store(tiles.y, kP + 4);
    __syncthreads();
    for (int i = threadIdx.x; i < kL * kP / 4; i += kTileThreads) {
      const int row = i / (kP / 4), column = i % (kP / 4) * 4;
      if (row >= place.n_rows) continue;
      Four value = load4(tiles.y + row * (kP + 4) + column);
      const Four x = load4(tiles.x + row * kStride<kP> + column);
      for (int c = 0; c < 4; ++c) value.v[c] += d[head] * x.v[c];
      store4(y + (place.first_token + row) * s.d_inner() + head * kP + column, value);
    }
  }
}

template <int kP, int kN>
struct GradientTiles {
  alignas(32) bf16 b[kL * kStride<kN>];
  alignas(32) bf16 c[kL * kStride<kN>];
  alignas(32) bf16 x[kL * kStride<kP>];
  alignas(32) bf16 dy[kL * kStride<kP>];
  alignas(32) bf16 scaled_x[kL * kStride<kP>];   // q_s x_s
  alignas(32) bf16 scaled_dy[kL * kStride<kP>];  // exp(s_t) dy_t
  alignas(32) bf16 before[kP * kStride<kN>];
  alignas(32) bf16 after[kP * kStride<kN>];  // the gradient of the state behind the chunk
  alignas(32) bf16 weights[kL * kStride<kL>];
  alignas(32) float sums_of_products[kL * (kL + 4)];  // one product after another
  float dt[kL], sums[kL], to_end[kL], decays[kL], q[kL];
  float of_row[kL], of_column[kL], of_update[kL], of_state[kL];  // shares of the gradient of dt and s
  float parts[kTileWarps];
};

// Gradients of a chunk from d_y, the state in front (`before`) and the gradient of the state behind (`after`). A block has a
// chunk and some heads; the gradients of B and C are sums over its heads and stay in registers, dS = d_y x^T L dt too.
// The kernel above backwards, line by line. Shared: 102 KB (64, 64), 137 KB (64, 128).
template <int kP, int kN>
__global__ void __launch_bounds__(kTileThreads, kN == 64 ? 2 : 1)
    gradient_kernel(SsmSizes s, const bf16* xbc, const float* dt, const float* sums, const float* a_log, const float* d,
                    const bf16* before, const bf16* after, const bf16* d_y, bf16* d_x, float* d_bc, float* d_dt,
                    float* d_a_log, float* d_d) {
  constexpr int kF = kL + 4, kOwn = kL * kL / kTileThreads, kStep = kTileThreads / kL;
  extern __shared__ __align__(32) unsigned char shared[];
  auto& tiles = *reinterpret_cast<GradientTiles<kP, kN>*>(shared);
  float* const f = tiles.sums_of_products;
  const Place place(s);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int own_column = thread % kL, own_row = thread / kL;  // of [t, s]: rows own_row + kStep j
  const bf16* rows = xbc + place.first_token * s.d_channels();
  load_tile<kL, kN>(tiles.b, rows + s.d_inner(), s.d_channels(), place.n_rows);
  load_tile<kL, kN>(tiles.c, rows + s.d_inner() + kN, s.d_channels(), place.n_rows);
  __syncthreads();
  float scores[kOwn], d_scores[kOwn] = {};
  {
    Product<kL, kL> product;
    product.clear();
    product.template add<Rows, Transposed>(tiles.c, kStride<kN>, tiles.b, kStride<kN>, kN);
    product.store(f, kF);
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kOwn; ++j) scores[j] = f[(own_row + kStep * j) * kF + own_column];
  }
  Product<kL, kN> d_b, d_c;
  d_b.clear();
  d_c.clear();

  for (int head = place.first_head; head < place.end_head; ++head) {
    const int64_t at = place.chunk * s.n_heads + head;
    __syncthreads();  // the last head's tiles are done with
    if (thread < kL) {
      const float sum = sums[at * kL + thread], end = sums[at * kL + kL - 1], step = dt[at * kL + thread];
      tiles.dt[thread] = step;
      tiles.sums[thread] = sum;
      tiles.decays[thread] = __expf(sum);
      tiles.to_end[thread] = __expf(end - sum);
      tiles.q[thread] = __expf(end - sum) * step;
    }
    load_tile<kL, kP>(tiles.x, rows + head * kP, s.d_channels(), place.n_rows);
    load_tile<kL, kP>(tiles.dy, d_y + place.first_token * s.d_inner() + head * kP, s.d_inner(), place.n_rows);
    load_tile<kP, kN>(tiles.before, before + at * kP * kN, kN, kP);
    load_tile<kP, kN>(tiles.after, after + at * kP * kN, kN, kP);
    __syncthreads();
    scale_tile<kL, kP>(tiles.scaled_x, tiles.x, tiles.q);
    scale_tile<kL, kP>(tiles.scaled_dy, tiles.dy, tiles.decays);
    float decay[kOwn];  // L
#pragma unroll
    for (int j = 0; j < kOwn; ++j) {
      const int t = own_row + kStep * j;
      decay[j] = own_column > t ? 0.0f : __expf(tiles.sums[t] - tiles.sums[own_column]);
      tiles.weights[t * kStride<kL> + own_column] = __float2bfloat16(scores[j] * decay[j] * tiles.dt[own_column]);
    }
    __syncthreads();
    d_b.template add<Rows, Rows>(tiles.scaled_x, kStride<kP>, tiles.after, kStride<kN>, kP);
    d_c.template add<Rows, Rows>(tiles.scaled_dy, kStride<kP>, tiles.before, kStride<kN>, kP);
    {  // the gradient of S L dt: dy x^T
      Product<kL, kL> product;
      product.clear();
      product.template add<Rows, Transposed>(tiles.dy, kStride<kP>, tiles.x, kStride<kP>, kP);
      product.store(f, kF);
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kOwn; ++j) {
      float& value = f[(own_row + kStep * j) * kF + own_column];
      d_scores[j] += value * decay[j] * tiles.dt[own_column];
      value *= decay[j] * scores[j];
    }
    __syncthreads();
    if (thread < kL) {
      float sum = 0;
      for (int t = 0; t < kL; ++t) sum += f[t * kF + thread];
      tiles.of_column[thread] = sum;
    } else if (thread < 2 * kL) {
      float sum = 0;
      for (int from = 0; from < kL; ++from) sum += f[(thread - kL) * kF + from] * tiles.dt[from];
      tiles.of_row[thread - kL] = sum;
    } else {  // two warps each: the gradient of D, and what the decay of the whole state carries
      const bool of_d = thread < 3 * kL;
      const bf16 *left = of_d ? tiles.dy : tiles.before, *right = of_d ? tiles.x : tiles.after;
      const int n_columns = of_d ? kP : kN, n = of_d ? kL * kP : kP * kN;
      float sum = 0;
      for (int i = thread % kL; i < n; i += kL) {
        const int index = i / n_columns * (n_columns + 8) + i % n_columns;
        sum += __bfloat162float(left[index]) * __bfloat162float(right[index]);
      }
      sum = warp_sum(sum);
      if (lane == 0) tiles.parts[warp] = sum;
    }
    __syncthreads();

    // d_x = (S L dt)^T dy + D dy + q R, R = B after^T
    constexpr int kQuads = kL * kP / 4 / kTileThreads;
    Four to_x[kQuads];
    {
      Product<kL, kP> product;
      product.clear();
      product.template add<Transposed, Rows>(tiles.weights, kStride<kL>, tiles.dy, kStride<kP>, kL);
      product.store(f, kF);
      __syncthreads();
#pragma unroll
      for (int j = 0; j < kQuads; ++j) {
        const int i = thread + kTileThreads * j, row = i / (kP / 4), column = i % (kP / 4) * 4;
        to_x[j] = load4(f + row * kF + column);
        const Four dy = load4(tiles.dy + row * kStride<kP> + column);
        for (int c = 0; c < 4; ++c) to_x[j].v[c] += d[head] * dy.v[c];
      }
      __syncthreads();
      product.clear();
      product.template add<Rows, Transposed>(tiles.b, kStride<kN>, tiles.after, kStride<kN>, kN);
      product.store(f, kF);
      __syncthreads();
#pragma unroll
      for (int j = 0; j < kQuads; ++j) {
        const int i = thread + kTileThreads * j, row = i / (kP / 4), column = i % (kP / 4) * 4;
        const Four r = load4(f + row * kF + column);
        for (int c = 0; c < 4; ++c) to_x[j].v[c] += tiles.q[row] * r.v[c];
        if (row < place.n_rows) store4(d_x + (place.first_token + row) * s.d_inner() + head * kP + column, to_x[j]);
      }
      if (thread < kL) {
        float sum = 0;
        for (int p = 0; p < kP; ++p) sum += f[thread * kF + p] * __bfloat162float(tiles.x[thread * kStride<kP> + p]);
        tiles.of_update[thread] = sum * tiles.to_end[thread];
      }
      __syncthreads();
      product.clear();
      product.template add<Rows, Transposed>(tiles.c, kStride<kN>, tiles.before, kStride<kN>, kN);
      product.store(f, kF);
      __syncthreads();
      if (thread < kL) {
        float sum = 0;
        for (int p = 0; p < kP; ++p) sum += f[thread * kF + p] * __bfloat162float(tiles.dy[thread * kStride<kP> + p]);
        tiles.of_state[thread] = sum * tiles.decays[thread];
      }
      __syncthreads();
    }

    // Of the sums s, then of the steps a = dt A that they are sums of: what comes later is summed. One warp, two tokens a lane.
    if (warp == 0) {
      const float a = -expf(a_log[head]);
      float ds[2], update = 0;
      for (int j = 0; j < 2; ++j) {
        const int token = 2 * lane + j;
        const float step = tiles.dt[token];
        ds[j] =
            tiles.of_row[token] - step * tiles.of_column[token] + tiles.of_state[token] - step * tiles.of_update[token];
        update += step * tiles.of_update[token];
      }
      update = warp_sum(update);
      if (lane == 31) ds[1] += update + tiles.decays[kL - 1] * (tiles.parts[6] + tiles.parts[7]);
      float later = ds[0] + ds[1];  // the sum over this lane and those above
      for (int lanes = 1; lanes < 32; lanes *= 2) {
        const float other = __shfl_down_sync(0xffffffffu, later, lanes);
        if (lane + lanes < 32) later += other;
      }
      float of_a = 0;
      for (int j = 0; j < 2; ++j) {
        const int token = 2 * lane + j;
        const float da = j == 0 ? later : later - ds[0];
        d_dt[at * kL + token] = tiles.of_column[token] + tiles.of_update[token] + a * da;
        of_a += tiles.dt[token] * da;
      }
      of_a = warp_sum(of_a);
      if (lane == 0) {
        d_a_log[at] = a * of_a;
        d_d[at] = tiles.parts[4] + tiles.parts[5];
      }
    }
  }

  // d_b += dS^T C, d_c += dS B
  __syncthreads();
#pragma unroll
  for (int j = 0; j < kOwn; ++j)
    tiles.weights[(own_row + kStep * j) * kStride<kL> + own_column] = __float2bfloat16(d_scores[j]);
  __syncthreads();
  d_b.template add<Transposed, Rows>(tiles.weights, kStride<kL>, tiles.c, kStride<kN>, kL);
  d_c.template add<Rows, Rows>(tiles.weights, kStride<kL>, tiles.b, kStride<kN>, kL);
  float* to = d_bc + (int64_t{blockIdx.y} * s.all_chunks() + place.chunk) * kL * 2 * kN;
  d_b.store(to, 2 * kN);
  d_c.store(to + kN, 2 * kN);
}

dim3 grid_of(const SsmSizes& s) {
  return dim3(static_cast<unsigned>(s.all_chunks()), static_cast<unsigned>(s.n_head_groups()));
}
dim3 pass_grid(const SsmSizes& s) {
  return dim3(static_cast<unsigned>((s.d_inner() * s.d_state / 4 + 127) / 128), static_cast<unsigned>(s.n_seqs));
}

template <int kP, int kN>
void forward(const SsmSizes& s, const SsmWeights& w, const SsmActivations& a, cudaStream_t stream) {
  constexpr size_t kBytes = sizeof(OutputTiles<kP, kN>);
  cudaFuncSetAttribute(output_kernel<kP, kN>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kBytes));
  const bf16* xbc = typed(a.xbc);
  added_kernel<kP, kN, false>
      <<<grid_of(s), kTileThreads, 0, stream>>>(s, xbc, s.d_channels(), xbc + s.d_inner(), a.dt, a.sums, a.added);
  pass_kernel<false><<<pass_grid(s), 128, 0, stream>>>(s, a.added, a.sums, typed(a.before));
  output_kernel<kP, kN>
      <<<grid_of(s), kTileThreads, kBytes, stream>>>(s, xbc, a.dt, a.sums, w.d, typed(a.before), typed(a.y));
}

template <int kP, int kN>
void backward(const SsmSizes& s, const SsmWeights& w, const SsmActivations& a, const SsmGradients& g,
              cudaStream_t stream) {
  constexpr size_t kBytes = sizeof(GradientTiles<kP, kN>);
  cudaFuncSetAttribute(gradient_kernel<kP, kN>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kBytes));
  const bf16* xbc = typed(a.xbc);
  added_kernel<kP, kN, true><<<grid_of(s), kTileThreads, 0, stream>>>(s, typed(g.d_y), s.d_inner(),
                                                                      xbc + s.d_inner() + kN, a.dt, a.sums, g.added);
  pass_kernel<true><<<pass_grid(s), 128, 0, stream>>>(s, g.added, a.sums, typed(g.after));
  gradient_kernel<kP, kN><<<grid_of(s), kTileThreads, kBytes, stream>>>(s, xbc, a.dt, a.sums, w.a_log, w.d,
                                                                        typed(a.before), typed(g.after), typed(g.d_y),
                                                                        typed(g.d_x), g.d_bc, g.d_dt, g.d_a_log, g.d_d);
}

// Calls work with the sizes as constants.
template <class Work>
void with_sizes(const SsmSizes& s, Work&& work) {
  if (s.head_dim == 32 && s.d_state == 64) work.template operator()<32, 64>();
  if (s.head_dim == 32 && s.d_state == 128) work.template operator()<32, 128>();
  if (s.head_dim == 64 && s.d_state == 64) work.template operator()<64, 64>();
  if (s.head_dim == 64 && s.d_state == 128) work.template operator()<64, 128>();
}

}  // namespace

void scan_forward(const SsmSizes& s, const SsmWeights& w, const SsmActivations& a, Stream stream) {
  with_sizes(s, [&]<int kP, int kN>() { forward<kP, kN>(s, w, a, static_cast<cudaStream_t>(stream)); });
}

void scan_backward(const SsmSizes& s, const SsmWeights& w, const SsmActivations& a, const SsmGradients& g,
                   Stream stream) {
  with_sizes(s, [&]<int kP, int kN>() { backward<kP, kN>(s, w, a, g, static_cast<cudaStream_t>(stream)); });
}

}  // namespace polyspan::hydra
