// Generation on a tiny random model, and stop strings by themselves.
#include "engine/generate.h"

#include "engine/engine_test_util.h"

namespace polyspan {
namespace {
using namespace testing_util;

// The definition: reading byte by byte, the first stop string that is complete ends the text; the longest of several.
struct Stopped {
  std::string text;
  bool stopped = false;
};
Stopped stop_by_definition(const std::string& text, const std::vector<std::string>& stops) {
  for (size_t end = 1; end <= text.size(); ++end) {
    size_t longest = 0;
    for (const std::string& stop : stops)
      if (stop.size() <= end && text.compare(end - stop.size(), stop.size(), stop) == 0)
        longest = std::max(longest, stop.size());
    if (longest > 0) return {text.substr(0, end - longest), true};
  }
  return {text, false};
}

TEST(StopMatcher, EverySplitGivesTheSame) {
  const std::vector<std::vector<std::string>> stop_lists = {{},
                                                            {""},
                                                            {"b"},
                                                            {"ab"},
                                                            {"abc", "b"},
                                                            {"abc", "ab"},
                                                            {"bc", "abc"},
                                                            {"aab"},
                                                            {"aa", "aaa"},
                                                            {"aaa", "aa"},
                                                            {"abab", "bb"},
                                                            {"abcd", "bcx"},
                                                            {"zz", "", "ca"},
                                                            {"cab", "abca", "bcab"},
                                                            {"abcabcabcabcabc"},
                                                            {"aab", "ab", "b"}};
  const std::string texts[] = {"",     "a",        "b",      "ab",      "aab",        "xabc",
                               "aaaa", "abcabcab", "aabaab", "ababbab", "bcabcxbcab", "acabbaacab"};
  for (const auto& stops : stop_lists)
    for (const std::string& text : texts) {
      const Stopped expected = stop_by_definition(text, stops);
      const uint32_t n_splits = text.empty() ? 1 : 1u << (text.size() - 1);
      for (uint32_t cuts = 0; cuts < n_splits; ++cuts) {
        StopMatcher matcher(stops);
        std::string given, piece;
        for (size_t i = 0; i < text.size(); ++i) {
          piece += text[i];
          if (i + 1 < text.size() && (cuts >> i & 1) == 0) continue;
          given += matcher.push(piece);
          piece.clear();
          // What was given stays given: it must not reach into a stop string.
          ASSERT_TRUE(expected.text.starts_with(given))
              << "text " << text << " cuts " << cuts << " stops " << testing::PrintToString(stops) << " gave " << given;
        }
        given += matcher.finish();
        ASSERT_EQ(given, expected.text) << "text " << text << " cuts " << cuts << " stops "
                                        << testing::PrintToString(stops);
        ASSERT_EQ(matcher.stopped(), expected.stopped)
            << "text " << text << " cuts " << cuts << " stops " << testing::PrintToString(stops);
        EXPECT_EQ(matcher.finish(), "");
        if (expected.stopped) {
          EXPECT_EQ(matcher.push("more"), "");
        }
      }
    }
}

// Text comes as soon as it cannot belong to a stop string any more.
TEST(StopMatcher, HoldsNoMoreThanNeeded) {
  StopMatcher none({});
  EXPECT_EQ(none.push("abc"), "abc");
  StopMatcher matcher({"<end>"});
  EXPECT_EQ(matcher.push("one <"), "one ");
  EXPECT_EQ(matcher.push("en"), "");
  EXPECT_EQ(matcher.push("t"), "<ent");
  EXPECT_EQ(matcher.push("<<en"), "<");
  EXPECT_EQ(matcher.push("d>two"), "");
  EXPECT_TRUE(matcher.stopped());
}

bool is_utf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const auto first = static_cast<uint8_t>(text[i]);
    const size_t n = first < 0x80                    ? 1
                     : first >= 0xC2 && first < 0xE0 ? 2
                     : first >= 0xE0 && first < 0xF0 ? 3
                     : first >= 0xF0 && first < 0xF5 ? 4
                                                     : 0;
    if (n == 0 || i + n > text.size()) return false;
    for (size_t k = 1; k < n; ++k)
      if ((static_cast<uint8_t>(text[i + k]) & 0xC0) != 0x80) return false;
    i += n;
  }
  return true;
}

