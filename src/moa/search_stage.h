// moa/search_stage.h: the searches of one density: plans from the dense profile, plans from profiles under the plan found
// so far, and the baselines beside them.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/progress.h"
#include "moa/compress_options.h"
#include "moa/influence.h"
#include "moa/run_directory.h"
#include "moa/search.h"
#include "moa/validation.h"

namespace polyspan {

// The problem of one density: rules, curves of the profiled and the extension lengths, and the lengths where the density is
// bounded. A length at which the smallest cache that a plan can have takes more than half of the budget is not bounded: it
// would leave no choice there, and a poor one at the others.
SearchProblem search_problem(const CompressOptions& options, const HeadShape& shape, std::vector<LossCurve> curves,
                             double density);

// Throws Error (kBadInput) naming the smallest density that can be reached, where one of the options' is below it: known
// from the lengths alone, before the long work.
void check_densities(const CompressOptions& options, const HeadShape& shape);

// What the retrieval kinds weigh: more where the last step's plan kept less of the dense log-odds than is wanted, less
// where it kept all (dual ascent on "eight tenths are kept"). Retrieval fails at once where too many heads are cut, which no
// sum of first-order effects foresees; where nothing is lost, the weight is better spent on running text.
class RetrievalWeights {
 public:
  double of(std::string_view kind) const;  // 1 before the first update
  void update(const std::string& kind, double kept_share);

 private:
  std::map<std::string, double> factors_;
};

// Goes from dense to sparse in small steps (annealing): each solves for a density a little lower, profiles a few fresh
// samples under that plan, and blends what they say into the cost tables. Cutting at once fails below a quarter: heads that
// retrieve work in chains, and once one is cut the others' gradients vanish (SmolLM2-135M, density 0.125, 2k/4k/8k relative
// to dense: one jump from 0.25 0.19 / 0.20 / 0.61, four steps 0.80 / 0.80 / 0.70; prototype on an H100).
class SearchStage {
 public:
  // Profiles under a plan: a name for it, the plan and a length in, the result out.
  using ProfileUnder = std::function<ProfileRound(const SpanPlan& plan, const std::string& name, int64_t length)>;
  // info: for plan files; density and influence are filled in. All references must outlive it.
  SearchStage(const CompressOptions& options, const HeadShape& shape, SpanPlan::Info info, const ProfileRound& dense,
              ProfileUnder profile_under, RunDirectory& run, Progress& progress);

  // Writes candidates/DENSITY/*.json and search/DENSITY.json. The candidates to validate, no two alike; the first is the one
  // that the annealing ends with. Densities must be asked for in descending order: each goes on from the one before.
  std::vector<NamedPlan> find(double density);
  // Of the density that was found last: what its plan was the best of.
  SearchProblem problem(double density) const {
    return search_problem(options_, shape_, curves(tables_, weights_), density);
  }

 private:
  // Goes down to `density`. Of the plans that were profiled there the one that kept most of the dense log-odds; none without
  // steps.
  std::optional<NamedPlan> anneal(double density, OrderedJson& rounds);
  std::vector<LossCurve> curves(const CostTables& tables, const RetrievalWeights& weights) const;
  void write_other_estimators(double density) const;
  void save(double density, const NamedPlan& candidate, Estimator estimator) const;

  const CompressOptions& options_;
  HeadShape shape_;
  SpanPlan::Info info_;
  const ProfileRound& dense_;
  ProfileUnder profile_under_;
  RunDirectory& run_;
  Progress& progress_;
  CurveOptions curve_options_;
  KindScales scales_;
  CostTables dense_tables_, tables_;
  double reached_ = 1;  // the density of the last step
  int64_t n_steps_ = 0;
  RetrievalWeights weights_;
};

}  // namespace polyspan
