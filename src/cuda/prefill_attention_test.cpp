#include "cuda/prefill_attention.h"

#include "cuda/cuda_test_util.h"

namespace polyspan::cuda {
namespace {
using namespace testing_util;

struct PrefillCase {
  KvType type;
  int64_t n_heads, n_kv_heads, d, n_sink, first, n_queries;
  int64_t longest_span = 0;  // 0: some spans longer than the sequence
  ActivationType out_type = ActivationType::kF32;
};

struct PrefillKernel {
  const char* name;
  void (*run)(const PrefillAttentionArgs&, const Stream&);
};

// Queries [first, n) of a sequence of n positions; positions before `first` are in rings, the others in a chunk.
void check_prefill(const PrefillKernel& kernel, const PrefillCase& c, uint64_t seed) {
  const auto [type, n_heads, n_kv_heads, d, n_sink, first, n_queries, longest_span, out_type] = c;
  SCOPED_TRACE(testing::Message() << kernel.name << " " << kv_type_text(type) << " heads " << n_heads << "/"
                                  << n_kv_heads << " of " << d << ", sink " << n_sink << ", " << n_queries
                                  << " queries from " << first << ", spans up to " << longest_span << ", output "
                                  << static_cast<int>(out_type) << ", seed " << seed);
  Random random(seed);
  const Stream stream;
  const int64_t n = first + n_queries, q_dim = n_heads * d;
  std::vector<HostStorage> rings;
  TestSequence s =
      random_sequence(type, n_heads, n_kv_heads, d, first, n + random.below(100), n_sink, random, rings, longest_span);
  std::vector<HostStorage> chunks;
  std::vector<SlotLayout> chunk_layouts;
  s.k.resize(static_cast<size_t>(n * n_kv_heads * d));
  s.v.resize(s.k.size());
  for (int64_t kv_head = 0; kv_head < n_kv_heads; ++kv_head) {
    chunk_layouts.push_back({0, 0, static_cast<int32_t>(round_up_to(n_queries, 16))});
    chunks.emplace_back(type, d, chunk_layouts.back().capacity());
    for (int64_t t = 0; t < n_queries; ++t)
      for (const bool is_value : {false, true}) {
        const std::vector<float> row = chunks.back().write(t, is_value, random.vector(d, 2.0f));
        std::copy(row.begin(), row.end(), (is_value ? s.v : s.k).begin() + ((first + t) * n_kv_heads + kv_head) * d);
      }
  }
  const std::vector<float> q = random.vector(n_queries * q_dim, 2.0f);
  std::vector<float> expected(q.size());
  span_attention_reference({n_heads, n_kv_heads, d, n_queries, first, q.data(), s.k.data(), s.v.data(), s.spans.data()},
                           expected.data());
  const DeviceStorages ring(rings, s.layouts, stream), chunk(chunks, chunk_layouts, stream);
  std::vector<int32_t> spans;
  for (const AttentionSpan& span : s.spans) spans.push_back(static_cast<int32_t>(span.span));
  const DeviceBuffer q_device = to_device(std::span<const float>(q), "a test", stream),
                     spans_device = to_device(std::span<const int32_t>(spans), "a test", stream);
  const int64_t out_floats = out_type == ActivationType::kF32 ? n_queries * q_dim : n_queries * q_dim / 2;
  PoisonedDevice out(out_floats, stream);
  kernel.run({.type = type,
              .n_heads = n_heads,
              .n_kv_heads = n_kv_heads,
              .head_dim = d,
              .n_tokens = n_queries,
              .first_position = first,
              .q = q_device.as<float>(),
              .heads = ring.views.as<KvHeadView>(),
              .chunk = chunk.views.as<KvHeadView>(),
              .spans = spans_device.as<int32_t>(),
              .out_type = out_type,
              .out = out.data()},
             stream);
  std::vector<float> actual = out.values();
  if (out_type != ActivationType::kF32) {
    std::vector<uint16_t> bits(expected.size());
    std::memcpy(bits.data(), actual.data(), bits.size() * 2);
    actual.clear();
    for (const uint16_t x : bits) actual.push_back(out_type == ActivationType::kF16 ? f16_to_f32(x) : bf16_to_f32(x));
  }
  // Queries and weights are rounded to the type of the products, the output to its own.
  const bool bf16 = type == KvType::kBF16 || out_type == ActivationType::kBF16;
  EXPECT_LT(error_norm(actual, expected), bf16 ? 1e-2 : 1.5e-3);
}

std::vector<PrefillKernel> kernels_for(KvType type, int64_t d) {
  std::vector<PrefillKernel> kernels = {{"mma", prefill_attention_mma}};
  if (prefill_attention_wgmma_supports({.type = type, .head_dim = d}))
    kernels.push_back({"wgmma", prefill_attention_wgmma});
  return kernels;
}

TEST(PrefillAttention, MatchesReference) {
  POLYSPAN_NEEDS_GPU();
  uint64_t seed = 500;
  for (const KvType type : kCudaKvTypes)
    for (const int64_t d : {64, 128})
      for (const PrefillKernel& kernel : kernels_for(type, d))
        for (const int64_t n_sink : {0, 4, 64}) {
          check_prefill(kernel, {type, 4, 2, d, n_sink, 0, 1}, ++seed);
          check_prefill(kernel, {type, 4, 2, d, n_sink, 0, 63}, ++seed);
          check_prefill(kernel, {type, 3, 3, d, n_sink, 0, 300}, ++seed);
          check_prefill(kernel, {type, 4, 1, d, n_sink, 40, 70}, ++seed);
          check_prefill(kernel, {type, 4, 2, d, n_sink, 333, 129}, ++seed);
          check_prefill(kernel, {type, 2, 2, d, n_sink, 700, 17}, ++seed);
        }
}

TEST(PrefillAttention, MatchesReferenceAroundBlocksAndTiles) {
  POLYSPAN_NEEDS_GPU();
  uint64_t seed = 900;
  for (const KvType type : {KvType::kF16, KvType::kBF16})
    for (const PrefillKernel& kernel : kernels_for(type, 128)) {
      for (const int64_t n : {64, 65, 127, 128, 129, 256, 257})
        for (const int64_t first : {0, 1, 127, 128, 640}) check_prefill(kernel, {type, 2, 1, 128, 8, first, n}, ++seed);
      // Windows shorter than a tile and a few tiles long: a sink in tiles of its own or beside the window's, longer
      // than a tile, partly in the chunk.
      for (const int64_t longest_span : {1, 2, 60, 130, 300})
        for (const int64_t n_sink : {0, 1, 64, 130})
          for (const int64_t first : {0, 50, 777})
            check_prefill(kernel, {type, 8, 2, 128, n_sink, first, 400, longest_span}, ++seed);
    }
}

TEST(PrefillAttention, WritesEveryOutputType) {
  POLYSPAN_NEEDS_GPU();
  uint64_t seed = 1300;
  for (const ActivationType out_type : {ActivationType::kF16, ActivationType::kBF16})
    for (const PrefillKernel& kernel : kernels_for(KvType::kF16, 128))
      check_prefill(kernel, {KvType::kF16, 4, 2, 128, 4, 30, 150, 0, out_type}, ++seed);
}

}  // namespace
}  // namespace polyspan::cuda
