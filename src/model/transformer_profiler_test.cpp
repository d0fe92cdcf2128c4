// The profile's gradients against finite differences of the forward pass in double, on tiny random models of each
// architecture: down to the input of layer 0, and along every candidate span of every head.
#include "model/transformer_profiler.h"

#include <gtest/gtest.h>

#include <cmath>

#include "model/model_test_util.h"
#include "model/transformer_reference.h"

namespace polyspan {
namespace {
using namespace testing_util;

struct ProfileCase {
  const char* arch;
  int64_t n_heads, n_kv_heads;
  bool tied;
  ProfileLoss loss;
};
constexpr ProfileCase kCases[] = {{"llama", 6, 2, true, ProfileLoss::kCrossEntropy},
                                  {"llama", 3, 3, false, ProfileLoss::kLogOdds},
                                  {"qwen2", 7, 1, false, ProfileLoss::kCrossEntropy},
                                  {"qwen2", 6, 2, true, ProfileLoss::kLogOdds}};

// A tiny model, a sequence, spans that differ by head, and the loss in double.
struct Profiled {
  TinyModel t;
  std::vector<int32_t> tokens;
  std::vector<int64_t> targets, candidates = {1, 9, 30, 64, 90};
  std::vector<AttentionSpan> spans;
  ProfileLoss loss;
  TransformerReference reference;

  explicit Profiled(const ProfileCase& c, int n_threads = 1)
      : t(config(c), n_threads),
        tokens(random_tokens(t, 90, 3)),
        loss(c.loss),
        reference(t.model->file(), t.model->config()) {
    for (int64_t p : {1, 20, 55, 56, 70, 88, 89}) targets.push_back(p);
    const ModelConfig& m = t.model->config();
    for (int64_t i = 0; i < m.n_layers * m.n_heads; ++i) spans.push_back({i % 3 == 0 ? 90 : 10 + 23 * i % 60, 4});
  }
  static RandomModelConfig config(const ProfileCase& c) {
    RandomModelConfig made = tiny(c.arch, DType::kF32, c.n_heads, c.n_kv_heads);
    made.tied = c.tied;
    return made;
  }
  ProfileRequest request() const { return {tokens, targets, spans, candidates, loss, /*input_gradient=*/true}; }

