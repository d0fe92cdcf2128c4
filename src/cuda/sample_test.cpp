// What the GPU chooses against the CPU's choose_token, which computes the definition by a sort.
#include "cuda/sample.h"

#include "cuda/cuda_test_util.h"
#include "engine/sampler.h"

namespace polyspan::cuda {
namespace {
using namespace testing_util;

struct Rows {
  int64_t vocab = 0;
  std::vector<float> logits = {};  // [rules.size(), vocab]
  std::vector<TokenRule> rules = {};
  void add(std::span<const float> row, const TokenRule& rule) {
    logits.insert(logits.end(), row.begin(), row.end());
    rules.push_back(rule);
  }
  int64_t n() const { return std::ssize(rules); }
  std::span<const float> row(int64_t i) const {
    return std::span(logits).subspan(static_cast<size_t>(i * vocab), static_cast<size_t>(vocab));
  }
};

std::vector<int32_t> chosen_on_gpu(const Rows& rows) {
  const Stream stream;
  const DeviceBuffer logits = to_device(std::span(rows.logits), "a test", stream),
                     rules = to_device(std::span(rows.rules), "a test", stream);
  const std::vector<int32_t> start(rows.rules.size(), 7);
  const DeviceBuffer tokens = to_device(std::span(start), "a test", stream),
                     positions = to_device(std::span(start), "a test", stream);
  choose_tokens(logits.as<float>(), rows.n(), rows.vocab, rules.as<TokenRule>(), tokens.as<int32_t>(),
                positions.as<int32_t>(), stream);
  EXPECT_EQ(to_host<int32_t>(positions.data(), rows.n(), stream), std::vector<int32_t>(rows.rules.size(), 8));
  return to_host<int32_t>(tokens.data(), rows.n(), stream);
}

void expect_as_on_the_cpu(const Rows& rows) {
  const std::vector<int32_t> actual = chosen_on_gpu(rows);
  for (int64_t i = 0; i < rows.n(); ++i) {
    const TokenRule& rule = rows.rules[static_cast<size_t>(i)];
    ASSERT_EQ(actual[static_cast<size_t>(i)], choose_token(rows.row(i), rule))
        << "row " << i << ", vocabulary " << rows.vocab << ", temperature " << rule.temperature << ", top_k "
        << rule.top_k << ", top_p " << rule.top_p << ", min_p " << rule.min_p << ", uniform " << rule.uniform;
  }
}

// Logits as they come, in steps (many equal), all equal, with NaN, with -infinity, zeros of both signs, far apart.
std::vector<float> random_logits(int64_t vocab, int64_t kind, Random& random) {
  std::vector<float> logits;
  for (int64_t i = 0; i < vocab; ++i) {
    float logit = 0;
    for (int j = 0; j < 6; ++j) logit += 2 * random.unit();
    if (kind == 1) logit = std::round(logit);
    if (kind == 2) logit = 1.5f;
    if (kind == 3 && random.below(3) == 0) logit = NAN;
    if (kind == 4 && random.below(2) == 0) logit = -std::numeric_limits<float>::infinity();
    if (kind == 5) logit = random.below(2) == 0 ? 0.0f : -0.0f;
    if (kind == 6) logit *= 100;
    logits.push_back(logit);
  }
  return logits;
}
constexpr int64_t kKinds = 7;

double uniform_of(Random& random) { return static_cast<double>(random.next() >> 11) * 0x1p-53; }

TEST(Sample, ChoosesAsTheCpu) {
  POLYSPAN_NEEDS_GPU();
  Random random(1);
  for (const int64_t vocab : {1, 2, 31, 1000, 1024, 5000, 49152, 128256}) {
    Rows rows{.vocab = vocab};
    for (int64_t i = 0; i < (vocab > 10000 ? 60 : 400); ++i) {
      constexpr int32_t kTopK[] = {0, 1, 2, 40, 256, 257, 3000, 1000000};
      constexpr float kShares[] = {0.0f, 0.05f, 0.3f, 0.9f, 1.0f};
      const TokenRule rule{.temperature = random.below(8) == 0 ? 0.0f : 0.2f + 2 * std::abs(random.unit()),
                           .top_k = kTopK[random.below(8)],
                           .top_p = random.below(2) == 0 ? 1.0f : kShares[random.below(5)],
                           .min_p = random.below(2) == 0 ? 0.0f : kShares[random.below(5)],
                           .uniform = i % 10 == 0   ? 0.0
                                      : i % 10 == 1 ? 1 - 1e-9
                                                    : uniform_of(random)};
      rows.add(random_logits(vocab, i % kKinds, random), rule);
    }
    expect_as_on_the_cpu(rows);
  }
}

TEST(Sample, LeavesNothingToChanceWhereThereIsNone) {
  POLYSPAN_NEEDS_GPU();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  Rows rows{.vocab = 3};
  for (const std::vector<float>& row : {std::vector<float>{NAN, NAN, NAN},
                                        {NAN, -kInfinity, -kInfinity},
                                        {1, kInfinity, kInfinity},
                                        {NAN, 1, 2},
                                        {2, 3, 3},
                                        {-0.0f, 0.0f, -1}})
    for (const float temperature : {0.0f, 1.0f})
      for (const int32_t top_k : {0, 1}) rows.add(row, {.temperature = temperature, .top_k = top_k, .top_p = 0});
  expect_as_on_the_cpu(rows);
}

// Which tokens come out when the draw goes through [0, 1) in even steps, and how often: the kept set and its shares.
TEST(Sample, KeepsWhatTheCpuKeeps) {
  POLYSPAN_NEEDS_GPU();
  Random random(2);
  const std::vector<float> logits = random_logits(300, 0, random);
  const TokenRule rules[] = {{.temperature = 1},
                             {.temperature = 1, .top_k = 10},
                             {.temperature = 1.5f, .top_p = 0.8f},
                             {.temperature = 0.7f, .min_p = 0.1f},
                             {.temperature = 1, .top_k = 40, .top_p = 0.95f, .min_p = 0.05f},
                             {.temperature = 1, .top_k = 270, .top_p = 0.95f, .min_p = 0.001f}};
  for (TokenRule rule : rules) {
    constexpr int kDraws = 2000;
    Rows rows{.vocab = 300};
    std::vector<int> expected(300, 0), actual(300, 0);
    for (int i = 0; i < kDraws; ++i) {
      rule.uniform = (i + 0.5) / kDraws;
      rows.add(logits, rule);
      ++expected[static_cast<size_t>(choose_token(logits, rule))];
    }
    for (const int32_t token : chosen_on_gpu(rows)) ++actual[static_cast<size_t>(token)];
    EXPECT_EQ(actual, expected) << "top_k " << rule.top_k << ", top_p " << rule.top_p << ", min_p " << rule.min_p;
  }
}

// Frequencies of 40,000 draws of a sampler's numbers against the probabilities: chi-squared with 7 degrees of freedom is above 30
// once in 10,000; with 3, above 22.
TEST(Sample, DrawsByProbability) {
  POLYSPAN_NEEDS_GPU();
  const std::vector<float> logits = {0.1f, 1.0f, -1.0f, 0.5f, 2.0f, 0.0f, -0.3f, 1.5f};
  constexpr int kDraws = 40000;
  for (const int64_t top_k : {0, 4}) {
    Sampler sampler({.temperature = 0.7f, .top_k = top_k, .top_p = 1, .min_p = 0, .seed = 11});
    Rows rows{.vocab = 8};
    for (int i = 0; i < kDraws; ++i) rows.add(logits, sampler.next_rule());
    const std::vector<int32_t> first = chosen_on_gpu(rows);
    EXPECT_EQ(first, chosen_on_gpu(rows)) << "not repeatable";
    std::vector<double> counts(8, 0.0);
    for (const int32_t token : first) counts[static_cast<size_t>(token)] += 1;
    std::vector<float> sorted = logits;
    std::sort(sorted.rbegin(), sorted.rend());
    double total = 0, chi_squared = 0;
    const auto weight = [&](float logit) {
      return top_k > 0 && logit < sorted[static_cast<size_t>(top_k - 1)] ? 0.0
                                                                         : std::exp(static_cast<double>(logit) / 0.7);
    };
    for (const float logit : logits) total += weight(logit);
    for (size_t i = 0; i < logits.size(); ++i) {
      const double expected = kDraws * weight(logits[i]) / total;
      if (expected == 0) {
        EXPECT_EQ(counts[i], 0) << i;
      } else {
        chi_squared += (counts[i] - expected) * (counts[i] - expected) / expected;
      }
    }
    EXPECT_LT(chi_squared, top_k == 0 ? 30.0 : 22.0);
  }
}

}  // namespace
}  // namespace polyspan::cuda
