#include "model/transformer_profiler.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>

#include "core/error.h"

namespace polyspan {
namespace {

constexpr int64_t kChunk = 512;       // as a forward pass of the engine
constexpr int64_t kTargetChunk = 64;  // rows of logits at a time: 13 MB at 49,152 tokens

int64_t floats(int64_t n) { return n * static_cast<int64_t>(sizeof(float)); }

}  // namespace

TransformerProfiler::TransformerProfiler(const ModelConfig& config, const Weights& weights, OpContext& context,
                                         Progress& progress)
    : config_(config),
      weights_(weights),
      context_(context),
      transposed_(weights, context, progress),
      q_dim_(config.n_heads * config.head_dim),
      kv_dim_(config.n_kv_heads * config.head_dim),
      rounds_(
          std::none_of(weights.layers.begin(), weights.layers.end(),
                       [](const LayerWeights& w) { return w.gate.type == DType::kF32 || w.up.type == DType::kF32; })),
      kept_(config, rounds_) {
  const auto size = [](int64_t width) { return static_cast<size_t>(kChunk * width); };
  normed_.resize(size(config.d_model)), mid_.resize(size(config.d_model)), d_normed_.resize(size(config.d_model));
  gate_.resize(size(config.d_ff)), up_.resize(size(config.d_ff)), d_act_.resize(size(config.d_ff));
  gate_up_.resize(size(2 * config.d_ff));
  blocks_.resize(size(std::max({config.d_model, q_dim_, config.d_ff})) / kBlockCols +
                 static_cast<size_t>(kTargetChunk * config.vocab_size / kBlockCols) + 1);
}

GradientShape TransformerProfiler::gradient_shape(int64_t n_tokens) const {
  return {n_tokens, config_.n_heads, config_.n_kv_heads, config_.head_dim};
}

int64_t TransformerProfiler::stored_bytes(int64_t n) const {
  const int64_t stored = config_.n_layers * (config_.d_model + q_dim_ + config_.n_heads) + config_.d_model;
  const int64_t one_layer = 3 * q_dim_ + 4 * kv_dim_ + config_.d_model;
  return floats(n * (stored + one_layer)) + SpanGradient::bytes_needed(gradient_shape(n));
}

int64_t TransformerProfiler::bytes_needed(int64_t n) const {
  return stored_bytes(n) + kept_.bytes_needed(n, kept_bytes_);
}

void TransformerProfiler::check_memory(int64_t n) const {
  check_memory_available(stored_bytes(n), "profiling samples of " + std::to_string(n) + " tokens");
}

void TransformerProfiler::set_kept_bytes(int64_t bytes) {
  kept_bytes_ = bytes;
  n_tokens_ = 0;
}

void TransformerProfiler::reserve(int64_t n) {
  if (n == n_tokens_) return;
  n_tokens_ = 0;
  attention_op_.reset();
  const int64_t d = config_.d_model, n_layers = config_.n_layers;
  const int64_t sizes[] = {(n_layers + 1) * d,
                           n_layers * q_dim_,
                           n_layers * config_.n_heads,
                           q_dim_,
                           kv_dim_,
                           kv_dim_,
                           q_dim_,
                           kv_dim_,
                           kv_dim_,
                           q_dim_};
  float** const views[] = {&inputs_, &attention_, &log_sum_, &q_, &k_, &v_, &d_q_, &d_k_, &d_v_, &d_attention_};
  int64_t width = 0;
  for (const int64_t size : sizes) width += size;
  if (memory_.size_bytes() < floats(n * width)) {
    kept_.release();
    memory_ = HugeBuffer();
    check_memory(n);
    memory_ = HugeBuffer(floats(n * width), "the stored activations of a profile");
  }
  kept_.reserve(n, kept_bytes_);
  float* at = memory_.as<float>().data();
  for (size_t i = 0; i < std::size(sizes); ++i) {
    *views[i] = at;
    at += n * sizes[i];
  }
  attention_op_.emplace(gradient_shape(n));
  std::vector<int64_t> positions(static_cast<size_t>(n));
  std::iota(positions.begin(), positions.end(), 0);
  rope_.compute(config_.rope, positions);
  for (int64_t& position : positions) position = -position;  // the transpose of a rotation is the one backwards
  inverse_rope_.compute(config_.rope, positions);
  n_tokens_ = n;
}

template <typename Body>
void TransformerProfiler::for_each_chunk(Body body) const {
  for (int64_t first = 0; first < n_tokens_; first += kChunk) body(Rows{first, std::min(kChunk, n_tokens_ - first)});
}

MatmulInput TransformerProfiler::input(const float* values, int64_t n, int64_t d_in) {
  return matmul_input(values, n, d_in, blocks_, context_);
}

void TransformerProfiler::norm(const float* x, const std::vector<float>& weight, int64_t n, float* out) const {
  const int64_t d = config_.d_model;
  context_.team().split(n, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t)
      kernels().rmsnorm_row(x + t * d, weight.data(), d, config_.norm_eps, out + t * d);
  });
}