  double true_loss() const {
    const std::vector<Vector> logits = reference.logits(tokens, spans);
    double total = 0;
    for (const int64_t p : targets) {
      const Vector& row = logits[static_cast<size_t>(p - 1)];
      const double target = row[static_cast<size_t>(tokens[static_cast<size_t>(p)])];
      double others = 0;
      for (const double value : row) others += std::exp(value);
      others -= std::exp(target);
      total += loss == ProfileLoss::kLogOdds ? std::log(others) - target : std::log(others + std::exp(target)) - target;
    }
    return total / static_cast<double>(targets.size());
  }
};

TEST(TransformerProfiler, ForwardIsTheReference) {
  const FloatLevel floats;
  for (const ProfileCase& c : kCases) {
    SCOPED_TRACE(c.arch);
    Profiled p({c.arch, c.n_heads, c.n_kv_heads, c.tied, ProfileLoss::kCrossEntropy});
    const auto profiler = p.t.model->make_span_profiler(no_progress());
    double loss = 0;
    for (const TargetScore& score : profiler->forward(p.request()))
      loss -= score.log_probability / static_cast<double>(p.targets.size());
    EXPECT_NEAR(loss, p.true_loss(), 2e-6 * p.true_loss());
  }
}

TEST(TransformerProfiler, InputGradientIsTheFiniteDifference) {
  const FloatLevel floats;
  for (const ProfileCase& c : kCases) {
    SCOPED_TRACE(testing::Message() << c.arch << " heads " << c.n_heads << " on " << c.n_kv_heads);
    Profiled p(c);
    const auto profiler = p.t.model->make_span_profiler(no_progress());
    profiler->forward(p.request());
    profiler->backward(p.request());
    const std::span<const float> gradient = profiler->input_gradient();
    for (uint64_t seed = 1; seed <= 4; ++seed) {
      Random random(seed);
      const std::vector<float> direction = random.vector(std::ssize(gradient));
      double expected = 0, step = 1e-4;
      for (size_t i = 0; i < gradient.size(); ++i)
        expected += static_cast<double>(gradient[i]) * static_cast<double>(direction[i]);
      const auto moved = [&](double by) {
        p.reference.input_offset.assign(direction.begin(), direction.end());
        for (double& value : p.reference.input_offset) value *= by;
        return p.true_loss();
      };
      const double difference = (8 * (moved(step) - moved(-step)) - (moved(2 * step) - moved(-2 * step))) / (12 * step);
      EXPECT_NEAR(expected, difference, 1e-4 * std::abs(difference)) << "direction " << seed;
    }
  }
}

// The effect of a span is the derivative of the loss along the change of that head's output, all else following.
TEST(TransformerProfiler, EffectsOfSpansAreFiniteDifferences) {
  const FloatLevel floats;
  for (const ProfileCase& c : kCases) {
    SCOPED_TRACE(testing::Message() << c.arch << " heads " << c.n_heads << " on " << c.n_kv_heads);
    Profiled p(c);
    const auto profiler = p.t.model->make_span_profiler(no_progress());
    profiler->forward(p.request());
    const SpanInfluence influence = profiler->backward(p.request());
    double largest = 0;
    for (const double effect : influence.span) largest = std::max(largest, std::abs(effect));
    ASSERT_GT(largest, 0);
    for (int64_t layer = 0; layer < influence.n_layers; ++layer)
      for (int64_t head = 0; head < influence.n_heads; ++head)
        for (int64_t candidate = 0; candidate < influence.n_candidates; ++candidate) {
          const int64_t span = p.candidates[static_cast<size_t>(candidate)];
          const auto blended = [&](double amount) {
            p.reference.blend = {layer, head, span, amount};
            return p.true_loss();
          };
          constexpr double kStep = 1e-3;
          const double difference = (blended(kStep) - blended(-kStep)) / (2 * kStep);
          EXPECT_NEAR(influence.span[influence.at(layer, head, candidate)], difference,
                      1e-4 * largest + 1e-4 * std::abs(difference))
              << "layer " << layer << " head " << head << " span " << span;
        }
    for (size_t i = 0; i < influence.span.size(); ++i)
      EXPECT_LE(std::abs(influence.span[i]), influence.span_abs[i] * (1 + 1e-9));
  }
}

TEST(TransformerProfiler, ThreadsAndRepetitionsChangeNoBit) {
  for (const DType type : {DType::kF32, DType::kQ4_1}) {
    RandomModelConfig config = tiny("qwen2", type);
    TinyModel one(config, 1), two(config, 2);
    const std::vector<int32_t> tokens = random_tokens(one, 700, 5);
    const std::vector<int64_t> targets = {300, 690, 699}, candidates = {64, 256, 700};
    const std::vector<AttentionSpan> spans(static_cast<size_t>(config.n_layers * config.n_heads), {256, 64});
    const ProfileRequest request{tokens, targets, spans, candidates};
    const auto a = one.model->make_span_profiler(no_progress()), b = two.model->make_span_profiler(no_progress());
    a->forward(request), b->forward(request);
    const SpanInfluence first = a->backward(request), second = b->backward(request);
    EXPECT_EQ(first.span, second.span);
    EXPECT_EQ(first.pairwise, second.pairwise);
    b->forward({std::span(tokens).first(301), std::span(targets).first(1), spans, candidates});
    b->forward(request);
    EXPECT_EQ(b->backward(request).span, first.span);
  }
}

// Whatever is kept, and wherever it ends: the same bits. What does not fit is not taken.
TEST(TransformerProfiler, WhatIsKeptChangesNoBit) {
  for (const DType type : {DType::kF32, DType::kQ4_1}) {
    RandomModelConfig config = tiny("qwen2", type);
    TinyModel t(config, 2);
    const std::vector<int32_t> tokens = random_tokens(t, 700, 5);
    const std::vector<int64_t> targets = {300, 690, 699}, candidates = {64, 256, 700};
    const std::vector<AttentionSpan> spans(static_cast<size_t>(config.n_layers * config.n_heads), {256, 64});
    const ProfileRequest request{tokens, targets, spans, candidates, ProfileLoss::kCrossEntropy, true};
    const auto profiler = t.model->make_span_profiler(no_progress());
    auto& transformer = dynamic_cast<TransformerProfiler&>(*profiler);
    struct Result {
      double log_probability;
      std::vector<double> span, square;
      std::vector<float> gradient;
      bool operator==(const Result&) const = default;
    };
    const auto with = [&](int64_t kept_bytes) {
      transformer.set_kept_bytes(kept_bytes);
      const double score = profiler->forward(request).back().log_probability;
      SpanInfluence influence = profiler->backward(request);
      const std::span<const float> gradient = profiler->input_gradient();
      return Result{score, influence.span, influence.span_square, {gradient.begin(), gradient.end()}};
    };
    const Result none = with(0), all = with(TransformerProfiler::kKeptBytes);
    const int64_t most = transformer.bytes_needed(700);
    EXPECT_TRUE(all == none);
    transformer.set_kept_bytes(0);
    const int64_t least = transformer.bytes_needed(700);
    ASSERT_GT(most, least);
    for (int64_t part = 1; part < 8; ++part) {
      const int64_t budget = (most - least) * part / 8;
      EXPECT_TRUE(with(budget) == none) << part << " eighths";
      EXPECT_LE(transformer.bytes_needed(700), least + budget);
    }
  }
}

TEST(KeptLayers, TakeWhatTheBudgetHolds) {
  ModelConfig config;
  config.n_layers = 3, config.d_model = 20, config.d_ff = 30, config.n_heads = 4, config.n_kv_heads = 2;
  config.head_dim = 5;
  KeptLayers kept(config, true);
  constexpr int64_t kTokens = 7, kFfn = 4 * kTokens * (20 + 30), kAttention = 4 * kTokens * (20 + 2 * 10);
  EXPECT_EQ(kept.bytes_needed(kTokens, kFfn - 1), kAttention);  // queries, keys and values are less
  EXPECT_EQ(kept.bytes_needed(kTokens, 1 << 20), 3 * (kFfn + kAttention));
  const int64_t budget = 3 * kFfn + 2 * kAttention;
  kept.reserve(kTokens, budget + kAttention - 1);
  EXPECT_TRUE(kept.has_ffn(2) && kept.has_attention(1) && !kept.has_attention(2) && !kept.has_ffn(3));
  EXPECT_EQ(kept.v(1) + kTokens * 10 - kept.middle(0, 0), budget / 4);
  EXPECT_EQ(reinterpret_cast<float*>(kept.gate_up(2, kTokens)), kept.q(0));
  kept.reserve(2 * kTokens, budget + kAttention - 1);
  EXPECT_TRUE(kept.has_ffn(1) && !kept.has_ffn(2) && !kept.has_attention(0));
  kept.release();
  EXPECT_FALSE(kept.has_ffn(0) || kept.has_attention(0));
  kept.reserve(kTokens, int64_t{1} << 60);  // not free
  EXPECT_FALSE(kept.has_ffn(0) || kept.has_attention(0));
  EXPECT_EQ(KeptLayers(config, false).bytes_needed(kTokens, 1 << 20), 3 * kAttention);
}

// Quantised weights are transposed at 8 bits: the effects stay close to those of the same weights as floats.
TEST(TransformerProfiler, EightBitTransposeIsClose) {
  RandomModelConfig config = tiny("llama", DType::kQ8_0);
  TinyModel quantized(config, 1);
  const ModelConfig& m = quantized.model->config();
  const std::vector<int32_t> tokens = random_tokens(quantized, 90, 5);
  const std::vector<int64_t> targets = {50, 70, 89}, candidates = {8, 64};
  const std::vector<AttentionSpan> spans(static_cast<size_t>(m.n_layers * m.n_heads), {90, 4});
  const auto profiler = quantized.model->make_span_profiler(no_progress());
  const ProfileRequest request{tokens, targets, spans, candidates};
  profiler->forward(request);
  const SpanInfluence influence = profiler->backward(request);
  TransformerReference reference(quantized.model->file(), m);
  const auto loss = [&] {
    const std::vector<Vector> logits = reference.logits(tokens, spans);
    double total = 0;
    for (const int64_t p : targets) {
      const Vector& row = logits[static_cast<size_t>(p - 1)];
      double sum = 0;
      for (const double value : row) sum += std::exp(value);
      total += std::log(sum) - row[static_cast<size_t>(tokens[static_cast<size_t>(p)])];
    }
    return total / static_cast<double>(targets.size());
  };
  double largest = 0, error = 0;
  for (int64_t layer = 0; layer < m.n_layers; ++layer)
    for (int64_t head = 0; head < m.n_heads; ++head) {
      reference.blend = {layer, head, candidates[0], 1e-3};
      const double more = loss();
      reference.blend.amount = -1e-3;
      const double difference = (more - loss()) / 2e-3;
      largest = std::max(largest, std::abs(difference));
      error = std::max(error, std::abs(difference - influence.span[influence.at(layer, head, 0)]));
    }
  EXPECT_GT(largest, 0);
  EXPECT_LT(error, 0.05 * largest);
}

}  // namespace
}  // namespace polyspan
