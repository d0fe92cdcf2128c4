#include "cuda/gradient.h"

#include <algorithm>

#include "core/error.h"
#include "cuda/number.cuh"

namespace polyspan::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

unsigned grid_of(int64_t n) {
  return static_cast<unsigned>(std::clamp<int64_t>((n + kThreads - 1) / kThreads, 1, 1 << 16));
}

struct Sum {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Largest {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

// Over a block of kThreads, the same in every thread and in a fixed order. Shared memory: a T a warp.
template <typename T, typename Combine>
__device__ T reduce_block(T value, Combine combine) {
  __shared__ T warps[kWarps];
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value = combine(value, __shfl_xor_sync(0xffffffffu, value, offset));
  __syncthreads();  // the call before has been read
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();  // the warps' values are there
  T all = warps[0];
  for (int i = 1; i < kWarps; ++i) all = combine(all, warps[i]);
  return all;
}

// One warp a head of a token: queries, then keys, then values. kForward: qkv -> heads, else heads -> qkv with the turn
// backwards.
template <bool kForward>
__global__ void heads_kernel(HeadRows heads, const float* from, const float* bias, float* to) {
  const int lane = threadIdx.x % 32, dim = static_cast<int>(heads.head_dim);
  const int n_pairs = static_cast<int>(heads.n_pairs);
  const int64_t token = blockIdx.x;
  const int64_t n_rows = heads.n_heads + 2 * heads.n_kv_heads, n_rep = heads.n_heads / heads.n_kv_heads;
  for (int64_t row = threadIdx.x / 32; row < n_rows; row += kWarps) {
    const bool is_q = row < heads.n_heads, is_value = row >= heads.n_heads + heads.n_kv_heads;
    const int64_t kv_head = is_q ? row / n_rep : row - heads.n_heads - (is_value ? heads.n_kv_heads : 0);
    float* const head = is_q ? heads.q + ((kv_head * heads.n_tokens + token) * n_rep + row % n_rep) * dim
                             : (is_value ? heads.v : heads.k) + (kv_head * heads.n_tokens + token) * dim;
    const int64_t at = (token * n_rows + row) * dim;
    const float scale = is_q ? heads.q_scale : 1.0f;
    for (int pair = lane; 2 * pair < dim; pair += 32) {
      const bool halves = !heads.interleaved && pair < n_pairs;
      const int first = halves ? pair : 2 * pair, second = halves ? pair + n_pairs : 2 * pair + 1;
      float a = kForward ? from[at + first] : head[first], b = kForward ? from[at + second] : head[second];
      if (kForward && bias != nullptr) a += bias[row * dim + first], b += bias[row * dim + second];
      if (!is_value && pair < n_pairs) {
        const RopeTurn turn = heads.rope[token * n_pairs + pair];
        const float sine = kForward ? turn.sine : -turn.sine, turned = a * turn.cosine - b * sine;
        b = a * sine + b * turn.cosine;
        a = turned;
      }
      float* const out = kForward ? head : to + at;
      out[first] = scale * a;
      out[second] = scale * b;
    }
  }
}

// kTo: rows of tokens -> head rows.
template <bool kTo>
__global__ void head_rows_kernel(int64_t n_tokens, int64_t n_heads, int64_t n_rep, int64_t head_dim, const float* x,
                                 float* out) {
  const int64_t token = blockIdx.x;
  for (int64_t i = threadIdx.x; i < n_heads * head_dim; i += kThreads) {
    const int64_t head = i / head_dim;
    const int64_t at = ((head / n_rep * n_tokens + token) * n_rep + head % n_rep) * head_dim + i % head_dim;
    const int64_t row_at = token * n_heads * head_dim + i;
    if (kTo) {
      out[at] = x[row_at];
    } else {
      out[row_at] = x[at];
    }
  }
}

// One block a row. With s = 1 / sqrt(mean(x^2) + eps): d_x += s w d_y - s^3 mean(x w d_y) x.
__global__ void rmsnorm_gradient_kernel(const float* x, const int32_t* rows, const float* weight, const float* d_y,
                                        int64_t d, float eps, float* d_x) {
  const int64_t row = (rows == nullptr ? int64_t{blockIdx.x} : int64_t{rows[blockIdx.x]}) * d;
  x += row, d_x += row, d_y += blockIdx.x * d;
  float squares = 0.0f, products = 0.0f;
  for (int64_t i = threadIdx.x; i < d; i += kThreads) squares += x[i] * x[i], products += x[i] * weight[i] * d_y[i];
  squares = reduce_block(squares, Sum{});
  products = reduce_block(products, Sum{});
  const float count = static_cast<float>(d), s = rsqrtf(squares / count + eps), along = s * s * s * (products / count);
  for (int64_t i = threadIdx.x; i < d; i += kThreads) d_x[i] += s * weight[i] * d_y[i] - along * x[i];
}

__global__ void swiglu_gradient_kernel(float* gate_up, const float* d_y, int64_t n, int64_t d_ff) {
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < n; i += int64_t{gridDim.x} * kThreads) {
    float* const gate = gate_up + i / d_ff * 2 * d_ff + i % d_ff;
    const float g = *gate, u = gate[d_ff], s = 1.0f / (1.0f + __expf(-g));
    gate[d_ff] = d_y[i] * g * s;
    *gate = d_y[i] * u * s * (g * (1.0f - s) + 1.0f);
  }
}

// What a row of logits says of its target, relative to the largest logit.
struct RowShares {
  float largest;
  double others, of_target;  // sums of exp(logit - largest)
};
__device__ RowShares row_shares(const float* row, int64_t vocab_size, int32_t target) {
  float largest = -INFINITY;
  for (int64_t i = threadIdx.x; i < vocab_size; i += kThreads) largest = fmaxf(largest, row[i]);
  largest = reduce_block(largest, Largest{});
  double others = 0;
  for (int64_t i = threadIdx.x; i < vocab_size; i += kThreads)
    if (i != target) others += static_cast<double>(expf(row[i] - largest));
  return {largest, reduce_block(others, Sum{}), exp(static_cast<double>(row[target]) - static_cast<double>(largest))};
}

// One block a row.
__global__ void score_targets_kernel(const float* logits, const int32_t* targets, int64_t vocab_size,
                                     TargetScore* scores) {
  constexpr double kLeastShare = 2e-9;  // as score_target
  const float* const row = logits + blockIdx.x * vocab_size;
  const int32_t target = targets[blockIdx.x];
  const RowShares shares = row_shares(row, vocab_size, target);
  if (threadIdx.x != 0) return;
  const double shifted = static_cast<double>(row[target]) - static_cast<double>(shares.largest);
  const double total = shares.others + shares.of_target;
  scores[blockIdx.x].log_probability = shifted - log(total);
  scores[blockIdx.x].log_odds = shifted - log(fmax(shares.others, kLeastShare * total));
  scores[blockIdx.x].is_best = row[target] >= shares.largest;
}

// One block a row. Of -log p: p_j - [j = target]; of -log(p / (1 - p)): that over 1 - p of the target.
__global__ void loss_gradient_kernel(bool odds, float share, const int32_t* targets, int64_t vocab_size,
                                     float* logits) {
  float* const row = logits + blockIdx.x * vocab_size;
  const int32_t target = targets[blockIdx.x];
  const RowShares shares = row_shares(row, vocab_size, target);
  const double total = shares.others + shares.of_target, others = fmax(shares.others, 1e-30 * total);
  const float scale = static_cast<float>(static_cast<double>(share) / (odds ? others : total));
  const float of_target = odds ? -share : static_cast<float>(-static_cast<double>(share) * others / total);
  __syncthreads();  // every thread has read the target's logit
  for (int64_t i = threadIdx.x; i < vocab_size; i += kThreads)
    row[i] = i == target ? of_target : scale * expf(row[i] - shares.largest);
}

}  // namespace