void TransformerProfiler::norm_gradient(const float* x, const std::vector<float>& weight, const float* d_y, int64_t n,
                                        float* d_x) const {
  const int64_t d = config_.d_model;
  context_.team().split(n, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t)
      kernels().rmsnorm_gradient_row(x + t * d, weight.data(), d_y + t * d, d, config_.norm_eps, d_x + t * d);
  });
}

TransformerProfiler::Attended TransformerProfiler::attended(int64_t layer) const {
  if (kept_.has_attention(layer)) return {kept_.q(layer), kept_.k(layer), kept_.v(layer)};
  return {q_, k_, v_};
}

void TransformerProfiler::queries_and_keys(int64_t layer) {
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const Attended to = attended(layer);
  const auto bias = [](const std::vector<float>& values) { return values.empty() ? nullptr : values.data(); };
  for_each_chunk([&](const Rows& rows) {
    norm(layer_input(layer, rows.first), w.attn_norm, rows.n, normed_.data());
    const MatmulOutput qkv[] = {{&w.q, bias(w.q_bias), to.q + rows.first * q_dim_, q_dim_, Epilogue::kStore},
                                {&w.k, bias(w.k_bias), to.k + rows.first * kv_dim_, kv_dim_, Epilogue::kStore},
                                {&w.v, bias(w.v_bias), to.v + rows.first * kv_dim_, kv_dim_, Epilogue::kStore}};
    matmul(input(normed_.data(), rows.n, config_.d_model), qkv, context_);
  });
  const float scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim));
  apply_rope(config_.rope, rope_, to.q, n_tokens_, q_dim_, config_.n_heads, config_.head_dim, scale, context_);
  apply_rope(config_.rope, rope_, to.k, n_tokens_, kv_dim_, config_.n_kv_heads, config_.head_dim, 1.0f, context_);
}

void TransformerProfiler::middle(int64_t layer, const Rows& rows, float* out) {
  const float* x = layer_input(layer, rows.first);
  context_.team().split(rows.n, [&](int64_t begin, int64_t end, int) {
    std::copy(x + begin * config_.d_model, x + end * config_.d_model, out + begin * config_.d_model);
  });
  const MatmulOutput attn_out[] = {
      {&weights_.layers[static_cast<size_t>(layer)].attn_out, nullptr, out, config_.d_model, Epilogue::kAdd}};
  matmul(input(attention_out(layer, rows.first), rows.n, q_dim_), attn_out, context_);
}

void TransformerProfiler::gate_and_up(int64_t layer, const Rows& rows, const float* mid) {
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  norm(mid, w.ffn_norm, rows.n, normed_.data());
  const MatmulOutput both[] = {{&w.gate, nullptr, gate_.data(), config_.d_ff, Epilogue::kStore},
                               {&w.up, nullptr, up_.data(), config_.d_ff, Epilogue::kStore}};
  matmul(input(normed_.data(), rows.n, config_.d_model), both, context_);
}

