#include "moa/choice_program.h"

#include <algorithm>

#include <CbcHeuristic.hpp>
#include <CbcHeuristicDiveCoefficient.hpp>
#include <CbcHeuristicRINS.hpp>
#include <CbcModel.hpp>
#include <CglKnapsackCover.hpp>
#include <CglMixedIntegerRounding2.hpp>
#include <ClpSimplex.hpp>
#include <CoinPackedMatrix.hpp>
#include <OsiClpSolverInterface.hpp>

namespace polyspan {

int Program::add_column(double cost, double lower, double upper, bool integer) {
  costs_.push_back(cost);
  column_lower_.push_back(lower);
  column_upper_.push_back(upper);
  integer_.push_back(integer);
  return static_cast<int>(costs_.size()) - 1;
}

int Program::add_row(double lower, double upper) {
  row_lower_.push_back(lower);
  row_upper_.push_back(upper);
  return static_cast<int>(row_lower_.size()) - 1;
}

void Program::add_entry(int row, int column, double value) {
  rows_.push_back(row);
  columns_.push_back(column);
  values_.push_back(value);
}

void Program::shift_row(int row, double amount) {
  row_lower_[row] -= amount;
  row_upper_[row] -= amount;
}

Program::Result Program::branch_and_bound(double cutoff, double allowed, int max_nodes) const {
  OsiClpSolverInterface solver;
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

struct ColumnGeneration::Solver {
  ClpSimplex model;
  std::vector<int> columns;  // [of the model]: the program's
};

ColumnGeneration::ColumnGeneration(const ChoiceProgram& made, const std::vector<char>& start)
    : made_(made), costs_(made.program.costs_), solver_(std::make_unique<Solver>()) {
  const Program& program = made.program;
  first_entry_.assign(program.n_columns() + 1, 0);
  for (const int column : program.columns_) ++first_entry_[column + 1];
  for (int column = 0; column < program.n_columns(); ++column) first_entry_[column + 1] += first_entry_[column];
  entry_row_.resize(program.values_.size());
  entry_value_.resize(program.values_.size());
  std::vector<size_t> next(first_entry_.begin(), first_entry_.end() - 1);
  for (size_t entry = 0; entry < program.values_.size(); ++entry) {
    const size_t at = next[program.columns_[entry]]++;
    entry_row_[at] = program.rows_[entry];
    entry_value_[at] = program.values_[entry];
  }
  ClpSimplex& model = solver_->model;
  model.setLogLevel(0);
  model.messageHandler()->setLogLevel(0);
  model.resize(static_cast<int>(program.row_lower_.size()), 0);
  for (size_t row = 0; row < program.row_lower_.size(); ++row)
    model.setRowBounds(static_cast<int>(row), program.row_lower_[row], program.row_upper_[row]);
  inside_.assign(program.n_columns(), 0);
  std::vector<int> first;
  for (int column = 0; column < program.n_columns(); ++column)
    if (column >= std::ssize(made.choices) || start[column]) first.push_back(column);
  add(first);
}

ColumnGeneration::~ColumnGeneration() = default;

void ColumnGeneration::add(const std::vector<int>& columns) {
  const Program& program = made_.program;
  std::vector<double> lower, upper, cost, values;
  std::vector<CoinBigIndex> starts;
  std::vector<int> rows;
  for (const int column : columns) {
    inside_[column] = 1;
    solver_->columns.push_back(column);
    lower.push_back(program.column_lower_[column]);
    // A choice is at most 1 by its head's row: without a bound of its own its reduced cost is never negative.
    upper.push_back(column < std::ssize(made_.choices) ? COIN_DBL_MAX : program.column_upper_[column]);
    cost.push_back(costs_[column]);
    starts.push_back(static_cast<CoinBigIndex>(rows.size()));
    for (size_t entry = first_entry_[column]; entry < first_entry_[column + 1]; ++entry) {
      rows.push_back(entry_row_[entry]);
      values.push_back(entry_value_[entry]);
    }
  }
  starts.push_back(static_cast<CoinBigIndex>(rows.size()));
  solver_->model.addColumns(static_cast<int>(columns.size()), lower.data(), upper.data(), cost.data(), starts.data(),
                            rows.data(), values.data());
}

bool ColumnGeneration::optimise() {
  if (solver_->columns.empty()) {  // Clp wants at least one
    const std::vector<double>&lower = made_.program.row_lower_, &upper = made_.program.row_upper_;
    return std::all_of(lower.begin(), lower.end(), [](double bound) { return bound <= 0; }) &&
           std::all_of(upper.begin(), upper.end(), [](double bound) { return bound >= 0; });
  }
  solver_->model.primal();
  return solver_->model.isProvenOptimal();
}

void ColumnGeneration::price_choices() {
  const double* prices = solver_->model.getRowPrice();
  reduced_.resize(made_.choices.size());
  for (size_t column = 0; column < reduced_.size(); ++column) {
    double reduced = costs_[column];
    for (size_t entry = first_entry_[column]; entry < first_entry_[column + 1]; ++entry)
      reduced -= prices[entry_row_[entry]] * entry_value_[entry];
    reduced_[column] = reduced;
  }
}

bool ColumnGeneration::solve() {
  if (!optimise()) {  // what takes part may not be enough
    std::vector<int> others;
    for (int column = 0; column < made_.program.n_columns(); ++column)
      if (!inside_[column]) others.push_back(column);
    add(others);
    if (!optimise()) return false;
  }
  for (bool moved = true; moved; moved = solver_->model.numberIterations() > 0) {
    price_choices();
    std::vector<int> joining;  // of each head the choice that gains most
    for (size_t column = 0; column < reduced_.size();) {
      const int64_t head = made_.choices[column].first;
      double least = -solver_->model.dualTolerance();
      int best = -1;
      for (; column < reduced_.size() && made_.choices[column].first == head; ++column)
        if (!inside_[column] && reduced_[column] < least) least = reduced_[column], best = static_cast<int>(column);
      if (best >= 0) joining.push_back(best);
    }
    if (joining.empty()) return true;
    add(joining);
    if (!optimise()) return false;
  }
  price_choices();  // what gains next to nothing does not enter: Clp's tolerance is one of scaled costs
  return true;
}

double ColumnGeneration::cost() const { return solver_->columns.empty() ? 0 : solver_->model.objectiveValue(); }

double ColumnGeneration::price(int row) const {
  return solver_->columns.empty() ? 0 : solver_->model.getRowPrice()[row];
}

void ColumnGeneration::rescale_costs(double factor) {
  for (double& cost : costs_) cost *= factor;
  for (size_t i = 0; i < solver_->columns.size(); ++i)
    solver_->model.setObjectiveCoefficient(static_cast<int>(i), costs_[solver_->columns[i]]);
}

}  // namespace polyspan
