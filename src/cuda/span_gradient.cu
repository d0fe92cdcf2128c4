#include "cuda/span_gradient.h"

#include <algorithm>

#include "core/error.h"
#include "cuda/number.cuh"

namespace polyspan::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr float kLargestAdded = 20.0f;  // log of an added key's weight against all that is seen, as on the CPU
constexpr int64_t kScoreAlignment = 8;  // floats: rows of scores begin at multiples of 32 bytes

// Rows of a chunk; what a row is and which keys it sees. blockIdx.y is the KV head.
struct RowsArgs {
  float *scores, *d_weights;  // [n_kv_heads][rows][stride]; d_weights null in forward
  int64_t stride, step;       // between rows, between KV heads
  int64_t first_query;
  int n_rows, n_rep, n_keys;
  const HeadSpan* spans;
  const int32_t* candidates;
  int n_candidates;
  float2* effects;  // [n_kv_heads][n_rows][n_candidates]: e_i and the sum of |E_ij|
};

// Keys [0, sink_end) and [window_begin, end) are seen.
struct Seen {
  int position, span, sink_end, window_begin, end;
  __device__ Seen(const RowsArgs& args, int row) {
    const HeadSpan head = args.spans[blockIdx.y * args.n_rep + row % args.n_rep];
    position = static_cast<int>(args.first_query) + row / args.n_rep;
    span = head.span;
    end = position + 1;
    sink_end = min(head.n_sink, end);
    window_begin = max(sink_end, end - span);
  }
};

__device__ int warp_row() { return static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32; }
__device__ int lane() { return static_cast<int>(threadIdx.x) % 32; }

__device__ void clear(float* row, int begin, int end) {
  for (int key = begin + lane(); key < end; key += 32) row[key] = 0.0f;
}

// The sum of exp(score - largest), and of that times dA in backward: of a lane, then of a warp.
struct RunningSum {
  float largest = -INFINITY, total = 0.0f, weighted = 0.0f;
  __device__ void add(float score, float d_weight) {
    const float largest_yet = fmaxf(largest, score);
    const float before = expf(largest - largest_yet), now = expf(score - largest_yet);
    total = total * before + now;
    weighted = weighted * before + now * d_weight;
    largest = largest_yet;
  }
  __device__ void reduce() {
    const float of_warp = warp_max(largest);
    const float scale = largest == -INFINITY ? 0.0f : expf(largest - of_warp);
    total = warp_sum(total * scale);
    weighted = warp_sum(weighted * scale);
    largest = of_warp;
  }
};

// One warp a row: scores -> softmax over the keys that the head sees, 0 elsewhere. Bound by reading the scores twice and
// writing them once.
__global__ void __launch_bounds__(kThreads) softmax_rows_kernel(RowsArgs args) {
  const int row = warp_row();
  if (row >= args.n_rows) return;
  const Seen seen(args, row);
  float* const scores = args.scores + blockIdx.y * args.step + row * args.stride;
  RunningSum sum;
  for (int key = lane(); key < seen.sink_end; key += 32) sum.add(scores[key], 0.0f);
#pragma unroll 4
  for (int key = seen.window_begin + lane(); key < seen.end; key += 32) sum.add(scores[key], 0.0f);
  sum.reduce();
  const float inverse = 1.0f / sum.total;
  const auto normalize = [&](int begin, int end) {
#pragma unroll 4
    for (int key = begin + lane(); key < end; key += 32) scores[key] = expf(scores[key] - sum.largest) * inverse;
  };
  normalize(0, seen.sink_end);
  clear(scores, seen.sink_end, seen.window_begin);
  normalize(seen.window_begin, seen.end);
  clear(scores, seen.end, args.n_keys);
}

// Of some keys: sums of A, of A (dA - D), and of |A (dA - D)| / (1 - A).
struct KeySums {
  float a = 0.0f, w = 0.0f, pairs = 0.0f;
};

