#include "cuda/span_profiler.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>

#include "core/error.h"

namespace polyspan::cuda {
namespace {

constexpr int64_t kTargetChunk = 512;  // rows of logits at a time: 64 MB at 32,000 tokens
constexpr int64_t kAlignment = 256;

int32_t clamp_to(int64_t value, int64_t most) { return static_cast<int32_t>(std::min(value, most)); }

}  // namespace

CudaSpanProfiler::CudaSpanProfiler(const ProfiledModel& model, const CudaProfilerOptions& options)
    : model_(model),
      config_(model.config),
      stream_(model.stream),
      precision_(options.weight_products),
      blas_(model.stream),
      q_dim_(config_.n_heads * config_.head_dim),
      kv_dim_(config_.n_kv_heads * config_.head_dim),
      qkv_dim_(q_dim_ + 2 * kv_dim_) {
  const int64_t largest = std::max({config_.d_model * qkv_dim_, config_.d_model * 2 * config_.d_ff,
                                    config_.d_model * config_.vocab_size}),
                widest = std::max({config_.d_model, q_dim_, config_.d_ff});
  decoded_floats_ = std::max(widest, std::min(largest, options.most_decoded_floats));
}

GradientShape CudaSpanProfiler::gradient_shape(int64_t n_tokens) const {
  return {n_tokens, config_.n_heads, config_.n_kv_heads, config_.head_dim};
}

int64_t CudaSpanProfiler::place(int64_t n, std::byte* base, Buffers& b) const {
  const int64_t d = config_.d_model, n_layer_heads = config_.n_layers * config_.n_heads;
  int64_t at = 0;
  const auto take = [&]<typename T>(T*& pointer, int64_t count) {
    if (base != nullptr) pointer = reinterpret_cast<T*>(base + at);
    at += round_up_to(count * static_cast<int64_t>(sizeof(T)), kAlignment);
  };
  take(b.inputs, (config_.n_layers + 1) * n * d);
  take(b.mids, config_.n_layers * n * d);
  for (float** pointer : {&b.gradient, &b.normed, &b.d_normed}) take(*pointer, n * d);
  take(b.qkv, n * qkv_dim_);
  for (float** pointer : {&b.attention, &b.q, &b.of_heads, &b.dq}) take(*pointer, n * q_dim_);
  for (float** pointer : {&b.k, &b.v, &b.dk, &b.dv}) take(*pointer, n * kv_dim_);
  take(b.gate_up, n * 2 * config_.d_ff);
  take(b.act, n * config_.d_ff);
  take(b.rope, n * (config_.rope.n_dims / 2));
  for (int32_t** pointer : {&b.tokens, &b.rows, &b.target_ids}) take(*pointer, n);
  take(b.scores, std::min(n, kTargetChunk));
  take(b.spans, n_layer_heads);
  take(b.candidates, CudaSpanGradient::kMostCandidates);
  take(b.sums, 4 * n_layer_heads * CudaSpanGradient::kMostCandidates);
  take(b.logits, std::min(n, kTargetChunk) * config_.vocab_size);
  take(b.decoded, decoded_floats_);
  take(b.attention_op, CudaSpanGradient::bytes_needed(gradient_shape(n)));
  return at;
}

int64_t CudaSpanProfiler::bytes_needed(int64_t n_tokens) const {
  Buffers none;
  return place(n_tokens, nullptr, none);
}

void CudaSpanProfiler::check_memory(int64_t n_tokens) const {
  const int64_t bytes = bytes_needed(n_tokens), free = free_device_bytes() + memory_.size_bytes();
  if (bytes > free)
    throw Error::out_of_memory("profiling samples of ", n_tokens, " tokens needs ", bytes, " bytes of GPU memory; ",
                               free, " are free");
}

void CudaSpanProfiler::reserve(int64_t n) {
  if (n == n_tokens_) return;
  n_tokens_ = 0;
  attention_op_.reset();
  const int64_t bytes = bytes_needed(n);
  if (memory_.size_bytes() < bytes) check_memory(n);
  grow(memory_, bytes, "profiling samples of " + std::to_string(n) + " tokens", stream_);
  place(n, memory_.data(), b_);
  attention_op_.emplace(gradient_shape(n), b_.attention_op, blas_, stream_);
  rope_table(model_.frequencies, config_.rope.n_dims / 2, nullptr, 0, n, b_.rope, stream_);
  n_tokens_ = n;
}

void CudaSpanProfiler::upload(const ProfileRequest& request) {
  const int64_t n = n_tokens_;
  std::vector<HeadSpan> spans;
  for (const AttentionSpan& span : request.spans)
    spans.push_back({clamp_to(span.span, n), clamp_to(span.n_sink_tokens, n)});
  std::vector<int32_t> candidates, rows, ids;
  for (const int64_t span : request.candidate_spans) candidates.push_back(clamp_to(span, n));
  for (const int64_t target : request.targets) {
    rows.push_back(static_cast<int32_t>(target - 1));
    ids.push_back(request.tokens[static_cast<size_t>(target)]);
  }
  const auto put = [&]<typename T>(T* to, std::span<const T> from) {
    copy_to_device(to, from.data(), static_cast<int64_t>(from.size_bytes()), stream_);
  };
  put(b_.tokens, request.tokens);
  put(b_.spans, std::span<const HeadSpan>(spans));
  put(b_.candidates, std::span<const int32_t>(candidates));
  put(b_.rows, std::span<const int32_t>(rows));
  put(b_.target_ids, std::span<const int32_t>(ids));
}

template <typename Body>
void CudaSpanProfiler::for_each_decoded(std::span<const MatrixPart> parts, Body body) const {
  for (const MatrixPart& part : parts) {
    const int64_t at_once = std::max<int64_t>(1, decoded_floats_ / part.w.d_in);
    for (int64_t row = 0; row < part.w.d_out; row += at_once) {
      const int64_t n_rows = std::min(at_once, part.w.d_out - row);
      decode(part.w, row, n_rows, b_.decoded, stream_);
      body(part.column + row, n_rows, part.w.d_in);
    }
  }
}

void CudaSpanProfiler::multiply(std::span<const MatrixPart> parts, const float* x, int64_t n, float* out,
                                int64_t out_stride, bool add) const {
  for_each_decoded(parts, [&](int64_t column, int64_t n_rows, int64_t d_in) {
    blas_.multiply({.n_rows = n,
                    .n_columns = n_rows,
                    .n_inner = d_in,
                    .a = {x, d_in},
                    .b = {b_.decoded, d_in, 0, /*transposed=*/true},
                    .c = out + column,
                    .c_stride = out_stride,
                    .add = add},
                   precision_);
  });
}

void CudaSpanProfiler::multiply_back(std::span<const MatrixPart> parts, const float* d_y, int64_t n, int64_t d_y_stride,
                                     float* d_x) const {
  bool add = false;
  for_each_decoded(parts, [&](int64_t column, int64_t n_rows, int64_t d_in) {
    blas_.multiply({.n_rows = n,
                    .n_columns = d_in,
                    .n_inner = n_rows,
                    .a = {d_y + column, d_y_stride},
                    .b = {b_.decoded, d_in},
                    .c = d_x,
                    .c_stride = d_in,
                    .add = add},
                   precision_);
    add = true;
  });
}

void CudaSpanProfiler::norm(const float* x, const int32_t* rows, const float* weight, int64_t n) const {
  rmsnorm(x, rows, weight, n, config_.d_model, config_.norm_eps, ActivationType::kF32, b_.normed, stream_);
}

HeadRows CudaSpanProfiler::head_rows(float* q, float* k, float* v) const {
  return {.n_tokens = n_tokens_,
          .n_heads = config_.n_heads,
          .n_kv_heads = config_.n_kv_heads,
          .head_dim = config_.head_dim,
          .rope = b_.rope,
          .n_pairs = config_.rope.n_dims / 2,
          .interleaved = config_.rope.pairing == RopePairing::kInterleaved,
          .q_scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim)),
          .q = q,
          .k = k,
          .v = v};
}

