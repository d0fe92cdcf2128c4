// From effects in samples to loss curves: signs, groups, normalisation, shifts, blending; small enough to check by
// hand.
#include "moa/influence.h"

#include <gtest/gtest.h>

#include "core/error.h"

namespace polyspan {
namespace {

constexpr HeadShape kShape{1, 4, 2};  // one layer, two KV heads in groups of two

// Effects [query head][candidate] at spans 64, 128, 256 (the whole length).
SampleProfile sample(const std::string& kind, std::vector<double> span, std::vector<double> span_abs, int index = 0,
                     std::vector<double> squares = {}) {
  SampleProfile s;
  s.id = "256/" + kind + "/" + std::to_string(index);
  s.kind = kind, s.length = 256, s.accepted = true;
  s.candidate_spans = {64, 128, 256};
  s.influence = {1, 4, 3, span, span_abs, squares.empty() ? span_abs : std::move(squares), span_abs};
  return s;
}

ProfileRound dense_round() {
  return {"dense",
          SpanPlan::dense(kShape),
          {sample("a", {1, 2, 0, 2, -1, 0, /**/ -1, 1, 0, -2, 0, 0}, {1, 2, 0, 2, 1, 0, /**/ 1, 1, 0, 2, 0, 0}),
           sample("a", {-9, 1, 0, 0, 0, 0, /**/ 2, 0, 0, 3, 0, 0}, {9, 1, 0, 0, 0, 0, /**/ 2, 0, 0, 3, 0, 0}, 1)}};
}

double weight_one(std::string_view) { return 1; }

// KV head 0: sums over its group 3, 1 | -9, 1; positive parts 3, 1 | 0, 1; means 1.5, 1. KV head 1: -3, 1 | 5, 0; means
// 2.5, 0.5. The total at the smallest span is 4. Absolute: head 0 (3 + 9) / 2, (3 + 1) / 2; head 1 (3 + 5) / 2, 1 / 2;
// total 10.
TEST(Influence, SpanEstimatorIsThePositivePartOfTheGroupsSum) {
  const ProfileRound round = dense_round();
  const CurveOptions options;
  const KindScales scales = kind_scales(round, options);
  EXPECT_DOUBLE_EQ(scales.at({256, "a"}).main, 4);
  EXPECT_DOUBLE_EQ(scales.at({256, "a"}).square, 10);
  const std::vector<LossCurve> curves = loss_curves(cost_tables(round, scales, options), weight_one);
  ASSERT_EQ(curves.size(), 1u);
  EXPECT_EQ(curves[0].spans, (std::vector<int64_t>{64, 128, 256}));
  const std::vector<double> expected = {1.5 / 4 + 0.1 * 6 / 10, 1.0 / 4 + 0.1 * 2 / 10,   0,
                                        2.5 / 4 + 0.1 * 4 / 10, 0.5 / 4 + 0.1 * 0.5 / 10, 0};
  ASSERT_EQ(curves[0].loss.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(curves[0].loss[i], expected[i], 1e-12) << i;
}

TEST(Influence, OtherEstimatorsAndQueryHeads) {
  const ProfileRound round = dense_round();
  for (const Estimator estimator : {Estimator::kSpanAbs, Estimator::kPairwise}) {
    const CurveOptions options{.estimator = estimator};
    const std::vector<LossCurve> curves =
        loss_curves(cost_tables(round, kind_scales(round, options), options), weight_one);
    const std::vector<double> expected = {0.6, 0.2, 0, 0.4, 0.05, 0};
    for (size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(curves[0].loss[i], expected[i], 1e-12) << i;
  }
  const CurveOptions options{.estimator = Estimator::kSpan, .per_query_head = true, .square_share = 0};
  const std::vector<LossCurve> curves =
      loss_curves(cost_tables(round, kind_scales(round, options), options), weight_one);
  ASSERT_EQ(curves[0].loss.size(), 12u);
  EXPECT_NEAR(curves[0].loss[0], (0.5 * (1 + 0)) / (0.5 * (1 + 0 + 2 + 0 + 0 + 2 + 0 + 3)), 1e-12);  // head 0: 1 | -9
  EXPECT_NEAR(curves[0].loss[1], (0.5 * (2 + 1)) / 4, 1e-12);
}

// Under a plan of span 128: 64 removes (cost, positive), 256 brings back (gain, negative); dense is shifted to 0.
TEST(Influence, UnderAPlanLongerSpansGainAndDenseCostsNothing) {
  const ProfileRound dense = dense_round();
  const CurveOptions options{.square_share = 0};
  ProfileRound round{"step-1",
                     SpanPlan::from_rules(kShape, {{{128, 0}, {128, 0}}}, /*per_query_head=*/false),
                     {sample("a", {2, 0, -4, 0, 0, -4, /**/ -2, 0, 8, 0, 0, 0}, std::vector<double>(12, 1.0))}};
  const std::vector<LossCurve> curves =
      loss_curves(cost_tables(round, kind_scales(dense, options), options), weight_one);
  const std::vector<double> expected = {(2 + 8) / 4.0, 8 / 4.0, 0, 0, 0, 0};
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(curves[0].loss[i], expected[i], 1e-12) << i;
}

TEST(Influence, KindsAreNormalisedWeighedAndBlended) {
  ProfileRound round = dense_round();
  round.samples.push_back(sample("text", {100, 50, 0, 0, 0, 0, /**/ 100, 0, 0, 0, 0, 0}, std::vector<double>(12, 0.0)));
  SampleProfile wrong = sample("a", std::vector<double>(12, 1e9), std::vector<double>(12, 1e9), 2);
  wrong.accepted = false;
  round.samples.push_back(wrong);
  const CurveOptions options{.square_share = 0};
  const KindScales scales = kind_scales(round, options);
  CostTables tables = cost_tables(round, scales, options);
  EXPECT_EQ(tables.size(), 2u);
  const auto weight = [](std::string_view kind) { return kind == "text" ? 1.0 : 3.0; };
  EXPECT_NEAR(loss_curves(tables, weight)[0].loss[0], 3 * 1.5 / 4 + 0.5, 1e-12);
  CostTables update = {{{256, "text"}, tables.at({256, "text"})}};
  for (double& cost : update.begin()->second.cost) cost = 1;
  blend(tables, update, 0.25);
  EXPECT_NEAR(tables.at({256, "text"}).cost[0], 0.75 * 0.5 + 0.25, 1e-12);
  EXPECT_NEAR(tables.at({256, "a"}).cost[0], 1.5 / 4, 1e-12);
}

TEST(Influence, SquaresCountMoreInText) {
  const std::vector<double> span = {1, 0, 0, 0, 0, 0, /**/ 1, 0, 0, 0, 0, 0}, abs(12, 2.0);
  const CurveOptions options{.square_share = 0.5, .text_square_share = 4};
  for (const std::string kind : {"text", "a"}) {
    ProfileRound round = dense_round();
    round.samples = {sample(kind, span, abs)};
    const KindScales scales = kind_scales(round, options);
    const double all = scales.at({256, kind}).square;
    const CostTables tables = cost_tables(round, scales, options);
    const double of_span = 1.0 / scales.at({256, kind}).main, share = kind == "text" ? 4 : 0.5;
    // The whole length costs 0, so what all spans have in common falls out: only the first row's own effect is left.
    EXPECT_GT(all, 0);
    EXPECT_NEAR(tables.at({256, kind}).cost[0] - tables.at({256, kind}).cost[1], of_span, 1e-12) << kind;
    std::vector<double> rising = abs;
    rising[0] += 1;
    round.samples = {sample(kind, span, rising)};
    EXPECT_NEAR(cost_tables(round, scales, options).at({256, kind}).cost[0] - tables.at({256, kind}).cost[0],
                share / all, 1e-12)
        << kind;
  }
}

TEST(Influence, KeptSharesAreMeansOfRetrievalKinds) {
  ProfileRound round;
  const auto add = [&](std::string kind, double log_odds, bool accepted = true) {
    SampleProfile& sample = round.samples.emplace_back();
    sample.kind = std::move(kind), sample.accepted = accepted;
    sample.log_odds = log_odds, sample.dense_log_odds = 8;
  };
  EXPECT_TRUE(round.kept_shares().empty());
  add("a", 2), add("a", 6), add("a", 100, false), add("b", 12), add("c", -80), add("text", 1);
  EXPECT_EQ(round.kept_shares(), (std::map<std::string, double>{{"a", 0.5}, {"b", 1}, {"c", -1}}));
}

TEST(Influence, ABrokenSampleIsInNoTable) {
  const ProfileRound dense = dense_round();
  const KindScales scales = kind_scales(dense, {});
  ProfileRound round = dense;
  SampleProfile& broken = round.samples[0];
  broken.log_odds = 1, broken.dense_log_odds = 8;
  EXPECT_TRUE(broken.is_broken());
  broken.influence = {};  // not profiled
  const CostTable table = cost_tables(round, scales, {}).at({256, "a"});
  round.samples.erase(round.samples.begin());
  EXPECT_EQ(table.cost, cost_tables(round, scales, {}).at({256, "a"}).cost);
  EXPECT_FALSE(round.samples[0].is_broken());  // no dense log-odds: nothing is known to be lost
}

TEST(Influence, CandidateSpansAscendToTheLength) {
  for (const int64_t length : {64, 65, 256, 1000, 1024, 4096, 131072}) {
    const std::vector<int64_t> spans = candidate_spans(HeadShape{}, length);
    EXPECT_EQ(spans.back(), length);
    EXPECT_TRUE(std::is_sorted(spans.begin(), spans.end(), std::less_equal<>()));
    EXPECT_GE(spans.front(), std::min<int64_t>(64, length));
    EXPECT_LE(spans.size(), 24u);
  }
}

}  // namespace
}  // namespace polyspan