// One warp a row: scores -> A and dA -> A (dA - D) over the keys that the head sees, 0 elsewhere; the effects of every
// candidate span. Keys are walked from one candidate to the next, each once: outwards from the window those that a longer
// span adds, from the window's far end inwards those that a shorter one removes. Bound by reading scores and dA twice and
// writing them once.
__global__ void __launch_bounds__(kThreads) gradient_rows_kernel(RowsArgs args) {
  const int row = warp_row();
  if (row >= args.n_rows) return;
  const Seen seen(args, row);
  float* const scores = args.scores + blockIdx.y * args.step + row * args.stride;
  float* const d_weights = args.d_weights + blockIdx.y * args.step + row * args.stride;
  float2* const effects = args.effects + (blockIdx.y * int64_t{args.n_rows} + row) * args.n_candidates;
  RunningSum sum;
  for (int key = lane(); key < seen.sink_end; key += 32) sum.add(scores[key], d_weights[key]);
#pragma unroll 4
  for (int key = seen.window_begin + lane(); key < seen.end; key += 32) sum.add(scores[key], d_weights[key]);
  sum.reduce();
  const float log_sum = sum.largest + logf(sum.total), d = sum.weighted / sum.total;

  // Reads the keys [begin, end), leaves in their places A and its gradient (seen) or 0, returns the warp's sums.
  const auto walk = [&](int begin, int end, bool is_seen) {
    KeySums sums;
#pragma unroll 4
    for (int key = begin + lane(); key < end; key += 32) {
      const float a = expf(fminf(scores[key] - log_sum, kLargestAdded)), w = a * (d_weights[key] - d);
      sums.a += a;
      sums.w += w;
      sums.pairs += fabsf(w) / fmaxf(1.0f - a, kLeastKeptShare);
      scores[key] = is_seen ? a : 0.0f;
      d_weights[key] = is_seen ? w : 0.0f;
    }
    return KeySums{warp_sum(sums.a), warp_sum(sums.w), warp_sum(sums.pairs)};
  };

  double a = 0, w = 0, pairs = 0;
  int done = seen.window_begin;
  for (int c = 0; c < args.n_candidates; ++c) {
    const int span = args.candidates[c];
    if (span <= seen.span) continue;
    const int begin = max(seen.sink_end, seen.end - span);
    if (begin < done) {
      const KeySums added = walk(begin, done, false);
      a += static_cast<double>(added.a), w += static_cast<double>(added.w);
      done = begin;
    }
    if (lane() == 0) effects[c] = make_float2(static_cast<float>(w / (1.0 + a)), 0.0f);
  }
  clear(scores, seen.sink_end, done), clear(d_weights, seen.sink_end, done);
  clear(scores, seen.end, args.n_keys), clear(d_weights, seen.end, args.n_keys);

  a = w = 0;
  done = seen.window_begin;
  for (int c = args.n_candidates - 1; c >= 0; --c) {
    const int span = args.candidates[c];
    if (span > seen.span) continue;
    const int end = seen.end - span;
    if (end > done) {
      const KeySums removed = walk(done, end, true);
      a += static_cast<double>(removed.a), w += static_cast<double>(removed.w);
      pairs += static_cast<double>(removed.pairs);
      done = end;
    }
    if (lane() == 0)
      effects[c] = make_float2(static_cast<float>(-w / fmax(1.0 - a, static_cast<double>(kLeastKeptShare))),
                               static_cast<float>(pairs));
  }
  walk(done, seen.end, true);
  walk(0, seen.sink_end, true);
}

constexpr int kSums = 4;  // span, span_abs, span_square, pairwise

// One block a (candidate, query head): adds the effects of the head's rows to its four sums, in a fixed order. Shared
// memory: 4 doubles a warp.
__global__ void __launch_bounds__(kThreads)
    sum_effects_kernel(RowsArgs args, double* span, double* span_abs, double* span_square, double* pairwise) {
  const int candidate = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  const int kv_head = head / args.n_rep, rep = head % args.n_rep;
  const float2* const effects = args.effects + int64_t{kv_head} * args.n_rows * args.n_candidates + candidate;
  double sums[kSums] = {};
  for (int row = rep + static_cast<int>(threadIdx.x) * args.n_rep; row < args.n_rows; row += kThreads * args.n_rep) {
    const float2 effect = effects[int64_t{row} * args.n_candidates];
    const double e = static_cast<double>(effect.x);
    sums[0] += e;
    sums[1] += fabs(e);
    sums[2] += e * e;
    sums[3] += static_cast<double>(effect.y);
  }
  __shared__ double warps[kSums][kWarps];
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) sums[i] += __shfl_xor_sync(0xffffffffu, sums[i], offset);
    if (lane() == 0) warps[i][threadIdx.x / 32] = sums[i];
  }
  __syncthreads();  // the warps' sums are there
  if (threadIdx.x >= kSums) return;
  double total = 0;
  for (int warp = 0; warp < kWarps; ++warp) total += warps[threadIdx.x][warp];
  double* const to = threadIdx.x == 0 ? span : threadIdx.x == 1 ? span_abs : threadIdx.x == 2 ? span_square : pairwise;
  to[int64_t{head} * args.n_candidates + candidate] += total;
}

