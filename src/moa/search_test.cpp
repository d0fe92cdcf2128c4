// The search against brute force and dynamic programming, the rules and the curves against their definitions.
#include "moa/search.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <functional>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <sstream>
#include <string>

#include "core/error.h"

namespace polyspan {
namespace {

constexpr double kTiny = 1e-9;

int64_t random_below(std::mt19937_64& random, int64_t n) {
  return static_cast<int64_t>(random() % static_cast<uint64_t>(n));
}

double random_unit(std::mt19937_64& random) { return static_cast<double>(random() >> 11) * 0x1p-53; }

// A loss for each span that some rule has at `length`, independent of all others: not even falling with the span.
LossCurve random_curve(const SearchProblem& problem, int64_t length, std::mt19937_64& random) {
  std::set<int64_t> spans;
  for (const SpanRule& rule : problem.rules)
    if (const int64_t span = rule.span(length); span < length) spans.insert(span);
  spans.insert(kBlockTokens);
  LossCurve curve{.length = length, .source_length = length, .spans = {spans.begin(), spans.end()}, .loss = {}};
  for (size_t i = 0; i < problem.n_heads() * curve.spans.size(); ++i) curve.loss.push_back(random_unit(random));
  return curve;
}

SearchProblem random_problem(uint64_t seed, bool per_query_head) {
  std::mt19937_64 random(seed);
  SearchProblem problem;
  problem.shape = per_query_head ? HeadShape{.n_layers = 1, .n_heads = 4, .n_kv_heads = 2}
                                 : HeadShape{.n_layers = 3, .n_heads = 2, .n_kv_heads = 1};
  problem.per_query_head = per_query_head;
  problem.bounded_lengths = {512, 1024};
  for (int i = 0; i < 4; ++i)
    problem.rules.push_back(
        {static_cast<double>(64 * random_below(random, 8) - 128), static_cast<double>(random_below(random, 8)) / 8});
  if (seed % 2 == 0) problem.rules[0] = kDenseRule;
  for (const int64_t length : problem.bounded_lengths) problem.curves.push_back(random_curve(problem, length, random));
  problem.density = 0.2 + 0.8 * random_unit(random);
  problem.min_fill = seed % 3 == 0 ? 0 : 0.95;
  problem.gap = 0;
  return problem;
}

struct Outcome {
  std::vector<double> losses, densities;
};

// Every plan that the rules can make; densities from SpanPlan, losses looked up span by span.
std::vector<Outcome> all_outcomes(const SearchProblem& problem) {
  const auto n_heads = static_cast<size_t>(problem.n_heads());
  const size_t n_rules = problem.rules.size();
  const size_t per_layer = n_heads / static_cast<size_t>(problem.shape.n_layers);
  std::vector<Outcome> outcomes;
  for (size_t code = 0; code < static_cast<size_t>(std::llround(std::pow(n_rules, n_heads))); ++code) {
    std::vector<std::vector<SpanRule>> rules(problem.shape.n_layers);
    Outcome outcome{std::vector<double>(problem.curves.size(), 0), {}};
    for (size_t head = 0, rest = code; head < n_heads; ++head, rest /= n_rules) {
      const SpanRule rule = problem.rules[rest % n_rules];
      rules[head / per_layer].push_back(rule);
      for (size_t i = 0; i < problem.curves.size(); ++i) {
        const LossCurve& curve = problem.curves[i];
        const int64_t span = rule.span(curve.length);
        if (span == curve.length) continue;
        const auto place = std::find(curve.spans.begin(), curve.spans.end(), span) - curve.spans.begin();
        outcome.losses[i] += curve.loss.at(head * curve.spans.size() + place);
      }
    }
    const SpanPlan plan = SpanPlan::from_rules(problem.shape, rules, problem.per_query_head, problem.n_sink_tokens);
    for (const int64_t length : problem.bounded_lengths) outcome.densities.push_back(plan.density(length));
    outcomes.push_back(outcome);
  }
  return outcomes;
}

bool all_of(const std::vector<double>& values, const std::function<bool(double)>& condition) {
  return std::all_of(values.begin(), values.end(), condition);
}

// The outcomes that the bounds allow; without the lower bound where it allows none.
std::vector<Outcome> allowed_outcomes(const SearchProblem& problem) {
  std::vector<Outcome> upper, both;
  for (const Outcome& outcome : all_outcomes(problem)) {
    if (!all_of(outcome.densities, [&](double d) { return d <= problem.density + kTiny; })) continue;
    upper.push_back(outcome);
    const double least = problem.min_fill * problem.density;
    if (all_of(outcome.densities, [&](double d) { return d >= least - kTiny; })) both.push_back(outcome);
  }
  return both.empty() ? upper : both;
}

double weighted(const std::vector<double>& losses, const std::vector<double>& weights) {
  return std::inner_product(losses.begin(), losses.end(), weights.begin(), 0.0);
}

double sum(const std::vector<double>& values) { return std::accumulate(values.begin(), values.end(), 0.0); }

// Checks minimise() on one problem; counts what it met.
void check_against_brute_force(const SearchProblem& problem, const std::vector<double>& weights,
                               std::map<std::string, int>& met) {
  const auto outcomes = allowed_outcomes(problem);
  if (outcomes.empty()) {
    double smallest = 2;
    for (const Outcome& outcome : all_outcomes(problem))
      smallest = std::min(smallest, *std::max_element(outcome.densities.begin(), outcome.densities.end()));
    std::ostringstream wanted;
    wanted << "wanted at least " << smallest << ", the smallest";
    const auto refused = [&](auto run) {
      try {
        run();
        ADD_FAILURE() << "no plan has density " << problem.density;
      } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::kBadInput);
        EXPECT_NE(std::string(error.what()).find(wanted.str()), std::string::npos)
            << error.what() << "; " << wanted.str();
        EXPECT_NE(std::string(error.what()).find("512 and 1024 tokens"), std::string::npos) << error.what();
      }
    };
    refused([&] { minimise(problem, weights); });
    refused([&] { check_reachable(problem); });
    ++met["infeasible"];
    return;
  }
  double least = 1e300;
  for (const Outcome& outcome : outcomes) least = std::min(least, weighted(outcome.losses, weights));
  EXPECT_NO_THROW(check_reachable(problem));
  const Candidate found = minimise(problem, weights);
  EXPECT_NEAR(weighted(found.losses, weights), least, 1e-8);
  // What it says of its plan is what one of the allowed plans has.
  EXPECT_TRUE(std::any_of(outcomes.begin(), outcomes.end(), [&](const Outcome& outcome) {
    return std::abs(sum(outcome.losses) - sum(found.losses)) < 1e-8 && outcome.densities == found.densities;
  }));
  for (size_t i = 0; i < found.densities.size(); ++i)
    EXPECT_EQ(found.densities[i], found.plan.density(problem.bounded_lengths[i]));
  const bool lower = all_of(found.densities, [&](double d) { return d >= problem.min_fill * problem.density - kTiny; });
  ++met[lower ? "within both" : "lower bound dropped"];
}

