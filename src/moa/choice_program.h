// moa/choice_program.h: the linear and mixed integer programs of a choice of rules (moa/choice_solver.h), for Clp and CBC.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "moa/choice_solver.h"

namespace polyspan {

// A mixed integer program under construction, column by column and row by row.
class Program {
 public:
  int add_column(double cost, double lower, double upper, bool integer);
  int add_row(double lower, double upper);
  void add_entry(int row, int column, double value);
  // `amount` of a row's left side is a constant.
  void shift_row(int row, double amount);
  int n_columns() const { return static_cast<int>(costs_.size()); }
  int size() const { return std::max(1, n_columns() + static_cast<int>(row_lower_.size())); }

  struct Result {
    std::vector<double> solution;  // empty: none
    bool complete = false;         // nothing is better by more than `allowed` (none: there is none at all)
  };
  // Branch and bound for a cost below `cutoff`, until the best solution is within `allowed` of the bound or `max_nodes`
  // are done.
  Result branch_and_bound(double cutoff, double allowed, int max_nodes) const;

 private:
  friend class ColumnGeneration;
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

// options: [head][...], ascending; costs: [head * n_rules + rule]. Tokens are counted in dense heads (1 = `length`
// tokens), losses in their limits.
ChoiceProgram make_program(const ChoiceTables& tables, const ChoiceGoal& goal,
                           const std::vector<std::vector<int>>& options, const std::vector<double>& costs,
                           bool lower_bounds);

// The linear relaxation of a program with far more columns than rows, by column generation: solved over few of the
// columns; the prices of its rows tell which others would lower the cost, and those join until there is none. So the
// optimum is that of all columns, and Clp sees some twenty a head, not hundreds: at 1,024 heads and 801 rules a solve
// takes 0.9 s, not 18 s.
class ColumnGeneration {
 public:
  // `start`: [column] whether a choice takes part from the beginning; what is no choice always does.
  ColumnGeneration(const ChoiceProgram& made, const std::vector<char>& start);
  ~ColumnGeneration();

  bool solve();  // false: no solution, or Clp gave up
  // After solve().
  double cost() const;
  double price(int row) const;
  // [choice]: what a unit of it would add to the cost, >= 0 up to the solver's tolerance.
  const std::vector<double>& reduced_costs() const { return reduced_; }
  // All costs times `factor`; wants solve() again.
  void rescale_costs(double factor);

 private:
  struct Solver;
  void add(const std::vector<int>& columns);
  bool optimise();
  void price_choices();

  const ChoiceProgram& made_;
  std::vector<double> costs_;        // [column]
  std::vector<size_t> first_entry_;  // [column + 1]: its entries below
  std::vector<int> entry_row_;
  std::vector<double> entry_value_;
  std::vector<char> inside_;  // [column]
  std::vector<double> reduced_;
  std::unique_ptr<Solver> solver_;
};

}  // namespace polyspan
