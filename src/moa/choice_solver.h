// moa/choice_solver.h: one rule for each head: the multiple-choice knapsack behind the search (moa/search.h), in plain
// numbers, solved with CBC.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

namespace polyspan {

using Choice = std::vector<int>;  // [n_heads]: the rule of each head

inline constexpr double kNoLimit = std::numeric_limits<double>::infinity();

// A group is a KV head: one head, or its query heads where each of them has a rule of its own.
struct ChoiceTables {
  int64_t n_groups = 0, group_size = 1;
  int n_rules = 0;
  double gap = 0;                           // relative optimality gap
  std::vector<int64_t> lengths;             // the bounded ones
  std::vector<std::vector<int64_t>> kept;   // [length][rule]: tokens that a KV head keeps, sink included; <= length
  std::vector<int64_t> least, most;         // [length]: KV tokens that all KV heads together may keep
  std::vector<std::vector<double>> losses;  // [curve][head * n_rules + rule]

  int64_t n_heads() const { return n_groups * group_size; }
  double loss(size_t curve, int64_t head, int rule) const { return losses[curve][head * n_rules + rule]; }
  double loss(size_t curve, const Choice& choice) const;
  // A KV head keeps the longest span of its heads.
  int64_t group_kept(size_t length, const Choice& choice, int64_t group) const;
  int64_t total_kept(size_t length, const Choice& choice) const;
  bool within_upper_bounds(const Choice& choice) const;
  bool reaches_lower_bounds(const Choice& choice) const;
};

// The least sum of weights[curve] * loss(curve), with loss(curve) <= limits[curve].
struct ChoiceGoal {
  std::vector<double> weights, limits;  // [curve]
};

// One thread, no time limits, no output: the same tables and goal give the same choice.
class ChoiceSolver {
 public:
  explicit ChoiceSolver(ChoiceTables tables);
  const ChoiceTables& tables() const { return tables_; }

  // The best choice for these weights, without limits: within tables.gap, or the best that a bounded number of nodes
  // found. Lower bounds that the upper ones do not allow are dropped. None: no choice keeps the upper bounds.
  std::optional<Choice> best(const std::vector<double>& weights) const;

  // Two ways to take limits. `within` keeps them and improves on `known` (which keeps them too); none where the solver
  // finds nothing better in few nodes. `priced` is the best choice for weights to which the prices of the limits, in
  // the linear relaxation, are added: close to the limits, not always within them, and as easy to find as any.
  struct Limited {
    std::optional<Choice> within, priced;
  };
  Limited limited(const ChoiceGoal& goal, const std::optional<Choice>& known) const;

  // The choice whose largest density over the bounded lengths is the smallest.
  const Choice& sparsest() const { return sparsest_; }

 private:
  using Options = std::vector<std::vector<int>>;  // [n_heads][...]: the rules that a head may take
  struct Relaxation;
  enum class Effort { kFew, kMany };

  // `within`: a choice that keeps the goal's limits and the upper bounds, where one is known.
  std::optional<Relaxation> relax(const ChoiceGoal& goal, bool lower_bounds, const Choice& within) const;
  std::optional<Choice> branch(const ChoiceGoal& goal, const Relaxation& relaxation, const std::optional<Choice>& known,
                               Effort effort) const;
  bool fill(Choice& choice) const;

  ChoiceTables tables_;
  Options all_, undominated_;
  Choice sparsest_;
  std::unique_ptr<ChoiceSolver> per_group_;  // the same with one rule a group, where group_size > 1
};

}  // namespace polyspan