TEST(Search, MinimiseIsBruteForce) {
  for (const bool per_query_head : {false, true}) {
    std::map<std::string, int> met;
    for (uint64_t seed = 1; seed <= 120; ++seed) {
      SCOPED_TRACE("seed " + std::to_string(seed) + (per_query_head ? ", query heads" : ", KV heads"));
      const SearchProblem problem = random_problem(seed, per_query_head);
      check_against_brute_force(problem, seed % 5 == 0 ? std::vector<double>{0, 1} : std::vector<double>{1, 0.5}, met);
    }
    for (const char* what : {"infeasible", "within both", "lower bound dropped"}) EXPECT_GT(met[what], 5) << what;
  }
}

TEST(Search, WeightsOfZeroAndLossesOfZeroStillFillTheBounds) {
  for (const bool per_query_head : {false, true}) {
    SearchProblem problem = random_problem(2, per_query_head);
    problem.rules = {kDenseRule, {64, 0}, {0, 0.5}, {128, 0.25}};
    problem.density = 0.7;
    problem.min_fill = 0.7;
    std::mt19937_64 random(7);
    problem.curves = {random_curve(problem, 512, random), random_curve(problem, 1024, random)};
    std::map<std::string, int> met;
    check_against_brute_force(problem, {0, 0}, met);
    for (LossCurve& curve : problem.curves) std::fill(curve.loss.begin(), curve.loss.end(), 0.0);
    check_against_brute_force(problem, {1, 1}, met);
    EXPECT_EQ(met["within both"], 2);
    EXPECT_EQ(pareto_front(problem, 3).size(), 1u);
  }
}

