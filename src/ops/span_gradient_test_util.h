// ops/span_gradient_test_util.h: cases of span_gradient.h and what the reference makes of them, for tests of the CPU and the GPU.
#pragma once

#include <algorithm>
#include <cmath>
#include <span>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "ops/span_attention.h"
#include "ops/span_gradient.h"
#include "ops/test_util.h"

namespace polyspan::testing_util {

struct GradientCase {
  GradientShape shape;
  std::vector<AttentionSpan> spans;
  std::vector<int64_t> candidates;
  std::vector<float> q = {}, k = {}, v = {}, d_out = {};  // [n_tokens, n heads, head_dim]

  GradientCase(const GradientShape& s, std::vector<AttentionSpan> given, std::vector<int64_t> asked, uint64_t seed)
      : shape(s), spans(std::move(given)), candidates(std::move(asked)) {
    Random random(seed);
    q = random.vector(s.n_tokens * s.n_heads * s.head_dim, 4.0f / std::sqrt(static_cast<float>(s.head_dim)));
    k = random.vector(s.n_tokens * s.n_kv_heads * s.head_dim);
    v = random.vector(s.n_tokens * s.n_kv_heads * s.head_dim);
    d_out = random.vector(s.n_tokens * s.n_heads * s.head_dim);
    std::fill_n(d_out.begin(), static_cast<size_t>(s.n_tokens / 3 * s.n_heads * s.head_dim), 0.0f);
  }
  std::string describe() const {
    std::ostringstream text;
    text << shape.n_tokens << " tokens, " << shape.n_heads << "/" << shape.n_kv_heads << " heads of " << shape.head_dim
         << ", spans";
    for (const AttentionSpan& s : spans) text << " " << s.span << "+" << s.n_sink_tokens;
    return text.str();
  }
};

struct GradientResult {
  std::vector<float> out, log_sum, dq, dk, dv;
  std::vector<double> span, span_abs, span_square, pairwise;
};

inline GradientResult empty_result(const GradientCase& c) {
  const auto n = [](int64_t a) { return static_cast<size_t>(a); };
  const GradientShape& s = c.shape;
  const size_t n_effects = n(s.n_heads * std::ssize(c.candidates));
  GradientResult r;
  r.out.assign(n(s.n_tokens * s.n_heads * s.head_dim), NAN), r.log_sum.assign(n(s.n_tokens * s.n_heads), NAN);
  r.dq.assign(r.out.size(), NAN), r.dk.assign(n(s.n_tokens * s.n_kv_heads * s.head_dim), NAN),
      r.dv.assign(r.dk.size(), NAN);
  r.span.assign(n_effects, 0.0), r.span_abs = r.span_square = r.pairwise = r.span;
  return r;
}

inline SpanGradientArgs arguments(const GradientCase& c, GradientResult& r, bool gradients) {
  SpanGradientArgs args{.q = c.q.data(),
                        .spans = c.spans.data(),
                        .out = r.out.data(),
                        .log_sum = r.log_sum.data(),
                        .d_out = c.d_out.data()};
  if (gradients) args.dq = r.dq.data(), args.dk = r.dk.data(), args.dv = r.dv.data();
  args.candidates = c.candidates;
  args.span = r.span.data(), args.span_abs = r.span_abs.data();
  args.span_square = r.span_square.data(), args.pairwise = r.pairwise.data();
  return args;
}

inline void expect_near(std::span<const double> actual, std::span<const double> expected, double relative) {
  ASSERT_EQ(actual.size(), expected.size());
  double largest = 0;
  for (const double value : expected) largest = std::max(largest, std::abs(value));
  for (size_t i = 0; i < actual.size(); ++i)
    ASSERT_NEAR(actual[i], expected[i], relative * largest + 1e-12) << "effect " << i;
}

// Attention of the case with `spans`, by plain loops.
inline std::vector<float> reference_attention(const GradientCase& c, const std::vector<AttentionSpan>& spans) {
  const GradientShape& s = c.shape;
  std::vector<float> plain_q = c.q, out(c.q.size());
  for (float& value : plain_q) value *= std::sqrt(static_cast<float>(s.head_dim));
  span_attention_reference(
      {s.n_heads, s.n_kv_heads, s.head_dim, s.n_tokens, 0, plain_q.data(), c.k.data(), c.v.data(), spans.data()},
      out.data());
  return out;
}

// `actual` is what f32 products and sums make of the case.
inline void expect_reference(const GradientCase& c, const GradientResult& actual) {
  SCOPED_TRACE(c.describe());
  expect_close(actual.out, reference_attention(c, c.spans), [](size_t) { return 2e-5; });
  GradientResult expected = empty_result(c);
  span_gradient_reference(c.shape, c.k.data(), c.v.data(), arguments(c, expected, true));
  expect_close(actual.dq, expected.dq, [](size_t) { return 1e-4; });
  expect_close(actual.dk, expected.dk, [](size_t) { return 3e-4; });
  expect_close(actual.dv, expected.dv, [](size_t) { return 3e-4; });
  // Where little of a row is left, 1 - m in floats loses digits: 1e-7 of it over as little as kLeastKeptShare.
  expect_near(actual.span, expected.span, 5e-4);
  expect_near(actual.span_abs, expected.span_abs, 5e-4);
  expect_near(actual.span_square, expected.span_square, 1e-3);
  expect_near(actual.pairwise, expected.pairwise, 1e-4);
}

}  // namespace polyspan::testing_util
