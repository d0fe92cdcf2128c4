// The profile on the GPU against the CPU's (model/transformer_profiler.h), which is held to finite differences.
#include "cuda/span_profiler.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "cuda/cuda_test_util.h"
#include "cuda/transformer.h"
#include "model/model_test_util.h"

namespace polyspan::cuda {
namespace {
using namespace testing_util;

struct ProfileCase {
  const char* arch = "llama";
  int64_t n_heads = 4, n_kv_heads = 2, head_dim = 64;
  bool tied = false;
  ProfileLoss loss = ProfileLoss::kCrossEntropy;
  int64_t n_tokens = 257;
  bool dense = true;
  DType type = DType::kF32;
};

// The same random model on the CPU and on the GPU, and what is asked of both.
struct Profiled {
  ProfileCase c;
  TinyModel cpu;
  std::unique_ptr<Model> gpu;
  std::vector<int32_t> tokens;
  std::vector<int64_t> targets, candidates = {1, 9, 64, 100, 200};
  std::vector<AttentionSpan> spans;

  explicit Profiled(const ProfileCase& given)
      : c(given), cpu(config(c), 2), gpu(), tokens(random_tokens(cpu, c.n_tokens, 3)) {
    gpu = load_cuda_model(std::make_unique<GgufFile>(GgufFile::from_bytes(cpu.bytes, "tiny")), 0, no_progress());
    const int64_t n = c.n_tokens;
    targets = {1, 20, n / 2, n / 2 + 1, n - 3, n - 2, n - 1};
    candidates.push_back(c.n_tokens);
    const ModelConfig& m = cpu.model->config();
    for (int64_t i = 0; i < m.n_layers * m.n_heads; ++i)
      spans.push_back({c.dense || i % 3 == 0 ? c.n_tokens : 10 + 23 * i % 60, 4});
  }
  static RandomModelConfig config(const ProfileCase& c) {
    RandomModelConfig made = find_model_shape("tiny-" + std::string(c.arch)).value();
    made.type = c.type, made.n_heads = c.n_heads, made.n_kv_heads = c.n_kv_heads, made.head_dim = c.head_dim;
    made.tied = c.tied;
    return made;
  }
  std::unique_ptr<SpanProfiler> gpu_profiler(const CudaProfilerOptions& options) const {
    return dynamic_cast<const CudaTransformer&>(*gpu).make_span_profiler(options);
  }
  ProfileRequest request() const { return {tokens, targets, spans, candidates, c.loss, /*input_gradient=*/true}; }
  std::string describe() const {
    return std::string(c.arch) + " " + std::string(dtype_name(c.type)) + " heads " + std::to_string(c.n_heads) + "/" +
           std::to_string(c.n_kv_heads) + " of " + std::to_string(c.head_dim) + (c.tied ? ", tied" : "") + ", " +
           std::to_string(c.n_tokens) + " tokens, " + (c.dense ? "dense" : "short spans") +
           (c.loss == ProfileLoss::kLogOdds ? ", log-odds" : ", cross-entropy");
  }
};

// The largest difference over the largest value. NaN gives NaN, which no bound accepts.
double worst(std::span<const double> actual, std::span<const double> expected) {
  EXPECT_EQ(actual.size(), expected.size());
  double largest = 0, difference = 0;
  for (size_t i = 0; i < std::min(actual.size(), expected.size()); ++i) {
    largest = std::max(largest, std::abs(expected[i]));
    const double here = std::abs(actual[i] - expected[i]);
    if (!(here <= difference)) difference = here;
  }
  return difference / largest;
}

// Of the scores, absolute; of influences (signed and absolute sums; pairs) as worst() has it; of the input's gradient as
// error_norm(). In brackets what an H100 shows at most.
struct Bounds {
  double scores, influence, pairs, gradient;
};
// f32 against f32 (1e-6, 1e-3, 2e-6, 4e-6). Where short candidates leave little of a sharp row, 1 - m loses digits, 1e-7 of
// it over as little as kLeastKeptShare, and signed effects cancel over rows: either side alone is 1e-3 off sums in double.
constexpr Bounds kF32Bounds{1e-5, 4e-3, 1e-5, 2e-5};
// Products whose factors are rounded to 11 bits, 2.4e-4 of each (1.4e-3, 6e-3, 1e-3, 4e-3).
constexpr Bounds kTf32Bounds{5e-3, 1e-2, 3e-3, 8e-3};
// The CPU goes backward through weights at 8 bits where they are not f32 (1e-6, 3e-2, 3e-3, 2e-2).
constexpr Bounds kHalfBounds{1e-5, 6e-2, 1e-2, 4e-2};
// And it rounds the inputs of quantised weights to 8 bits (9e-3, 4e-2, 5e-3, 2e-2).
constexpr Bounds kQuantizedBounds{2e-2, 8e-2, 2e-2, 4e-2};

void check_agreement(const ProfileCase& c, const CudaProfilerOptions& options, const Bounds& bounds) {
  const Profiled p(c);
  SCOPED_TRACE(p.describe());
  const FloatLevel floats;  // of the CPU
  const auto cpu = p.cpu.model->make_span_profiler(no_progress()), gpu = p.gpu_profiler(options);
  const std::vector<TargetScore> expected = cpu->forward(p.request()), actual = gpu->forward(p.request());
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    EXPECT_NEAR(actual[i].log_probability, expected[i].log_probability, bounds.scores) << "target " << i;
    EXPECT_NEAR(actual[i].log_odds, expected[i].log_odds, bounds.scores) << "target " << i;
    EXPECT_EQ(actual[i].is_best, expected[i].is_best) << "target " << i;
  }
  const SpanInfluence from_cpu = cpu->backward(p.request()), from_gpu = gpu->backward(p.request());
  EXPECT_LT(worst(from_gpu.span, from_cpu.span), bounds.influence);
  EXPECT_LT(worst(from_gpu.span_abs, from_cpu.span_abs), bounds.influence);
  EXPECT_LT(worst(from_gpu.span_square, from_cpu.span_square), 2 * bounds.influence);
  EXPECT_LT(worst(from_gpu.pairwise, from_cpu.pairwise), bounds.pairs);
  EXPECT_LT(error_norm(gpu->input_gradient(), cpu->input_gradient()), bounds.gradient);
}

TEST(CudaSpanProfiler, AgreesWithTheCpu) {
  POLYSPAN_NEEDS_GPU();
  for (const bool dense : {true, false})
    for (const ProfileLoss loss : {ProfileLoss::kCrossEntropy, ProfileLoss::kLogOdds})
      for (const Precision precision : {Precision::kF32, Precision::kTf32}) {
        const CudaProfilerOptions options{.weight_products = precision};
        const Bounds& bounds = precision == Precision::kF32 ? kF32Bounds : kTf32Bounds;
        check_agreement({.loss = loss, .dense = dense}, options, bounds);
        check_agreement({.tied = true, .loss = loss, .dense = dense}, options, bounds);
        check_agreement({.arch = "qwen2", .n_heads = 6, .loss = loss, .dense = dense}, options, bounds);
        check_agreement({.n_heads = 2, .head_dim = 128, .loss = loss, .n_tokens = 101, .dense = dense}, options,
                        bounds);
      }
}

TEST(CudaSpanProfiler, AgreesWithTheCpuInPieces) {
  POLYSPAN_NEEDS_GPU();
  // Matrices in pieces of a few rows, attention in several chunks.
  const CudaProfilerOptions pieces{.weight_products = Precision::kF32, .most_decoded_floats = 3000};
  check_agreement({.tied = true, .n_tokens = 1101, .dense = false}, pieces, kF32Bounds);
}

TEST(CudaSpanProfiler, AgreesWithTheCpuForWeightTypes) {
  POLYSPAN_NEEDS_GPU();
  const CudaProfilerOptions f32{.weight_products = Precision::kF32};
  for (const DType type : {DType::kF16, DType::kBF16}) check_agreement({.type = type}, f32, kHalfBounds);
  for (const DType type : {DType::kQ8_0, DType::kQ4_0, DType::kQ4_K, DType::kQ6_K, DType::kQ5_K})
    check_agreement({.type = type}, {}, kQuantizedBounds);
}

TEST(CudaSpanProfiler, RepetitionsChangeNoBit) {
  POLYSPAN_NEEDS_GPU();
  const Profiled p({.n_tokens = 1101, .dense = false});
  const auto one = p.gpu_profiler({}), two = p.gpu_profiler({});
  one->forward(p.request()), two->forward(p.request());
  const SpanInfluence first = one->backward(p.request()), second = two->backward(p.request());
  const std::vector<float> gradient(one->input_gradient().begin(), one->input_gradient().end());
  EXPECT_EQ(first.span, second.span);
  EXPECT_EQ(first.pairwise, second.pairwise);
  expect_same_bits(two->input_gradient(), gradient);
  // After a shorter sequence, and without the input's gradient.
  const std::vector<int64_t> few = {20};
  two->forward({std::span(p.tokens).first(301), few, p.spans, p.candidates});
  ProfileRequest request = p.request();
  request.input_gradient = false;
  two->forward(request);
  const SpanInfluence third = two->backward(request);
  EXPECT_EQ(third.span, first.span);
  EXPECT_EQ(third.span_abs, first.span_abs);
  EXPECT_EQ(third.pairwise, first.pairwise);
}

TEST(CudaSpanProfiler, SaysWhatMemoryIsMissing) {
  POLYSPAN_NEEDS_GPU();
  const Profiled p({});
  const auto profiler = p.gpu->make_span_profiler(no_progress());
  profiler->check_memory(257);
  constexpr int64_t kTooLong = 1 << 28;
  try {
    profiler->check_memory(kTooLong);
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kOutOfMemory);
    const std::string text = error.what();
    EXPECT_NE(text.find(std::to_string(profiler->bytes_needed(kTooLong))), text.npos) << text;
    EXPECT_NE(text.find("free"), text.npos) << text;
  }
}

}  // namespace
}  // namespace polyspan::cuda