bool dominates(const std::vector<double>& a, const std::vector<double>& b) {
  bool better = false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i] > b[i] + kTiny) return false;
    better |= a[i] < b[i] - kTiny;
  }
  return better;
}

TEST(Search, FrontHoldsTheCornersAndNothingDominated) {
  int larger_fronts = 0;
  for (const bool per_query_head : {false, true})
    for (uint64_t seed = 2; seed <= 60; seed += 2) {
      SCOPED_TRACE("seed " + std::to_string(seed) + (per_query_head ? ", query heads" : ", KV heads"));
      SearchProblem problem = random_problem(seed, per_query_head);
      problem.min_fill = 0;
      if (seed % 4 == 0)  // ties: many plans have a curve's least loss, few of them are on the front
        for (LossCurve& curve : problem.curves)
          for (double& loss : curve.loss) loss = std::floor(3 * loss);
      const auto outcomes = allowed_outcomes(problem);
      if (outcomes.empty()) {
        EXPECT_THROW(pareto_front(problem, 3), Error);
        continue;
      }
      const auto front = pareto_front(problem, 3);
      ASSERT_FALSE(front.empty());
      EXPECT_NEAR(sum(front[0].losses), sum(minimise(problem, {1, 1}).losses), 1e-8);
      for (size_t i = 2; i < front.size(); ++i) EXPECT_LE(front[i - 1].losses[0], front[i].losses[0]);
      for (const Candidate& candidate : front) {
        for (const double density : candidate.densities) EXPECT_LE(density, problem.density + kTiny);
        for (const Outcome& outcome : outcomes)
          EXPECT_FALSE(dominates(outcome.losses, candidate.losses)) << candidate.origin;
      }
      for (size_t curve = 0; curve < 2; ++curve) {
        auto key = [&](const std::vector<double>& losses) { return std::pair(losses[curve], losses[1 - curve]); };
        auto corner = key(outcomes[0].losses);
        for (const Outcome& outcome : outcomes) corner = std::min(corner, key(outcome.losses));
        EXPECT_TRUE(std::any_of(front.begin(), front.end(),
                                [&](const Candidate& candidate) {
                                  const auto found = key(candidate.losses);
                                  return std::abs(found.first - corner.first) < 1e-8 &&
                                         std::abs(found.second - corner.second) < 1e-8;
                                }))
            << "corner of curve " << curve;
      }
      larger_fronts += front.size() > 2;
    }
  EXPECT_GT(larger_fronts, 10);
}

// The shape of a real search: many heads, rules of all kinds, losses that fall with the span.
SearchProblem large_problem(int64_t n_layers, std::vector<int64_t> lengths, uint64_t seed) {
  std::mt19937_64 random(seed);
  SearchProblem problem;
  problem.shape = {.n_layers = n_layers, .n_heads = 9, .n_kv_heads = 3};
  problem.rules = make_rules(lengths, {});
  for (const int64_t length : lengths) {
    LossCurve curve{.length = length, .source_length = length, .spans = {}, .loss = {}};
    for (int64_t span = kBlockTokens; span < length; span += length / 8) curve.spans.push_back(span);
    for (int64_t head = 0; head < problem.n_heads(); ++head) {
      std::vector<double> falling;
      for (size_t i = 0; i < curve.spans.size(); ++i) falling.push_back(std::pow(random_unit(random), 4));
      std::sort(falling.rbegin(), falling.rend());
      curve.loss.insert(curve.loss.end(), falling.begin(), falling.end());
    }
    problem.curves.push_back(curve);
  }
  problem.bounded_lengths = lengths;
  return problem;
}