void CudaSpanProfiler::queries_and_keys(int64_t layer) const {
  norm(input(layer), nullptr, weights(layer).attn_norm, n_tokens_);
  multiply(weights(layer).qkv, b_.normed, n_tokens_, b_.qkv, qkv_dim_, false);
  split_heads(head_rows(b_.q, b_.k, b_.v), b_.qkv, weights(layer).bias, stream_);
}

SpanGradientInputs CudaSpanProfiler::attention_inputs(int64_t layer) const {
  return {b_.q, b_.k, b_.v, b_.spans + layer * config_.n_heads};
}

std::vector<TargetScore> CudaSpanProfiler::forward(const ProfileRequest& request) {
  const int64_t n = std::ssize(request.tokens), d = config_.d_model, d_ff = config_.d_ff;
  POLYSPAN_CHECK(n >= 1 && !request.targets.empty() && std::ssize(request.spans) == config_.n_layers * config_.n_heads);
  POLYSPAN_CHECK(std::adjacent_find(request.targets.begin(), request.targets.end(), std::greater_equal<>()) ==
                     request.targets.end() &&
                 request.targets.front() >= 1 && request.targets.back() < n);
  reserve(n);
  upload(request);
  embed(model_.embedding, b_.tokens, n, input(0), stream_);
  for (int64_t layer = 0; layer < config_.n_layers; ++layer) {
    const DeviceLayer& w = weights(layer);
    queries_and_keys(layer);
    attention_op_->forward(attention_inputs(layer), b_.of_heads);
    from_head_rows(n, config_.n_heads, config_.n_kv_heads, config_.head_dim, b_.of_heads, b_.attention, stream_);
    copy_on_device(mid(layer), input(layer), n * d * 4, stream_);
    multiply(w.attn_out, b_.attention, n, mid(layer), d, true);
    norm(mid(layer), nullptr, w.ffn_norm, n);
    multiply(w.gate_up, b_.normed, n, b_.gate_up, 2 * d_ff, false);
    swiglu(DType::kF32, b_.gate_up, n, d_ff, ActivationType::kF32, b_.act, stream_);
    copy_on_device(input(layer + 1), mid(layer), n * d * 4, stream_);
    multiply(w.down, b_.act, n, input(layer + 1), d, true);
  }
  std::vector<TargetScore> scores;
  const int64_t n_targets = std::ssize(request.targets);
  for (int64_t first = 0; first < n_targets; first += kTargetChunk) {
    const int64_t part = std::min(kTargetChunk, n_targets - first);
    target_logits(first, part);
    score_targets(b_.logits, b_.target_ids + first, part, config_.vocab_size, b_.scores, stream_);
    const std::vector<TargetScore> of_part = to_host<TargetScore>(b_.scores, part, stream_);
    scores.insert(scores.end(), of_part.begin(), of_part.end());
  }
  return scores;
}

