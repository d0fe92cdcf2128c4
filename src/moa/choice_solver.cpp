#include "moa/choice_solver.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include <CbcHeuristic.hpp>
#include <CbcHeuristicDiveCoefficient.hpp>
#include <CbcHeuristicRINS.hpp>
#include <CbcModel.hpp>
#include <CglKnapsackCover.hpp>
#include <CglMixedIntegerRounding2.hpp>
#include <CoinPackedMatrix.hpp>
#include <OsiClpSolverInterface.hpp>

#include "core/error.h"

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

// The rules of each head that no other rule of it beats: no fewer tokens anywhere, no less loss on any curve. Of equal
// ones the first stays. Loses no optimum as long as only upper bounds matter.
std::vector<std::vector<int>> undominated_options(const ChoiceTables& tables) {
  std::vector<std::vector<int>> options(tables.n_heads());
  for (int64_t head = 0; head < tables.n_heads(); ++head) {
    const auto no_better = [&](int rule, int other) {
      for (const auto& kept : tables.kept)
        if (kept[rule] < kept[other]) return false;
      for (size_t curve = 0; curve < tables.losses.size(); ++curve)
        if (tables.loss(curve, head, rule) < tables.loss(curve, head, other)) return false;
      return true;
    };
    for (int rule = 0; rule < tables.n_rules; ++rule) {
      bool beaten = false;
      for (int other = 0; other < tables.n_rules && !beaten; ++other)
        beaten = other != rule && no_better(rule, other) && (other < rule || !no_better(other, rule));
      if (!beaten) options[head].push_back(rule);
    }
  }
  return options;
}

// A mixed integer program under construction, column by column and row by row.
class Program {
 public:
  int add_column(double cost, double lower, double upper, bool integer) {
    costs_.push_back(cost);
    column_lower_.push_back(lower);
    column_upper_.push_back(upper);
    integer_.push_back(integer);
    return static_cast<int>(costs_.size()) - 1;
  }
  int add_row(double lower, double upper) {
    row_lower_.push_back(lower);
    row_upper_.push_back(upper);
    return static_cast<int>(row_lower_.size()) - 1;
  }
  void add_entry(int row, int column, double value) {
    rows_.push_back(row);
    columns_.push_back(column);
    values_.push_back(value);
  }
  // `amount` of a row's left side is a constant.
  void shift_row(int row, double amount) {
    row_lower_[row] -= amount;
    row_upper_[row] -= amount;
  }
  int n_columns() const { return static_cast<int>(costs_.size()); }
  int size() const { return std::max(1, n_columns() + static_cast<int>(row_lower_.size())); }

  void load(OsiClpSolverInterface& solver) const {
    solver.messageHandler()->setLogLevel(0);
    solver.getModelPtr()->setLogLevel(0);
    solver.setHintParam(OsiDoReducePrint, true, OsiHintDo);
    CoinPackedMatrix matrix(/*colordered=*/true, rows_.data(), columns_.data(), values_.data(),
                            static_cast<CoinBigIndex>(values_.size()));
    matrix.setDimensions(static_cast<int>(row_lower_.size()), n_columns());  // the last ones may have no entry
    solver.loadProblem(matrix, column_lower_.data(), column_upper_.data(), costs_.data(), row_lower_.data(),
                       row_upper_.data());
    for (int column = 0; column < n_columns(); ++column)
      if (integer_[column]) solver.setInteger(column);
  }

  struct Result {
    std::vector<double> solution;  // empty: none
    bool complete = false;         // nothing is better by more than `allowed` (none: there is none at all)
  };
  // Branch and bound for a cost below `cutoff`, until the best solution is within `allowed` of the bound or `max_nodes`
  // are done.
  Result branch_and_bound(double cutoff, double allowed, int max_nodes) const {
    OsiClpSolverInterface solver;
    load(solver);
    solver.initialSolve();
    if (!solver.isProvenOptimal()) return {.solution = {}, .complete = solver.isProvenPrimalInfeasible()};
    CbcModel model(solver);
    model.setLogLevel(0);
    model.messageHandler()->setLogLevel(0);
    CglKnapsackCover cover;
    CglMixedIntegerRounding2 rounding_cuts;
    model.addCutGenerator(&cover, -99, "cover");
    model.addCutGenerator(&rounding_cuts, -99, "rounding");
    CbcRounding rounding(model);
    CbcHeuristicDiveCoefficient dive(model);
    CbcHeuristicRINS rins(model);
    rins.setHowOften(100);
    model.addHeuristic(&rounding);
    model.addHeuristic(&dive);
    model.addHeuristic(&rins);
    if (cutoff < kNoLimit) model.setCutoff(cutoff);
    model.setAllowableGap(allowed);
    model.setAllowableFractionGap(0);
    model.setMaximumNodes(max_nodes);
    model.branchAndBound();
    Result result{.solution = {}, .complete = model.status() == 0};
    if (const double* solution = model.bestSolution()) result.solution.assign(solution, solution + n_columns());
    return result;
  }

