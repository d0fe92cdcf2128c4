// Perplexity on a random model, against the definition computed from single steps.
#include "eval/perplexity.h"

#include <cmath>

#include "engine/engine_test_util.h"

namespace polyspan {
namespace {
using namespace testing_util;

std::string some_text() {
  std::string text;
  for (int i = 0; i < 60; ++i) text += "Line " + std::to_string(i * 37 % 101) + " of the text.\n";
  return text;
}

// exp of the mean of -log p(next token) over each window's second half, every window from an empty cache.
double by_definition(const TinyEngine& tiny, std::span<const TokenId> tokens, const SpanPlan& plan, int64_t window,
                     int64_t n_windows) {
  double total = 0;
  int64_t n = 0;
  for (int64_t w = 0; w < n_windows; ++w) {
    const auto sequence = tiny->new_sequence(plan, window, KvType::kF16);
    for (int64_t i = 0; i + 1 < window; ++i) {
      const std::vector<float> logits = tiny.feed(*sequence, tokens.subspan(static_cast<size_t>(w * window + i), 1));
      if (i < window / 2) continue;
      double sum = 0;
      for (const float logit : logits) sum += std::exp(static_cast<double>(logit));
      total += std::log(sum) - logits[static_cast<size_t>(tokens[static_cast<size_t>(w * window + i + 1)])];
      ++n;
    }
  }
  return std::exp(total / static_cast<double>(n));
}

TEST(Perplexity, IsThatOfTheDefinition) {
  const TinyEngine tiny;
  const std::string text = some_text();
  const std::vector<TokenId> tokens = tiny->tokenizer().encode(text, {});
  for (const double density : {1.0, 0.5})
    for (const int64_t window : {4, 5, 32, 65, 300}) {
      const SpanPlan plan = tiny.uniform(density, 4);
      const int64_t whole = std::ssize(tokens) / window;
      for (const int64_t n_windows : {int64_t{1}, int64_t{2}, int64_t{0}}) {
        if (n_windows == 0 && window < 65) continue;  // all: slow with the plain one
        SCOPED_TRACE(testing::Message() << "density " << density << " window " << window << " n_windows " << n_windows);
        const PerplexityResult result = perplexity(*tiny, text, plan, {window, n_windows, KvType::kF16});
        const int64_t n = n_windows == 0 ? whole : n_windows;
        EXPECT_EQ(result.n_windows, n);
        EXPECT_EQ(result.n_scored, n * (window - window / 2 - 1));
        EXPECT_EQ(result.kv_bytes, KvLayout(tiny->config(), plan, window, KvType::kF16).bytes);
        const double expected = by_definition(tiny, tokens, plan, window, n);
        EXPECT_NEAR(result.perplexity, expected, 1e-4 * expected);
      }
    }
}

TEST(Perplexity, Refuses) {
  const TinyEngine tiny;
  const std::string text = some_text();
  const auto run = [&](std::string_view t, int64_t window, int64_t n_windows) {
    return [&tiny, t, window, n_windows] { perplexity(*tiny, t, tiny.dense(), {window, n_windows, KvType::kF16}); };
  };
  for (const int64_t window : {INT64_MIN, int64_t{-1}, int64_t{0}, int64_t{3}})
    expect_error(run(text, window, 1), ErrorKind::kUsage, {std::to_string(window)});
  expect_error(run(text, 32, -1), ErrorKind::kUsage, {"-1 windows"});
  expect_error(run("", 32, 0), ErrorKind::kBadInput, {"0 tokens", "32"});
  expect_error(run("short", 32, 0), ErrorKind::kBadInput, {"0 windows of 32", "1 wanted"});
  expect_error(run(text, 300, 1000), ErrorKind::kBadInput, {"windows of 300", "1000 wanted"});
  expect_error(run(text, INT64_MAX, 0), ErrorKind::kBadInput, {"0 windows"});
  std::string long_text;
  while (long_text.size() < 6000) long_text += text;
  expect_error(run(long_text, 4097, 0), ErrorKind::kBadInput, {"4097", "4096"});  // beyond the model's context
}

}  // namespace
}  // namespace polyspan
