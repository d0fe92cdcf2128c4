#include "cuda/prefill_attention.h"

#include "cuda/cuda_test_util.h"

namespace polyspan::cuda {
namespace {
using namespace testing_util;

// Queries [first, n) of a sequence of n positions; positions before `first` are in rings, the others in a chunk.
void check_prefill(KvType type, int64_t n_heads, int64_t n_kv_heads, int64_t d, int64_t n_sink, int64_t first,
                   int64_t n_queries, uint64_t seed, double bound) {
  SCOPED_TRACE(testing::Message() << kv_type_text(type) << " heads " << n_heads << "/" << n_kv_heads << " of " << d
                                  << ", sink " << n_sink << ", " << n_queries << " queries from " << first << ", seed "
                                  << seed);
  Random random(seed);
  const Stream stream;
  const int64_t n = first + n_queries, q_dim = n_heads * d;
  std::vector<HostStorage> rings;
  TestSequence s = random_sequence(type, n_heads, n_kv_heads, d, first, n + random.below(100), n_sink, random, rings);
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
  PoisonedDevice out(n_queries * q_dim, stream);
  prefill_attention({.type = type,
                     .n_heads = n_heads,
                     .n_kv_heads = n_kv_heads,
                     .head_dim = d,
                     .n_tokens = n_queries,
                     .first_position = first,
                     .q = q_device.as<float>(),
                     .heads = ring.views.as<KvHeadView>(),
                     .chunk = chunk.views.as<KvHeadView>(),
                     .spans = spans_device.as<int32_t>(),
                     .out_type = ActivationType::kF32,
                     .out = out.data()},
                    stream);
  EXPECT_LT(error_norm(out.values(), expected), bound);
}

TEST(PrefillAttention, MatchesReference) {
  POLYSPAN_NEEDS_GPU();
  uint64_t seed = 500;
  for (const KvType type : kKvTypes) {
    const double bound =
        type == KvType::kBF16 ? 1e-2 : 1.5e-3;  // queries and weights are rounded to the type of the products
    for (const int64_t d : {64, 128})
      for (const int64_t n_sink : {0, 4, 64}) {
        check_prefill(type, 4, 2, d, n_sink, 0, 1, ++seed, bound);
        check_prefill(type, 4, 2, d, n_sink, 0, 63, ++seed, bound);
        check_prefill(type, 3, 3, d, n_sink, 0, 300, ++seed, bound);
        check_prefill(type, 4, 1, d, n_sink, 40, 70, ++seed, bound);
        check_prefill(type, 4, 2, d, n_sink, 333, 129, ++seed, bound);
        check_prefill(type, 2, 2, d, n_sink, 700, 17, ++seed, bound);
      }
  }
}

}  // namespace
}  // namespace polyspan::cuda