// One generation from a fresh sequence, every piece of text kept.
struct Generated {
  GenerateResult result;
  std::vector<std::string> pieces;
  std::string joined;
  std::vector<TokenId> fed;
  int64_t room = 0;
};
Generated generate_fresh(const TinyEngine& tiny, std::span<const TokenId> prompt, const GenerateOptions& options,
                         int64_t planned = 1000) {
  Generated g;
  const auto sequence = tiny->new_sequence(tiny.dense(), planned, KvType::kF16);
  g.result = generate(*tiny, *sequence, prompt, options, [&](std::string_view piece) {
    EXPECT_FALSE(piece.empty());
    g.pieces.emplace_back(piece);
    g.joined += piece;
    return true;
  });
  g.fed = sequence->tokens();
  g.room = sequence->room();
  EXPECT_EQ(g.joined, g.result.text);
  return g;
}

// The prompt and all generated tokens but the last are in the cache.
void expect_fed(const Generated& g, std::span<const TokenId> prompt) {
  std::vector<TokenId> expected(prompt.begin(), prompt.end());
  if (!g.result.tokens.empty()) expected.insert(expected.end(), g.result.tokens.begin(), g.result.tokens.end() - 1);
  EXPECT_EQ(g.fed, expected);
  EXPECT_EQ(g.result.n_prompt_tokens, std::ssize(prompt));
  EXPECT_EQ(g.result.n_decode_steps, std::max<int64_t>(0, std::ssize(g.result.tokens) - 1));
}

constexpr SamplingOptions kWild{.temperature = 100, .top_k = 0, .top_p = 1, .min_p = 0};  // any token, nearly evenly

TEST(Generate, GreedyIsTheMostLikelyTokenOfEachStep) {
  const TinyEngine tiny;
  const std::vector<TokenId> prompt = tiny.random_tokens(9, 1);
  const Generated g = generate_fresh(tiny, prompt, {.max_tokens = 40, .ignore_end = true});
  expect_fed(g, prompt);
  const auto sequence = tiny->new_sequence(tiny.dense(), 1000, KvType::kF16);
  std::vector<float> logits = tiny.feed(*sequence, prompt);
  std::vector<TokenId> expected;
  for (int i = 0; i < 40; ++i) {
    expected.push_back(static_cast<TokenId>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
    logits = tiny.feed(*sequence, {&expected.back(), 1});
  }
  EXPECT_EQ(g.result.tokens, expected);
  EXPECT_EQ(g.result.finish_reason, FinishReason::kLength);
}

TEST(Generate, MaxTokensAndRoom) {
  const TinyEngine tiny;
  const std::vector<TokenId> prompt = tiny.random_tokens(7, 2);
  for (const int64_t max_tokens : {-1, 0, 1, 2, 5, 6, 7, 100})
    for (const int64_t planned : {7, 8, 12, 200}) {
      SCOPED_TRACE(testing::Message() << "max_tokens " << max_tokens << " planned " << planned);
      const Generated g = generate_fresh(tiny, prompt, {.max_tokens = max_tokens, .ignore_end = true}, planned);
      // The last token needs no room: it is not fed.
      EXPECT_EQ(std::ssize(g.result.tokens), std::clamp<int64_t>(max_tokens, 0, planned - 7 + 1));
      EXPECT_EQ(g.result.finish_reason, FinishReason::kLength);
      EXPECT_FALSE(g.result.ended_with_token);
      expect_fed(g, prompt);
    }
}

TEST(Generate, EndTokenEndsUnlessIgnored) {
  const TinyEngine tiny;
  const std::vector<TokenId> prompt = tiny.random_tokens(5, 3);
  int n_ended = 0;
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    GenerateOptions options{.max_tokens = 300, .sampling = kWild};
    options.sampling.seed = seed;
    options.ignore_end = true;
    const Generated all = generate_fresh(tiny, prompt, options);
    options.ignore_end = false;
    const Generated g = generate_fresh(tiny, prompt, options);
    const auto first_end = std::find_if(all.result.tokens.begin(), all.result.tokens.end(),
                                        [&](TokenId id) { return tiny->tokenizer().is_end_of_generation(id); });
    const bool ends = first_end != all.result.tokens.end();
    n_ended += ends;
    EXPECT_EQ(std::ssize(all.result.tokens), 300);
    EXPECT_EQ(g.result.tokens, std::vector<TokenId>(all.result.tokens.begin(), ends ? first_end + 1 : first_end));
    EXPECT_EQ(g.result.ended_with_token, ends);
    EXPECT_EQ(g.result.finish_reason, ends ? FinishReason::kStop : FinishReason::kLength);
    EXPECT_TRUE(is_utf8(g.result.text));
    EXPECT_TRUE(all.result.text.starts_with(g.result.text.substr(0, g.result.text.find("\xEF\xBF\xBD"))));
    expect_fed(g, prompt);
  }
  EXPECT_GE(n_ended, 4);  // some two of 270 tokens end an answer: 300 draws hold one nine times of ten
}

