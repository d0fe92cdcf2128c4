#include "moa/search.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <sstream>
#include <tuple>
#include <utility>

#include "core/error.h"
#include "moa/choice_solver.h"

namespace polyspan {
namespace {

void check_problem(const SearchProblem& problem) {
  if (!(problem.density > 0 && problem.density <= 1))
    throw Error::bad_input("search: found density ", problem.density, ", wanted a number above 0, at most 1");
  if (!(problem.min_fill >= 0 && problem.min_fill <= 1))
    throw Error::bad_input("search: found a lower bound of ", problem.min_fill, " of the density, wanted 0 to 1");
  if (!(problem.gap >= 0 && problem.gap < 1))
    throw Error::bad_input("search: found a gap of ", problem.gap, ", wanted a number from 0 to below 1");
  POLYSPAN_CHECK(!problem.curves.empty() && !problem.rules.empty() && !problem.bounded_lengths.empty(),
                 "a search needs curves, rules and lengths where the density is bounded");
  for (const int64_t length : problem.bounded_lengths) POLYSPAN_CHECK(length > 0, "a bounded length");
  for (const LossCurve& curve : problem.curves) {
    POLYSPAN_CHECK(curve.length > 0 && curve.source_length > 0 && !curve.spans.empty(), "a loss curve's lengths");
    POLYSPAN_CHECK(std::is_sorted(curve.spans.begin(), curve.spans.end()), "a loss curve's spans");
    POLYSPAN_CHECK(curve.loss.size() == problem.n_heads() * curve.spans.size(), "a loss for each head and span");
    for (size_t i = 0; i < curve.loss.size(); ++i)
      if (!std::isfinite(curve.loss[i]))
        throw Error::bad_input("search: the loss at length ", curve.length, ", head ", i / curve.spans.size(),
                               ", span ", curve.spans[i % curve.spans.size()], ": found ", curve.loss[i],
                               ", wanted a finite number");
  }
}

std::vector<double> losses_of(const ChoiceTables& tables, const Choice& choice) {
  std::vector<double> losses;
  for (size_t curve = 0; curve < tables.losses.size(); ++curve) losses.push_back(tables.loss(curve, choice));
  return losses;
}

Candidate make_candidate(const SearchProblem& problem, const ChoiceTables& tables, const Choice& choice,
                         std::string origin) {
  Candidate made{.plan = plan_of(problem, choice),
                 .losses = losses_of(tables, choice),
                 .densities = {},
                 .origin = std::move(origin)};
  SpanPlan::Info info;
  info.density = problem.density;
  for (const LossCurve& curve : problem.curves)
    if (curve.source_length == curve.length) info.lengths.push_back(curve.length);
  made.plan.set_info(std::move(info));
  for (const int64_t length : problem.bounded_lengths) made.densities.push_back(made.plan.density(length));
  return made;
}

[[noreturn]] void throw_too_sparse(const SearchProblem& problem, const ChoiceSolver& solver) {
  const ChoiceTables& tables = solver.tables();
  const Choice smallest = solver.sparsest();
  double density = 0;
  std::ostringstream lengths;
  for (size_t length = 0; length < tables.lengths.size(); ++length) {
    const double dense = static_cast<double>(problem.shape.plan_length(tables.lengths[length]) * tables.n_groups);
    density = std::max(density, static_cast<double>(tables.total_kept(length, smallest)) / dense);
    lengths << (length == 0 ? "" : length + 1 == tables.lengths.size() ? " and " : ", ") << tables.lengths[length];
  }
  throw Error::bad_input("search: found density ", problem.density, ", wanted at least ", density,
                         ", the smallest that the rules reach at ", lengths.str(), " tokens");
}

// Whether `a` is as good on every curve, and better on one.
bool dominates(const std::vector<double>& a, const std::vector<double>& b) {
  for (size_t curve = 0; curve < a.size(); ++curve)
    if (a[curve] > b[curve]) return false;
  return a != b;
}

// The same problem with one rule a KV head: what a group's query heads lose adds up.
SearchProblem per_kv_head(SearchProblem problem) {
  if (!problem.per_query_head) return problem;
  problem.per_query_head = false;
  const int64_t group = problem.shape.n_heads / problem.shape.n_kv_heads;
  for (LossCurve& curve : problem.curves) {
    const size_t n_spans = curve.spans.size();
    std::vector<double> summed(problem.n_heads() * n_spans, 0);
    for (size_t i = 0; i < curve.loss.size(); ++i) summed[i / n_spans / group * n_spans + i % n_spans] += curve.loss[i];
    curve.loss = std::move(summed);
  }
  return problem;
}

// The plans found on the way to a front.
class FrontPoints {
 public:
  explicit FrontPoints(const ChoiceTables& tables) : tables_(tables) {}

