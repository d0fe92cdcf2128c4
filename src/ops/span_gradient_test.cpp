// Whole-sequence attention, its gradients and the effects of spans against plain loops in double; the reference's own
// effects against removing the keys for real.
#include "ops/span_gradient.h"

#include <gtest/gtest.h>

#include "ops/span_gradient_test_util.h"

namespace polyspan {
namespace {
using namespace testing_util;

GradientResult run(const GradientCase& c, int n_threads, bool gradients = true) {
  OpContext context(n_threads);
  GradientResult r = empty_result(c);
  SpanGradient op(c.shape);
  op.set_keys(c.k.data(), c.v.data(), context);
  op.forward(c.q.data(), c.spans.data(), r.out.data(), r.log_sum.data(), context);
  op.backward(arguments(c, r, gradients), context);
  return r;
}

void expect_reference(const GradientCase& c) {
  const FloatLevel floats;
  expect_reference(c, run(c, 2));
}

// The largest difference, as a share of the largest value.
template <typename T>
double distance(const std::vector<T>& a, const std::vector<T>& b) {
  double difference = 0, largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference = std::max(difference, static_cast<double>(std::abs(a[i] - b[i])));
    largest = std::max(largest, static_cast<double>(std::abs(a[i])));
  }
  return largest == 0 ? difference : difference / largest;
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

// A factor rounded to bfloat16 is off by at most 2^-9 of itself: 0.4% of a product, twice that behind two of them (dq, dk),
// less in sums. The largest differences found are 0.5% (dq), 0.7% (span), 0.2% (squares). `out` is of rounded values.
TEST(SpanGradient, Bf16ProductsAreNearThoseOfFloats) {
  if (supported_isa_levels().back() != IsaLevel::kAvx512Bf16) GTEST_SKIP() << "no level avx512bf16 on this machine";
  for (const auto& [n_tokens, n_heads, n_kv_heads, head_dim] : {std::tuple{1, 1, 1, 1},
                                                                {2, 3, 1, 16},
                                                                {63, 4, 4, 17},
                                                                {64, 6, 2, 64},
                                                                {65, 6, 2, 64},
                                                                {150, 14, 2, 40},
                                                                {200, 7, 1, 128},
                                                                {700, 9, 3, 64}})
    for (const int64_t n_sink : {0, 8, 64}) {
      std::vector<AttentionSpan> spans;
      for (int64_t head = 0; head < n_heads; ++head)
        spans.push_back({int64_t{1} + (head * 53 + n_tokens) % 211, n_sink});
      const GradientCase c({n_tokens, n_heads, n_kv_heads, head_dim}, spans, {1, 2, 3, 30, 64, 90, 149, 150, 700}, 11);
      SCOPED_TRACE(c.describe());
      const GradientResult pairs = run(c, 2);
      const FloatLevel level;
      const GradientResult floats = run(c, 2);
      EXPECT_LE(distance(floats.out, pairs.out), 0.004);
      EXPECT_LE(distance(floats.log_sum, pairs.log_sum), 0);
      EXPECT_LE(distance(floats.dq, pairs.dq), 0.008);
      EXPECT_LE(distance(floats.dk, pairs.dk), 0.008);
      EXPECT_LE(distance(floats.dv, pairs.dv), 0.004);
      EXPECT_LE(distance(floats.span, pairs.span), 0.01);
      EXPECT_LE(distance(floats.span_abs, pairs.span_abs), 0.002);
      EXPECT_LE(distance(floats.span_square, pairs.span_square), 0.004);
      EXPECT_LE(distance(floats.pairwise, pairs.pairwise), 0.001);
      EXPECT_TRUE(n_tokens < 64 || floats.dq != pairs.dq) << "the levels are one";
    }
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
  EXPECT_EQ(one.span_square, sums_only.span_square);
}

// The sum of dO . O over all rows when one head's span is `span`: what the effects are the first-order change of, and,
// for one layer of attention whose output enters linearly, exactly.
double linear_loss(const GradientCase& c, int64_t head, int64_t span) {
  std::vector<AttentionSpan> spans = c.spans;
  spans[static_cast<size_t>(head)].span = span;
  const std::vector<float> out = reference_attention(c, spans);
  double loss = 0;
  for (size_t i = 0; i < out.size(); ++i) loss += static_cast<double>(out[i]) * static_cast<double>(c.d_out[i]);
  return loss;
}

TEST(SpanGradient, EffectsAreTheTrueChangeOfALinearLoss) {
  std::vector<AttentionSpan> spans;
  for (int64_t head = 0; head < 4; ++head) spans.push_back({30 + 40 * head, 8});
  const GradientCase c({160, 4, 2, 24}, spans, {1, 10, 30, 64, 110, 160}, 5);
  const FloatLevel floats;
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
