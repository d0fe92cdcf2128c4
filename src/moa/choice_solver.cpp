#include "moa/choice_solver.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <tuple>
#include <utility>

#include "core/error.h"
#include "moa/choice_program.h"

namespace polyspan {
namespace {

// Rules besides one a head that the first core holds, and the nodes spent on it: for a first choice, which then says
// how large a core the proof needs.
constexpr int64_t kCoreRules = 200;
constexpr int kFirstNodes = 100;
// Where a proof is given up and the best choice kept. A node takes time in proportion to rows and columns.
constexpr int kMinNodes = 20, kMaxNodes = 1000;
constexpr int kNodeSize = 400000;  // nodes * (rows + columns)
constexpr double kCoreGrowth = 50;

bool keeps_no_more(const ChoiceTables& tables, int rule, int than) {
  for (const auto& kept : tables.kept)
    if (kept[rule] > kept[than]) return false;
  return true;
}

bool loses_no_more(const ChoiceTables& tables, int64_t head, int rule, int than) {
  for (size_t curve = 0; curve < tables.losses.size(); ++curve)
    if (tables.loss(curve, head, rule) > tables.loss(curve, head, than)) return false;
  return true;
}

// The rules of each head that no other rule of it beats: no fewer tokens anywhere, no less loss on any curve. Of equal
// ones the first stays. Loses no optimum as long as only upper bounds matter.
std::vector<std::vector<int>> undominated_options(const ChoiceTables& tables) {
  std::vector<std::vector<int>> rivals(tables.n_rules);  // what keeps no more: the same for all heads
  for (int rule = 0; rule < tables.n_rules; ++rule)
    for (int other = 0; other < tables.n_rules; ++other)
      if (other != rule && keeps_no_more(tables, other, rule)) rivals[rule].push_back(other);

  std::vector<std::vector<int>> options(tables.n_heads());
  for (int64_t head = 0; head < tables.n_heads(); ++head) {
    const auto equal = [&](int a, int b) { return keeps_no_more(tables, a, b) && loses_no_more(tables, head, a, b); };
    for (int rule = 0; rule < tables.n_rules; ++rule) {
      const auto beats = [&](int rival) {
        return loses_no_more(tables, head, rival, rule) && (rival < rule || !equal(rule, rival));
      };
      if (std::none_of(rivals[rule].begin(), rivals[rule].end(), beats)) options[head].push_back(rule);
    }
  }
  return options;
}

// The heads are alike here: only how many of them take each rule counts.
Choice sparsest_of(const ChoiceTables& tables) {
  Program program;
  const double n_groups = static_cast<double>(tables.n_groups);
  const int sum = program.add_row(n_groups, n_groups);
  for (int rule = 0; rule < tables.n_rules; ++rule)
    program.add_entry(sum, program.add_column(0, 0, n_groups, /*integer=*/true), 1);
  const int density = program.add_column(1, 0, 1, /*integer=*/false);
  for (size_t length = 0; length < tables.lengths.size(); ++length) {
    const int row = program.add_row(-kNoLimit, 0);
    for (int rule = 0; rule < tables.n_rules; ++rule)
      program.add_entry(row, rule,
                        static_cast<double>(tables.kept[length][rule]) / static_cast<double>(tables.lengths[length]));
    program.add_entry(row, density, -n_groups);
  }
  const std::vector<double> solution = program.branch_and_bound(kNoLimit, 1e-9, kMaxNodes).solution;
  POLYSPAN_CHECK(!solution.empty(), "some mix of rules has the smallest density");
  Choice choice;
  for (int rule = 0; rule < tables.n_rules; ++rule)
    choice.insert(choice.end(), std::lround(solution[rule]) * tables.group_size, rule);
  POLYSPAN_CHECK(static_cast<int64_t>(choice.size()) == tables.n_heads(), "a rule for each head");
  return choice;
}

// The choices that the relaxation begins with: for each head the lower hull of cost over tokens, and what does for `within`,
// which keeps the goal's limits, so that there is a solution from the start.
std::vector<char> first_columns(const ChoiceTables& tables, const std::vector<std::pair<int64_t, int>>& choices,
                                const std::vector<double>& costs, const Choice& within) {
  std::vector<double> tokens(tables.n_rules, 0);  // of all lengths together, in dense heads
  for (size_t length = 0; length < tables.lengths.size(); ++length)
    for (int rule = 0; rule < tables.n_rules; ++rule)
      tokens[rule] += static_cast<double>(tables.kept[length][rule]) / static_cast<double>(tables.lengths[length]);
  std::vector<char> first(choices.size(), 0);
  std::vector<size_t> columns, hull;
  for (size_t begin = 0, end = 0; begin < choices.size(); begin = end) {
    const int64_t head = choices[begin].first;
    columns.clear(), hull.clear();
    for (end = begin; end < choices.size() && choices[end].first == head; ++end) columns.push_back(end);
    const auto at = [&](size_t column) { return tokens[choices[column].second]; };
    const auto cost = [&](size_t column) { return costs[head * tables.n_rules + choices[column].second]; };
    std::sort(columns.begin(), columns.end(),
              [&](size_t a, size_t b) { return std::tuple(at(a), cost(a), a) < std::tuple(at(b), cost(b), b); });
    for (const size_t column : columns) {
      if (!hull.empty() && cost(column) >= cost(hull.back())) continue;
      while (hull.size() > 1) {
        const size_t last = hull.back(), before = hull[hull.size() - 2];
        if ((cost(before) - cost(last)) * (at(column) - at(before)) >
            (cost(before) - cost(column)) * (at(last) - at(before)))
          break;
        hull.pop_back();
      }
      hull.push_back(column);
    }
    for (const size_t column : hull) first[column] = 1;
    const auto found = std::find_if(columns.begin(), columns.end(), [&](size_t column) {
      const int rule = choices[column].second;
      return keeps_no_more(tables, rule, within[head]) && loses_no_more(tables, head, rule, within[head]);
    });
    if (found != columns.end()) first[*found] = 1;
  }
  return first;
}

}  // namespace

double ChoiceTables::loss(size_t curve, const Choice& choice) const {
  double sum = 0;
  for (int64_t head = 0; head < n_heads(); ++head) sum += loss(curve, head, choice[head]);
  return sum;
}

int64_t ChoiceTables::group_kept(size_t length, const Choice& choice, int64_t group) const {
  int64_t longest = 0;
  for (int64_t head = group * group_size; head < (group + 1) * group_size; ++head)
    longest = std::max(longest, kept[length][choice[head]]);
  return longest;
}

int64_t ChoiceTables::total_kept(size_t length, const Choice& choice) const {
  int64_t sum = 0;
  for (int64_t group = 0; group < n_groups; ++group) sum += group_kept(length, choice, group);
  return sum;
}

bool ChoiceTables::within_upper_bounds(const Choice& choice) const {
  for (size_t length = 0; length < lengths.size(); ++length)
    if (total_kept(length, choice) > most[length]) return false;
  return true;
}

bool ChoiceTables::reaches_lower_bounds(const Choice& choice) const {
  for (size_t length = 0; length < lengths.size(); ++length)
    if (total_kept(length, choice) < least[length]) return false;
  return true;
}

// The linear relaxation of a goal: every choice that uses an option of reduced cost r costs at least bound + r.
struct ChoiceSolver::Relaxation {
  bool lower_bounds = false;
  std::vector<double> costs;  // [head * n_rules + rule], above the head's least one, in a unit that suits the solver
  double bound = 0;
  double allowed = 0;                            // the gap, in the same unit
  std::vector<std::pair<int64_t, int>> choices;  // [column]: head, rule
  std::vector<double> reduced;                   // [column]: reduced cost
  Options forced;                                // [head]: the only option of a head that has no column, else empty
  std::vector<double> prices;                    // [curve]: cost that a limit adds to each unit of the curve's loss