  struct Point {
    Choice choice;
    std::vector<double> losses;
    std::string origin;
  };
  const Point& add(const Choice& choice, std::string origin) {
    return points_.emplace_back(Point{choice, losses_of(tables_, choice), std::move(origin)});
  }

  // The best so far that keeps the goal's limits.
  std::optional<Choice> best_within(const ChoiceGoal& goal) const {
    std::optional<Choice> best;
    double best_sum = kNoLimit;
    for (const Point& point : points_) {
      double sum = 0;
      for (size_t curve = 0; curve < goal.weights.size(); ++curve)
        sum += point.losses[curve] <= goal.limits[curve] ? goal.weights[curve] * point.losses[curve] : kNoLimit;
      if (sum >= best_sum) continue;
      best_sum = sum;
      best = point.choice;
    }
    return best;
  }

  // Those that no other dominates, each once; first the least sum, then by the first curve's loss.
  std::vector<Point> front() const {
    std::vector<Point> front;
    for (size_t i = 0; i < points_.size(); ++i) {
      bool beaten = false;
      for (size_t j = 0; j < points_.size() && !beaten; ++j)
        beaten = dominates(points_[j].losses, points_[i].losses) || (j < i && points_[j].losses == points_[i].losses);
      if (!beaten) front.push_back(points_[i]);
    }
    std::sort(front.begin(), front.end(), [](const Point& a, const Point& b) { return a.losses < b.losses; });
    const auto sum = [](const Point& point) { return std::accumulate(point.losses.begin(), point.losses.end(), 0.0); };
    const auto first =
        std::min_element(front.begin(), front.end(), [&](const Point& a, const Point& b) { return sum(a) < sum(b); });
    std::rotate(front.begin(), first, first + 1);
    return front;
  }

