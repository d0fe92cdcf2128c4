#include "moa/search_stage.h"

#include <algorithm>
#include <cmath>
#include <sstream>

#include "core/error.h"

namespace polyspan {
namespace {

constexpr int64_t kFrontSteps = 2;      // of the epsilon-constraint grid
constexpr int64_t kFrontValidated = 1;  // plans of the front that are validated beside the one of least sum
constexpr int64_t kWindow = 256;        // of the two-valued baseline
// Measured with the prototype on SmolLM2-135M and Qwen2.5-Coder-0.5B: replacing the tables instead of blending costs text
// (perplexity at 0.25 +9% / +17% at 4k / 8k against +4%), twice the steps with a share of 0.2 is no better than four.
constexpr double kStepShare = 0.3;    // of a step's profile in the tables
constexpr double kDenseEnough = 0.9;  // where the steps begin
constexpr int64_t kExtraSteps = 3;    // for each density: a step that broke retrieval is tried again

bool same_rules(const SpanPlan& a, const SpanPlan& b) {
  for (int64_t layer = 0; layer < a.shape().n_layers; ++layer)
    for (int64_t head = 0; head < a.rules_per_layer(); ++head)
      if (!(a.rule(layer, head) == b.rule(layer, head))) return false;
  return true;
}

std::vector<int64_t> lengths_of(const std::vector<LossCurve>& curves) {
  std::vector<int64_t> lengths;
  for (const LossCurve& curve : curves) lengths.push_back(curve.length);
  return lengths;
}

OrderedJson curves_json(const std::vector<LossCurve>& all) {
  OrderedJson curves = OrderedJson::array();
  for (const LossCurve& c : all)
    curves.push_back({{"length", c.length}, {"source_length", c.source_length}, {"spans", c.spans}, {"loss", c.loss}});
  return curves;
}

std::vector<int64_t> bounded_and_profiled(const SearchProblem& problem, const CompressOptions& options) {
  std::vector<int64_t> lengths;
  for (const int64_t length : problem.bounded_lengths)
    if (std::find(options.lengths.begin(), options.lengths.end(), length) != options.lengths.end())
      lengths.push_back(length);
  if (lengths.empty()) lengths = {*std::max_element(options.lengths.begin(), options.lengths.end())};
  std::sort(lengths.rbegin(), lengths.rend());  // the longest first
  return lengths;
}

double mean_share(const std::map<std::string, double>& kept) {
  double sum = 0;
  for (const auto& [kind, share] : kept) sum += share / static_cast<double>(kept.size());
  return sum;
}

SpanPlan least_sum(const SearchProblem& p) { return minimise(p, std::vector<double>(p.curves.size(), 1.0)).plan; }

}  // namespace

SearchProblem search_problem(const CompressOptions& options, const HeadShape& shape, std::vector<LossCurve> curves,
                             double density) {
  SearchProblem p;
  p.shape = shape;
  p.per_query_head = options.per_query_head;
  p.min_fill = 0;  // a plan may keep less than it may: see docs/compress.md, "What was tried"
  p.density = density;
  if (shape.window > 0) {  // a window is the same at every length: one bound, and nothing to extend
    p.n_sink_tokens = 0;
    p.curves = std::move(curves);
    p.bounded_lengths = {*std::max_element(options.lengths.begin(), options.lengths.end())};
    for (const int64_t span : candidate_spans(shape, shape.window)) p.rules.push_back({static_cast<double>(span), 0});
    p.rules.back() = kDenseRule;
    return p;
  }
  for (const int64_t length : options.extend) curves.push_back(extension_curve(curves, length));
  p.curves = std::move(curves);
  std::vector<int64_t> lengths = options.lengths;
  lengths.insert(lengths.end(), options.extend.begin(), options.extend.end());
  std::sort(lengths.begin(), lengths.end());
  for (const int64_t length : lengths)
    if (static_cast<double>(p.n_sink_tokens + kBlockTokens) <= 0.5 * density * static_cast<double>(length))
      p.bounded_lengths.push_back(length);
  if (p.bounded_lengths.empty()) p.bounded_lengths = {lengths.back()};
  // Steps of a 32nd of the longest profiled length, whole blocks: 128 tokens for 1k, 2k, 4k. Twice as wide, the perplexity of
  // WikiText-2 at a density of 0.125 is +40% / +42%, not +29% / +22% (SmolLM2-135M, 4k / 8k, three seeds). With a rule for
  // each query head the solver is too slow for that.
  const int64_t parts = options.per_query_head ? 16 : 32;
  const int64_t longest = *std::max_element(options.lengths.begin(), options.lengths.end());
  p.rules = make_rules(
      options.lengths, options.extend,
      {.alpha_step = std::max<int64_t>(1, longest / (parts * kBlockTokens)) * kBlockTokens, .beta_parts = parts});
  return p;
}

void check_densities(const CompressOptions& options, const HeadShape& shape) {
  const int64_t n_heads = shape.n_layers * (options.per_query_head ? shape.n_heads : shape.n_kv_heads);
  std::vector<LossCurve> free;  // nothing is known of the losses yet
  for (const int64_t length : options.lengths)
    free.push_back({length, length, {length}, std::vector<double>(static_cast<size_t>(n_heads), 0.0)});
  for (const double density : options.densities) check_reachable(search_problem(options, shape, free, density));
}

SearchStage::SearchStage(const CompressOptions& options, const HeadShape& shape, SpanPlan::Info info,
                         const ProfileRound& dense, ProfileUnder profile_under, RunDirectory& run, Progress& progress)
    : options_(options),
      shape_(shape),
      info_(std::move(info)),
      dense_(dense),
      profile_under_(std::move(profile_under)),
      run_(run),
      progress_(progress),
      curve_options_{.estimator = options.influence, .per_query_head = options.per_query_head},
      scales_(kind_scales(dense, curve_options_)),
      dense_tables_(cost_tables(dense, scales_, curve_options_)),
      tables_(dense_tables_) {}

double RetrievalWeights::of(std::string_view kind) const {
  const auto found = factors_.find(std::string(kind));
  return found == factors_.end() ? 1 : found->second;
}

void RetrievalWeights::update(const std::string& kind, double kept_share) {
  constexpr double kWantedShare = 0.8, kLeast = 1.0 / 3, kMost = 64;
  factors_[kind] = std::clamp(of(kind) * std::exp(kWantedShare - kept_share), kLeast, kMost);
}

std::vector<LossCurve> SearchStage::curves(const CostTables& tables, const RetrievalWeights& weights) const {
  return loss_curves(tables, [&](std::string_view kind) { return options_.weight(kind) * weights.of(kind); });
}

void SearchStage::save(double density, const NamedPlan& candidate, Estimator estimator) const {
  SpanPlan::Info of_plan = info_;
  of_plan.density = density, of_plan.influence = estimator_name(estimator);
  SpanPlan plan = candidate.plan;
  plan.set_info(std::move(of_plan));
  const auto path = run_.path("candidates/" + density_name(density) + "/" + candidate.name + ".json");
  std::error_code error;
  std::filesystem::create_directories(path.parent_path(), error);
  if (error) throw Error::io(path.parent_path(), "cannot make the folder: ", error.message());
  plan.save(path);
}

// What each estimator would have chosen from the dense profile alone, for comparison: not validated.
void SearchStage::write_other_estimators(double density) const {
  for (const Estimator estimator : {Estimator::kSpan, Estimator::kSpanAbs, Estimator::kPairwise}) {
    if (estimator == Estimator::kPairwise && shape_.window > 0) continue;  // not profiled there: model/hydra_profiler.h
    const CurveOptions with{.estimator = estimator, .per_query_head = options_.per_query_head};
    const CostTables tables = cost_tables(dense_, kind_scales(dense_, with), with);
    const SearchProblem p = search_problem(options_, shape_, curves(tables, {}), density);
    save(density, {"dense-" + std::string(estimator_name(estimator)), least_sum(p), false}, estimator);
  }
}

std::optional<NamedPlan> SearchStage::anneal(double density, OrderedJson& rounds) {
  const double from = reached_;
  const auto n_steps = std::max<int64_t>(options_.steps > 0 ? 1 : 0,
                                         std::llround(static_cast<double>(options_.steps) * std::log2(from / density)));
  std::optional<NamedPlan> best;
  double best_share = -1;
  int64_t extra = kExtraSteps;
  for (int64_t step = 1; step <= n_steps;) {
    const double at = std::min(
        kDenseEnough, from * std::pow(density / from, static_cast<double>(step) / static_cast<double>(n_steps)));
    const SearchProblem problem = search_problem(options_, shape_, curves(tables_, weights_), at);
    const SpanPlan plan = least_sum(problem);
    // At shorter lengths the plan keeps more than the density: what it does there says little about it.
    const std::vector<int64_t> lengths = bounded_and_profiled(problem, options_);
    const int64_t length = lengths[static_cast<size_t>(n_steps_++) % lengths.size()];
    const std::string name = "step-" + std::to_string(n_steps_);
    const ProfileRound round = profile_under_(plan, name, length);

    const std::map<std::string, double> kept = round.kept_shares();
    CostTables update = cost_tables(round, scales_, curve_options_);
    OrderedJson kept_json = OrderedJson::object();
    std::ostringstream line;
    line.precision(3);
    line << name << ": density " << at << ", " << length << " tokens";
    bool sound = true;
    for (const auto& [kind, share] : kept) {
      line << ", " << kind << " keeps " << share << " at weight x" << weights_.of(kind);
      kept_json[kind] = {{"share", share}, {"weight", weights_.of(kind)}};
      weights_.update(kind, share);
      if (share > kBrokenShare) continue;
      sound = false;
      update.erase({length, kind});
    }
    blend(tables_, update, kStepShare);
    run_.log(line.str() + (sound ? "" : ": broken"));
    rounds.push_back({{"round", name}, {"density", at}, {"length", length}, {"kept", kept_json}, {"sound", sound}});
    if (const double share = mean_share(kept); step == n_steps && (!best || share > best_share))
      best = NamedPlan{name, plan, false}, best_share = share;
    if (sound || extra == 0)
      ++step;
    else
      --extra;
  }
  reached_ = density;
  return best;
}

std::vector<NamedPlan> SearchStage::find(double density) {
  POLYSPAN_CHECK(density < reached_, "densities in descending order");
  std::vector<NamedPlan> candidates;
  const auto add = [&](std::string name, SpanPlan plan, bool baseline, bool within_density = true) {
    for (const NamedPlan& other : candidates)
      if (!other.baseline && !baseline && same_rules(other.plan, plan)) return;
    candidates.push_back({std::move(name), std::move(plan), baseline, within_density});
    save(density, candidates.back(), options_.influence);
  };
  const SearchProblem one_shot = search_problem(options_, shape_, curves(dense_tables_, {}), density);
  const SpanPlan dense_plan = least_sum(one_shot);
  OrderedJson rounds = OrderedJson::array(), front_json = OrderedJson::array();
  const std::optional<NamedPlan> best_step = anneal(density, rounds);
  const SearchProblem p = search_problem(options_, shape_, curves(tables_, weights_), density);
  const std::vector<Candidate> front = pareto_front(p, kFrontSteps, progress_);
  const auto front_name = [](size_t i) { return i == 0 ? "annealed" : "annealed-front" + std::to_string(i); };
  for (size_t i = 0; i < front.size(); ++i)
    front_json.push_back({{"name", front_name(i)},
                          {"origin", front[i].origin},
                          {"losses", front[i].losses},
                          {"densities", front[i].densities}});
  add(front_name(0), front[0].plan, false);
  const int64_t others = std::ssize(front) - 1;  // evenly over the front
  for (int64_t i = 0; i < std::min(kFrontValidated, others); ++i) {
    const size_t at = static_cast<size_t>(1 + (others - 1) * (2 * i + 1) / (2 * kFrontValidated));
    add(front_name(at), front[at].plan, false);
  }
  if (best_step) add(best_step->name, best_step->plan, false);
  add("one-shot", dense_plan, false);
  // The two-valued plan's window may be more than a short length's budget: it is bounded where it fits.
  SearchProblem two = one_shot;
  std::erase_if(two.bounded_lengths, [&](int64_t length) {
    return static_cast<double>(two.n_sink_tokens + kWindow) >
           0.9 * density * static_cast<double>(shape_.plan_length(length));
  });
  if (!two.bounded_lengths.empty())
    add("two-valued", two_valued(two, kWindow).plan, true, two.bounded_lengths == one_shot.bounded_lengths);
  add("uniform", SpanPlan::uniform(shape_, density), true);
  write_other_estimators(density);
  run_.write_json("search/" + density_name(density) + ".json", {{"density", density},
                                                                {"bounded_lengths", p.bounded_lengths},
                                                                {"curve_lengths", lengths_of(p.curves)},
                                                                {"steps", rounds},
                                                                {"rounds",
                                                                 {{{"round", "dense"},
                                                                   {"plan_of_round", "dense"},
                                                                   {"curves", curves_json(one_shot.curves)},
                                                                   {"candidates", {"one-shot"}}},
                                                                  {{"round", "annealed"},
                                                                   {"plan_of_round", "steps"},
                                                                   {"curves", curves_json(p.curves)},
                                                                   {"candidates", {front_name(0)}}}}},
                                                                {"front", front_json}});
  return candidates;
}

}  // namespace polyspan