void TransformerProfiler::keep_ffn(int64_t layer, const Rows& rows, float* x) {
  const int64_t d = config_.d_model, d_ff = config_.d_ff;
  float* mid = kept_.middle(layer, rows.first);
  middle(layer, rows, mid);
  gate_and_up(layer, rows, mid);
  context_.team().split(rows.n, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      float *gate = gate_.data() + row * d_ff, *up = up_.data() + row * d_ff;
      to_halves(gate, up, kept_.gate_up(layer, rows.first + row));
      kernels().swiglu_row(gate, up, d_ff, gate);
      std::copy(mid + row * d, mid + (row + 1) * d, x + row * d);
    }
  });
}

void TransformerProfiler::to_halves(const float* gate, const float* up, uint16_t* out) const {
  kernels().to_f16_row(gate, config_.d_ff, out);
  kernels().to_f16_row(up, config_.d_ff, out + config_.d_ff);
}

std::vector<TargetScore> TransformerProfiler::forward(const ProfileRequest& request) {
  const int64_t n = std::ssize(request.tokens), d = config_.d_model;
  POLYSPAN_CHECK(n >= 1 && !request.targets.empty() && std::ssize(request.spans) == config_.n_layers * config_.n_heads);
  POLYSPAN_CHECK(std::is_sorted(request.targets.begin(), request.targets.end()) && request.targets.front() >= 1 &&
                 request.targets.back() < n);
  reserve(n);
  for (int64_t t = 0; t < n; ++t) weights_.embedding(request.tokens[static_cast<size_t>(t)], layer_input(0, t));
  for (int64_t layer = 0; layer < config_.n_layers; ++layer) {
    const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
    queries_and_keys(layer);
    const Attended to = attended(layer);
    attention_op_->set_keys(to.k, to.v, context_);
    attention_op_->forward(to.q, request.spans.data() + layer * config_.n_heads, attention_out(layer, 0),
                           log_sum(layer), context_);
    for_each_chunk([&](const Rows& rows) {
      float* x = layer_input(layer + 1, rows.first);
      if (kept_.has_ffn(layer)) {
        keep_ffn(layer, rows, x);
      } else {
        middle(layer, rows, x);
        norm(x, w.ffn_norm, rows.n, normed_.data());
        matmul_swiglu(input(normed_.data(), rows.n, d), w.gate, w.up, gate_.data(), context_);
      }
      const MatmulOutput down[] = {{&w.down, nullptr, x, d, Epilogue::kAdd}};
      matmul(input(gate_.data(), rows.n, config_.d_ff), down, context_);
    });
  }
  std::vector<TargetScore> scores;
  for_each_target(request.targets, [&](int64_t first, float* values, int64_t n_rows) {
    for (int64_t i = 0; i < n_rows; ++i) {
      const int64_t target = request.targets[static_cast<size_t>(first + i)];
      scores.push_back(score_target(values + i * config_.vocab_size, config_.vocab_size,
                                    request.tokens[static_cast<size_t>(target)]));
    }
  });
  return scores;
}

void TransformerProfiler::logits(std::span<const int64_t> rows, float* out) {
  const int64_t n = std::ssize(rows), d = config_.d_model;
  for (int64_t i = 0; i < n; ++i)
    kernels().rmsnorm_row(layer_input(config_.n_layers, rows[static_cast<size_t>(i)]), weights_.output_norm.data(), d,
                          config_.norm_eps, normed_.data() + i * d);
  const MatmulOutput output[] = {{&weights_.output, nullptr, out, config_.vocab_size, Epilogue::kStore}};
  matmul(input(normed_.data(), n, d), output, context_);
}

