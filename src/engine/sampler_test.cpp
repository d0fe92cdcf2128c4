// Sampling: what is kept and how often it is drawn, against a plain computation of the probabilities.
#include "engine/sampler.h"

#include <algorithm>
#include <map>

#include "engine/engine_test_util.h"

namespace polyspan {
namespace {
using namespace testing_util;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST(Sampler, GreedyTakesTheLowestOfTheBest) {
  struct Case {
    std::vector<float> logits;
    TokenId expected;
  };
  const Case cases[] = {{{1}, 0},
                        {{1, 3, 2}, 1},
                        {{2, 3, 3, 3}, 1},
                        {{0, 0, 0}, 0},
                        {{-5, -4, -4}, 1},
                        {{-kInfinity, -kInfinity, -3}, 2},
                        {{-kInfinity, -kInfinity}, 0},
                        {{1, kInfinity, kInfinity}, 1},
                        {{NAN, 1, 2}, 2},
                        {{1, NAN, 0}, 0},
                        {{1, NAN, 2}, 2},
                        {{NAN, -kInfinity}, 1},
                        {{NAN, NAN}, 0}};
  for (size_t i = 0; i < std::size(cases); ++i) {
    EXPECT_EQ(greedy_token(cases[i].logits), cases[i].expected) << "case " << i;
    std::vector<float> logits = cases[i].logits;
    EXPECT_EQ(Sampler({.temperature = 0}).sample(logits, {}), cases[i].expected) << "case " << i;
  }
}

// The probability of every token, from the definitions: temperature first, then the k most likely, of these the
// smallest set that reaches top_p, without those below min_p of the most likely. In double, by whole sorts.
std::vector<double> probabilities(std::span<const float> logits, const SamplingOptions& options) {
  struct Token {
    size_t id;
    double weight;
  };
  std::vector<Token> tokens;
  double largest = -kInfinity;
  for (const float logit : logits) largest = std::max<double>(largest, logit);
  for (size_t id = 0; id < logits.size(); ++id)
    tokens.push_back(
        {id, std::exp((static_cast<double>(logits[id]) - largest) / static_cast<double>(options.temperature))});
  std::stable_sort(tokens.begin(), tokens.end(),
                   [&](const Token& a, const Token& b) { return logits[a.id] > logits[b.id]; });
  if (options.top_k > 0) tokens.resize(std::min(tokens.size(), static_cast<size_t>(options.top_k)));
  double total = 0, kept = 0;
  for (const Token& token : tokens) total += token.weight;
  std::vector<double> result(logits.size(), 0.0);
  for (const Token& token : tokens) {
    const bool reached = kept > 0 && kept >= static_cast<double>(options.top_p) * total;
    if (reached || token.weight < static_cast<double>(options.min_p)) break;  // the weight of the most likely is 1
    result[token.id] = token.weight;
    kept += token.weight;
  }
  for (double& value : result) value /= kept;
  return result;
}

TEST(Sampler, DrawsFollowTheProbabilities) {
  constexpr int kDraws = 20000;
  Random random(1);
  std::vector<float> logits = random.vector(24, 3.0f);
  logits[5] = logits[17] = logits[20];  // ties
  logits[11] = -kInfinity;
  const SamplingOptions cases[] = {{.temperature = 1, .top_k = 0, .top_p = 1, .min_p = 0},
                                   {.temperature = 0.5f, .top_k = 0, .top_p = 1, .min_p = 0},
                                   {.temperature = 3, .top_k = 0, .top_p = 1, .min_p = 0},
                                   {.temperature = 1, .top_k = 1, .top_p = 1, .min_p = 0},
                                   {.temperature = 1, .top_k = 7, .top_p = 1, .min_p = 0},
                                   {.temperature = 1, .top_k = 1000, .top_p = 1, .min_p = 0},
                                   {.temperature = 1, .top_k = 0, .top_p = 0.5f, .min_p = 0},
                                   {.temperature = 2, .top_k = 0, .top_p = 0.8f, .min_p = 0},
                                   {.temperature = 1, .top_k = 0, .top_p = 0, .min_p = 0},
                                   {.temperature = 1, .top_k = 0, .top_p = 1, .min_p = 0.3f},
                                   {.temperature = 1, .top_k = 0, .top_p = 1, .min_p = 1},
                                   {.temperature = 0.9f, .top_k = 10, .top_p = 0.9f, .min_p = 0.1f},
                                   {.temperature = 1e-30f, .top_k = 0, .top_p = 1, .min_p = 0},
                                   {.temperature = 100, .top_k = 40, .top_p = 0.95f, .min_p = 0.05f}};
  for (SamplingOptions options : cases) {
    SCOPED_TRACE(testing::Message() << "temperature " << options.temperature << " top_k " << options.top_k << " top_p "
                                    << options.top_p << " min_p " << options.min_p);
    options.seed = 7;
    const std::vector<double> expected = probabilities(logits, options);
    std::vector<int> counts(logits.size(), 0);
    Sampler sampler(options);
    for (int i = 0; i < kDraws; ++i) {
      std::vector<float> copy = logits;
      const TokenId id = sampler.sample(copy, {});
      ASSERT_GE(id, 0);
      ASSERT_LT(static_cast<size_t>(id), counts.size());
      ++counts[static_cast<size_t>(id)];
    }
    double chi_square = 0;
    int n_kept = 0;
    for (size_t id = 0; id < counts.size(); ++id) {
      const double mean = expected[id] * kDraws;
      if (mean == 0) {
        EXPECT_EQ(counts[id], 0) << "token " << id << " was dropped";
        continue;
      }
      ++n_kept;
      chi_square += (counts[id] - mean) * (counts[id] - mean) / mean;
    }
    // Mean n_kept - 1, variance twice that: six deviations, and 10 for the skewed few.
    EXPECT_LT(chi_square, n_kept - 1 + 6 * std::sqrt(2.0 * n_kept) + 10) << n_kept << " kept";
  }
}

TEST(Sampler, SameSeedSameTokens) {
  Random random(2);
  const std::vector<float> logits = random.vector(300, 2.0f);
  const auto draw = [&](uint64_t seed) {
    Sampler sampler({.temperature = 1, .top_k = 0, .top_p = 1, .min_p = 0, .seed = seed});
    std::vector<TokenId> tokens;
    for (int i = 0; i < 100; ++i) {
      std::vector<float> copy = logits;
      tokens.push_back(sampler.sample(copy, {}));
    }
    return tokens;
  };
  for (const uint64_t seed : {uint64_t{0}, uint64_t{1}, UINT64_MAX})
    EXPECT_EQ(draw(seed), draw(seed)) << "seed " << seed;
  EXPECT_NE(draw(0), draw(1));
}

TEST(Sampler, RepetitionPenalty) {
  const std::vector<float> logits = {4.0f, -2.0f, 3.0f, 0.0f, 2.5f};
  const std::vector<TokenId> history = {4, 1, 1, 0, 0};
  for (const int64_t window : {-1, 0, 1, 2, 3, 4, 5, 6, 1000})
    for (const float penalty : {0.5f, 1.0f, 2.0f}) {
      SCOPED_TRACE(testing::Message() << "window " << window << " penalty " << penalty);
      std::vector<float> actual = logits, expected = logits;
      for (TokenId id = 0; id < 5; ++id) {
        bool is_recent = false;
        for (int64_t back = 1; back <= std::min<int64_t>(window, std::ssize(history)); ++back)
          is_recent |= history[history.size() - static_cast<size_t>(back)] == id;
        float& logit = expected[static_cast<size_t>(id)];
        if (is_recent) logit = logit > 0 ? logit / penalty : logit * penalty;  // once, however often it was seen
      }
      Sampler sampler({.repetition_penalty = penalty, .repetition_window = window});
      EXPECT_EQ(sampler.sample(actual, history), greedy_token(expected));
      EXPECT_EQ(actual, expected);
    }
}

TEST(Sampler, StrangeLogits) {
  const SamplingOptions plain{.temperature = 1, .top_k = 0, .top_p = 1, .min_p = 0};
  for (SamplingOptions options :
       {plain, SamplingOptions{.temperature = 1}, SamplingOptions{.temperature = 1, .top_k = 1}})
    for (uint64_t seed = 0; seed < 50; ++seed) {
      options.seed = seed;
      Sampler sampler(options);
      const auto pick = [&](std::vector<float> logits) { return sampler.sample(logits, {}); };
      EXPECT_EQ(pick({NAN, 1, NAN, 1, NAN}) % 2, 1) << "a NaN was drawn, seed " << seed;
      EXPECT_EQ(pick({NAN, NAN}), 0);
      EXPECT_EQ(pick({1, kInfinity, 2}), 1) << "seed " << seed;
      EXPECT_EQ(pick({-kInfinity, -kInfinity}), 0);
      EXPECT_EQ(pick({3}), 0);
    }
}

TEST(Sampler, OptionsAreChecked) {
  const std::pair<SamplingOptions, std::vector<std::string>> cases[] = {
      {{.temperature = -1}, {"temperature", "-1"}},
      {{.temperature = 101}, {"temperature", "101"}},
      {{.temperature = NAN}, {"temperature", "nan"}},
      {{.temperature = kInfinity}, {"temperature", "inf"}},
      {{.top_k = -1}, {"top-k", "-1"}},
      {{.top_k = INT64_MAX}, {"top-k"}},
      {{.top_p = -0.5f}, {"top-p", "-0.5"}},
      {{.top_p = 1.5f}, {"top-p", "1.5"}},
      {{.top_p = NAN}, {"top-p"}},
      {{.min_p = 2}, {"min-p", "2"}},
      {{.min_p = NAN}, {"min-p"}},
      {{.repetition_penalty = 0}, {"repetition penalty", "0"}},
      {{.repetition_penalty = NAN}, {"repetition penalty"}}};
  for (const auto& [options, mentions] : cases) {
    SCOPED_TRACE(mentions[0]);
    const SamplingOptions& copy = options;
    expect_error([&] { copy.check(); }, ErrorKind::kUsage, mentions);
    expect_error([&] { Sampler sampler(copy); }, ErrorKind::kUsage, mentions);
  }
  SamplingOptions{.temperature = 100, .top_k = 0, .top_p = 0, .min_p = 1, .repetition_penalty = 100}.check();
}

}  // namespace
}  // namespace polyspan
