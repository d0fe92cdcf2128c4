// moa/influence.h: from the effects of spans in single samples to the loss that each head's spans cost (docs/compress.md).
//
// A profile runs samples under a plan (the first: dense). For each length and kind of sample a table holds what every span
// of every head costs: the mean over samples, divided by what all heads together lose at the smallest span in the dense
// profile, so that no kind drowns another. Tables of later profiles, under the plans found on the way, are blended in.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moa/estimator.h"
#include "moa/search.h"
#include "model/span_profiler.h"
#include "plan/span_plan.h"

namespace polyspan {

// A retrieval sample that keeps no more of the dense log-odds than this under a plan is broken: its gradients say nothing.
inline constexpr double kBrokenShare = 0.15;

// One sample's result in a profile.
struct SampleProfile {
  std::string id, kind;
  int64_t length = 0;
  bool accepted = false;                    // false: the dense model got it wrong; the rest then says how
  double loss = 0;                          // mean over the targets, cross-entropy, under the profile's plan
  double log_odds = 0, dense_log_odds = 0;  // mean over the targets that count: under the plan, and of the dense model
  int64_t n_targets = 0, n_right = 0;
  double forward_s = 0, backward_s = 0;
  std::vector<int64_t> targets;  // that the loss is taken on: of a retrieval sample, those that dense gets right
  std::vector<int64_t> candidate_spans;  // ascending, the last one is `length`
  SpanInfluence influence;               // empty where not accepted or broken
  // Of the dense log-odds under the plan, within -1 and 1; of running text, which has none, nullopt.
  std::optional<double> kept_share() const;
  bool is_broken() const { return kept_share().value_or(1) <= kBrokenShare; }
};

struct ProfileRound {
  std::string name;  // "dense", "step-3"
  SpanPlan plan;     // that the samples ran under
  std::vector<SampleProfile> samples;
  // The share of the dense log-odds that each kind of retrieval sample keeps under the plan, mean over its accepted samples,
  // each within -1 and 1.
  std::map<std::string, double> kept_shares() const;
};

struct CurveOptions {
  Estimator estimator = Estimator::kSpan;
  bool per_query_head = false;  // a curve for each query head; else for each KV head
  // Of the sum of squared effects in the span estimator: what removing the keys costs to second order. In retrieval it spends
  // what is left well. Of running text it is the larger part: a head's signed effects cancel over thousands of tokens, those
  // of many heads cut at once do not, and without it the last layers' heads lose all but their smallest window.
  double square_share = 0.1, text_square_share = 3;
};

// What the spans of one length cost in samples of one kind: [heads][spans], in units of the dense profile's total at the
// smallest span; 0 at the whole length. In a profile under a plan, keys that a longer span would bring back lower the loss
// and keys that a shorter one removes raise it; each head's row is then shifted so that the dense span costs 0.
struct CostTable {
  std::vector<int64_t> spans;
  std::vector<double> cost;
};
using CostTables = std::map<std::pair<int64_t, std::string>, CostTable>;  // (length, kind)

// What divides the costs: totals over heads at the smallest span of the dense profile, of the estimator and of the squares
// that are added to it.
struct KindScale {
  double main = 0, square = 0;
};
using KindScales = std::map<std::pair<int64_t, std::string>, KindScale>;
KindScales kind_scales(const ProfileRound& dense, const CurveOptions& options);

CostTables cost_tables(const ProfileRound& round, const KindScales& scales, const CurveOptions& options);
// table = (1 - share) * table + share * update, for the lengths and kinds that both have.
void blend(CostTables& tables, const CostTables& updates, double share);

// One curve a length, ascending: the sum over its kinds, each times its weight.
std::vector<LossCurve> loss_curves(const CostTables& tables,
                                   const std::function<double(std::string_view kind)>& weight);

// The curve of a length that was not profiled: that of the longest profiled one at the same relative span.
LossCurve extension_curve(const std::vector<LossCurve>& curves, int64_t length);

// Spans to ask about at a length: a few short windows, then sixteenths of the length, the length itself last. Where heads
// have windows: at most eight that a plan can give, the window last.
std::vector<int64_t> candidate_spans(const HeadShape& shape, int64_t length);

}  // namespace polyspan
