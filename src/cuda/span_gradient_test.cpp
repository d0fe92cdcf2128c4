// Whole-sequence attention, its gradients and the effects of spans on the GPU against plain loops in double.
#include "cuda/span_gradient.h"

#include <gtest/gtest.h>

#include "cuda/cuda_test_util.h"
#include "cuda/gradient.h"
#include "ops/span_gradient_test_util.h"

namespace polyspan::cuda {
namespace {
using namespace testing_util;

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
  const std::vector<double> zeros(static_cast<size_t>(4 * n_effects), 0.0);
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
                   .span_square = sums.as<double>() + 2 * n_effects,
                   .pairwise = sums.as<double>() + 3 * n_effects});
  GradientResult r;
  r.out = from_heads(out, s.n_heads), r.dq = from_heads(dq, s.n_heads);
  r.dk = from_heads(dk, s.n_kv_heads), r.dv = from_heads(dv, s.n_kv_heads);
  const std::vector<double> all = to_host<double>(sums.data(), 4 * n_effects, stream);
  r.span.assign(all.begin(), all.begin() + n_effects);
  r.span_abs.assign(all.begin() + n_effects, all.begin() + 2 * n_effects);
  r.span_square.assign(all.begin() + 2 * n_effects, all.begin() + 3 * n_effects);
  r.pairwise.assign(all.begin() + 3 * n_effects, all.end());
  return r;
}

void expect_reference(const GradientCase& c) { expect_reference(c, run(c)); }

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
    EXPECT_EQ(one.span_square, other->span_square);
    EXPECT_EQ(one.pairwise, other->pairwise);
  }
}

}  // namespace
}  // namespace polyspan::cuda
