// Whole-sequence attention, its gradients and the effects of spans on the GPU against plain loops in double.
#include "cuda/span_gradient.h"

#include <gtest/gtest.h>

#include <sstream>

#include "cuda/cuda_test_util.h"
#include "cuda/gradient.h"

namespace polyspan::cuda {
namespace {
using namespace testing_util;

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
  std::vector<float> out, dq, dk, dv;  // [n_tokens, n heads, head_dim]
  std::vector<double> span, span_abs, pairwise;
};

GradientResult run(const GradientCase& c, bool gradients = true) {
  const GradientShape& s = c.shape;
  const Stream stream;
  const Blas blas(stream);
  const int64_t q_values = s.n_tokens * s.n_heads * s.head_dim, kv_values = s.n_tokens * s.n_kv_heads * s.head_dim;
  const auto to_heads = [&](const std::vector<float>& rows, int64_t n_heads) {
    const DeviceBuffer from = to_device(std::span<const float>(rows), "a test", stream);
    DeviceBuffer to(from.size_bytes(), "a test");
    to_head_rows(s.n_tokens, n_heads, s.n_kv_heads, s.head_dim, from.as<float>(), to.as<float>(), stream);
    stream.synchronize();
    return to;
  };
  const auto from_heads = [&](PoisonedDevice& heads, int64_t n_heads) {
    heads.values();  // nothing is written behind it
    PoisonedDevice rows(s.n_tokens * n_heads * s.head_dim, stream);
    from_head_rows(s.n_tokens, n_heads, s.n_kv_heads, s.head_dim, heads.data(), rows.data(), stream);
    return rows.values();
  };
  const DeviceBuffer q = to_heads(c.q, s.n_heads), k = to_heads(c.k, s.n_kv_heads), v = to_heads(c.v, s.n_kv_heads),
                     d_out = to_heads(c.d_out, s.n_heads);
  std::vector<HeadSpan> spans;
  for (const AttentionSpan& span : c.spans)
    spans.push_back({static_cast<int32_t>(span.span), static_cast<int32_t>(span.n_sink_tokens)});
  const std::vector<int32_t> candidates(c.candidates.begin(), c.candidates.end());
  const DeviceBuffer spans_d = to_device(std::span<const HeadSpan>(spans), "a test", stream),
                     candidates_d = to_device(std::span<const int32_t>(candidates), "a test", stream);
  const int64_t n_candidates = std::ssize(candidates), n_effects = s.n_heads * n_candidates;
  const std::vector<double> zeros(static_cast<size_t>(3 * n_effects), 0.0);
  const DeviceBuffer sums = to_device(std::span<const double>(zeros), "a test", stream);
  const DeviceBuffer memory(CudaSpanGradient::bytes_needed(s), "a test");
  fill_bytes(memory.data(), 0xff, memory.size_bytes(), stream);
  const CudaSpanGradient op(s, memory.data(), blas, stream);
  const SpanGradientInputs in{q.as<float>(), k.as<float>(), v.as<float>(), spans_d.as<HeadSpan>()};
  PoisonedDevice out(q_values, stream), dq(q_values, stream), dk(kv_values, stream), dv(kv_values, stream);
  op.forward(in, out.data());
  op.backward(in, {.d_out = d_out.as<float>(),
                   .dq = gradients ? dq.data() : nullptr,
                   .dk = gradients ? dk.data() : nullptr,
                   .dv = gradients ? dv.data() : nullptr,
                   .candidates = candidates_d.as<int32_t>(),
                   .n_candidates = n_candidates,
                   .span = sums.as<double>(),
                   .span_abs = sums.as<double>() + n_effects,
                   .pairwise = sums.as<double>() + 2 * n_effects});
  GradientResult r;
  r.out = from_heads(out, s.n_heads), r.dq = from_heads(dq, s.n_heads);
  r.dk = from_heads(dk, s.n_kv_heads), r.dv = from_heads(dv, s.n_kv_heads);
  const std::vector<double> all = to_host<double>(sums.data(), 3 * n_effects, stream);
  r.span.assign(all.begin(), all.begin() + n_effects);
  r.span_abs.assign(all.begin() + n_effects, all.begin() + 2 * n_effects);
  r.pairwise.assign(all.begin() + 2 * n_effects, all.end());
  return r;
}

void expect_near(std::span<const double> actual, std::span<const double> expected, double relative) {
  ASSERT_EQ(actual.size(), expected.size());
  double largest = 0;
  for (const double value : expected) largest = std::max(largest, std::abs(value));
  for (size_t i = 0; i < actual.size(); ++i)
    ASSERT_NEAR(actual[i], expected[i], relative * largest + 1e-12) << "effect " << i;
}

void expect_reference(const GradientCase& c) {
  SCOPED_TRACE(c.describe());
  const GradientShape& s = c.shape;
  const GradientResult actual = run(c);
  std::vector<float> plain_q = c.q, out(c.q.size());
  for (float& value : plain_q) value *= std::sqrt(static_cast<float>(s.head_dim));
  span_attention_reference(
      {s.n_heads, s.n_kv_heads, s.head_dim, s.n_tokens, 0, plain_q.data(), c.k.data(), c.v.data(), c.spans.data()},
      out.data());
  GradientResult expected;
  expected.dq.resize(c.q.size()), expected.dk.resize(c.k.size()), expected.dv.resize(c.v.size());
  expected.span.assign(actual.span.size(), 0.0), expected.span_abs = expected.pairwise = expected.span;
  SpanGradientArgs args{.q = c.q.data(), .spans = c.spans.data(), .d_out = c.d_out.data()};
  args.dq = expected.dq.data(), args.dk = expected.dk.data(), args.dv = expected.dv.data();
  args.candidates = c.candidates;
  args.span = expected.span.data(), args.span_abs = expected.span_abs.data(), args.pairwise = expected.pairwise.data();
  span_gradient_reference(s, c.k.data(), c.v.data(), args);
  // The bounds of the CPU's test (ops/span_gradient_test.cpp): f32 products and sums here as there.
  expect_close(actual.out, out, [](size_t) { return 2e-5; });
  expect_close(actual.dq, expected.dq, [](size_t) { return 1e-4; });
  expect_close(actual.dk, expected.dk, [](size_t) { return 3e-4; });
  expect_close(actual.dv, expected.dv, [](size_t) { return 3e-4; });
  // Where little of a row is left, 1 - m in floats loses digits: 1e-7 of it over as little as kLeastKeptShare.
  expect_near(actual.span, expected.span, 5e-4);
  expect_near(actual.span_abs, expected.span_abs, 5e-4);
  expect_near(actual.pairwise, expected.pairwise, 1e-4);
}

TEST(CudaSpanGradient, IsTheReferenceForOneSpan) {
  POLYSPAN_NEEDS_GPU();
  for (const int64_t n_tokens : {1, 2, 31, 32, 33, 130, 257})
    for (const int64_t span : {1, 17, 64, 100, 1000})
      for (const int64_t n_sink : {0, 5, 64}) {
        expect_reference(
            {{n_tokens, 3, 1, 16}, std::vector<AttentionSpan>(3, {span, n_sink}), {1, 16, 40, 64, 100, 150, 1000}, 7});
        if (testing::Test::HasFatalFailure()) return;
      }
}

TEST(CudaSpanGradient, IsTheReferenceForShapesAndMixedSpans) {
  POLYSPAN_NEEDS_GPU();
  for (const auto& [n_heads, n_kv_heads, head_dim] :
       {std::tuple{1, 1, 2}, {4, 4, 18}, {6, 2, 64}, {14, 2, 64}, {7, 1, 128}, {4, 4, 128}}) {
    std::vector<AttentionSpan> spans;
    for (int64_t head = 0; head < n_heads; ++head) spans.push_back({int64_t{1} + head * 53 % 211, 8});
    expect_reference({{257, n_heads, n_kv_heads, head_dim}, spans, {1, 2, 3, 30, 64, 90, 149, 256, 257}, 11});
    if (testing::Test::HasFatalFailure()) return;
  }
}

TEST(CudaSpanGradient, IsTheReferenceOverSeveralChunks) {
  POLYSPAN_NEEDS_GPU();
  const std::vector<AttentionSpan> mixed = {{1200, 64}, {100, 64}, {1, 0}, {3000, 0}};
  expect_reference({{2061, 4, 2, 64}, mixed, {64, 128, 900, 1100, 1500, 2061}, 13});
}

TEST(CudaSpanGradient, RepetitionsAndLeftOutGradientsChangeNoBit) {
  POLYSPAN_NEEDS_GPU();
  std::vector<AttentionSpan> spans;
  for (int64_t head = 0; head < 6; ++head) spans.push_back({40 + 270 * head, 16});
  const GradientCase c({1501, 6, 2, 64}, spans, {64, 128, 300, 1501}, 3);
  const GradientResult one = run(c), two = run(c), sums_only = run(c, false);
  expect_same_bits(one.out, two.out);
  expect_same_bits(one.dq, two.dq);
  expect_same_bits(one.dk, two.dk);
  expect_same_bits(one.dv, two.dv);
  for (const GradientResult* other : {&two, &sums_only}) {
    EXPECT_EQ(one.span, other->span);
    EXPECT_EQ(one.span_abs, other->span_abs);
    EXPECT_EQ(one.pairwise, other->pairwise);
  }
}

}  // namespace
}  // namespace polyspan::cuda