  double cost(const Choice& choice) const {
    const size_t n_rules = costs.size() / choice.size();
    double sum = 0;
    for (size_t head = 0; head < choice.size(); ++head) sum += costs[head * n_rules + choice[head]];
    return sum;
  }
};

ChoiceSolver::ChoiceSolver(ChoiceTables tables)
    : tables_(std::move(tables)), undominated_(undominated_options(tables_)), sparsest_(sparsest_of(tables_)) {
  std::vector<int> rules(tables_.n_rules);
  std::iota(rules.begin(), rules.end(), 0);
  all_.assign(tables_.n_heads(), rules);
  if (tables_.group_size == 1) return;
  ChoiceTables grouped = tables_;
  grouped.group_size = 1;
  for (size_t curve = 0; curve < tables_.losses.size(); ++curve) {
    grouped.losses[curve].assign(tables_.n_groups * tables_.n_rules, 0);
    for (int64_t head = 0; head < tables_.n_heads(); ++head)
      for (int rule = 0; rule < tables_.n_rules; ++rule)
        grouped.losses[curve][head / tables_.group_size * tables_.n_rules + rule] += tables_.loss(curve, head, rule);
  }
  per_group_ = std::make_unique<ChoiceSolver>(std::move(grouped));
}

std::optional<ChoiceSolver::Relaxation> ChoiceSolver::relax(const ChoiceGoal& goal, bool lower_bounds,
                                                            const Choice& within) const {
  const Options& options = lower_bounds ? all_ : undominated_;  // where only upper bounds matter these hold an optimum
  Relaxation relaxation;
  relaxation.lower_bounds = lower_bounds;
  std::vector<double>& costs = relaxation.costs;
  costs.assign(tables_.n_heads() * tables_.n_rules, 0);
  double base = 0, largest = 0;  // base: the least costs, left out so that tolerances meet what there is to choose
  for (int64_t head = 0; head < tables_.n_heads(); ++head) {
    double* head_costs = costs.data() + head * tables_.n_rules;
    for (int rule = 0; rule < tables_.n_rules; ++rule)
      for (size_t curve = 0; curve < tables_.losses.size(); ++curve)
        head_costs[rule] += goal.weights[curve] * tables_.loss(curve, head, rule);
    double least = kNoLimit;
    for (const int rule : options[head]) least = std::min(least, head_costs[rule]);
    for (int rule = 0; rule < tables_.n_rules; ++rule) head_costs[rule] -= least;
    for (const int rule : options[head]) largest = std::max(largest, head_costs[rule]);
    base += least;
  }
  double scale = 1;
  const auto rescale = [&](double factor) {
    scale *= factor;
    for (double& cost : costs) cost *= factor;
  };
  if (largest > 0) rescale(1 / largest);

  const ChoiceProgram made = make_program(tables_, goal, options, costs, lower_bounds);
  ColumnGeneration relaxed(made, first_columns(tables_, made.choices, costs, within));
  if (!relaxed.solve()) return std::nullopt;
  // A large loss at the shortest span can leave the optimum many digits below it: solve again in its own unit.
  constexpr double kWanted = 1000;
  if (const double found = relaxed.cost(); found > 1e-9 && found < kWanted) {
    rescale(kWanted / found);
    relaxed.rescale_costs(kWanted / found);
    POLYSPAN_CHECK(relaxed.solve(), "the relaxation in another unit");
  }
  relaxation.bound = relaxed.cost();
  relaxation.allowed = std::max(tables_.gap * std::abs(relaxation.bound + base * scale), 1e-9);
  relaxation.choices = made.choices;
  // A head's least reduced cost is 0 but for rounding; counted from it, every head has an option at no cost.
  for (size_t begin = 0, end = 0; begin < made.choices.size(); begin = end) {
    const double* const reduced = relaxed.reduced_costs().data();
    for (end = begin; end < made.choices.size() && made.choices[end].first == made.choices[begin].first;) ++end;
    const double least = std::max(0.0, *std::min_element(reduced + begin, reduced + end));
    for (size_t column = begin; column < end; ++column)
      relaxation.reduced.push_back(reduced[column] - least > 1e-9 ? reduced[column] - least : 0);
  }
  relaxation.forced.resize(tables_.n_heads());
  for (int64_t head = 0; head < tables_.n_heads(); ++head)
    if (options[head].size() == 1) relaxation.forced[head] = options[head];
  relaxation.prices.assign(tables_.losses.size(), 0);
  for (const auto& limit : made.limits)
    relaxation.prices[limit.curve] = std::max(0.0, -relaxed.price(limit.row)) * limit.scale / scale;
  return relaxation;
}

// Branch and bound over a core: the options of small reduced cost. What lies outside costs at least the relaxation's
// bound plus the core's largest reduced cost, so the core grows until that is no better than what was found.
std::optional<Choice> ChoiceSolver::branch(const ChoiceGoal& goal, const Relaxation& relaxation,
                                           const std::optional<Choice>& known, Effort effort) const {
  const double allowed = relaxation.allowed;
  std::vector<double> ranked = relaxation.reduced;
  const double all = ranked.empty() ? 0 : *std::max_element(ranked.begin(), ranked.end());
  const auto first = tables_.n_heads() + kCoreRules;
  if (first < std::ssize(ranked)) std::nth_element(ranked.begin(), ranked.begin() + first, ranked.end());
  double threshold = first < std::ssize(ranked) ? ranked[first] : all;
  std::optional<Choice> best = known;
  double best_cost = known ? relaxation.cost(*known) : kNoLimit;
  for (bool first_core = true;;) {
    Options core = relaxation.forced;
    for (size_t column = 0; column < relaxation.choices.size(); ++column) {
      const auto [head, rule] = relaxation.choices[column];
      if (relaxation.reduced[column] <= threshold) core[head].push_back(rule);
    }
    Choice choice;
    double constant = 0;  // cost of the heads that the core leaves no choice
    for (const auto& options : core) {
      POLYSPAN_CHECK(!options.empty(), "the relaxation uses an option of each head");
      choice.push_back(options[0]);
      if (options.size() == 1) constant += relaxation.costs[(choice.size() - 1) * tables_.n_rules + options[0]];
    }
    const ChoiceProgram made = make_program(tables_, goal, core, relaxation.costs, relaxation.lower_bounds);
    const int max_nodes = std::clamp(kNodeSize / made.program.size(), kMinNodes, first_core ? kFirstNodes : kMaxNodes);
    const auto result = made.program.branch_and_bound(best_cost - allowed - constant, allowed, max_nodes);
    if (!result.solution.empty()) {
      for (size_t column = 0; column < made.choices.size(); ++column)
        if (result.solution[column] > 0.5) choice[made.choices[column].first] = made.choices[column].second;
      POLYSPAN_CHECK(tables_.within_upper_bounds(choice), "the solver keeps the bounds");
      if (const double cost = relaxation.cost(choice); cost < best_cost) {
        best_cost = cost;
        best = std::move(choice);
      }
    }
    const double excess = best_cost - relaxation.bound - allowed;  // what a better choice may cost above the bound
    // TODO: a complete search proves this core only. Wanted besides: threshold >= min(all, excess). With it the least loss of
    // one length alone is up to 2.5% less, equal sums are the same, a front takes half as long again.
    const bool proved = excess <= 0 || result.complete;
    const bool given_up = effort == Effort::kFew || (!first_core && !result.complete && (best || threshold >= all));
    if (proved || given_up) return best;
    if (!first_core || result.complete || best)
      threshold = std::min(std::min(all, excess), std::max(kCoreGrowth * threshold, 1e-6 * all));
    first_core = false;
  }
}

// Moves heads to rules that keep more and cost no more on any curve, until the lower bounds are met (true) or no head
// is left to move. Never passes an upper bound.
bool ChoiceSolver::fill(Choice& choice) const {
  std::vector<int64_t> total;
  for (size_t length = 0; length < tables_.lengths.size(); ++length)
    total.push_back(tables_.total_kept(length, choice));
  for (int64_t head = 0; head < tables_.n_heads(); ++head) {
    const int64_t group = head / tables_.group_size;
    for (int rule = 0; rule < tables_.n_rules; ++rule) {
      const int before = choice[head];
      bool allowed = true, needed = false;
      for (size_t curve = 0; curve < tables_.losses.size() && allowed; ++curve)
        allowed = tables_.loss(curve, head, rule) <= tables_.loss(curve, head, before);
      std::vector<int64_t> moved = total;
      for (size_t length = 0; length < tables_.lengths.size() && allowed; ++length) {
        moved[length] -= tables_.group_kept(length, choice, group);
        choice[head] = rule;
        moved[length] += tables_.group_kept(length, choice, group);
        choice[head] = before;
        allowed = moved[length] >= total[length] && moved[length] <= tables_.most[length];
        needed |= total[length] < tables_.least[length] && moved[length] > total[length];
      }
      if (!allowed || !needed) continue;
      choice[head] = rule;
      total = moved;
    }
  }
  return tables_.reaches_lower_bounds(choice);
}

std::optional<Choice> ChoiceSolver::best(const std::vector<double>& weights) const {
  const ChoiceGoal goal{weights, std::vector<double>(weights.size(), kNoLimit)};
  std::optional<Choice> known;
  if (per_group_) {
    const auto grouped = per_group_->best(weights);
    if (!grouped) return std::nullopt;
    known.emplace();
    for (int64_t head = 0; head < tables_.n_heads(); ++head) known->push_back((*grouped)[head / tables_.group_size]);
  }
  std::optional<Choice> choice;
  if (const auto relaxation = relax(goal, /*lower_bounds=*/false, sparsest_))
    choice = branch(goal, *relaxation, known, Effort::kMany);
  if (!choice) {  // there is none, or the nodes were too few to meet one
    choice = sparsest_;
    if (!tables_.within_upper_bounds(*choice)) return std::nullopt;
  }
  // The lower bounds: met, met at no cost, met at a cost, or dropped.
  if (tables_.reaches_lower_bounds(*choice) || fill(*choice)) return choice;
  if (known && !tables_.reaches_lower_bounds(*known)) known.reset();
  if (const auto relaxation = relax(goal, /*lower_bounds=*/true, *choice))
    if (auto bounded = branch(goal, *relaxation, known, Effort::kMany)) return bounded;
  return choice;
}

ChoiceSolver::Limited ChoiceSolver::limited(const ChoiceGoal& goal, const std::optional<Choice>& known) const {
  const auto relaxation = relax(goal, /*lower_bounds=*/false, known ? *known : sparsest_);
  if (!relaxation) return {};
  std::vector<double> weights = goal.weights;
  for (size_t curve = 0; curve < weights.size(); ++curve) weights[curve] += relaxation->prices[curve];
  Limited found{.within = branch(goal, *relaxation, known, Effort::kFew), .priced = best(weights)};
  if (found.within && !tables_.reaches_lower_bounds(*found.within) && !fill(*found.within)) found.within.reset();
  if (found.within == known) found.within.reset();
  return found;
}

}  // namespace polyspan
