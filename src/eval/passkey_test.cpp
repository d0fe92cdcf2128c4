// Pass-key prompts: their exact length, what is in them, and what is refused; the evaluation on a random model.
#include "eval/passkey.h"

#include <set>

#include "engine/engine_test_util.h"
#include "engine/sampler.h"

namespace polyspan {
namespace {
using namespace testing_util;

constexpr int64_t kAnswerTokens = 8;  // that a prompt leaves for the answer

std::string natural_text() {
  std::string text;
  for (int i = 0; i < 400; ++i) text += "Sentence number " + std::to_string(i) + " says nothing. ";
  return text;
}

size_t count(std::string_view text, std::string_view wanted) {
  size_t n = 0;
  for (size_t at = text.find(wanted); at != text.npos; at = text.find(wanted, at + 1)) ++n;
  return n;
}

TEST(Passkey, PromptsHaveTheirLengthAndTheirKey) {
  const TinyEngine tiny;
  const std::string natural = natural_text();
  for (const bool has_format : {true, false}) {
    const PasskeyGenerator generator(tiny->tokenizer(), has_format ? &tiny->chat_format() : nullptr, natural);
    for (const FillerKind kind : {FillerKind::kRepeated, FillerKind::kNatural})
      for (const int64_t n_tokens : {600, 601, 777, 1024, 4000})
        for (uint64_t seed = 0; seed < 5; ++seed) {
          SCOPED_TRACE(testing::Message() << "format " << has_format << " kind " << static_cast<int>(kind)
                                          << " n_tokens " << n_tokens << " seed " << seed);
          const PasskeyPrompt prompt = generator.make(kind, n_tokens, seed);
          EXPECT_EQ(std::ssize(prompt.tokens), n_tokens - kAnswerTokens);
          EXPECT_GE(prompt.depth, 0.0);
          EXPECT_LE(prompt.depth, 1.0);
          ASSERT_EQ(prompt.key.size(), 5u);
          EXPECT_EQ(prompt.key.find_first_not_of("0123456789"), std::string::npos) << prompt.key;
          EXPECT_NE(prompt.key[0], '0') << prompt.key;
          const std::string text = tiny->tokenizer().decode(prompt.tokens, /*with_special=*/true);
          EXPECT_EQ(
              count(text, "The pass key is " + prompt.key + ". Remember it. " + prompt.key + " is the pass key. "), 1u);
          EXPECT_EQ(count(text, prompt.key), 2u);
          EXPECT_EQ(count(text, "What is the pass key?"), 1u);
          EXPECT_TRUE(text.ends_with("The pass key is ")) << text.substr(text.size() - 40);
          EXPECT_EQ(text.starts_with("<|im_start|>system\n"), has_format) << text.substr(0, 40);
          EXPECT_EQ(count(text, "\x01"), 0u);
          EXPECT_GT(count(text, kind == FillerKind::kRepeated ? "The grass is green." : "says nothing."), 2u);
          // The depth is where the key stands between what is before and after the filler.
          const double at = static_cast<double>(text.find("The pass key is")) / static_cast<double>(text.size());
          EXPECT_NEAR(at, prompt.depth, 0.5);
        }
  }
}

TEST(Passkey, PromptsFollowTheSeed) {
  const TinyEngine tiny;
  const PasskeyGenerator generator(tiny->tokenizer(), &tiny->chat_format(), natural_text());
  std::set<std::string> keys, beginnings;  // of the natural filler: from anywhere in the text
  for (const FillerKind kind : {FillerKind::kRepeated, FillerKind::kNatural}) {
    double least = 1, most = 0;
    for (uint64_t seed = 0; seed < 30; ++seed) {
      const PasskeyPrompt prompt = generator.make(kind, 1500, seed), again = generator.make(kind, 1500, seed);
      EXPECT_EQ(prompt.tokens, again.tokens) << "seed " << seed;
      EXPECT_EQ(prompt.key, again.key) << "seed " << seed;
      EXPECT_EQ(prompt.depth, again.depth) << "seed " << seed;
      keys.insert(prompt.key);
      const std::string text = tiny->tokenizer().decode(prompt.tokens);
      const size_t filler = text.find("information there.\n");
      ASSERT_NE(filler, std::string::npos);
      if (kind == FillerKind::kNatural) beginnings.insert(text.substr(filler, 50));
      least = std::min(least, prompt.depth);
      most = std::max(most, prompt.depth);
    }
    EXPECT_LT(least, 0.25);  // 30 uniform depths: all above with a chance of 2e-4
    EXPECT_GT(most, 0.75);
  }
  EXPECT_GE(beginnings.size(), 20u);
  EXPECT_GE(keys.size(), 59u);  // of 60 draws among 90,000
  EXPECT_NE(generator.make(FillerKind::kRepeated, 1500, 1).key, generator.make(FillerKind::kRepeated, 1501, 1).key);
}

TEST(Passkey, LengthsThatCannotBeServed) {
  const TinyEngine tiny;
  const PasskeyGenerator generator(tiny->tokenizer(), &tiny->chat_format(), natural_text());
  const PasskeyGenerator no_text(tiny->tokenizer(), &tiny->chat_format(), "");
  for (const FillerKind kind : {FillerKind::kRepeated, FillerKind::kNatural})
    for (const int64_t n_tokens : {int64_t{-5}, int64_t{0}, int64_t{1}, int64_t{100}})
      expect_error([&] { generator.make(kind, n_tokens, 1); }, ErrorKind::kBadInput,
                   {std::to_string(n_tokens), "needs"});
  expect_error([&] { generator.make(FillerKind::kNatural, 100000, 1); }, ErrorKind::kBadInput, {"100000", "--text"});
  expect_error([&] { no_text.make(FillerKind::kNatural, 1000, 1); }, ErrorKind::kBadInput, {"0 tokens", "--text"});
  EXPECT_EQ(std::ssize(no_text.make(FillerKind::kRepeated, 1000, 1).tokens), 1000 - kAnswerTokens);
  // The shortest prompt that has filler.
  int64_t least = 100;
  for (;; ++least) try {
      generator.make(FillerKind::kRepeated, least, 1);
      break;
    } catch (const Error&) {
      ASSERT_LT(least, 2000);
    }
  EXPECT_EQ(std::ssize(generator.make(FillerKind::kRepeated, least, 1).tokens), least - kAnswerTokens);
  EXPECT_EQ(std::ssize(generator.make(FillerKind::kNatural, least, 1).tokens), least - kAnswerTokens);
}

// A random model finds nothing; the counts, lengths and bytes are those asked for, and the work is told.
TEST(Passkey, EvaluatesEveryCell) {
  struct Record final : Progress {
    int64_t total = 0, done = 0;
    void start(std::string_view, int64_t n) override { total = n; }
    void update(int64_t n) override { done = n; }
  } progress;
  const TinyEngine tiny;
  const SpanPlan plan = tiny.uniform(0.5);
  PasskeyOptions options;
  options.lengths = {600, 800};
  options.n_samples = 2;
  options.kv_type = KvType::kQ8;
  const std::vector<PasskeyRow> rows = evaluate_passkey(*tiny, plan, natural_text(), options, progress);
  ASSERT_EQ(rows.size(), 2u);
  for (size_t i = 0; i < rows.size(); ++i) {
    EXPECT_EQ(rows[i].length, options.lengths[i]);
    EXPECT_EQ(rows[i].repeated.n, 2);
    EXPECT_EQ(rows[i].natural.n, 2);
    EXPECT_EQ(rows[i].accuracy(), 0.0);
    EXPECT_EQ(rows[i].kv_bytes, KvLayout(tiny->config(), plan, options.lengths[i], KvType::kQ8).bytes);
  }
  EXPECT_EQ(progress.total, 2 * 2 * 1400);
  EXPECT_EQ(progress.done, progress.total);
}

// What cannot be served at the last length is said before the first is computed.
TEST(Passkey, ChecksAllLengthsFirst) {
  struct Record final : Progress {
    bool has_started = false;
    void start(std::string_view, int64_t) override { has_started = true; }
  } progress;
  const TinyEngine tiny;
  for (const int64_t length : {int64_t{50}, int64_t{4097}, INT64_MAX}) {
    PasskeyOptions options;
    options.lengths = {600, length};
    expect_error([&] { evaluate_passkey(*tiny, tiny.dense(), natural_text(), options, progress); },
                 ErrorKind::kBadInput, {std::to_string(length)});
  }
  PasskeyOptions options;
  options.lengths = {600};
  expect_error([&] { evaluate_passkey(*tiny, tiny.dense(), "too short", options, progress); }, ErrorKind::kBadInput,
               {"--text"});
  EXPECT_FALSE(progress.has_started);
}

}  // namespace
}  // namespace polyspan