void CudaSpanProfiler::target_logits(int64_t first, int64_t n) const {
  norm(input(config_.n_layers), b_.rows + first, model_.output_norm, n);
  multiply(model_.output, b_.normed, n, b_.logits, config_.vocab_size, false);
}

void CudaSpanProfiler::loss_gradient_of(const ProfileRequest& request) const {
  const int64_t d = config_.d_model, n_targets = std::ssize(request.targets);
  fill_bytes(b_.gradient, 0, n_tokens_ * d * 4, stream_);
  for (int64_t first = 0; first < n_targets; first += kTargetChunk) {
    const int64_t n = std::min(kTargetChunk, n_targets - first);
    target_logits(first, n);
    loss_gradient(request.loss, 1.0f / static_cast<float>(n_targets), b_.target_ids + first, n, config_.vocab_size,
                  b_.logits, stream_);
    multiply_back(model_.output, b_.logits, n, config_.vocab_size, b_.d_normed);
    rmsnorm_gradient(input(config_.n_layers), b_.rows + first, model_.output_norm, b_.d_normed, n, d, config_.norm_eps,
                     b_.gradient, stream_);
  }
}

void CudaSpanProfiler::ffn_backward(int64_t layer) const {
  const DeviceLayer& w = weights(layer);
  const int64_t d = config_.d_model, d_ff = config_.d_ff;
  norm(mid(layer), nullptr, w.ffn_norm, n_tokens_);
  multiply(w.gate_up, b_.normed, n_tokens_, b_.gate_up, 2 * d_ff, false);
  multiply_back(w.down, b_.gradient, n_tokens_, d, b_.act);
  swiglu_gradient(b_.gate_up, b_.act, n_tokens_, d_ff, stream_);
  multiply_back(w.gate_up, b_.gate_up, n_tokens_, 2 * d_ff, b_.d_normed);
  rmsnorm_gradient(mid(layer), nullptr, w.ffn_norm, b_.d_normed, n_tokens_, d, config_.norm_eps, b_.gradient, stream_);
}