 private:
  std::vector<double> costs_, column_lower_, column_upper_, row_lower_, row_upper_;
  std::vector<char> integer_;
  std::vector<int> rows_, columns_;
  std::vector<double> values_;
};

// The program of a goal over some options. Its first columns are the choices of heads that have one.
struct ChoiceProgram {
  Program program;
  std::vector<std::pair<int64_t, int>> choices;  // [column]: head, rule
  struct Limit {
    size_t curve;
    int row;
    double scale;  // of the row
  };
  std::vector<Limit> limits;
};

// costs: [head * n_rules + rule]. Tokens are counted in dense heads (1 = `length` tokens), losses in their limits.
ChoiceProgram make_program(const ChoiceTables& tables, const ChoiceGoal& goal,
                           const std::vector<std::vector<int>>& options, const std::vector<double>& costs,
                           bool lower_bounds) {
  ChoiceProgram made;
  Program& program = made.program;
  std::vector<int> first_column(tables.n_heads(), -1);  // -1: the head has one option, a constant
  for (int64_t head = 0; head < tables.n_heads(); ++head) {
    if (options[head].size() == 1) continue;
    const int row = program.add_row(1, 1);
    for (const int rule : options[head]) {
      const int column = program.add_column(costs[head * tables.n_rules + rule], 0, 1, /*integer=*/true);
      if (first_column[head] < 0) first_column[head] = column;
      program.add_entry(row, column, 1);
      made.choices.emplace_back(head, rule);
    }
  }
  // Adds sign * value(rule of the head) to a row.
  const auto add_head = [&](int row, int64_t head, double sign, auto value) {
    if (first_column[head] < 0) return program.shift_row(row, sign * value(options[head][0]));
    int column = first_column[head];
    for (const int rule : options[head]) program.add_entry(row, column++, sign * value(rule));
  };

  for (size_t curve = 0; curve < tables.losses.size(); ++curve) {
    if (goal.limits[curve] == kNoLimit) continue;
    const double scale = goal.limits[curve] > 0 ? static_cast<double>(tables.n_heads()) / goal.limits[curve] : 1;
    const int row = program.add_row(-kNoLimit, goal.limits[curve] * scale);
    made.limits.push_back({curve, row, scale});
    for (int64_t head = 0; head < tables.n_heads(); ++head)
      add_head(row, head, scale, [&](int rule) { return tables.loss(curve, head, rule); });
  }

  for (size_t length = 0; length < tables.lengths.size(); ++length) {
    const double unit = static_cast<double>(tables.lengths[length]);
    const auto kept = [&](int rule) { return static_cast<double>(tables.kept[length][rule]) / unit; };
    // Tokens are whole: half of one keeps the solver's tolerance away from the bound.
    const double lower = lower_bounds ? (static_cast<double>(tables.least[length]) - 0.5) / unit : -kNoLimit;
    const int row = program.add_row(lower, (static_cast<double>(tables.most[length]) + 0.5) / unit);
    if (tables.group_size == 1) {
      for (int64_t head = 0; head < tables.n_heads(); ++head) add_head(row, head, 1, kept);
      continue;
    }
    for (int64_t group = 0; group < tables.n_groups; ++group) {
      const int longest = program.add_column(0, 0, 1, /*integer=*/false);
      program.add_entry(row, longest, 1);
      // Where a lower bound counts, `longest` must not exceed the head that `is_longest` names either.
      const int names_one = lower_bounds ? program.add_row(1, 1) : -1;
      for (int64_t head = group * tables.group_size; head < (group + 1) * tables.group_size; ++head) {
        const int at_least = program.add_row(0, kNoLimit);
        program.add_entry(at_least, longest, 1);
        add_head(at_least, head, -1, kept);
        if (!lower_bounds) continue;
        const int is_longest = program.add_column(0, 0, 1, /*integer=*/true);
        program.add_entry(names_one, is_longest, 1);
        const int at_most = program.add_row(-kNoLimit, 1);
        program.add_entry(at_most, longest, 1);
        program.add_entry(at_most, is_longest, 1);
        add_head(at_most, head, -1, kept);
      }
    }
  }
  return made;
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
    : tables_(std::move(tables)), undominated_(undominated_options(tables_)) {
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

std::optional<ChoiceSolver::Relaxation> ChoiceSolver::relax(const ChoiceGoal& goal, const Options& options,
                                                            bool lower_bounds) const {
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
  OsiClpSolverInterface solver;
  made.program.load(solver);
  solver.initialSolve();
  if (!solver.isProvenOptimal()) return std::nullopt;
  // A large loss at the shortest span can leave the optimum many digits below it: solve again in its own unit.
  constexpr double kWanted = 1000;
  if (const double found = solver.getObjValue(); found > 1e-9 && found < kWanted) {
    rescale(kWanted / found);
    for (size_t column = 0; column < made.choices.size(); ++column) {
      const auto [head, rule] = made.choices[column];
      solver.setObjCoeff(static_cast<int>(column), costs[head * tables_.n_rules + rule]);
    }
    solver.resolve();
    POLYSPAN_CHECK(solver.isProvenOptimal(), "the relaxation in another unit");
  }
  relaxation.bound = solver.getObjValue();
  relaxation.allowed = std::max(tables_.gap * std::abs(relaxation.bound + base * scale), 1e-9);
  relaxation.choices = made.choices;
  for (size_t column = 0; column < made.choices.size(); ++column) {
    const double reduced = solver.getReducedCost()[column];
    relaxation.reduced.push_back(reduced > 1e-9 ? reduced : 0);
  }
  relaxation.forced.resize(tables_.n_heads());
  for (int64_t head = 0; head < tables_.n_heads(); ++head)
    if (options[head].size() == 1) relaxation.forced[head] = options[head];
  relaxation.prices.assign(tables_.losses.size(), 0);
  for (const auto& limit : made.limits)
    relaxation.prices[limit.curve] = std::max(0.0, -solver.getRowPrice()[limit.row]) * limit.scale / scale;
  return relaxation;
}

// Branch and bound over a core: the options of small reduced cost. What lies outside costs at least the relaxation's
// bound plus the core's largest reduced cost, so the core grows until that is no better than what was found.
std::optional<Choice> ChoiceSolver::branch(const ChoiceGoal& goal, const Relaxation& relaxation,
                                           const std::optional<Choice>& known, Effort effort) const {
  const double allowed = relaxation.allowed;
  std::vector<double> sorted = relaxation.reduced;
  std::sort(sorted.begin(), sorted.end());
  const double all = sorted.empty() ? 0 : sorted.back();
  const auto first = static_cast<size_t>(tables_.n_heads() + kCoreRules);
  double threshold = first < sorted.size() ? sorted[first] : all;
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
    const bool proved = excess <= 0 || (result.complete && true);
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
  if (const auto relaxation = relax(goal, undominated_, /*lower_bounds=*/false))
    choice = branch(goal, *relaxation, known, Effort::kMany);
  if (!choice) {  // there is none, or the nodes were too few to meet one
    choice = sparsest();
    if (!tables_.within_upper_bounds(*choice)) return std::nullopt;
  }
  // The lower bounds: met, met at no cost, met at a cost, or dropped.
  if (tables_.reaches_lower_bounds(*choice) || fill(*choice)) return choice;
  if (known && !tables_.reaches_lower_bounds(*known)) known.reset();
  if (const auto relaxation = relax(goal, all_, /*lower_bounds=*/true))
    if (auto bounded = branch(goal, *relaxation, known, Effort::kMany)) return bounded;
  return choice;
}

ChoiceSolver::Limited ChoiceSolver::limited(const ChoiceGoal& goal, const std::optional<Choice>& known) const {
  const auto relaxation = relax(goal, undominated_, /*lower_bounds=*/false);
  if (!relaxation) return {};
  std::vector<double> weights = goal.weights;
  for (size_t curve = 0; curve < weights.size(); ++curve) weights[curve] += relaxation->prices[curve];
  Limited found{.within = branch(goal, *relaxation, known, Effort::kFew), .priced = best(weights)};
  if (found.within && !tables_.reaches_lower_bounds(*found.within) && !fill(*found.within)) found.within.reset();
  return found;
}

// The heads are alike here: only how many of them take each rule counts.
Choice ChoiceSolver::sparsest() const {
  Program program;
  const double n_groups = static_cast<double>(tables_.n_groups);
  const int sum = program.add_row(n_groups, n_groups);
  for (int rule = 0; rule < tables_.n_rules; ++rule)
    program.add_entry(sum, program.add_column(0, 0, n_groups, /*integer=*/true), 1);
  const int density = program.add_column(1, 0, 1, /*integer=*/false);
  for (size_t length = 0; length < tables_.lengths.size(); ++length) {
    const int row = program.add_row(-kNoLimit, 0);
    for (int rule = 0; rule < tables_.n_rules; ++rule)
      program.add_entry(row, rule,
                        static_cast<double>(tables_.kept[length][rule]) / static_cast<double>(tables_.lengths[length]));
    program.add_entry(row, density, -n_groups);
  }
  const std::vector<double> solution = program.branch_and_bound(kNoLimit, 1e-9, kMaxNodes).solution;
  POLYSPAN_CHECK(!solution.empty(), "some mix of rules has the smallest density");
  Choice choice;
  for (int rule = 0; rule < tables_.n_rules; ++rule)
    choice.insert(choice.end(), std::lround(solution[rule]) * tables_.group_size, rule);
  POLYSPAN_CHECK(static_cast<int64_t>(choice.size()) == tables_.n_heads(), "a rule for each head");
  return choice;
}

}  // namespace polyspan