// One bounded length, so that a table over blocks of tokens is exact: [blocks] the least loss.
double least_by_dynamic_programming(const SearchProblem& problem, int64_t length) {
  const int64_t n_heads = problem.n_heads();
  const auto budget = static_cast<int64_t>(std::floor(problem.density * static_cast<double>(length * n_heads) / 64));
  std::vector<double> least(budget + 1, 0);
  for (int64_t head = 0; head < n_heads; ++head) {
    std::vector<double> next(budget + 1, 1e300);
    for (const SpanRule& rule : problem.rules) {
      const int64_t blocks = std::min(length, 64 + rule.span(length)) / 64;
      const double loss = problem.curves[0].at(head, static_cast<double>(rule.span(length)));
      for (int64_t left = blocks; left <= budget; ++left)
        next[left] = std::min(next[left], least[left - blocks] + loss);
    }
    least = next;
  }
  return least[budget];
}

// More rules than the solver's first core holds.
TEST(Search, ManyHeadsAreWithinTheGapOfDynamicProgramming) {
  for (const double density : {0.15, 0.3, 0.6}) {
    SearchProblem problem = large_problem(/*n_layers=*/20, {2048}, 11);
    problem.rules.clear();
    for (int64_t span = 64; span <= 2048; span += 64) problem.rules.push_back({static_cast<double>(span), 0});
    problem.density = density;
    const double found = minimise(problem, {1}).losses[0];
    const double least = least_by_dynamic_programming(problem, 2048);
    EXPECT_GE(found, least - 1e-9) << density;
    EXPECT_LE(found, least * (1 + problem.gap) + 1e-9) << density;
  }
}

// Few heads, whose relaxation is far from the best plan: the proof needs more than the first core.
TEST(Search, FewHeadsOfManyRulesAreDynamicProgramming) {
  constexpr int64_t kLength = 64 * 200;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    std::mt19937_64 random(seed);
    SearchProblem problem;
    problem.shape = {.n_layers = 4, .n_heads = 1, .n_kv_heads = 1};
    problem.bounded_lengths = {kLength};
    problem.density = 0.1 + 0.03 * static_cast<double>(seed);
    problem.gap = 0;
    LossCurve curve{.length = kLength, .source_length = kLength, .spans = {}, .loss = {}};
    for (int64_t span = 64; span < kLength; span += 64) {
      problem.rules.push_back({static_cast<double>(span), 0});
      curve.spans.push_back(span);
    }
    // Long flat parts: only the first span of each is worth its tokens.
    for (int64_t head = 0; head < 4; ++head) {
      double loss = 1 + random_unit(random);
      for (size_t i = 0; i < curve.spans.size(); ++i) {
        if (random_below(random, 8) == 0) loss *= random_unit(random);
        curve.loss.push_back(loss + 1e-4 * random_unit(random));
      }
    }
    problem.curves = {curve};
    EXPECT_NEAR(minimise(problem, {1}).losses[0], least_by_dynamic_programming(problem, kLength), 1e-8) << seed;
  }
}