template <typename Visit>
void TransformerProfiler::for_each_target(std::span<const int64_t> targets, Visit visit) {
  const int64_t n_targets = std::ssize(targets);
  std::vector<float> values(static_cast<size_t>(std::min(kTargetChunk, n_targets) * config_.vocab_size));
  for (int64_t first = 0; first < n_targets; first += kTargetChunk) {
    std::vector<int64_t> rows;
    for (int64_t i = first; i < std::min(n_targets, first + kTargetChunk); ++i)
      rows.push_back(targets[static_cast<size_t>(i)] - 1);
    logits(rows, values.data());
    visit(first, values.data(), std::ssize(rows));
  }
}

// gradient_ of the last layer's output. Of -log p: p_j - [j = target]; of -log(p / (1 - p)): that over 1 - p of the target.
void TransformerProfiler::loss_gradient(const ProfileRequest& request) {
  const int64_t d = config_.d_model, vocab = config_.vocab_size;
  gradient_.assign(static_cast<size_t>(n_tokens_ * d), 0.0f);
  const float share = 1.0f / static_cast<float>(request.targets.size());
  for_each_target(request.targets, [&](int64_t first, float* values, int64_t n) {
    context_.team().each(n, [&](int64_t i, int) {
      float* row = values + i * vocab;
      const int32_t target = request.tokens[static_cast<size_t>(request.targets[static_cast<size_t>(first + i)])];
      const float largest = kernels().max_value(row, vocab);
      const double total = kernels().sum_exp(row, vocab, largest),
                   of_target = std::exp(static_cast<double>(row[target]) - static_cast<double>(largest));
      const double others = std::max(total - of_target, 1e-30 * total);
      const bool odds = request.loss == ProfileLoss::kLogOdds;
      const float scale = static_cast<float>(static_cast<double>(share) / (odds ? others : total));
      for (int64_t j = 0; j < vocab; ++j) row[j] = scale * std::exp(row[j] - largest);
      row[target] = odds ? -share : static_cast<float>(-static_cast<double>(share) * others / total);
    });
    const MatmulOutput back[] = {{&transposed_.output, nullptr, d_normed_.data(), d, Epilogue::kStore}};
    matmul(input(values, n, vocab), back, context_);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t row = request.targets[static_cast<size_t>(first + i)] - 1;
      kernels().rmsnorm_gradient_row(layer_input(config_.n_layers, row), weights_.output_norm.data(),
                                     d_normed_.data() + i * d, d, config_.norm_eps, gradient_.data() + row * d);
    }
  });
}

void TransformerProfiler::ffn_backward(int64_t layer) {
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const TransposedLayer& t = transposed_.layers[static_cast<size_t>(layer)];
  const int64_t d = config_.d_model, d_ff = config_.d_ff;
  const bool kept = kept_.has_ffn(layer);
  for_each_chunk([&](const Rows& rows) {
    float* gradient = gradient_.data() + rows.first * d;
    const float* mid = kept ? kept_.middle(layer, rows.first) : mid_.data();
    if (!kept) {
      middle(layer, rows, mid_.data());
      gate_and_up(layer, rows, mid);
    }
    const MatmulOutput down[] = {{&t.down, nullptr, d_act_.data(), d_ff, Epilogue::kStore}};
    matmul(input(gradient, rows.n, d), down, context_);
    context_.team().split(rows.n, [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) {
        float *gate = gate_.data() + row * d_ff, *up = up_.data() + row * d_ff;
        if (rounds_) {
          uint16_t* halves = kept ? kept_.gate_up(layer, rows.first + row) : gate_up_.data() + row * 2 * d_ff;
          if (!kept) to_halves(gate, up, halves);
          kernels().from_f16_row(halves, d_ff, gate);
          kernels().from_f16_row(halves + d_ff, d_ff, up);
        }
        kernels().swiglu_gradient_row(gate, up, d_act_.data() + row * d_ff, d_ff, gate, up);
      }
    });
    const MatmulOutput of_gate[] = {{&t.gate, nullptr, d_normed_.data(), d, Epilogue::kStore}};
    matmul(input(gate_.data(), rows.n, d_ff), of_gate, context_);
    const MatmulOutput of_up[] = {{&t.up, nullptr, d_normed_.data(), d, Epilogue::kAdd}};
    matmul(input(up_.data(), rows.n, d_ff), of_up, context_);
    norm_gradient(mid, w.ffn_norm, d_normed_.data(), rows.n, gradient);
  });
}

