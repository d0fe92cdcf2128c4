// Pass-key prompts: their exact length, what is in them, and what is refused; the evaluation on a random model.
#include "eval/passkey.h"

#include <map>
#include <set>
#include <tuple>

#include "eval/eval_test_util.h"
#include "eval/summary.h"
#include "eval/words.h"

namespace polyspan {
namespace {
using namespace testing_util;

constexpr int64_t kAnswerTokens = 8;  // that a prompt leaves for the answer

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
              count(text, "The pass key is " + prompt.key + ". Remember it. " + prompt.key + " is the pass key. "), 1);
          EXPECT_EQ(count(text, prompt.key), 2);
          EXPECT_EQ(count(text, "What is the pass key?"), 1);
          EXPECT_TRUE(text.ends_with("The pass key is ")) << text.substr(text.size() - 40);
          EXPECT_EQ(text.starts_with("<|im_start|>system\n"), has_format) << text.substr(0, 40);
          EXPECT_EQ(count(text, "\x01"), 0);
          EXPECT_GT(count(text, kind == FillerKind::kRepeated ? "The grass is green." : "says nothing."), 2);
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

// The default prompts do not change: calibration and published figures stand on them. Hashes by the first version.
TEST(Passkey, DefaultPromptsStay) {
  struct Case {
    bool has_format;
    FillerKind kind;
    int64_t n_tokens;
    uint64_t seed;
    const char* key;
    uint64_t hash;  // FNV-1a over the token ids
  };
  const Case cases[] = {
      {true, FillerKind::kRepeated, 700, 1, "90989", 12754787115848129340u},
      {true, FillerKind::kNatural, 700, 1, "36376", 17878565610346708217u},
      {false, FillerKind::kRepeated, 700, 7919, "10625", 5009327657760240966u},
      {false, FillerKind::kNatural, 700, 55, "52530", 10974155969749684084u},
  };
  const TinyEngine tiny;
  for (const Case& c : cases) {
    const PasskeyPrompt prompt =
        PasskeyGenerator(tiny->tokenizer(), c.has_format ? &tiny->chat_format() : nullptr, natural_text())
            .make(c.kind, c.n_tokens, c.seed);
    uint64_t hash = 1469598103934665603u;
    for (const TokenId token : prompt.tokens) hash = (hash ^ static_cast<uint64_t>(token)) * 1099511628211u;
    EXPECT_EQ(prompt.key, c.key);
    EXPECT_EQ(hash, c.hash) << "key " << c.key;
  }
}

// Several keys: each is in the prompt once, under its own name, and one is asked for.
TEST(Passkey, SeveralKeys) {
  const TinyEngine tiny;
  const PasskeyGenerator generator(tiny->tokenizer(), &tiny->chat_format(), natural_text());
  for (const FillerKind kind : {FillerKind::kRepeated, FillerKind::kNatural})
    for (const int64_t n_keys : {2, 4, 7})
      for (uint64_t seed = 0; seed < 5; ++seed) {
        SCOPED_TRACE(testing::Message() << "kind " << static_cast<int>(kind) << " n_keys " << n_keys << " seed "
                                        << seed);
        const PasskeyPrompt prompt = generator.make(kind, 2000, seed, {.n_keys = n_keys});
        EXPECT_EQ(std::ssize(prompt.tokens), 2000 - kAnswerTokens);
        const std::string text = tiny->tokenizer().decode(prompt.tokens);
        const std::string of_name = "pass key of " + prompt.name;
        EXPECT_EQ(count(text, "The " + of_name + " is " + prompt.key + ". Remember it. " + prompt.key + " is the " +
                                  of_name + ". "),
                  1);
        EXPECT_EQ(count(text, ". Remember it. "), n_keys);
        EXPECT_EQ(count(text, prompt.key), 2);
        EXPECT_EQ(count(text, "What is the " + of_name + "?"), 1);
        EXPECT_TRUE(text.ends_with("The " + of_name + " is ")) << text.substr(text.size() - 40);
        int64_t n_named = 0;
        for (const std::string_view name : nouns())
          n_named += count(text, "pass key of " + std::string(name) + ". ") == 1;
        EXPECT_EQ(n_named, n_keys);
        EXPECT_EQ(prompt.tokens, generator.make(kind, 2000, seed, {.n_keys = n_keys}).tokens);
      }
  for (const int64_t n_keys : {int64_t{-1}, int64_t{0}, PasskeyGenerator::most_keys() + 1})
    expect_error([&] { generator.make(FillerKind::kRepeated, 2000, 1, {.n_keys = n_keys}); }, ErrorKind::kBadInput,
                 {std::to_string(n_keys), "1 to"});
}

// A depth moves the key and nothing else; 0 is right after the instruction, 1 right before the question.
TEST(Passkey, Depths) {
  const TinyEngine tiny;
  const PasskeyGenerator generator(tiny->tokenizer(), &tiny->chat_format(), natural_text());
  for (const FillerKind kind : {FillerKind::kRepeated, FillerKind::kNatural}) {
    const PasskeyPrompt anywhere = generator.make(kind, 3000, 5);
    const std::string needle =
        "The pass key is " + anywhere.key + ". Remember it. " + anywhere.key + " is the pass key. ";
    const auto without_needle = [&](const PasskeyPrompt& prompt) {
      std::string text = tiny->tokenizer().decode(prompt.tokens);
      text.erase(text.find(needle), needle.size());
      return text;
    };
    for (const double depth : {0.0, 0.25, 0.5, 0.75, 1.0}) {
      const PasskeyPrompt prompt = generator.make(kind, 3000, 5, {.depth = depth});
      EXPECT_EQ(prompt.key, anywhere.key);
      EXPECT_NEAR(prompt.depth, depth, 0.04);  // a repetition is 3% of the filler
      EXPECT_EQ(without_needle(prompt), without_needle(anywhere));
      const std::string text = tiny->tokenizer().decode(prompt.tokens);
      const double begin = static_cast<double>(text.find("information there.\n") + 19),
                   end = static_cast<double>(text.find("\nWhat is")) - static_cast<double>(needle.size());
      EXPECT_NEAR((static_cast<double>(text.find(needle)) - begin) / (end - begin), prompt.depth, 0.02);
    }
    EXPECT_EQ(generator.make(kind, 3000, 5, {.depth = 0.0}).depth, 0.0);
  }
}

// Every cell has its prompts, of its length and with its key.
TEST(Passkey, Items) {
  const TinyEngine tiny;
  PasskeyOptions options;
  options.lengths = {600, 800};
  options.n_samples = 2;
  options.n_depths = 3;
  const std::vector<PromptItem> items = passkey_items(*tiny, natural_text(), options);
  ASSERT_EQ(items.size(), 2u * 2 * 3 * 2);
  std::map<std::tuple<int64_t, std::string, double>, int> cells;
  std::set<std::string> keys;
  for (const PromptItem& item : items) {
    ++cells[{item.row_length, item.kind, item.depth.value()}];
    keys.insert(item.wanted.at(0));
    EXPECT_EQ(std::ssize(item.tokens) + item.max_new_tokens, item.planned_length);
    EXPECT_EQ(item.planned_length, item.row_length);
    EXPECT_EQ(item.rule, ScoreRule::kStartsWith);
    EXPECT_EQ(count(tiny->tokenizer().decode(item.tokens), item.wanted[0]), 2);
  }
  EXPECT_EQ(cells.size(), 12u);
  for (const auto& [cell, n] : cells) EXPECT_EQ(n, 2);
  EXPECT_EQ(keys.size(), items.size());
  options.n_depths = 0;
  EXPECT_FALSE(passkey_items(*tiny, natural_text(), options)[0].depth);
  options.n_depths = 1;
  EXPECT_EQ(passkey_items(*tiny, natural_text(), options)[0].depth, 0.5);
}

// What cannot be served is said before any prompt is made.
TEST(Passkey, ChecksAllLengthsFirst) {
  const TinyEngine tiny;
  for (const int64_t length : {int64_t{50}, int64_t{4097}, INT64_MAX}) {
    PasskeyOptions options;
    options.lengths = {600, length};
    expect_error([&] { passkey_items(*tiny, natural_text(), options); }, ErrorKind::kBadInput,
                 {std::to_string(length)});
  }
  PasskeyOptions options;
  options.lengths = {600};
  expect_error([&] { passkey_items(*tiny, "too short", options); }, ErrorKind::kBadInput, {"--text"});
}

}  // namespace
}  // namespace polyspan
