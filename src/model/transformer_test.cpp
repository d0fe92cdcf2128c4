// The forward pass on tiny random models: against a reference in double, and against itself: prefill against decode,
// batches against sequences alone, one thread against two.
#include "model/transformer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <deque>
#include <numeric>

#include "model/model_test_util.h"
#include "model/transformer_reference.h"

namespace polyspan {
namespace {
using namespace testing_util;

// Logits of all positions, [n_tokens * vocab_size], the tokens given in chunks of `chunk`.
std::vector<float> run(TinyModel& tiny_model, KvCache& cache, std::span<const int32_t> tokens, int64_t chunk) {
  std::vector<float> out;
  const int64_t n_before = cache.n_tokens(), n = std::ssize(tokens), vocab = tiny_model.config.vocab_size;
  for (int64_t first = 0; first < n; first += chunk) {
    const int64_t n_rows = std::min(chunk, n - first);
    const BatchSequence sequence{&cache, 0, n_rows};
    tiny_model.model->forward(
        {tokens.subspan(static_cast<size_t>(first), static_cast<size_t>(n_rows)), std::span(&sequence, 1)});
    std::vector<int64_t> rows(static_cast<size_t>(n_rows));
    std::iota(rows.begin(), rows.end(), 0);
    out.resize(out.size() + static_cast<size_t>(n_rows * vocab), NAN);
    tiny_model.model->logits(rows, out.data() + first * vocab);
  }
  EXPECT_EQ(cache.n_tokens(), n_before + n);
  return out;
}
std::vector<float> run(TinyModel& tiny_model, const SpanPlan& plan, std::span<const int32_t> tokens, int64_t chunk,
                       KvType type = KvType::kF16) {
  KvCache cache = tiny_model.cache(plan, std::ssize(tokens), type);
  return run(tiny_model, cache, tokens, chunk);
}

// Root mean square of the difference over that of `expected`; NaN anywhere gives NaN.
template <typename Expected>
double relative_error(std::span<const float> actual, const Expected& expected) {
  EXPECT_EQ(actual.size(), expected.size());
  double difference = 0, size = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    const double wanted = static_cast<double>(expected[i]), error = static_cast<double>(actual[i]) - wanted;
    difference += error * error;
    size += wanted * wanted;
  }
  return std::sqrt(difference / size);
}
// The largest relative error of any position: one wrong position among many must not hide in a mean.
template <typename Expected>
double worst_error(std::span<const float> actual, const Expected& expected, int64_t vocab) {
  double worst = 0;
  for (size_t at = 0; at < actual.size(); at += static_cast<size_t>(vocab)) {
    const double error = relative_error(actual.subspan(at, static_cast<size_t>(vocab)),
                                        std::span(expected).subspan(at, static_cast<size_t>(vocab)));
    if (!(error <= worst)) worst = error;
    if (std::isnan(error)) return error;
  }
  return worst;
}

// Plans whose spans differ by layer and by head within a group.
SpanPlan mixed_plan(const ModelConfig& config, int64_t n_sink) {
  std::vector<std::vector<SpanRule>> rules(static_cast<size_t>(config.n_layers));
  int64_t next = 0;
  for (auto& row : rules)
    for (int64_t head = 0; head < config.n_heads; ++head)
      row.push_back({static_cast<double>(64 + next++ * 29 % 90), 0.0});
  return SpanPlan::from_rules(config.head_shape(), rules, /*per_query_head=*/true, n_sink);
}

// Prompts longer than the rings, positions on both sides of the sink's end, prefill and decode, both architectures.
// The cache is f16: keys and values are rounded to 11 bits, 2.4e-4 of each value on average less, which the sums even
// out; bf16 has 8 bits and q8 some 7.
TEST(Transformer, MatchesReference) {
  struct Case {
    const char* arch;
    int64_t n_heads, n_kv_heads, n_sink, n_tokens;
    bool tied, rope_factors;
  };
  const Case cases[] = {{"llama", 6, 2, 4, 170, true, false},
                        {"qwen2", 7, 1, 0, 130, false, false},
                        {"llama", 3, 3, 64, 170, false, true},
                        {"qwen2", 6, 2, 16, 200, true, true}};
  for (const Case& c : cases) {
    SCOPED_TRACE(testing::Message() << c.arch << " n_heads " << c.n_heads << " n_kv_heads " << c.n_kv_heads
                                    << " n_sink " << c.n_sink << " n_tokens " << c.n_tokens << " tied " << c.tied
                                    << " factors " << c.rope_factors);
    RandomModelConfig config = tiny(c.arch, DType::kF32, c.n_heads, c.n_kv_heads);
    config.tied = c.tied, config.rope_factors = c.rope_factors;
    TinyModel t(config, 1);
    const std::vector<int32_t> tokens = random_tokens(t, c.n_tokens, 1);
    const SpanPlan plan = mixed_plan(t.model->config(), c.n_sink);
    const KvLayout layout(t.model->config(), plan, c.n_tokens, KvType::kF16);
    const TransformerReference reference(t.model->file(), t.model->config());
    Vector expected, dense;
    for (const Vector& row : reference.logits(tokens, layout.spans))
      expected.insert(expected.end(), row.begin(), row.end());
    const std::vector<AttentionSpan> all(layout.spans.size(), {c.n_tokens, 0});
    for (const Vector& row : reference.logits(tokens, all)) dense.insert(dense.end(), row.begin(), row.end());
    for (const auto& [type, bound] : {std::pair{KvType::kF16, 5e-4}, {KvType::kBF16, 4e-3}, {KvType::kQ8, 1.5e-2}})
      for (const int64_t chunk : {int64_t{1}, int64_t{50}, c.n_tokens}) {
        SCOPED_TRACE(testing::Message() << kv_type_name(type) << " chunk " << chunk);
        EXPECT_LT(worst_error(run(t, plan, tokens, chunk, type), expected, config.vocab_size), bound);
        EXPECT_LT(worst_error(run(t, SpanPlan::dense(t.model->config().head_shape()), tokens, chunk, type), dense,
                              config.vocab_size),
                  bound);
      }
    // The plan matters in this test: its logits are far from the dense ones.
    EXPECT_GT(relative_error(run(t, plan, tokens, c.n_tokens), dense), 5e-3);
  }
}

// The uniform plan is the StreamingLLM mask, and chunks of one forward end anywhere.
TEST(Transformer, UniformPlanIsTheMask) {
  TinyModel t(tiny("llama"), 1);
  constexpr int64_t kTokens = 300;
  const std::vector<int32_t> tokens = random_tokens(t, kTokens, 2);
  const SpanPlan plan = SpanPlan::uniform(t.model->config().head_shape(), 0.5);
  const std::vector<AttentionSpan> spans(12, {150 - 64, 64});
  const TransformerReference reference(t.model->file(), t.model->config());
  Vector expected;
  for (const Vector& row : reference.logits(tokens, spans)) expected.insert(expected.end(), row.begin(), row.end());
  for (const int64_t chunk : {1, 63, 64, 128, 300}) {
    SCOPED_TRACE(chunk);
    EXPECT_LT(worst_error(run(t, plan, tokens, chunk), expected, t.config.vocab_size), 5e-4);
  }
}

// Decode equals prefill cut anywhere. F32 weights: rounding of float sums, 1e-4. Quantised weights: activations are
// rounded to 8 bits. Where the two ways round one of them differently, it moves by a whole step, 1/127 of its block's
// largest; the next product's inputs are then all a little off, more of them cross a step, and after a few products the
// two ways differ by as much as that rounding itself costs: some 1%, worst position of all.
TEST(Transformer, ChunksEqualDecode) {
  const std::pair<DType, double> types[] = {{DType::kF32, 1e-4},  {DType::kF16, 1e-4},  {DType::kQ4_1, 2e-2},
                                            {DType::kQ8_0, 2e-2}, {DType::kQ4_K, 2e-2}, {DType::kQ6_K, 2e-2}};
  for (const auto& [type, bound] : types)
    for (const char* arch : {"llama", "qwen2"})
      for (const auto& [n_heads, n_kv_heads] : {std::pair<int64_t, int64_t>{3, 3}, {6, 2}, {7, 1}}) {
        if (type != DType::kF32 && n_heads == 3) continue;  // the float models are smaller
        SCOPED_TRACE(testing::Message() << dtype_name(type) << " " << arch << " n_heads " << n_heads << " n_kv_heads "
                                        << n_kv_heads);
        RandomModelConfig config = tiny(arch, type, n_heads, n_kv_heads);
        if (type == DType::kF16) config.d_model = 80, config.d_ff = 100, config.head_dim = 10;  // no blocks of 32
        if (dtype_info(type).block_len == 256) config.head_dim = n_heads == 7 ? 256 : 128;      // rows of attn_output
        if (type == DType::kQ4_1) config.output_type = DType::kQ6_K, config.tied = false;
        TinyModel t(config, 1);
        const int64_t n_tokens = type == DType::kF32 ? 150 : 90;
        const std::vector<int32_t> tokens = random_tokens(t, n_tokens, 3);
        const SpanPlan plan = mixed_plan(t.model->config(), 4);
        const std::vector<float> decoded = run(t, plan, tokens, 1);
        for (const int64_t chunk : {int64_t{3}, int64_t{16}, int64_t{17}, int64_t{64}, n_tokens}) {
          SCOPED_TRACE(testing::Message() << "chunk " << chunk);
          EXPECT_LT(worst_error(run(t, plan, tokens, chunk), decoded, config.vocab_size), bound);
        }
      }
}

// A prompt longer than the rings in one chunk, and decoding after it: what the chunk leaves in sink and ring is what
// decoding it would have left.
TEST(Transformer, DecodesAfterALongPrompt) {
  TinyModel t(tiny("llama"), 1);
  const std::vector<int32_t> tokens = random_tokens(t, 230, 9);
  for (const int64_t n_sink : {0, 4, 20, 64})
    for (const int64_t n_prompt : {65, 150, 200}) {
      SCOPED_TRACE(testing::Message() << "n_sink " << n_sink << " n_prompt " << n_prompt);
      const SpanPlan plan = mixed_plan(t.model->config(), n_sink);
      const std::vector<float> decoded = run(t, plan, tokens, 1);
      KvCache cache = t.cache(plan, std::ssize(tokens));
      const size_t n = static_cast<size_t>(n_prompt);
      run(t, cache, std::span(tokens).first(n), n_prompt);
      const std::vector<float> after = run(t, cache, std::span(tokens).subspan(n), 1);
      const std::span<const float> expected = std::span(decoded).subspan(n * static_cast<size_t>(t.config.vocab_size));
      EXPECT_LT(worst_error(after, expected, t.config.vocab_size), 1e-4);
    }
}

// Plans that hide nothing are the dense plan, to the bit, for any sink.
TEST(Transformer, LongSpansAreDense) {
  TinyModel t(tiny("llama"), 1);
  const ModelConfig& config = t.model->config();
  const std::vector<int32_t> tokens = random_tokens(t, 140, 4);
  for (const int64_t chunk : {1, 17, 140}) {
    SCOPED_TRACE(chunk);
    const std::vector<float> dense = run(t, SpanPlan::dense(config.head_shape()), tokens, chunk);
    const std::vector<std::vector<SpanRule>> rules(2, std::vector<SpanRule>(6, {140.0, 0.0}));
    const std::vector<float> long_spans = run(t, SpanPlan::from_rules(config.head_shape(), rules, true), tokens, chunk);
    ASSERT_NO_FATAL_FAILURE(expect_same_bits(long_spans, dense));
  }
}

TEST(Transformer, ThreadsDoNotMatter) {
  for (const DType type : {DType::kF32, DType::kQ4_1, DType::kQ4_K}) {
    SCOPED_TRACE(dtype_name(type));
    RandomModelConfig config = tiny("qwen2", type, 8, 2);
    TinyModel one(config, 1), two(config, 2), three(config, 3);
    const std::vector<int32_t> tokens = random_tokens(one, 80, 5);
    const SpanPlan plan = mixed_plan(one.model->config(), 4);
    for (const int64_t chunk : {1, 40}) {
      const std::vector<float> expected = run(one, plan, tokens, chunk);
      ASSERT_NO_FATAL_FAILURE(expect_same_bits(run(two, plan, tokens, chunk), expected));
      if (chunk == 1) continue;  // many short sections: slow where there are fewer cores
      ASSERT_NO_FATAL_FAILURE(expect_same_bits(run(three, plan, tokens, chunk), expected));
    }
  }
}

// Sequences at different places of their lives, some decoding and some in prefill, past the wrap of their rings: each
// gets the logits that it gets alone, to the bit.
TEST(Transformer, BatchEqualsEachAlone) {
  for (const DType type : {DType::kF32, DType::kQ4_1})
    for (const KvType kv_type : {KvType::kF16, KvType::kQ8}) {
      SCOPED_TRACE(testing::Message() << dtype_name(type) << " cache " << kv_type_name(kv_type));
      TinyModel t(tiny("llama", type, 8, 2), kv_type == KvType::kF16 ? 2 : 1);
      const int64_t vocab = t.config.vocab_size;
      struct Sequence {
        int64_t n_past, n_rows;
        std::vector<int32_t> tokens;
        std::vector<float> alone;
      };
      std::vector<Sequence> sequences = {{70, 1, {}, {}}, {150, 33, {}, {}}, {0, 1, {}, {}},
                                         {0, 97, {}, {}}, {210, 1, {}, {}},  {60, 2, {}, {}}};
      const SpanPlan plan = mixed_plan(t.model->config(), 4);
      std::deque<KvCache> caches;
      std::vector<int32_t> tokens;
      std::vector<BatchSequence> batch;
      for (Sequence& s : sequences) {
        s.tokens = random_tokens(t, s.n_past + s.n_rows, static_cast<uint64_t>(s.n_past + s.n_rows));
        const std::span<const int32_t> past = std::span(s.tokens).first(static_cast<size_t>(s.n_past));
        const std::span<const int32_t> now = std::span(s.tokens).subspan(static_cast<size_t>(s.n_past));
        for (const bool is_alone : {true, false}) {
          KvCache cache = t.cache(plan, 250, kv_type);
          if (!past.empty()) run(t, cache, past, 50);
          if (!is_alone) {
            batch.push_back({&caches.emplace_back(std::move(cache)), std::ssize(tokens), s.n_rows});
            tokens.insert(tokens.end(), now.begin(), now.end());
            continue;
          }
          const BatchSequence one{&cache, 0, s.n_rows};
          t.model->forward({now, std::span(&one, 1)});
          const int64_t last[] = {s.n_rows - 1};
          s.alone.resize(static_cast<size_t>(vocab), NAN);
          t.model->logits(last, s.alone.data());
        }
      }
      t.model->forward({tokens, batch});
      std::vector<int64_t> rows;
      for (const BatchSequence& sequence : batch) rows.push_back(sequence.first_row + sequence.n_rows - 1);
      std::vector<float> together(rows.size() * static_cast<size_t>(vocab), NAN);
      t.model->logits(rows, together.data());
      for (size_t i = 0; i < sequences.size(); ++i) {
        SCOPED_TRACE(testing::Message() << "sequence " << i);
        EXPECT_EQ(batch[i].cache->n_tokens(), sequences[i].n_past + sequences[i].n_rows);
        ASSERT_NO_FATAL_FAILURE(
            expect_same_bits(std::span(together).subspan(i * static_cast<size_t>(vocab), static_cast<size_t>(vocab)),
                             sequences[i].alone));
      }
    }
}

// A later token changes no earlier logits; a cleared cache starts anew in the same memory. To the bit.
TEST(Transformer, CausalAndRepeatable) {
  TinyModel t(tiny("llama"), 2);
  std::vector<int32_t> tokens = random_tokens(t, 120, 6);
  const SpanPlan plan = mixed_plan(t.model->config(), 4);
  KvCache cache = t.cache(plan, 120);
  const std::vector<float> first = run(t, cache, tokens, 120);
  cache.clear();
  const std::vector<float> second = run(t, cache, tokens, 120);
  ASSERT_NO_FATAL_FAILURE(expect_same_bits(second, first));
  tokens[100] = (tokens[100] + 1) % 256;
  cache.clear();
  const std::vector<float> changed = run(t, cache, tokens, 120);
  const size_t before = static_cast<size_t>(100 * t.config.vocab_size);
  ASSERT_NO_FATAL_FAILURE(expect_same_bits(std::span(changed).first(before), std::span(first).first(before)));
  EXPECT_GT(relative_error(std::span(changed).subspan(before), std::span(first).subspan(before)), 1e-3);
}

// Chunks of every length and cache type in one model: what one leaves in the working memory must not reach another, not
// even through a weight of 0 (0 * NaN).
TEST(Transformer, ChunksLeaveNothingBehind) {
  TinyModel t(tiny("llama"), 1);
  const SpanPlan plan = mixed_plan(t.model->config(), 4);
  const std::vector<int32_t> tokens = random_tokens(t, 200, 8);
  for (const int64_t chunk : {200, 97, 50, 19, 33, 177, 131})
    for (const KvType type : {KvType::kF16, KvType::kQ8, KvType::kBF16, KvType::kQ8}) {
      SCOPED_TRACE(testing::Message() << "chunk " << chunk << " cache " << kv_type_name(type));
      TinyModel fresh(t.config, 1);
      ASSERT_NO_FATAL_FAILURE(
          expect_same_bits(run(t, plan, tokens, chunk, type), run(fresh, plan, tokens, chunk, type)));
    }
}

// Every weight type runs, and stays near the reference that keeps its activations as they are.
TEST(Transformer, EveryWeightTypeMatchesReference) {
  for (const DTypeInfo& info : all_dtypes()) {
    SCOPED_TRACE(info.name);
    RandomModelConfig config = tiny("llama", info.type, 8, 2);
    config.n_layers = 1, config.d_ff = 256, config.vocab_size = 260;
    if (info.type == DType::kF32) config.d_model = 256, config.head_dim = 32;
    TinyModel t(config, 1);
    const std::vector<int32_t> tokens = random_tokens(t, 5, 7);
    const std::vector<AttentionSpan> spans(8, {5, 0});
    Vector expected;
    for (const Vector& row : TransformerReference(t.model->file(), t.model->config()).logits(tokens, spans))
      expected.insert(expected.end(), row.begin(), row.end());
    const SpanPlan dense = SpanPlan::dense(t.model->config().head_shape());
    EXPECT_LT(worst_error(run(t, dense, tokens, 1), expected, config.vocab_size), info.block_len == 1 ? 5e-4 : 2e-2);
    EXPECT_LT(worst_error(run(t, dense, tokens, 5), expected, config.vocab_size), info.block_len == 1 ? 5e-4 : 2e-2);
  }
}

}  // namespace
}  // namespace polyspan
