#include "moa/search_stage.h"

#include <gtest/gtest.h>

#include <filesystem>

namespace polyspan {
namespace {

TEST(RetrievalWeights, GrowWhereRetrievalIsLostAndShrinkWhereItIsKept) {
  RetrievalWeights weights;
  EXPECT_EQ(weights.of("a"), 1);
  weights.update("a", 0.4);
  weights.update("b", 1.0);
  EXPECT_GT(weights.of("a"), 1);
  EXPECT_LT(weights.of("b"), 1);
  EXPECT_EQ(weights.of("c"), 1);
  const double at = weights.of("a");
  weights.update("a", 0.8);  // what is wanted
  EXPECT_DOUBLE_EQ(weights.of("a"), at);
  for (int i = 0; i < 20; ++i) weights.update("a", -1), weights.update("b", 1);
  EXPECT_LE(weights.of("a"), 64);
  EXPECT_GE(weights.of("b"), 0.3);
}

// A length at which the smallest cache takes more than half of the budget is not bounded, and plans may keep less than they
// may: a lower bound forced middling spans on heads that need all or little (0.125: retrieval 0.16 of dense's for 0.74).
TEST(SearchProblem, BoundsTheLengthsThatLeaveAChoice) {
  CompressOptions options;
  options.lengths = {1024, 2048, 4096};
  options.extend = {8192};
  const HeadShape shape{2, 4, 2};
  const auto bounded = [&](double density) {
    std::vector<LossCurve> curves;
    for (const int64_t length : options.lengths)
      curves.push_back({length, length, {64, length}, std::vector<double>(8, 0.0)});
    const SearchProblem problem = search_problem(options, shape, curves, density);
    EXPECT_EQ(problem.min_fill, 0);
    EXPECT_EQ(problem.curves.size(), 4u);
    return problem.bounded_lengths;
  };
  EXPECT_EQ(bounded(0.5), (std::vector<int64_t>{1024, 2048, 4096, 8192}));
  EXPECT_EQ(bounded(0.125), (std::vector<int64_t>{2048, 4096, 8192}));
  EXPECT_EQ(bounded(0.001), (std::vector<int64_t>{8192}));
}

SampleProfile small_sample(double log_odds) {
  SampleProfile s;
  s.id = "1024/passkey-natural/0", s.kind = "passkey-natural", s.length = 1024, s.accepted = true;
  s.log_odds = log_odds, s.dense_log_odds = 5;
  s.candidate_spans = {64, 256, 512, 1024};
  const std::vector<double> effects = {4, 3, 2, 0, 3, 2, 1, 0, 2, 1, 1, 0, 1, 0, 0, 0};
  s.influence = {2, 2, 4, effects, effects, effects, effects};
  return s;
}

// Plans under which retrieval is always broken: each step is tried again while there are extra steps, then the way goes on.
TEST(SearchStage, BrokenStepsEnd) {
  const auto folder = std::filesystem::path(testing::TempDir()) / "polyspan_search_stage_test";
  std::filesystem::remove_all(folder);
  RunDirectory run(folder);
  CompressOptions options;
  options.lengths = {1024}, options.extend = {}, options.steps = 4;
  const HeadShape shape{2, 2, 2};
  const ProfileRound dense{"dense", SpanPlan::dense(shape), {small_sample(5)}};
  for (const double log_odds : {4.0, -5.0}) {
    int64_t n_profiles = 0;
    std::vector<double> densities;
    SearchStage stage(
        options, shape, {}, dense,
        [&](const SpanPlan& plan, const std::string& name, int64_t length) {
          ++n_profiles;
          densities.push_back(plan.density(length));
          return ProfileRound{name, plan, {small_sample(log_odds)}};
        },
        run, no_progress());
    const std::vector<NamedPlan> found = stage.find(0.5);
    EXPECT_EQ(n_profiles, log_odds > 0 ? 4 : 4 + 3);
    EXPECT_LE(densities.back(), 0.5);
    EXPECT_EQ(found[0].name, "annealed");
  }
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace polyspan