TEST(Search, SamePlansEachTimeAndNothingPrinted) {
  const SearchProblem problem = large_problem(/*n_layers=*/6, {1024, 2048}, 3);
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  const auto first = pareto_front(problem, 2);
  const auto second = pareto_front(problem, 2);
  const std::string printed = testing::internal::GetCapturedStdout() + testing::internal::GetCapturedStderr();
  EXPECT_EQ(printed, "");
  ASSERT_EQ(first.size(), second.size());
  EXPECT_GT(first.size(), 3u);
  for (size_t i = 0; i < first.size(); ++i) {
    EXPECT_EQ(first[i].plan.to_json(), second[i].plan.to_json());
    EXPECT_EQ(first[i].losses, second[i].losses);
    EXPECT_EQ(first[i].origin, second[i].origin);
    for (const double density : first[i].densities) {
      EXPECT_LE(density, problem.density + kTiny);
      EXPECT_GE(density, problem.min_fill * problem.density - kTiny);
    }
  }
  // One rule for all heads of the same density is one of the plans that the search chose from.
  double same_rule = 0;
  for (const LossCurve& curve : problem.curves)
    for (int64_t head = 0; head < problem.n_heads(); ++head)
      same_rule += curve.at(head, 0.5 * static_cast<double>(curve.length) - 64);
  EXPECT_LT(sum(first[0].losses), 0.8 * same_rule);
}

TEST(Search, FrontReportsItsProgress) {
  struct Recorder : Progress {
    int64_t total = 0, done = 0;
    bool finished = false;
    void start(std::string_view, int64_t n) override { total = n; }
    void update(int64_t n) override { done = n; }
    void finish() override { finished = true; }
  } progress;
  pareto_front(large_problem(2, {1024, 2048}, 5), 4, progress);
  EXPECT_EQ(progress.total, 1 + 2 * (2 + 4));
  EXPECT_EQ(progress.done, progress.total);
  EXPECT_TRUE(progress.finished);
}

TEST(Search, LossesThatDifferByDecadesKeepTheirDigits) {
  SearchProblem problem = random_problem(2, false);
  problem.rules = {kDenseRule, {64, 0}, {0, 0.5}, {128, 0.25}};
  problem.density = 0.7;
  problem.min_fill = 0;
  std::mt19937_64 random(9);
  problem.curves = {random_curve(problem, 512, random)};
  // The shortest span costs 1e8 times what the others do, and all of them little.
  for (size_t i = 0; i < problem.curves[0].loss.size(); ++i)
    problem.curves[0].loss[i] *= i % problem.curves[0].spans.size() == 0 ? 1 : 1e-8;
  double least = 1e300;
  for (const Outcome& outcome : allowed_outcomes(problem)) least = std::min(least, outcome.losses[0]);
  ASSERT_GT(least, 0);
  ASSERT_LT(least, 1e-7);
  EXPECT_NEAR(minimise(problem, {1}).losses[0] / least, 1, 1e-6);
}

TEST(Search, TwoValuedIsBruteForceOverTwoRules) {
  for (const bool per_query_head : {false, true})
    for (uint64_t seed = 1; seed <= 20; ++seed) {
      SCOPED_TRACE("seed " + std::to_string(seed));
      SearchProblem problem = random_problem(seed, per_query_head);
      problem.density = 0.55 + 0.02 * static_cast<double>(seed);
      problem.rules = {kDenseRule, {128, 0}};
      std::mt19937_64 random(seed);
      problem.curves = {random_curve(problem, 512, random), random_curve(problem, 1024, random)};
      // Both heads of a group alike: what brute force over KV heads would try.
      const auto n_kv_heads = static_cast<size_t>(problem.shape.n_layers * problem.shape.n_kv_heads);
      const size_t group = static_cast<size_t>(problem.n_heads()) / n_kv_heads;
      double least = 1e300;
      for (size_t code = 0; code < size_t{1} << n_kv_heads; ++code) {
        double loss = 0, kept_512 = 0, kept_1024 = 0;
        for (size_t head = 0; head < n_kv_heads * group; ++head) {
          const bool dense = code >> (head / group) & 1;
          for (const LossCurve& curve : problem.curves)
            if (!dense) loss += curve.loss[head * curve.spans.size() + 1];
          if (head % group == 0) kept_512 += dense ? 512 : 64 + 128;
          if (head % group == 0) kept_1024 += dense ? 1024 : 64 + 128;
        }
        const double dense_512 = 512.0 * static_cast<double>(n_kv_heads);
        if (kept_512 <= problem.density * dense_512 && kept_1024 <= problem.density * 2 * dense_512)
          least = std::min(least, loss);
      }
      problem.rules = {{0, 0.5}};  // not used
      const Candidate found = two_valued(problem, 128);
      EXPECT_NEAR(sum(found.losses), least, 1e-8);
      EXPECT_FALSE(found.plan.per_query_head());
      for (int64_t layer = 0; layer < problem.shape.n_layers; ++layer)
        for (int64_t head = 0; head < problem.shape.n_kv_heads; ++head) {
          const SpanRule rule = found.plan.rule(layer, head);
          EXPECT_TRUE(rule == kDenseRule || rule == (SpanRule{128, 0}));
        }
    }
}

