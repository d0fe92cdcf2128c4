#include "moa/validation.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace polyspan {
namespace {

TEST(Validation, BeatingDenseAtRetrievalBuysNothing) {
  CalibrationSample retrieval, text;
  retrieval.retrieval = true, text.retrieval = false;
  const ValidationSample of_retrieval{&retrieval, {}, 2.0}, of_text{&text, {}, 2.0};
  EXPECT_DOUBLE_EQ(lost(of_retrieval, 0.5), 0);
  EXPECT_DOUBLE_EQ(lost(of_retrieval, 2.5), 0.5);
  EXPECT_DOUBLE_EQ(lost(of_text, 2.5), kTextCounts * 0.5);
  EXPECT_DOUBLE_EQ(lost(of_text, 1.5), -kTextCounts * 0.5);
}

TEST(Validation, ABaselineWinsOnlyWhereItIsClearlyBetter) {
  const SpanPlan plan = SpanPlan::dense({1, 1, 1});
  const auto name = [&](double annealed, double one_shot, double uniform, bool within = true) {
    const std::vector<NamedPlan> candidates = {
        {"annealed", plan}, {"one-shot", plan}, {"uniform", plan, /*baseline=*/true, within}};
    std::vector<ValidationRow> rows(3);
    rows[0].name = "annealed", rows[0].loss = annealed;
    rows[1].name = "one-shot", rows[1].loss = one_shot;
    rows[2].name = "uniform", rows[2].loss = uniform;
    std::sort(rows.begin(), rows.end(), [](const auto& a, const auto& b) { return a.loss < b.loss; });
    return winner(rows, candidates).name;
  };
  EXPECT_EQ(name(0.5, 0.49, 0.485), "annealed");
  EXPECT_EQ(name(0.5, 0.4, 0.6), "one-shot");
  EXPECT_EQ(name(0.5, 0.4, 0.39), "one-shot");
  EXPECT_EQ(name(0.5, 0.4, 0.3), "uniform");
  EXPECT_EQ(name(0.5, 0.4, 0.3, /*within=*/false), "one-shot");
}

TEST(Validation, TheFirstCandidateAndTheTwoBestOthersRaceOn) {
  const SpanPlan plan = SpanPlan::dense({1, 1, 1});
  const std::vector<NamedPlan> candidates = {{"first", plan}, {"a", plan},   {"b", plan},
                                             {"c", plan},     {"far", plan}, {"uniform", plan, /*baseline=*/true}};
  std::vector<ValidationRow> rows(candidates.size());
  const double losses[] = {0.25, 0.11, 0.13, 0.12, 0.9, 0.12};
  for (size_t i = 0; i < rows.size(); ++i)
    rows[i].name = candidates[i].name, rows[i].loss = losses[i], rows[i].n_samples = 1;
  stop_losers(rows, candidates, "sample 1");
  const auto stopped = [&] {
    std::string names;
    for (const ValidationRow& row : rows)
      if (!row.stopped.empty()) names += row.name + " ";
    return names;
  };
  EXPECT_EQ(stopped(), "b far uniform ");
  rows[3].loss = 0.3, rows[3].n_samples = 2;  // more than half of kClearlyWorse above the best
  stop_losers(rows, candidates, "sample 2");
  EXPECT_EQ(stopped(), "b c far uniform ");
  EXPECT_EQ(rows[2].stopped, "sample 1");
  EXPECT_EQ(rows[3].stopped, "sample 2");
}

}  // namespace
}  // namespace polyspan
