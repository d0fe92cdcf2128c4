// The engine on tiny random models: steps of several sequences against each alone, scoring, and what is refused.
#include "engine/engine.h"

#include "engine/engine_test_util.h"

namespace polyspan {
namespace {
using namespace testing_util;

// Sequences at different places of their lives: n_past tokens are fed before, n_new in the step of all.
struct Life {
  int64_t n_past, n_new;
};

struct Together {
  std::vector<std::vector<float>> alone, together;
};

// Feeds the new tokens in one step and, to sequences of their own, one after another.
Together run_both_ways(const TinyEngine& tiny, const SpanPlan& plan, KvType type, std::span<const Life> lives) {
  Together result;
  const size_t vocab = static_cast<size_t>(tiny->config().vocab_size);
  std::vector<std::vector<TokenId>> tokens;
  std::vector<std::unique_ptr<Sequence>> sequences;
  std::vector<StepRequest> requests;
  result.together.assign(lives.size(), std::vector<float>(vocab, NAN));
  for (size_t i = 0; i < lives.size(); ++i) {
    const auto& [n_past, n_new] = lives[i];
    tokens.push_back(tiny.random_tokens(n_past + n_new, 100 + i));
    const std::span<const TokenId> all = tokens.back();
    const auto past = all.first(static_cast<size_t>(n_past)), fresh = all.subspan(static_cast<size_t>(n_past));
    for (const bool is_alone : {true, false}) {
      std::unique_ptr<Sequence> sequence = tiny->new_sequence(plan, n_past + n_new + 3, type);
      if (n_past > 0) tiny.feed(*sequence, past);
      if (is_alone) {
        result.alone.push_back(tiny.feed(*sequence, fresh));
      } else {
        requests.push_back({sequence.get(), fresh, result.together[i].data()});
        sequences.push_back(std::move(sequence));
      }
    }
  }
  tiny->step(requests);
  for (size_t i = 0; i < lives.size(); ++i) {
    EXPECT_EQ(sequences[i]->tokens(), tokens[i]) << "sequence " << i;
    EXPECT_EQ(sequences[i]->n_tokens(), lives[i].n_past + lives[i].n_new) << "sequence " << i;
    EXPECT_EQ(sequences[i]->room(), 3) << "sequence " << i;
  }
  return result;
}

// Where all new tokens fit one pass, a sequence gets the logits that it gets alone, to the bit.
TEST(Engine, OnePassEqualsEachAlone) {
  const Life lives[] = {{70, 1}, {0, 130}, {200, 1}, {150, 33}, {0, 1}, {90, 2}, {300, 64}};  // 232 new tokens
  for (const DType type : {DType::kF32, DType::kQ4_1}) {
    const TinyEngine tiny(tiny_engine_config(type));
    for (const KvType kv_type : {KvType::kF16, KvType::kQ8})
      for (const double density : {1.0, 0.5}) {
        SCOPED_TRACE(testing::Message() << dtype_name(type) << " cache " << kv_type_name(kv_type) << " density "
                                        << density);
        const Together both = run_both_ways(tiny, tiny.uniform(density, 16), kv_type, lives);
        for (size_t i = 0; i < std::size(lives); ++i) {
          SCOPED_TRACE(testing::Message() << "sequence " << i);
          ASSERT_NO_FATAL_FAILURE(expect_same_bits(both.together[i], both.alone[i]));
        }
      }
  }
}

// Where they do not, prompts are cut at other places than alone: the same within rounding (F32 weights, sums of
// floats).
TEST(Engine, SeveralPassesEqualEachAlone) {
  const TinyEngine tiny;
  ASSERT_EQ(tiny->model().max_batch_tokens(), 512);
  const std::vector<std::vector<Life>> cases = {{{0, 700}, {40, 1}},            // longer than a pass by itself
                                                {{40, 1}, {0, 512}, {100, 1}},  // a pass to the token, and one more
                                                {{0, 511}, {0, 1}, {70, 1}},    // the pass is full after the second
                                                {{100, 300}, {50, 1}, {0, 300}, {130, 1}, {0, 450}}};
  for (size_t c = 0; c < cases.size(); ++c)
    for (const double density : {1.0, 0.4}) {
      const Together both = run_both_ways(tiny, tiny.uniform(density), KvType::kF16, cases[c]);
      for (size_t i = 0; i < cases[c].size(); ++i)
        EXPECT_LT(relative_error(both.together[i], both.alone[i]), 1e-4)
            << "case " << c << " density " << density << " sequence " << i;
    }
}

TEST(Engine, LogitsAreOptional) {
  const TinyEngine tiny;
  const std::vector<TokenId> tokens = tiny.random_tokens(20, 1);
  const auto with = tiny->new_sequence(tiny.dense(), 30, KvType::kF16),
             without = tiny->new_sequence(tiny.dense(), 30, KvType::kF16);
  std::vector<float> logits(270, NAN);
  const StepRequest requests[] = {{without.get(), tokens, nullptr}, {with.get(), tokens, logits.data()}};
  tiny->step(requests);
  const TokenId next[] = {7};
  expect_same_bits(tiny.feed(*without, next), tiny.feed(*with, next));
  const auto fresh = tiny->new_sequence(tiny.dense(), 30, KvType::kF16);
  expect_same_bits(logits, tiny.feed(*fresh, tokens));
}

// Nothing is computed, and nothing changed, when one of several requests cannot be served.
TEST(Engine, RefusedStepChangesNothing) {
  const TinyEngine tiny;
  const std::vector<TokenId> tokens = tiny.random_tokens(10, 2);
  const auto first = tiny->new_sequence(tiny.dense(), 16, KvType::kF16),
             second = tiny->new_sequence(tiny.dense(), 16, KvType::kF16);
  tiny.feed(*first, tokens);
  struct Case {
    std::vector<TokenId> tokens;
    std::vector<std::string> mentions;
  };
  const Case cases[] = {{{}, {"empty"}},
                        {std::vector<TokenId>(7, 1), {"7 more tokens", "10 of 16"}},
                        {std::vector<TokenId>(100000, 1), {"100000", "16"}},
                        {{1, -1}, {"token -1", "270"}},
                        {{270, 1}, {"token 270", "270"}},
                        {{1, 2, 2147483647}, {"token 2147483647"}}};
  for (const Case& c : cases) {
    SCOPED_TRACE(c.mentions[0]);
    std::vector<float> logits(270, 5.0f);
    const StepRequest requests[] = {{second.get(), tokens, logits.data()}, {first.get(), c.tokens, logits.data()}};
    expect_error([&] { tiny->step(requests); }, ErrorKind::kBadInput, c.mentions);
    expect_error([&] { tiny->score(*first, c.tokens, 0, [](int64_t, std::span<const float>, int64_t) { FAIL(); }); },
                 ErrorKind::kBadInput, c.mentions);
    EXPECT_EQ(first->tokens(), tokens);
    EXPECT_EQ(first->n_tokens(), 10);
    EXPECT_EQ(second->n_tokens(), 0);
    EXPECT_TRUE(second->tokens().empty());
    EXPECT_EQ(logits, std::vector<float>(270, 5.0f));
  }
  // And both go on as if nothing had been.
  const auto fresh = tiny->new_sequence(tiny.dense(), 16, KvType::kF16);
  tiny.feed(*fresh, tokens);
  const TokenId next[] = {3, 4, 5, 6, 7, 8};  // to the last slot
  expect_same_bits(tiny.feed(*first, next), tiny.feed(*fresh, next));
  EXPECT_EQ(first->room(), 0);
}

TEST(Engine, ScoreGivesTheLogitsOfSteps) {
  const TinyEngine tiny;
  constexpr int64_t kPast = 5, kTokens = 560;  // more than one pass
  const std::vector<TokenId> tokens = tiny.random_tokens(kPast + kTokens, 3);
  const std::span<const TokenId> past = std::span(tokens).first(kPast), fresh = std::span(tokens).subspan(kPast);
  const SpanPlan plan = tiny.uniform(0.5);
  const auto stepped = tiny->new_sequence(plan, kPast + kTokens, KvType::kF16);
  tiny.feed(*stepped, past);
  std::vector<std::vector<float>> expected;
  for (int64_t i = 0; i < kTokens; ++i)
    expected.push_back(tiny.feed(*stepped, fresh.subspan(static_cast<size_t>(i), 1)));
  for (const int64_t visit_from : {int64_t{0}, int64_t{1}, int64_t{280}, int64_t{512}, kTokens - 1, kTokens}) {
    SCOPED_TRACE(testing::Message() << "visit_from " << visit_from);
    const auto sequence = tiny->new_sequence(plan, kPast + kTokens, KvType::kF16);
    tiny.feed(*sequence, past);
    int64_t next = visit_from;
    double worst = 0;
    tiny->score(*sequence, fresh, visit_from, [&](int64_t first, std::span<const float> logits, int64_t n) {
      ASSERT_EQ(first, next);
      ASSERT_EQ(std::ssize(logits), n * 270);
      for (int64_t i = 0; i < n; ++i)
        worst = std::max(worst, relative_error(logits.subspan(static_cast<size_t>(i) * 270, 270),
                                               expected[static_cast<size_t>(first + i)]));
      next += n;
    });
    EXPECT_EQ(next, kTokens);
    EXPECT_LT(worst, 1e-4);
    EXPECT_EQ(sequence->tokens(), tokens);
  }
}

TEST(Engine, ScoresOfTargetsAreThoseOfTheirRows) {
  const TinyEngine tiny;
  constexpr int64_t kTokens = 560;  // more than one pass
  const std::vector<TokenId> tokens = tiny.random_tokens(kTokens, 3);
  const SpanPlan plan = tiny.uniform(0.5);
  std::vector<int64_t> targets = {1, 2, 511, 512, 513, kTokens - 1};
  for (int64_t target = 100; target < 180; target += 2) targets.push_back(target);  // more rows than are scored at once
  std::sort(targets.begin(), targets.end());
  const auto sequence = tiny->new_sequence(plan, kTokens, KvType::kF16),
             other = tiny->new_sequence(plan, kTokens, KvType::kF16);
  const std::vector<TargetScore> scores = tiny->score_targets(*sequence, tokens, targets);
  EXPECT_EQ(sequence->tokens(), tokens);
  ASSERT_EQ(scores.size(), targets.size());
  size_t at = 0;
  tiny->score(*other, tokens, 0, [&](int64_t first, std::span<const float> logits, int64_t n) {
    for (; at < targets.size() && targets[at] - 1 < first + n; ++at) {
      const TargetScore expected =
          score_target(logits.data() + (targets[at] - 1 - first) * 270, 270, tokens[static_cast<size_t>(targets[at])]);
      EXPECT_EQ(scores[at].log_probability, expected.log_probability) << targets[at];
      EXPECT_EQ(scores[at].is_best, expected.is_best) << targets[at];
    }
  });
  EXPECT_EQ(at, targets.size());
}

TEST(Engine, ProgressReachesTheTotal) {
  struct Record final : Progress {
    int64_t total = -1, done = -1, n_finished = 0;
    void start(std::string_view, int64_t n) override { total = n; }
    void update(int64_t n) override {
      EXPECT_GT(n, done);
      done = n;
    }
    void finish() override { ++n_finished; }
  } progress;
  const TinyEngine tiny;
  const std::vector<TokenId> tokens = tiny.random_tokens(600, 4);
  const auto a = tiny->new_sequence(tiny.dense(), 600, KvType::kF16),
             b = tiny->new_sequence(tiny.dense(), 600, KvType::kF16);
  const StepRequest requests[] = {{a.get(), tokens, nullptr}, {b.get(), std::span(tokens).first(9), nullptr}};
  tiny->step(requests, progress);
  EXPECT_EQ(progress.total, 609);
  EXPECT_EQ(progress.done, 609);
  EXPECT_EQ(progress.n_finished, 1);
}

TEST(Engine, SequenceLimits) {
  RandomModelConfig config = tiny_engine_config();
  const TinyEngine tiny(config);
  const int64_t most = config.context_length;
  EXPECT_EQ(tiny->new_sequence(tiny.dense(), 1, KvType::kF16)->room(), 1);
  EXPECT_EQ(tiny->new_sequence(tiny.dense(), most, KvType::kF16)->room(), most);
  for (const int64_t length : {int64_t{0}, int64_t{-1}, INT64_MIN})
    expect_error([&] { tiny->new_sequence(tiny.dense(), length, KvType::kF16); }, ErrorKind::kBadInput,
                 {std::to_string(length)});
  for (const int64_t length : {most + 1, INT64_MAX})
    expect_error([&] { tiny->new_sequence(tiny.dense(), length, KvType::kF16); }, ErrorKind::kBadInput,
                 {std::to_string(length), std::to_string(most)});

  config.context_length = int64_t{1} << 31;
  config.n_layers = 32;  // 2^31 tokens x 32 layers x 2 KV heads x 16 values x 2 (keys and values) x 2 bytes: 8 TiB
  const TinyEngine huge(config);
  const int64_t needed = KvLayout(huge->config(), huge.dense(), config.context_length, KvType::kF16).bytes;
  EXPECT_EQ(needed, int64_t{1} << 43);
  expect_error([&] { huge->new_sequence(huge.dense(), config.context_length, KvType::kF16); }, ErrorKind::kOutOfMemory,
               {std::to_string(needed), "available"});
}

TEST(Engine, Load) {
  const TinyEngine tiny;
  const std::filesystem::path folder = tiny->model().file().path().parent_path();
  for (const int n_threads : {0, -1, 1025})
    expect_error([&] { Engine::load(folder / "tiny.gguf", n_threads); }, ErrorKind::kUsage,
                 {std::to_string(n_threads)});
  expect_error([&] { Engine::load(folder / "missing.gguf", 1); }, ErrorKind::kIo, {"missing.gguf"});
  EXPECT_TRUE(tiny->has_chat_format());
  EXPECT_EQ(tiny->chat_format().kind(), ChatFormatKind::kChatML);
  const TinyEngine plain(tiny_engine_config(), "");
  EXPECT_FALSE(plain->has_chat_format());
  expect_error([&] { plain->chat_format(); }, ErrorKind::kUnsupported, {"no chat template"});
  const TinyEngine strange(tiny_engine_config(), "{{ 'nobody knows this' }}");
  EXPECT_FALSE(strange->has_chat_format());
  expect_error([&] { strange->chat_format(); }, ErrorKind::kUnsupported, {"nobody knows this"});
}

}  // namespace
}  // namespace polyspan