TEST(Search, CandidateSurvivesItsFile) {
  const auto path = std::filesystem::path(testing::TempDir()) / "polyspan_search_test_plan.json";
  for (const bool per_query_head : {false, true}) {
    SearchProblem problem = random_problem(4, per_query_head);
    problem.density = 0.9;
    const Candidate found = minimise(problem, {1, 1});
    found.plan.save(path);
    const SpanPlan loaded = SpanPlan::load(path, problem.shape);
    EXPECT_EQ(loaded.per_query_head(), per_query_head);
    ASSERT_EQ(loaded.rules_per_layer(), found.plan.rules_per_layer());
    for (int64_t layer = 0; layer < problem.shape.n_layers; ++layer)
      for (int64_t head = 0; head < loaded.rules_per_layer(); ++head)
        EXPECT_EQ(loaded.rule(layer, head), found.plan.rule(layer, head));
    EXPECT_EQ(loaded.info().density, problem.density);
    EXPECT_EQ(loaded.info().lengths, (std::vector<int64_t>{512, 1024}));
  }
  std::filesystem::remove(path);
}

TEST(Search, RefusesWhatCannotBe) {
  const auto refused = [](auto change, std::vector<double> weights = {1, 1}) {
    SearchProblem problem = random_problem(2, false);
    change(problem);
    try {
      minimise(problem, weights);
    } catch (const Error& error) {
      return error.kind() == ErrorKind::kBadInput ? std::string(error.what()) : "another kind";
    }
    return std::string("not refused");
  };
  EXPECT_NE(refused([](auto& p) { p.density = 0; }).find("density 0"), std::string::npos);
  EXPECT_NE(refused([](auto& p) { p.density = 1.5; }).find("density 1.5"), std::string::npos);
  EXPECT_NE(refused([](auto& p) { p.min_fill = -1; }).find("lower bound"), std::string::npos);
  EXPECT_NE(refused([](auto& p) { p.gap = NAN; }).find("gap"), std::string::npos);
  EXPECT_NE(
      refused([](auto& p) { p.curves[1].loss[p.curves[1].spans.size()] = NAN; }).find("length 1024, head 1, span 64"),
      std::string::npos);
  EXPECT_NE(refused([](auto&) {}, {1, -1}).find("weight of -1"), std::string::npos);
  EXPECT_THROW(two_valued(random_problem(2, false), 0), Error);
  EXPECT_THROW(pareto_front(random_problem(2, false), -1), Error);
}

TEST(LossCurve, IsLinearBetweenSpansAndZeroWhenDense) {
  const LossCurve curve{.length = 1000, .source_length = 1000, .spans = {100, 300, 600}, .loss = {9, 9, 9, 8, 4, 2}};
  EXPECT_EQ(curve.at(1, 1), 8);
  EXPECT_EQ(curve.at(1, 100), 8);
  EXPECT_DOUBLE_EQ(curve.at(1, 200), 6);
  EXPECT_EQ(curve.at(1, 300), 4);
  EXPECT_DOUBLE_EQ(curve.at(1, 450), 3);
  EXPECT_EQ(curve.at(1, 600), 2);
  EXPECT_DOUBLE_EQ(curve.at(1, 800), 1);
  EXPECT_NEAR(curve.at(1, 999), 0.005, kTiny);
  EXPECT_EQ(curve.at(1, 1000), 0);
  EXPECT_EQ(curve.at(1, 5000), 0);
  EXPECT_EQ(curve.at(0, 300), 9);
  // Measured at every span: the last one is dense for the file, not for a shorter span.
  const LossCurve whole{.length = 1000, .source_length = 1000, .spans = {100, 1000}, .loss = {4, 1}};
  EXPECT_DOUBLE_EQ(whole.at(0, 550), 2.5);
  EXPECT_EQ(whole.at(0, 1000), 0);
}