 private:
  const ChoiceTables& tables_;
  std::vector<Point> points_;
};

}  // namespace

ChoiceTables choice_tables(const SearchProblem& problem) {
  check_problem(problem);
  ChoiceTables tables;
  tables.n_groups = problem.shape.n_layers * problem.shape.n_kv_heads;
  tables.group_size = problem.n_heads() / tables.n_groups;
  tables.n_rules = static_cast<int>(problem.rules.size());
  tables.gap = problem.gap;
  tables.lengths = problem.bounded_lengths;
  for (const int64_t length : problem.bounded_lengths) {
    auto& kept = tables.kept.emplace_back();
    for (const SpanRule& rule : problem.rules)
      kept.push_back(
          std::min(problem.shape.plan_length(length), problem.n_sink_tokens + problem.shape.span(rule, length)));
    // A millionth of a token forgives that a density such as 0.29 is not exact in binary.
    const double dense = static_cast<double>(problem.shape.plan_length(length) * tables.n_groups);
    tables.most.push_back(static_cast<int64_t>(std::floor(problem.density * dense + 1e-6)));
    tables.least.push_back(static_cast<int64_t>(std::ceil(problem.min_fill * problem.density * dense - 1e-6)));
  }
  for (const LossCurve& curve : problem.curves) {
    auto& losses = tables.losses.emplace_back();
    for (int64_t head = 0; head < tables.n_heads(); ++head)
      for (const SpanRule& rule : problem.rules)
        losses.push_back(curve.at(head, static_cast<double>(problem.shape.span(rule, curve.length))));
  }
  return tables;
}

SpanPlan plan_of(const SearchProblem& problem, const Choice& choice) {
  const auto per_layer = static_cast<size_t>(problem.n_heads() / problem.shape.n_layers);
  std::vector<std::vector<SpanRule>> rules(problem.shape.n_layers);
  for (size_t head = 0; head < choice.size(); ++head) rules[head / per_layer].push_back(problem.rules[choice[head]]);
  return SpanPlan::from_rules(problem.shape, std::move(rules), problem.per_query_head, problem.n_sink_tokens);
}

Choice choice_of(const SearchProblem& problem, const SpanPlan& plan) {
  Choice choice;
  for (int64_t layer = 0; layer < problem.shape.n_layers; ++layer)
    for (int64_t head = 0; head < plan.rules_per_layer(); ++head) {
      const auto found = std::find(problem.rules.begin(), problem.rules.end(), plan.rule(layer, head));
      POLYSPAN_CHECK(found != problem.rules.end(), "a rule that the problem does not have");
      choice.push_back(static_cast<int>(found - problem.rules.begin()));
    }
  return choice;
}

double LossCurve::at(int64_t head, double span) const {
  if (span >= static_cast<double>(length)) return 0;
  const size_t n_spans = spans.size();
  const double* losses = loss.data() + head * n_spans;
  const double measured = span * static_cast<double>(source_length) / static_cast<double>(length);
  const size_t right = std::upper_bound(spans.begin(), spans.end(), measured) - spans.begin();
  if (right == 0) return losses[0];
  const double left_span = static_cast<double>(spans[right - 1]);
  // Behind the last measured span the line goes to a loss of 0 at the dense one.
  const double right_span = static_cast<double>(right < n_spans ? spans[right] : source_length);
  const double right_loss = right < n_spans ? losses[right] : 0;
  if (right_span <= left_span) return losses[right - 1];
  return std::lerp(losses[right - 1], right_loss, (measured - left_span) / (right_span - left_span));
}

std::vector<SpanRule> make_rules(const std::vector<int64_t>& profile_lengths,
                                 const std::vector<int64_t>& extension_lengths, const RuleOptions& options) {
  if (profile_lengths.empty()) throw Error::bad_input("search: found no profile lengths, wanted at least one");
  std::vector<int64_t> lengths = profile_lengths;
  lengths.insert(lengths.end(), extension_lengths.begin(), extension_lengths.end());
  std::sort(lengths.begin(), lengths.end());
  if (lengths[0] < 1) throw Error::bad_input("search: found a length of ", lengths[0], " tokens, wanted at least 1");
  if (options.alpha_step < 0 || options.beta_parts < 1)
    throw Error::bad_input("search: found rules with alpha in steps of ", options.alpha_step, " and beta in ",
                           options.beta_parts, " parts, wanted positive numbers");
  const int64_t shortest = lengths[0];
  const int64_t longest = lengths.back();
  const int64_t longest_profile = *std::max_element(profile_lengths.begin(), profile_lengths.end());
  // Steps of an eighth of the longest profile, in whole blocks: 1,024 tokens for 2k-8k.
  const int64_t step = options.alpha_step > 0
                           ? options.alpha_step
                           : std::max<int64_t>(1, longest_profile / (8 * kBlockTokens)) * kBlockTokens;

  std::vector<SpanRule> rules;
  const auto add = [&](int64_t alpha, int64_t part) {
    const SpanRule rule{static_cast<double>(alpha),
                        static_cast<double>(part) / static_cast<double>(options.beta_parts)};
    const auto line = [&](int64_t length) { return rule.alpha + rule.beta * static_cast<double>(length); };
    if (line(longest_profile) <= static_cast<double>(longest_profile) &&
        line(longest) <= static_cast<double>(longest) && line(shortest) > 0)
      rules.push_back(rule);
  };
  for (int64_t part = 0; part <= options.beta_parts; ++part)
    for (int64_t alpha = -(shortest / step) * step; alpha <= longest_profile; alpha += step) add(alpha, part);
  for (const int64_t window : {kBlockTokens, 2 * kBlockTokens, 4 * kBlockTokens}) add(window, 0);

  // Of rules with the same spans the one closest to a plain share of the input stays: (0, 1) stands for dense.
  const auto spans = [&](const SpanRule& rule) {
    std::vector<int64_t> all;
    for (const int64_t length : lengths) all.push_back(rule.span(length));
    return all;
  };
  std::sort(rules.begin(), rules.end(), [](const SpanRule& a, const SpanRule& b) {
    return std::tuple(std::abs(a.alpha), a.alpha, a.beta) < std::tuple(std::abs(b.alpha), b.alpha, b.beta);
  });
  std::vector<SpanRule> kept;
  std::vector<std::vector<int64_t>> seen;
  for (const SpanRule& rule : rules) {
    if (std::find(seen.begin(), seen.end(), spans(rule)) != seen.end()) continue;
    seen.push_back(spans(rule));
    kept.push_back(rule);
  }
  std::sort(kept.begin(), kept.end(), [](const SpanRule& a, const SpanRule& b) {
    return std::tuple(a.beta, a.alpha) < std::tuple(b.beta, b.alpha);
  });
  return kept;
}

void check_reachable(const SearchProblem& problem) {
  const ChoiceSolver solver(choice_tables(problem));
  if (!solver.tables().within_upper_bounds(solver.sparsest())) throw_too_sparse(problem, solver);
}

Candidate minimise(const SearchProblem& problem, const std::vector<double>& weights) {
  POLYSPAN_CHECK(weights.size() == problem.curves.size(), "a weight for each curve");
  for (const double weight : weights)
    if (!(weight >= 0 && std::isfinite(weight)))
      throw Error::bad_input("search: found a weight of ", weight, ", wanted a number of at least 0");
  const ChoiceSolver solver(choice_tables(problem));
  const auto choice = solver.best(weights);
  if (!choice) throw_too_sparse(problem, solver);
  return make_candidate(problem, solver.tables(), *choice, "sum");
}

std::vector<Candidate> pareto_front(const SearchProblem& problem, int64_t steps, Progress& progress) {
  if (steps < 0) throw Error::bad_input("search: found a grid of ", steps, " steps, wanted at least 0");
  const ChoiceSolver solver(choice_tables(problem));
  const size_t n_curves = problem.curves.size();
  FrontPoints points(solver.tables());
  int64_t done = 0;
  progress.start("search", n_curves == 1 ? 1 : 1 + static_cast<int64_t>(n_curves) * (2 + steps));

  const std::vector<double> equal(n_curves, 1), no_limits(n_curves, kNoLimit);
  const auto sum = solver.best(equal);
  if (!sum) throw_too_sparse(problem, solver);
  points.add(*sum, "sum");
  progress.update(++done);

  const auto add_limited = [&](const ChoiceGoal& goal, const std::string& origin) {
    const auto [within, priced] = solver.limited(goal, points.best_within(goal));
    if (within) points.add(*within, origin);
    if (priced) points.add(*priced, origin + ", priced");
    progress.update(++done);
    return within ? within : priced;
  };
  if (n_curves > 1) {
    // Corners: a curve's least loss; then, at that loss, the least sum of the others.
    std::vector<double> least(n_curves), most(n_curves, -kNoLimit);
    for (size_t curve = 0; curve < n_curves; ++curve) {
      const std::string origin = "front: length " + std::to_string(problem.curves[curve].length);
      std::vector<double> alone(n_curves, 0), others = equal;
      alone[curve] = 1;
      others[curve] = 0;
      const auto found = solver.best(alone);
      POLYSPAN_CHECK(found.has_value(), "what one goal can reach another can");
      least[curve] = points.add(*found, origin).losses[curve];
      progress.update(++done);
      ChoiceGoal goal{others, no_limits};
      goal.limits[curve] = least[curve] + std::abs(least[curve]) * std::max(problem.gap, 1e-9);
      const auto corner = add_limited(goal, origin);
      for (size_t other = 0; other < n_curves; ++other)
        most[other] = std::max(most[other], solver.tables().loss(other, corner ? *corner : *found));
    }
    for (size_t curve = 0; curve < n_curves; ++curve)
      for (int64_t step = 1; step <= steps; ++step) {
        ChoiceGoal goal{std::vector<double>(n_curves), no_limits};
        for (size_t other = 0; other < n_curves; ++other) {
          // A thousandth of the others settles ties: no plan that loses there for nothing.
          const double range = most[other] - least[other];
          goal.weights[other] = (other == curve ? 1 : 1e-3) / (range > 0 ? range : 1);
          if (other != curve)
            goal.limits[other] = least[other] + range * static_cast<double>(step) / static_cast<double>(steps + 1);
        }
        add_limited(goal, "front: length " + std::to_string(problem.curves[curve].length) + ", others at step " +
                              std::to_string(step));
      }
  }

  std::vector<Candidate> candidates;
  for (const auto& point : points.front())
    candidates.push_back(make_candidate(problem, solver.tables(), point.choice, point.origin));
  progress.finish();
  return candidates;
}

Candidate two_valued(const SearchProblem& problem, int64_t window) {
  if (window < 1) throw Error::bad_input("search: found a window of ", window, " tokens, wanted at least 1");
  SearchProblem two = per_kv_head(problem);
  two.rules = {kDenseRule, {static_cast<double>(window), 0}};
  two.min_fill = 0;
  Candidate found = minimise(two, std::vector<double>(two.curves.size(), 1));
  found.origin = "two values";
  return found;
}

}  // namespace polyspan
