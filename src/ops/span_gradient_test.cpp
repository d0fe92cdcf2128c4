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

void expect_reference(const GradientCase& c) { expect_reference(c, run(c, 2)); }

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
