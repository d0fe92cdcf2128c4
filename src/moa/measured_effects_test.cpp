// Effects that are measured, on made-up losses: what the best choice is can be counted out.
#include "moa/measured_effects.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

namespace polyspan {
namespace {

constexpr int kShort = 0, kMiddle = 1, kDense = 2;

// One length of 1,024 tokens, KV heads that keep 128, 512 or all of it; room for two dense heads of six, the rest short.
ChoiceTables six_heads() {
  ChoiceTables tables;
  tables.n_groups = 6, tables.n_rules = 3;
  tables.lengths = {1024};
  tables.kept = {{128, 512, 1024}};
  tables.least = {0}, tables.most = {4 * 128 + 2 * 1024};
  return tables;
}

using Loss = std::function<double(const Choice&)>;

MeasuredEffects measured(const ChoiceTables& tables, const Choice& now, const Loss& loss, double error = 0.01) {
  const std::vector<Probe> probes = probes_around(tables, now);
  std::vector<Change> effects;
  for (const Probe& probe : probes) {
    Choice changed = now;
    changed[static_cast<size_t>(probe.head)] = probe.rule;
    effects.push_back({loss(changed) - loss(now), error});
  }
  return {tables, now, probes, effects};
}

// Proposes, measures, learns; the best choice seen.
Choice refined(const ChoiceTables& tables, const Choice& start, const Loss& loss, int64_t n_choices, uint64_t seed) {
  MeasuredEffects effects = measured(tables, start, loss);
  Choice best = start;
  for (int64_t i = 0; i < n_choices; ++i) {
    const Choice choice = effects.propose(0, i == 0 ? 0 : 0.4, RandomSource{seed, static_cast<uint64_t>(i)});
    EXPECT_TRUE(tables.within_upper_bounds(choice));
    if (loss(choice) < loss(best)) best = choice;
    effects.learn(choice, {loss(choice) - loss(start), 0.01});
  }
  return best;
}

TEST(MeasuredEffects, ProbesAreLongerAndShorter) {
  const Choice now = {kShort, kMiddle, kDense, kShort, kShort, kShort};
  std::vector<std::vector<int>> rules(now.size());
  for (const Probe& probe : probes_around(six_heads(), now))
    rules[static_cast<size_t>(probe.head)].push_back(probe.rule);
  EXPECT_EQ(rules[0], (std::vector<int>{kDense}));  // twice 128 is nearer to 128 than to 512 in neither way: 128 stays
  EXPECT_EQ(rules[1], (std::vector<int>{kDense, kShort}));
  EXPECT_EQ(rules[2], (std::vector<int>{kMiddle, kShort}));
}

TEST(MeasuredEffects, PairedChangesAreOfTheSamplesSoFar) {
  const std::vector<double> before = {10, 20, 30, 40}, after = {11, 23, 32};
  const Change change = paired_change(before, after);
  EXPECT_DOUBLE_EQ(change.mean, 2);
  EXPECT_NEAR(change.error, 1 / std::sqrt(3.0), 1e-12);
}

// A plan that spends on the wrong heads, as a search does by wrong curves: two others are worth more.
TEST(MeasuredEffects, MendsAWrongChoice) {
  const Loss loss = [](const Choice& choice) {
    constexpr double kWorth[] = {0.5, 0.4, 0.1, 0.1, 0.0, 0.0};
    double sum = 0;
    for (size_t head = 0; head < choice.size(); ++head) sum -= kWorth[head] * choice[head] / 2;
    return sum;
  };
  const Choice wrong = {kShort, kShort, kDense, kDense, kShort, kShort};
  const Choice found = measured(six_heads(), wrong, loss).propose(0, 0, RandomSource{1});
  EXPECT_EQ(found, (Choice{kDense, kDense, kShort, kShort, kShort, kShort}));
  // With enough doubt nothing is better than what is known.
  EXPECT_EQ(measured(six_heads(), wrong, loss, 1).propose(3, 0, RandomSource{1}), wrong);
}

// A miss that uncertain effects can explain is shared among the heads that were changed.
TEST(MeasuredEffects, LearnsFromWhatWasMeasuredAsAWhole) {
  const auto worth = [](const Choice& choice) { return -0.3 * (choice[0] == kDense) - 0.2 * (choice[1] == kDense); };
  const Choice start(6, kShort), both = {kDense, kDense, kShort, kShort, kShort, kShort};
  MeasuredEffects effects = measured(six_heads(), start, worth);
  EXPECT_NEAR(effects.expected(both), -0.5, 1e-12);
  effects.learn(both, {-0.4, 0.001});
  EXPECT_NEAR(effects.expected(both), -0.4, 1e-3);
  const Choice first = {kDense, kShort, kShort, kShort, kShort, kShort};
  EXPECT_GT(effects.expected(first), -0.29);
  EXPECT_LT(effects.expected(first), -0.21);
}

// Heads 2 and 3 do the same: alone each can be cut for nothing, not both. What the first choice costs says so.
TEST(MeasuredEffects, LearnsWhatDoesNotAddUp) {
  const Loss loss = [](const Choice& choice) {
    double sum = -0.3 * (choice[0] == kDense) - 0.2 * (choice[1] == kDense);
    if (choice[2] != kDense && choice[3] != kDense) sum += 1;
    return sum;
  };
  const Choice start = {kShort, kShort, kDense, kDense, kShort, kShort};
  MeasuredEffects effects = measured(six_heads(), start, loss);
  const Choice additive = effects.propose(0, 0, RandomSource{1});
  EXPECT_EQ(additive, (Choice{kDense, kDense, kShort, kShort, kShort, kShort}));
  EXPECT_LT(effects.expected(additive), -0.4);
  EXPECT_GT(loss(additive), loss(start));
  effects.learn(additive, {loss(additive) - loss(start), 0.01});
  EXPECT_GT(effects.expected(additive), -0.45);
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    const Choice found = refined(six_heads(), start, loss, 12, seed);
    EXPECT_NEAR(loss(found), -0.3, 1e-9) << "seed " << seed;  // head 0 in place of one of the two
  }
}

}  // namespace
}  // namespace polyspan