void CudaSpanProfiler::attention_backward(int64_t layer, int64_t n_candidates, bool go_on) const {
  const DeviceLayer& w = weights(layer);
  const int64_t d = config_.d_model, of_layer = config_.n_heads * n_candidates, all = config_.n_layers * of_layer;
  multiply_back(w.attn_out, b_.gradient, n_tokens_, d, b_.attention);
  to_head_rows(n_tokens_, config_.n_heads, config_.n_kv_heads, config_.head_dim, b_.attention, b_.of_heads, stream_);
  queries_and_keys(layer);
  double* const sums = b_.sums + layer * of_layer;
  attention_op_->backward(attention_inputs(layer), {.d_out = b_.of_heads,
                                                    .dq = go_on ? b_.dq : nullptr,
                                                    .dk = go_on ? b_.dk : nullptr,
                                                    .dv = go_on ? b_.dv : nullptr,
                                                    .candidates = b_.candidates,
                                                    .n_candidates = n_candidates,
                                                    .span = sums,
                                                    .span_abs = sums + all,
                                                    .span_square = sums + 2 * all,
                                                    .pairwise = sums + 3 * all});
  if (!go_on) return;
  join_gradients(head_rows(b_.dq, b_.dk, b_.dv), b_.qkv, stream_);
  multiply_back(w.qkv, b_.qkv, n_tokens_, qkv_dim_, b_.d_normed);
  rmsnorm_gradient(input(layer), nullptr, w.attn_norm, b_.d_normed, n_tokens_, d, config_.norm_eps, b_.gradient,
                   stream_);
}

SpanInfluence CudaSpanProfiler::backward(const ProfileRequest& request) {
  POLYSPAN_CHECK(std::ssize(request.tokens) == n_tokens_, "backward() without its forward()");
  const int64_t n_candidates = std::ssize(request.candidate_spans);
  POLYSPAN_CHECK(n_candidates <= CudaSpanGradient::kMostCandidates);
  SpanInfluence influence{config_.n_layers, config_.n_heads, n_candidates, {}, {}, {}, {}};
  const int64_t all = static_cast<int64_t>(influence.at(config_.n_layers, 0, 0));
  upload(request);
  fill_bytes(b_.sums, 0, 4 * all * static_cast<int64_t>(sizeof(double)), stream_);
  loss_gradient_of(request);
  for (int64_t layer = config_.n_layers - 1; layer >= 0; --layer) {
    ffn_backward(layer);
    attention_backward(layer, n_candidates, layer > 0 || request.input_gradient);
  }
  const std::vector<double> sums = to_host<double>(b_.sums, 4 * all, stream_);
  influence.span.assign(sums.begin(), sums.begin() + all);
  influence.span_abs.assign(sums.begin() + all, sums.begin() + 2 * all);
  influence.span_square.assign(sums.begin() + 2 * all, sums.begin() + 3 * all);
  influence.pairwise.assign(sums.begin() + 3 * all, sums.end());
  if (request.input_gradient) input_gradient_ = to_host<float>(b_.gradient, n_tokens_ * config_.d_model, stream_);
  return influence;
}

}  // namespace polyspan::cuda
