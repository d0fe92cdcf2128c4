// Whole-sequence attention, its gradients and the effects of spans against plain loops in double; the reference's own
// effects against removing the keys for real.
#include "ops/span_gradient.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "ops/span_attention.h"
#include "ops/test_util.h"

namespace polyspan {
namespace {
using namespace testing_util;

struct GradientCase {
  GradientShape shape;
  std::vector<AttentionSpan> spans;
  std::vector<int64_t> candidates;
  std::vector<float> q, k, v, d_out;

  GradientCase(const GradientShape& s, std::vector<AttentionSpan> given, std::vector<int64_t> asked, uint64_t seed)
      : shape(s), spans(std::move(given)), candidates(std::move(asked)) {
    Random random(seed);
    q = random.vector(s.n_tokens * s.n_heads * s.head_dim, 4.0f / std::sqrt(static_cast<float>(s.head_dim)));
    k = random.vector(s.n_tokens * s.n_kv_heads * s.head_dim);
    v = random.vector(s.n_tokens * s.n_kv_heads * s.head_dim);
    d_out = random.vector(s.n_tokens * s.n_heads * s.head_dim);
    std::fill_n(d_out.begin(), static_cast<size_t>(s.n_tokens / 3 * s.n_heads * s.head_dim), 0.0f);
  }
};

struct GradientResult {
  std::vector<float> out, log_sum, dq, dk, dv;
  std::vector<double> span, span_abs, pairwise;
};

GradientResult empty_result(const GradientCase& c) {
  const auto n = [](int64_t a) { return static_cast<size_t>(a); };
  const GradientShape& s = c.shape;
  const size_t n_effects = n(s.n_heads * std::ssize(c.candidates));
  GradientResult r;
  r.out.assign(n(s.n_tokens * s.n_heads * s.head_dim), NAN), r.log_sum.assign(n(s.n_tokens * s.n_heads), NAN);
  r.dq.assign(r.out.size(), NAN), r.dk.assign(n(s.n_tokens * s.n_kv_heads * s.head_dim), NAN),
      r.dv.assign(r.dk.size(), NAN);
  r.span.assign(n_effects, 0.0), r.span_abs = r.span, r.pairwise = r.span;
  return r;
}

SpanGradientArgs arguments(const GradientCase& c, GradientResult& r, bool gradients) {
  SpanGradientArgs args{.q = c.q.data(),
                        .spans = c.spans.data(),
                        .out = r.out.data(),
                        .log_sum = r.log_sum.data(),
                        .d_out = c.d_out.data()};
  if (gradients) args.dq = r.dq.data(), args.dk = r.dk.data(), args.dv = r.dv.data();
  args.candidates = c.candidates;
  args.span = r.span.data(), args.span_abs = r.span_abs.data(), args.pairwise = r.pairwise.data();
  return args;
}

GradientResult run(const GradientCase& c, int n_threads, bool gradients = true) {
  OpContext context(n_threads);
  GradientResult r = empty_result(c);
  SpanGradient op(c.shape);
  op.set_keys(c.k.data(), c.v.data(), context);
  op.forward(c.q.data(), c.spans.data(), r.out.data(), r.log_sum.data(), context);
  op.backward(arguments(c, r, gradients), context);
  return r;
}

double largest(std::span<const double> values) {
  double most = 0;
  for (const double value : values) most = std::max(most, std::abs(value));
  return most;
}

void expect_near(std::span<const double> actual, std::span<const double> expected, double relative) {
  ASSERT_EQ(actual.size(), expected.size());
  const double tolerance = relative * largest(expected) + 1e-12;
  for (size_t i = 0; i < actual.size(); ++i) ASSERT_NEAR(actual[i], expected[i], tolerance) << "effect " << i;
}

void expect_reference(const GradientCase& c) {
  const GradientResult actual = run(c, 2);
  std::vector<float> plain_q = c.q, out(c.q.size());
  for (float& value : plain_q) value *= std::sqrt(static_cast<float>(c.shape.head_dim));
  const auto& s = c.shape;
  span_attention_reference(
      {s.n_heads, s.n_kv_heads, s.head_dim, s.n_tokens, 0, plain_q.data(), c.k.data(), c.v.data(), c.spans.data()},
      out.data());
  expect_close(actual.out, out, [](size_t) { return 2e-5; });
  GradientResult expected = empty_result(c);
  span_gradient_reference(s, c.k.data(), c.v.data(), arguments(c, expected, true));
  expect_close(actual.dq, expected.dq, [](size_t) { return 1e-4; });
  expect_close(actual.dk, expected.dk, [](size_t) { return 3e-4; });
  expect_close(actual.dv, expected.dv, [](size_t) { return 3e-4; });
  // Where little of a row is left, 1 - m in floats loses digits: 1e-7 of it over as little as kLeastKeptShare.
  expect_near(actual.span, expected.span, 5e-4);
  expect_near(actual.span_abs, expected.span_abs, 5e-4);
  expect_near(actual.pairwise, expected.pairwise, 1e-4);
}

TEST(SpanGradient, IsTheReferenceAroundTheTiles) {
  for_each_isa([] {
    for (const int64_t n_tokens : {1, 2, 63, 64, 65, 130, 200})
      for (const int64_t span : {1, 17, 64, 100, 1000})
        for (const int64_t n_sink : {0, 5, 64}) {
          SCOPED_TRACE("n_tokens " + std::to_string(n_tokens) + " span " + std::to_string(span) + " sink " +
                       std::to_string(n_sink));
          const GradientShape shape{n_tokens, 3, 1, 16};
          const std::vector<AttentionSpan> spans(3, {span, n_sink});
          expect_reference({shape, spans, {1, 16, 40, 64, 100, 150, 1000}, 7});
          if (testing::Test::HasFatalFailure()) return;
        }
  });
}

TEST(SpanGradient, IsTheReferenceForShapesAndMixedSpans) {
  for_each_isa([] {
    for (const auto& [n_heads, n_kv_heads, head_dim] :
         {std::tuple{1, 1, 1}, {4, 4, 17}, {6, 2, 64}, {14, 2, 40}, {7, 1, 128}}) {
      SCOPED_TRACE(std::to_string(n_heads) + " heads on " + std::to_string(n_kv_heads) + " of " +
                   std::to_string(head_dim));
      std::vector<AttentionSpan> spans;
      for (int64_t head = 0; head < n_heads; ++head) spans.push_back({int64_t{1} + head * 53 % 211, 8});
      expect_reference({{150, n_heads, n_kv_heads, head_dim}, spans, {1, 2, 3, 30, 64, 90, 149, 150}, 11});
      if (testing::Test::HasFatalFailure()) return;
    }
  });
}

TEST(SpanGradient, ThreadsAndLeftOutGradientsChangeNoBit) {
  std::vector<AttentionSpan> spans;
  for (int64_t head = 0; head < 6; ++head) spans.push_back({40 + 70 * head, 16});
  const GradientCase c({300, 6, 2, 32}, spans, {64, 128, 300}, 3);
  const GradientResult one = run(c, 1), two = run(c, 2), sums_only = run(c, 2, false);
  expect_same_bits(one.dq, two.dq);
  expect_same_bits(one.dk, two.dk);
  expect_same_bits(one.dv, two.dv);
  expect_same_bits(one.out, two.out);
  EXPECT_EQ(one.span, two.span);
  EXPECT_EQ(one.pairwise, two.pairwise);
  EXPECT_EQ(one.span, sums_only.span);
  EXPECT_EQ(one.span_abs, sums_only.span_abs);
}

// The sum of dO . O over all rows when one head's span is `span`: what the effects are the first-order change of, and,
// for one layer of attention whose output enters linearly, exactly.
double linear_loss(const GradientCase& c, int64_t head, int64_t span) {
  std::vector<AttentionSpan> spans = c.spans;
  spans[static_cast<size_t>(head)].span = span;
  std::vector<float> plain_q = c.q, out(c.q.size());
  for (float& value : plain_q) value *= std::sqrt(static_cast<float>(c.shape.head_dim));
  const auto& s = c.shape;
  span_attention_reference(
      {s.n_heads, s.n_kv_heads, s.head_dim, s.n_tokens, 0, plain_q.data(), c.k.data(), c.v.data(), spans.data()},
      out.data());
  double loss = 0;
  for (size_t i = 0; i < out.size(); ++i) loss += static_cast<double>(out[i]) * static_cast<double>(c.d_out[i]);
  return loss;
}

TEST(SpanGradient, EffectsAreTheTrueChangeOfALinearLoss) {
  std::vector<AttentionSpan> spans;
  for (int64_t head = 0; head < 4; ++head) spans.push_back({30 + 40 * head, 8});
  const GradientCase c({160, 4, 2, 24}, spans, {1, 10, 30, 64, 110, 160}, 5);
  const GradientResult r = run(c, 1);
  for (int64_t head = 0; head < 4; ++head)
    for (size_t i = 0; i < c.candidates.size(); ++i) {
      const double change =
          linear_loss(c, head, c.candidates[i]) - linear_loss(c, head, spans[static_cast<size_t>(head)].span);
      EXPECT_NEAR(r.span[static_cast<size_t>(head) * c.candidates.size() + i], change, 2e-3)
          << "head " << head << " span " << c.candidates[i];
    }
}

}  // namespace
}  // namespace polyspan