// Of the queries [first, first + n), as in forward: no gradients, no candidates.
RowsArgs rows_args(const GradientShape& s, int64_t first, int64_t n, float* scores, int64_t stride,
                   const HeadSpan* spans) {
  const int64_t n_rep = s.n_heads / s.n_kv_heads;
  return {.scores = scores,
          .d_weights = nullptr,
          .stride = stride,
          .step = n * n_rep * stride,
          .first_query = first,
          .n_rows = static_cast<int>(n * n_rep),
          .n_rep = static_cast<int>(n_rep),
          .n_keys = static_cast<int>(first + n),
          .spans = spans,
          .candidates = nullptr,
          .n_candidates = 0,
          .effects = nullptr};
}
// One warp a row.
dim3 rows_grid(const GradientShape& s, const RowsArgs& args) {
  return dim3(static_cast<unsigned>((args.n_rows + kWarps - 1) / kWarps), static_cast<unsigned>(s.n_kv_heads));
}

int64_t score_stride(const GradientShape& s) { return round_up_to(s.n_tokens, kScoreAlignment); }
int64_t effect_floats(const GradientShape& s, int64_t per_chunk) {
  return 2 * CudaSpanGradient::kMostCandidates * s.n_heads * per_chunk;
}

}  // namespace

int64_t CudaSpanGradient::queries_per_chunk(const GradientShape& s) {
  constexpr int64_t
      kLeast = 16,
      kMost = 1024;  // 512 multiplies less that is not seen, and is 6% slower (H100, 9 heads of 64, 4,096 tokens)
  const int64_t fitting = kMostScoreBytes / (4 * s.n_heads * score_stride(s)) / kLeast * kLeast;
  return std::min(s.n_tokens, std::clamp(fitting, kLeast, kMost));
}

int64_t CudaSpanGradient::bytes_needed(const GradientShape& s) {
  const int64_t per_chunk = queries_per_chunk(s);
  return 4 * (2 * s.n_heads * per_chunk * score_stride(s) + effect_floats(s, per_chunk));
}

CudaSpanGradient::CudaSpanGradient(const GradientShape& shape, std::byte* memory, const Blas& blas,
                                   const Stream& stream)
    : shape_(shape),
      n_rep_(shape.n_heads / shape.n_kv_heads),
      per_chunk_(queries_per_chunk(shape)),
      stride_(score_stride(shape)),
      blas_(blas),
      stream_(stream),
      scores_(reinterpret_cast<float*>(memory)),
      d_weights_(scores_ + shape.n_heads * per_chunk_ * stride_),
      effects_(d_weights_ + shape.n_heads * per_chunk_ * stride_) {
  POLYSPAN_CHECK(shape.n_tokens >= 1 && shape.n_heads % shape.n_kv_heads == 0 && shape.head_dim >= 1);
  POLYSPAN_CHECK(shape.n_tokens * n_rep_ < int64_t{1} << 31);
}

void CudaSpanGradient::multiply_keys(const Chunk& c, const float* queries, const float* keys, float* scores) const {
  const int64_t d = shape_.head_dim, n_rows = shape_.n_tokens * n_rep_;
  blas_.multiply({.n_batch = shape_.n_kv_heads,
                  .n_rows = c.n_queries * n_rep_,
                  .n_columns = c.n_keys,
                  .n_inner = d,
                  .a = {queries + c.first_query * n_rep_ * d, d, n_rows * d},
                  .b = {keys, d, shape_.n_tokens * d, /*transposed=*/true},
                  .c = scores,
                  .c_stride = stride_,
                  .c_step = c.n_queries * n_rep_ * stride_},
                 Precision::kF32);
}

