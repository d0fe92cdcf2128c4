// moa/measured_effects.h: what a head's span costs, measured: one head at a time under a plan, then several at once; and the
// choices within the density that follow from it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "eval/random_source.h"
#include "moa/choice_solver.h"

namespace polyspan {

// A head, and a rule to try it with while the others stay as they are.
struct Probe {
  int64_t head = 0;
  int rule = 0;
};

// For each head the rules nearest to twice and to half of what it keeps, the longest and the shortest; those that differ from
// its own. By head, ascending.
std::vector<Probe> probes_around(const ChoiceTables& tables, const Choice& now);

// By how much a loss changes: mean over samples, and its standard error.
struct Change {
  double mean = 0, error = 0;
};
// From `before` to `after`, sample by sample; of the first after.size() samples. REQUIRES: those are in `before`.
Change paired_change(std::span<const double> before, std::span<const double> after);

// The effects of changing heads, taken to add up: a Gaussian belief, which starts with the probes and learns from every choice
// that is measured as a whole (linear regression).
class MeasuredEffects {
 public:
  // effects: [n_probes]. Of the tables the rules' kept tokens and the upper bounds are used.
  MeasuredEffects(const ChoiceTables& tables, Choice now, std::vector<Probe> probes, std::span<const Change> effects);

  // The choice of the least expected loss within the density, of probed rules and those of now. Each change is taken to cost
  // `doubt` standard deviations more; a share `left_out` of the heads, drawn at random, stays as it is.
  Choice propose(double doubt, double left_out, RandomSource random) const;
  // Of a choice of such rules, against now.
  double expected(const Choice& choice) const;
  void learn(const Choice& choice, const Change& measured);

 private:
  std::vector<size_t> probes_of(const Choice& choice) const;  // of the heads that differ from now
  double covariance(size_t a, size_t b) const { return covariance_[a * probes_.size() + b]; }

  ChoiceTables tables_;     // of the rules that are used
  std::vector<int> rules_;  // [rule of tables_]: the rule of the caller
  Choice now_;              // in the caller's rules, as in probes_
  std::vector<Probe> probes_;
  std::vector<double> mean_;        // [probe]
  std::vector<double> covariance_;  // [probe][probe]
};

}  // namespace polyspan