// Random bytes hold many characters of two bytes, and more that are cut off or wrong.
TEST(Generate, PiecesAreWholeCharacters) {
  const TinyEngine tiny;
  const std::vector<TokenId> prompt = tiny.random_tokens(5, 4);
  int n_multi_byte = 0, n_replaced = 0;
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    GenerateOptions options{.max_tokens = 300, .sampling = kWild, .stop = {"\xC3\xA9zz"}, .ignore_end = true};
    options.sampling.seed = seed;
    options.stop.resize(seed % 2);  // with and without text that is held back
    const Generated g = generate_fresh(tiny, prompt, options);
    for (const std::string& piece : g.pieces) {
      EXPECT_TRUE(is_utf8(piece)) << "seed " << seed << " piece " << testing::PrintToString(piece);
      for (const char byte : piece)
        n_multi_byte += static_cast<uint8_t>(byte) >= 0xC2 && static_cast<uint8_t>(byte) < 0xE0;
      n_replaced += piece.find("\xEF\xBF\xBD") != std::string::npos;
    }
    // The text is what decoding all tokens at once gives.
    StreamDecoder decoder(tiny->tokenizer());
    std::string expected;
    for (const TokenId id : g.result.tokens) expected += decoder.push(id);
    expected += decoder.finish();
    EXPECT_EQ(g.result.text, expected) << "seed " << seed;
  }
  EXPECT_GT(n_multi_byte, 0);
  EXPECT_GT(n_replaced, 0);
}

TEST(Generate, StopStrings) {
  const TinyEngine tiny;
  const std::vector<TokenId> prompt = tiny.random_tokens(6, 5);
  GenerateOptions options{.max_tokens = 120, .sampling = kWild, .ignore_end = true};
  options.sampling.seed = 3;
  const std::string whole = generate_fresh(tiny, prompt, options).result.text;
  // Pieces of the text itself, between characters.
  const auto cut = [&](size_t begin, size_t end) {
    while (begin < whole.size() && (static_cast<uint8_t>(whole[begin]) & 0xC0) == 0x80) ++begin;
    while (end < whole.size() && (static_cast<uint8_t>(whole[end]) & 0xC0) == 0x80) ++end;
    return whole.substr(begin, end - begin);
  };
  const size_t n = whole.size();
  const std::vector<std::vector<std::string>> cases = {{cut(n / 2, n / 2 + 6)},
                                                       {cut(0, 3)},
                                                       {cut(n - 4, n)},
                                                       {cut(20, 25), cut(22, 24)},
                                                       {cut(40, 44), "not in the text"},
                                                       {cut(30, 40), cut(30, 39), ""},
                                                       {"not in the text"},
                                                       {cut(n - 4, n) + "is held back at the end"}};
  for (const auto& stops : cases) {
    SCOPED_TRACE(testing::PrintToString(stops));
    options.stop = stops;
    const Generated g = generate_fresh(tiny, prompt, options);
    const Stopped expected = stop_by_definition(whole, stops);
    EXPECT_EQ(g.result.text, expected.text);
    EXPECT_EQ(g.result.finish_reason, expected.stopped ? FinishReason::kStop : FinishReason::kLength);
    EXPECT_FALSE(g.result.ended_with_token);
    expect_fed(g, prompt);
  }
}