void split_heads(const HeadRows& heads, const float* qkv, const float* bias, const Stream& stream) {
  POLYSPAN_CHECK(heads.head_dim % 2 == 0 && 2 * heads.n_pairs <= heads.head_dim);
  heads_kernel<true><<<static_cast<unsigned>(heads.n_tokens), kThreads, 0, stream.get()>>>(heads, qkv, bias, nullptr);
  check_launch("split_heads");
}

void join_gradients(const HeadRows& heads, float* d_qkv, const Stream& stream) {
  POLYSPAN_CHECK(heads.head_dim % 2 == 0 && 2 * heads.n_pairs <= heads.head_dim);
  heads_kernel<false>
      <<<static_cast<unsigned>(heads.n_tokens), kThreads, 0, stream.get()>>>(heads, nullptr, nullptr, d_qkv);
  check_launch("join_gradients");
}

void to_head_rows(int64_t n_tokens, int64_t n_heads, int64_t n_kv_heads, int64_t head_dim, const float* x, float* out,
                  const Stream& stream) {
  head_rows_kernel<true><<<static_cast<unsigned>(n_tokens), kThreads, 0, stream.get()>>>(
      n_tokens, n_heads, n_heads / n_kv_heads, head_dim, x, out);
  check_launch("to_head_rows");
}

void from_head_rows(int64_t n_tokens, int64_t n_heads, int64_t n_kv_heads, int64_t head_dim, const float* x, float* out,
                    const Stream& stream) {
  head_rows_kernel<false><<<static_cast<unsigned>(n_tokens), kThreads, 0, stream.get()>>>(
      n_tokens, n_heads, n_heads / n_kv_heads, head_dim, x, out);
  check_launch("from_head_rows");
}

void rmsnorm_gradient(const float* x, const int32_t* rows, const float* weight, const float* d_y, int64_t n_rows,
                      int64_t d, float eps, float* d_x, const Stream& stream) {
  rmsnorm_gradient_kernel<<<static_cast<unsigned>(n_rows), kThreads, 0, stream.get()>>>(x, rows, weight, d_y, d, eps,
                                                                                        d_x);
  check_launch("rmsnorm_gradient");
}

void swiglu_gradient(float* gate_up, const float* d_y, int64_t n_tokens, int64_t d_ff, const Stream& stream) {
  swiglu_gradient_kernel<<<grid_of(n_tokens * d_ff), kThreads, 0, stream.get()>>>(gate_up, d_y, n_tokens * d_ff, d_ff);
  check_launch("swiglu_gradient");
}

void score_targets(const float* logits, const int32_t* targets, int64_t n_rows, int64_t vocab_size, TargetScore* scores,
                   const Stream& stream) {
  score_targets_kernel<<<static_cast<unsigned>(n_rows), kThreads, 0, stream.get()>>>(logits, targets, vocab_size,
                                                                                     scores);
  check_launch("score_targets");
}

void loss_gradient(ProfileLoss loss, float share, const int32_t* targets, int64_t n_rows, int64_t vocab_size,
                   float* logits, const Stream& stream) {
  loss_gradient_kernel<<<static_cast<unsigned>(n_rows), kThreads, 0, stream.get()>>>(
      loss == ProfileLoss::kLogOdds, share, targets, vocab_size, logits);
  check_launch("loss_gradient");
}

}  // namespace polyspan::cuda
