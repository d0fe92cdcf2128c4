#include "moa/measured_effects.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <set>

#include "core/error.h"

namespace polyspan {
namespace {

// Effects do not quite add up: beside its samples' error an effect is uncertain by this share of itself, or of what a head
// gains on average, if that is more (a head that costs nothing alone may stand in for another).
constexpr double kInteraction = 0.3;
constexpr double kMostDeviations = 2;

int64_t kept_at_all_lengths(const ChoiceTables& tables, int rule) {
  int64_t total = 0;
  for (const auto& kept : tables.kept) total += kept[static_cast<size_t>(rule)];
  return total;
}

// The rule whose kept tokens are the nearest to `times` those of `now`, in ratio, at all bounded lengths.
int nearest_rule(const ChoiceTables& tables, int now, double times) {
  int best = now;
  double best_distance = kNoLimit;
  for (int rule = 0; rule < tables.n_rules; ++rule) {
    double distance = 0;
    for (size_t length = 0; length < tables.kept.size(); ++length) {
      const auto& kept = tables.kept[length];
      const double wanted = std::min(times * static_cast<double>(kept[static_cast<size_t>(now)]),
                                     static_cast<double>(tables.lengths[length]));
      distance += std::abs(std::log(static_cast<double>(kept[static_cast<size_t>(rule)]) / wanted));
    }
    if (distance < best_distance) best = rule, best_distance = distance;
  }
  return best;
}

}  // namespace

std::vector<Probe> probes_around(const ChoiceTables& tables, const Choice& now) {
  int shortest = 0, longest = 0;
  for (int rule = 1; rule < tables.n_rules; ++rule) {
    if (kept_at_all_lengths(tables, rule) < kept_at_all_lengths(tables, shortest)) shortest = rule;
    if (kept_at_all_lengths(tables, rule) > kept_at_all_lengths(tables, longest)) longest = rule;
  }
  std::vector<Probe> probes;
  for (int64_t head = 0; head < tables.n_heads(); ++head) {
    const int own = now[static_cast<size_t>(head)];
    std::set<int> tried;
    for (const int rule : {nearest_rule(tables, own, 2), longest, nearest_rule(tables, own, 0.5), shortest})
      if (kept_at_all_lengths(tables, rule) != kept_at_all_lengths(tables, own) && tried.insert(rule).second)
        probes.push_back({head, rule});
  }
  return probes;
}

Change paired_change(std::span<const double> before, std::span<const double> after) {
  POLYSPAN_CHECK(!after.empty() && after.size() <= before.size());
  const double n = static_cast<double>(after.size());
  double mean = 0, squares = 0;
  for (size_t i = 0; i < after.size(); ++i) mean += (after[i] - before[i]) / n;
  for (size_t i = 0; i < after.size(); ++i) squares += std::pow(after[i] - before[i] - mean, 2);
  return {mean, n > 1 ? std::sqrt(squares / (n - 1) / n) : 0};
}

MeasuredEffects::MeasuredEffects(const ChoiceTables& tables, Choice now, std::vector<Probe> probes,
                                 std::span<const Change> effects)
    : now_(std::move(now)), probes_(std::move(probes)) {
  POLYSPAN_CHECK(effects.size() == probes_.size() && std::ssize(now_) == tables.n_heads());
  std::set<int> used(now_.begin(), now_.end());
  for (const Probe& probe : probes_) used.insert(probe.rule);
  rules_.assign(used.begin(), used.end());
  tables_ = tables;
  tables_.n_rules = static_cast<int>(rules_.size());
  tables_.losses.clear();
  for (auto& kept : tables_.kept) {
    std::vector<int64_t> of_used;
    for (const int rule : rules_) of_used.push_back(kept[static_cast<size_t>(rule)]);
    kept = std::move(of_used);
  }
  double gain = 0, n_gains = 0;
  for (const Change& effect : effects)
    if (effect.mean < 0) gain -= effect.mean, ++n_gains;
  if (n_gains > 0) gain /= n_gains;
  covariance_.assign(probes_.size() * probes_.size(), 0.0);
  for (size_t i = 0; i < probes_.size(); ++i) {
    mean_.push_back(effects[i].mean);
    covariance_[i * probes_.size() + i] =
        std::pow(effects[i].error, 2) + std::pow(kInteraction * std::max(std::abs(effects[i].mean), gain), 2);
  }
}

Choice MeasuredEffects::propose(double doubt, double left_out, RandomSource random) const {
  const auto n_rules = static_cast<size_t>(tables_.n_rules);
  const auto index = [&](int rule) {
    return static_cast<size_t>(std::lower_bound(rules_.begin(), rules_.end(), rule) - rules_.begin());
  };
  std::vector<bool> may_change;
  for (size_t head = 0; head < now_.size(); ++head) may_change.push_back(random.unit() >= left_out);
  std::vector<double> changes(probes_.size());
  double forbidden = 1e-6;  // more than all changes together: of rules that were not tried
  for (size_t i = 0; i < probes_.size(); ++i) {
    changes[i] = mean_[i] + doubt * std::sqrt(std::max(0.0, covariance(i, i)));
    forbidden += 2 * std::abs(changes[i]);
  }
  ChoiceTables tables = tables_;
  tables.losses = {std::vector<double>(now_.size() * n_rules, forbidden)};
  for (size_t head = 0; head < now_.size(); ++head) tables.losses[0][head * n_rules + index(now_[head])] = 0;
  for (size_t i = 0; i < probes_.size(); ++i)
    if (may_change[static_cast<size_t>(probes_[i].head)])
      tables.losses[0][static_cast<size_t>(probes_[i].head) * n_rules + index(probes_[i].rule)] = changes[i];
  const std::optional<Choice> found = ChoiceSolver(std::move(tables)).best({1});
  POLYSPAN_CHECK(found.has_value(), "now is within the bounds");
  Choice choice = now_;
  for (const Probe& probe : probes_) {
    const auto head = static_cast<size_t>(probe.head);
    if (rules_[static_cast<size_t>((*found)[head])] == probe.rule) choice[head] = probe.rule;
  }
  return choice;
}

std::vector<size_t> MeasuredEffects::probes_of(const Choice& choice) const {
  std::vector<size_t> changed;
  for (size_t i = 0; i < probes_.size(); ++i)
    if (choice[static_cast<size_t>(probes_[i].head)] == probes_[i].rule) changed.push_back(i);
  return changed;
}

double MeasuredEffects::expected(const Choice& choice) const {
  double sum = 0;
  for (const size_t i : probes_of(choice)) sum += mean_[i];
  return sum;
}

void MeasuredEffects::learn(const Choice& choice, const Change& measured) {
  const std::vector<size_t> changed = probes_of(choice);
  if (changed.empty()) return;
  const size_t n = probes_.size();
  std::vector<double> with_sum(n, 0.0);  // covariance of each effect with the sum that was measured
  double variance = std::pow(measured.error, 2) + 1e-12;
  for (size_t i = 0; i < n; ++i)
    for (const size_t j : changed) with_sum[i] += covariance(i, j);
  for (const size_t i : changed) variance += with_sum[i];
  const double missed = measured.mean - expected(choice);
  // A miss beyond kMostDeviations is no sum of small ones: heads that need each other. It says less about each.
  variance = std::max(variance, std::pow(missed / kMostDeviations, 2));
  for (size_t i = 0; i < n; ++i) {
    mean_[i] += with_sum[i] / variance * missed;
    for (size_t j = 0; j < n; ++j) covariance_[i * n + j] -= with_sum[i] * with_sum[j] / variance;
  }
}

}  // namespace polyspan