void CudaSpanGradient::combine(const Chunk& c, const float* weights, const float* keys, float* out) const {
  const int64_t d = shape_.head_dim, n_rows = shape_.n_tokens * n_rep_;
  blas_.multiply({.n_batch = shape_.n_kv_heads,
                  .n_rows = c.n_queries * n_rep_,
                  .n_columns = d,
                  .n_inner = c.n_keys,
                  .a = {weights, stride_, c.n_queries * n_rep_ * stride_},
                  .b = {keys, d, shape_.n_tokens * d},
                  .c = out + c.first_query * n_rep_ * d,
                  .c_stride = d,
                  .c_step = n_rows * d},
                 Precision::kF32);
}

void CudaSpanGradient::collect(const Chunk& c, const float* weights, const float* rows, float* out, bool add) const {
  const int64_t d = shape_.head_dim, n_rows = shape_.n_tokens * n_rep_;
  blas_.multiply({.n_batch = shape_.n_kv_heads,
                  .n_rows = c.n_keys,
                  .n_columns = d,
                  .n_inner = c.n_queries * n_rep_,
                  .a = {weights, stride_, c.n_queries * n_rep_ * stride_, /*transposed=*/true},
                  .b = {rows + c.first_query * n_rep_ * d, d, n_rows * d},
                  .c = out,
                  .c_stride = d,
                  .c_step = shape_.n_tokens * d,
                  .add = add},
                 Precision::kF32);
}

void CudaSpanGradient::forward(const SpanGradientInputs& in, float* out) const {
  for (int64_t first = 0; first < shape_.n_tokens; first += per_chunk_) {
    const int64_t n = std::min(per_chunk_, shape_.n_tokens - first);
    const Chunk chunk{first, n, first + n};
    multiply_keys(chunk, in.q, in.k, scores_);
    const RowsArgs args = rows_args(shape_, first, n, scores_, stride_, in.spans);
    softmax_rows_kernel<<<rows_grid(shape_, args), kThreads, 0, stream_.get()>>>(args);
    check_launch("softmax_rows");
    combine(chunk, scores_, in.v, out);
  }
}

void CudaSpanGradient::backward(const SpanGradientInputs& in, const SpanGradientOutputs& out) const {
  POLYSPAN_CHECK(out.n_candidates <= kMostCandidates);
  POLYSPAN_CHECK((out.dk != nullptr) == (out.dq != nullptr) && (out.dv != nullptr) == (out.dq != nullptr));
  // The last chunk first: it reaches every key, so that it writes dk and dv and the others add.
  const int64_t n_chunks = (shape_.n_tokens + per_chunk_ - 1) / per_chunk_;
  for (int64_t index = n_chunks - 1; index >= 0; --index) {
    const int64_t first = index * per_chunk_, n = std::min(per_chunk_, shape_.n_tokens - first);
    const Chunk chunk{first, n, first + n};
    multiply_keys(chunk, in.q, in.k, scores_);
    multiply_keys(chunk, out.d_out, in.v, d_weights_);
    RowsArgs args = rows_args(shape_, first, n, scores_, stride_, in.spans);
    args.d_weights = d_weights_;
    args.candidates = out.candidates;
    args.n_candidates = static_cast<int>(out.n_candidates);
    args.effects = reinterpret_cast<float2*>(effects_);
    gradient_rows_kernel<<<rows_grid(shape_, args), kThreads, 0, stream_.get()>>>(args);
    check_launch("gradient_rows");
    if (out.n_candidates > 0) {
      sum_effects_kernel<<<dim3(static_cast<unsigned>(out.n_candidates), static_cast<unsigned>(shape_.n_heads)),
                           kThreads, 0, stream_.get()>>>(args, out.span, out.span_abs, out.span_square, out.pairwise);
      check_launch("sum_effects");
    }
    if (out.dq == nullptr) continue;
    const bool add = index != n_chunks - 1;
    collect(chunk, scores_, out.d_out, out.dv, add);
    collect(chunk, d_weights_, in.q, out.dk, add);
    combine(chunk, d_weights_, in.k, out.dq);
  }
}

}  // namespace polyspan::cuda
