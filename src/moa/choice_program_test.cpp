#include "moa/choice_program.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <random>

namespace polyspan {
namespace {

// Heads whose loss falls with the span, each at a rate of its own, at two lengths; half of the tokens may be kept.
ChoiceTables falling_losses(int64_t n_heads, int n_rules, uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto uniform = [&] { return static_cast<double>(random() >> 11) * 0x1p-53; };
  ChoiceTables tables;
  tables.n_groups = n_heads;
  tables.n_rules = n_rules;
  tables.lengths = {1000, 2000};
  tables.losses.resize(2);
  for (const int64_t length : tables.lengths) {
    auto& kept = tables.kept.emplace_back();
    for (int rule = 0; rule < n_rules; ++rule)
      kept.push_back(std::max<int64_t>(1, std::llround(static_cast<double>(length) * uniform())));
    tables.most.push_back(length * n_heads / 2);
    tables.least.push_back(0);
  }
  for (int64_t head = 0; head < n_heads; ++head)
    for (size_t curve = 0; curve < 2; ++curve) {
      const double rate = 1 + 20 * uniform();
      for (int rule = 0; rule < n_rules; ++rule)
        tables.losses[curve].push_back(std::exp(-rate * static_cast<double>(tables.kept[curve][rule]) /
                                                static_cast<double>(tables.lengths[curve])));
    }
  return tables;
}

// Both curves count alike; the loss of the second is limited, or alone to be made small.
struct Relaxed {
  ChoiceTables tables;
  ChoiceProgram program;

  explicit Relaxed(ChoiceTables made, double limit = kNoLimit, double first_weight = 1) : tables(std::move(made)) {
    const ChoiceGoal goal{{first_weight, 1}, {kNoLimit, limit}};
    std::vector<int> rules(tables.n_rules);
    std::iota(rules.begin(), rules.end(), 0);
    std::vector<double> costs;
    for (size_t i = 0; i < tables.losses[0].size(); ++i)
      costs.push_back(first_weight * tables.losses[0][i] + tables.losses[1][i]);
    program = make_program(tables, goal, std::vector<std::vector<int>>(tables.n_heads(), rules), costs,
                           /*lower_bounds=*/false);
  }
  // One choice a head: the rule that keeps least at the longer length.
  std::vector<char> sparsest() const {
    int least = 0;
    for (int rule = 0; rule < tables.n_rules; ++rule)
      if (tables.kept[1][rule] < tables.kept[1][least]) least = rule;
    std::vector<char> start;
    for (const auto& [head, rule] : program.choices) start.push_back(rule == least);
    return start;
  }
};

std::vector<char> all_columns(const Relaxed& relaxed) { return std::vector<char>(relaxed.program.choices.size(), 1); }

TEST(ColumnGeneration, FindsTheOptimumOfAllColumnsFromFew) {
  for (const uint64_t seed : {1, 2, 3}) {
    const ChoiceTables tables = falling_losses(40, 60, seed);
    const Relaxed second(tables, kNoLimit, /*first_weight=*/0);
    ColumnGeneration least_second(second.program, all_columns(second));
    ASSERT_TRUE(least_second.solve());
    double free_cost = 0;
    for (const double limit : {kNoLimit, 1.02 * least_second.cost()}) {
      const Relaxed relaxed(tables, limit);
      ColumnGeneration whole(relaxed.program, all_columns(relaxed)), few(relaxed.program, relaxed.sparsest());
      ASSERT_TRUE(whole.solve()) << "seed " << seed << ", limit " << limit;
      ASSERT_TRUE(few.solve());
      EXPECT_NEAR(few.cost(), whole.cost(), 1e-6 * whole.cost()) << "seed " << seed << ", limit " << limit;
      EXPECT_GT(few.cost(), (1 + 1e-5) * free_cost) << "the limit binds";
      free_cost = few.cost();
      // Of each head something is in use, and nothing would lower the cost.
      std::vector<double> least(tables.n_heads(), kNoLimit);
      ASSERT_EQ(few.reduced_costs().size(), relaxed.program.choices.size());
      for (size_t i = 0; i < relaxed.program.choices.size(); ++i) {
        double& of_head = least[relaxed.program.choices[i].first];
        of_head = std::min(of_head, few.reduced_costs()[i]);
      }
      for (const double reduced : least) EXPECT_NEAR(reduced, 0, 1e-6);
    }
  }
}

TEST(ColumnGeneration, BeginsWithTooFewToHaveASolution) {
  const Relaxed all(falling_losses(10, 30, 4));
  ColumnGeneration few(all.program, std::vector<char>(all.program.choices.size(), 0)),
      whole(all.program, all_columns(all));
  ASSERT_TRUE(few.solve());
  ASSERT_TRUE(whole.solve());
  EXPECT_NEAR(few.cost(), whole.cost(), 1e-6 * whole.cost());
}

TEST(ColumnGeneration, SaysWhatHasNoSolution) {
  ChoiceTables tables = falling_losses(10, 30, 5);
  tables.most = {10, 10};
  const Relaxed all(std::move(tables));
  ColumnGeneration few(all.program, all.sparsest());
  EXPECT_FALSE(few.solve());
}

TEST(ColumnGeneration, CostsInAnotherUnitHaveTheSameOptimum) {
  const Relaxed all(falling_losses(20, 40, 6));
  ColumnGeneration few(all.program, all.sparsest());
  ASSERT_TRUE(few.solve());
  const double before = few.cost();
  few.rescale_costs(1000);
  ASSERT_TRUE(few.solve());
  EXPECT_NEAR(few.cost(), 1000 * before, 1e-6 * few.cost());
}

}  // namespace
}  // namespace polyspan
