#include "moa/search_stage.h"

#include <gtest/gtest.h>

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
  weights.update("a", 0.9);  // what is wanted
  EXPECT_DOUBLE_EQ(weights.of("a"), at);
  for (int i = 0; i < 20; ++i) weights.update("a", -1), weights.update("b", 1);
  EXPECT_LE(weights.of("a"), 8);
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

}  // namespace
}  // namespace polyspan