void TransformerProfiler::attention_backward(int64_t layer, const ProfileRequest& request, SpanInfluence& influence) {
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const TransposedLayer& t = transposed_.layers[static_cast<size_t>(layer)];
  const int64_t d = config_.d_model;
  for_each_chunk([&](const Rows& rows) {
    const MatmulOutput out[] = {{&t.attn_out, nullptr, d_attention_ + rows.first * q_dim_, q_dim_, Epilogue::kStore}};
    matmul(input(gradient_.data() + rows.first * d, rows.n, d), out, context_);
  });
  if (!kept_.has_attention(layer)) queries_and_keys(layer);
  const Attended from = attended(layer);
  attention_op_->set_keys(from.k, from.v, context_);
  const bool go_on = layer > 0 || request.input_gradient;
  const size_t at = influence.at(layer, 0, 0);
  attention_op_->backward({.q = from.q,
                           .spans = request.spans.data() + layer * config_.n_heads,
                           .out = attention_out(layer, 0),
                           .log_sum = log_sum(layer),
                           .d_out = d_attention_,
                           .dq = go_on ? d_q_ : nullptr,
                           .dk = go_on ? d_k_ : nullptr,
                           .dv = go_on ? d_v_ : nullptr,
                           .candidates = request.candidate_spans,
                           .span = influence.span.data() + at,
                           .span_abs = influence.span_abs.data() + at,
                           .span_square = influence.span_square.data() + at,
                           .pairwise = influence.pairwise.data() + at},
                          context_);
  if (!go_on) return;
  const float scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim));
  apply_rope(config_.rope, inverse_rope_, d_q_, n_tokens_, q_dim_, config_.n_heads, config_.head_dim, scale, context_);
  apply_rope(config_.rope, inverse_rope_, d_k_, n_tokens_, kv_dim_, config_.n_kv_heads, config_.head_dim, 1.0f,
             context_);
  for_each_chunk([&](const Rows& rows) {
    const auto back = [&](const float* d_y, int64_t width, const PackedMatrix& weight, Epilogue epilogue) {
      const MatmulOutput out[] = {{&weight, nullptr, d_normed_.data(), d, epilogue}};
      matmul(input(d_y + rows.first * width, rows.n, width), out, context_);
    };
    back(d_q_, q_dim_, t.q, Epilogue::kStore);
    back(d_k_, kv_dim_, t.k, Epilogue::kAdd);
    back(d_v_, kv_dim_, t.v, Epilogue::kAdd);
    norm_gradient(layer_input(layer, rows.first), w.attn_norm, d_normed_.data(), rows.n,
                  gradient_.data() + rows.first * d);
  });
}

SpanInfluence TransformerProfiler::backward(const ProfileRequest& request) {
  POLYSPAN_CHECK(std::ssize(request.tokens) == n_tokens_, "backward() without its forward()");
  SpanInfluence influence{config_.n_layers, config_.n_heads, std::ssize(request.candidate_spans), {}, {}, {}, {}};
  influence.span.assign(influence.at(config_.n_layers, 0, 0), 0.0);
  influence.span_abs = influence.span_square = influence.pairwise = influence.span;
  loss_gradient(request);
  for (int64_t layer = config_.n_layers - 1; layer >= 0; --layer) {
    ffn_backward(layer);
    attention_backward(layer, request, influence);
  }
  return influence;
}

}  // namespace polyspan