TEST(LossCurve, ExtensionIsReadAtTheRelativeSpan) {
  const LossCurve curve{.length = 4000, .source_length = 1000, .spans = {100, 300}, .loss = {8, 4}};
  EXPECT_EQ(curve.at(0, 100), 8);
  EXPECT_EQ(curve.at(0, 400), 8);
  EXPECT_DOUBLE_EQ(curve.at(0, 800), 6);
  EXPECT_EQ(curve.at(0, 1200), 4);
  EXPECT_DOUBLE_EQ(curve.at(0, 2600), 2);
  EXPECT_EQ(curve.at(0, 4000), 0);
}

TEST(Rules, AreThePapersAndAFewShortWindows) {
  // 48 rules for 2k/4k/8k and 16k, and windows of 64, 128 and 256 tokens.
  const auto rules = make_rules({2048, 4096, 8192}, {16384});
  EXPECT_EQ(rules.size(), 51u);
  const auto holds = [](const std::vector<SpanRule>& all, const SpanRule& rule) {
    return std::find(all.begin(), all.end(), rule) != all.end();
  };
  for (const SpanRule& rule : {SpanRule{0, 1}, {0, 0.5}, {-1024, 0.875}, {1024, 0.875}, {8192, 0}, {64, 0}, {256, 0}})
    EXPECT_TRUE(holds(rules, rule)) << rule.alpha << " " << rule.beta;
  // Without 16k a window of 8k is dense at every length.
  EXPECT_FALSE(holds(make_rules({2048, 4096, 8192}, {}), {8192, 0}));
}

TEST(Rules, DifferAndStayWithinTheLengths) {
  for (const auto& [profile, extension] :
       {std::pair<std::vector<int64_t>, std::vector<int64_t>>{{1024, 2048, 4096}, {8192}},
        {{256}, {}},
        {{64}, {128}},
        {{4096, 512}, {1 << 17, 6000}},
        {{1000, 3000}, {}}})
    for (const int64_t step : {0, 64, 300}) {
      SCOPED_TRACE(std::to_string(profile[0]) + ", step " + std::to_string(step));
      std::vector<int64_t> lengths = profile;
      lengths.insert(lengths.end(), extension.begin(), extension.end());
      const double longest_profile = static_cast<double>(*std::max_element(profile.begin(), profile.end()));
      const double longest = static_cast<double>(*std::max_element(lengths.begin(), lengths.end()));
      const double shortest = static_cast<double>(*std::min_element(lengths.begin(), lengths.end()));
      std::set<std::vector<int64_t>> spans;
      const auto rules = make_rules(profile, extension, {.alpha_step = step});
      for (const SpanRule& rule : rules) {
        EXPECT_LE(rule.alpha + rule.beta * longest_profile, longest_profile);
        EXPECT_LE(rule.alpha + rule.beta * longest, longest);
        EXPECT_GT(rule.alpha + rule.beta * shortest, 0);
        std::vector<int64_t> here;
        for (const int64_t length : lengths) here.push_back(rule.span(length));
        EXPECT_TRUE(spans.insert(here).second) << "twice the same spans: " << rule.alpha << " " << rule.beta;
      }
      EXPECT_NE(std::find(rules.begin(), rules.end(), kDenseRule), rules.end());
    }
  EXPECT_THROW(make_rules({}, {4096}), Error);
  EXPECT_THROW(make_rules({0}, {}), Error);
  EXPECT_THROW(make_rules({4096}, {}, {.alpha_step = -1}), Error);
}

}  // namespace
}  // namespace polyspan