// After the callback has said no, nothing is generated and it is not called again, not even with text held back.
TEST(Generate, CallbackEndsTheAnswer) {
  const TinyEngine tiny;
  const std::vector<TokenId> prompt = tiny.random_tokens(6, 6);
  GenerateOptions options{.max_tokens = 100, .sampling = kWild, .ignore_end = true};
  options.sampling.seed = 4;
  const Generated all = generate_fresh(tiny, prompt, options);
  for (const size_t stop_at : {size_t{1}, size_t{2}, size_t{10}, all.pieces.size()})
    for (const bool hold : {false, true}) {
      SCOPED_TRACE(testing::Message() << "no at call " << stop_at << (hold ? " with held-back text" : ""));
      options.stop.clear();
      if (hold)  // what follows a character is held back, whichever it is
        for (int byte = 1; byte < 128; ++byte)
          options.stop.push_back(std::string(1, static_cast<char>(byte)) + "\x01\x02\x03\x04");
      const auto sequence = tiny->new_sequence(tiny.dense(), 1000, KvType::kF16);
      size_t n_calls = 0;
      std::string given;
      const GenerateResult result = generate(*tiny, *sequence, prompt, options, [&](std::string_view piece) {
        given += piece;
        return ++n_calls < stop_at;
      });
      EXPECT_LE(n_calls, stop_at);
      EXPECT_EQ(given, result.text);
      EXPECT_TRUE(all.result.text.starts_with(given));
      if (n_calls == stop_at && stop_at < all.pieces.size()) {
        EXPECT_EQ(result.finish_reason, FinishReason::kStop);
        EXPECT_LT(result.tokens.size(), all.result.tokens.size());
      }
      EXPECT_EQ(result.tokens,
                std::vector<TokenId>(all.result.tokens.begin(), all.result.tokens.begin() + std::ssize(result.tokens)));
    }
}

TEST(Generate, PromptsThatCannotBeServed) {
  const TinyEngine tiny;
  const std::vector<TokenId> prompt = tiny.random_tokens(9, 7);
  const auto sequence = tiny->new_sequence(tiny.dense(), 12, KvType::kF16);
  tiny.feed(*sequence, std::span(prompt).first(4));
  expect_error([&] { generate(*tiny, *sequence, {}, {}); }, ErrorKind::kBadInput, {"empty"});
  expect_error([&] { generate(*tiny, *sequence, prompt, {}); }, ErrorKind::kBadInput, {"9 tokens", "4 are in", "12"});
  expect_error([&] { generate(*tiny, *sequence, std::vector<TokenId>{270}, {}); }, ErrorKind::kBadInput, {"270"});
  expect_error([&] { generate(*tiny, *sequence, prompt, {.sampling = {.top_p = 2}}); }, ErrorKind::kBadInput,
               {"9 tokens"});
  expect_error([&] { generate(*tiny, *sequence, std::span(prompt).first(1), {.sampling = {.top_p = 2}}); },
               ErrorKind::kUsage, {"top-p"});
  EXPECT_EQ(sequence->n_tokens(), 4);
}

}  // namespace
}  // namespace polyspan
