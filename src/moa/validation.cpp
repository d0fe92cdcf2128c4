#include "moa/validation.h"

#include <algorithm>
#include <utility>

#include "core/error.h"

namespace polyspan {

std::vector<TargetScore> score_targets(Engine& engine, const SpanPlan& plan, const CalibrationSample& sample,
                                       std::span<const int64_t> targets) {
  POLYSPAN_CHECK(!targets.empty());
  const auto sequence = engine.new_sequence(plan, sample.length, KvType::kF16);
  return engine.score_targets(*sequence, sample.tokens, targets);
}

double mean_log_odds(std::span<const TargetScore> scores) {
  double sum = 0;
  for (const TargetScore& score : scores) sum += score.log_odds / static_cast<double>(scores.size());
  return sum;
}

double mean_loss(std::span<const TargetScore> scores) {
  double loss = 0;
  for (const TargetScore& score : scores) loss -= score.log_probability / static_cast<double>(scores.size());
  return loss;
}

double lost(const ValidationSample& sample, double loss) {
  const double above_dense = loss - sample.dense_loss;
  return sample.sample->retrieval ? std::max(0.0, above_dense) : kTextCounts * above_dense;
}

std::optional<std::vector<int64_t>> accepted_targets(const CalibrationSample& sample,
                                                     std::span<const TargetScore> dense) {
  constexpr size_t kShortAnswer = 16;
  POLYSPAN_CHECK(dense.size() == sample.targets.size());
  if (!sample.retrieval) return sample.targets;
  std::vector<int64_t> right;
  for (size_t i = 0; i < dense.size(); ++i)
    if (dense[i].is_best) right.push_back(sample.targets[i]);
  const bool accepted = dense.size() <= kShortAnswer ? right.size() == dense.size() : 2 * right.size() >= dense.size();
  return accepted ? std::optional(right) : std::nullopt;
}

void stop_losers(std::span<ValidationRow> rows, std::span<const NamedPlan> candidates, const std::string& sample) {
  double best = rows[0].loss;
  std::vector<double> racing;  // the losses of those beside the first candidate
  for (size_t i = 0; i < rows.size(); ++i) {
    if (!rows[i].stopped.empty()) continue;
    best = std::min(best, rows[i].loss);
    if (i > 0 && !candidates[i].baseline) racing.push_back(rows[i].loss);
  }
  std::sort(racing.begin(), racing.end());
  for (size_t i = 1; i < rows.size(); ++i) {
    const bool baseline = candidates[i].baseline;
    const double margin = baseline ? 0.0 : kClearlyWorse / static_cast<double>(rows[i].n_samples);
    const bool third = !baseline && racing.size() > kInTheRace && rows[i].loss > racing[kInTheRace - 1];
    if (rows[i].stopped.empty() && (third || rows[i].loss > best + margin)) rows[i].stopped = sample;
  }
}

std::vector<ValidationRow> validate(Engine& engine, std::span<const NamedPlan> candidates,
                                    std::span<const ValidationSample> samples, Progress& progress) {
  POLYSPAN_CHECK(!samples.empty() && !candidates.empty());
  std::vector<ValidationRow> rows;
  for (const NamedPlan& candidate : candidates) rows.push_back({candidate.name, 0, 0, "", 0, 0});
  std::vector<double> sums(candidates.size(), 0.0);
  progress.start("validation", std::ssize(samples) * std::ssize(candidates));
  int64_t done = 0;
  const auto see = [&](size_t i, const ValidationSample& sample) {
    const std::vector<TargetScore> scores = score_targets(engine, candidates[i].plan, *sample.sample, sample.targets);
    ValidationRow& row = rows[i];
    sums[i] += lost(sample, mean_loss(scores));
    if (sample.sample->retrieval) {
      row.n_targets += std::ssize(scores);
      row.n_right +=
          std::count_if(scores.begin(), scores.end(), [](const TargetScore& score) { return score.is_best; });
    }
    row.loss = sums[i] / static_cast<double>(++row.n_samples);
  };
  for (const ValidationSample& sample : samples) {
    see(0, sample);
    progress.update(++done);
  }
  const bool nothing_to_win = rows[0].loss <= kTie;
  for (const ValidationSample& sample : samples) {
    for (size_t i = 1; i < candidates.size(); ++i) {
      if (rows[i].stopped.empty() && (!nothing_to_win || candidates[i].baseline)) see(i, sample);
      progress.update(++done);
    }
    if (&sample == &samples.back()) break;
    if (nothing_to_win) {
      for (size_t i = 1; i < rows.size(); ++i)
        if (rows[i].stopped.empty()) rows[i].stopped = sample.sample->id;
    } else {
      stop_losers(rows, candidates, sample.sample->id);
    }
  }
  progress.finish();
  std::erase_if(rows, [](const ValidationRow& row) { return row.n_samples == 0; });
  std::stable_sort(rows.begin(), rows.end(), [](const ValidationRow& a, const ValidationRow& b) {
    return std::pair(!a.stopped.empty(), a.loss) < std::pair(!b.stopped.empty(), b.loss);
  });
  return rows;
}

const ValidationRow& winner(std::span<const ValidationRow> rows, std::span<const NamedPlan> candidates) {
  const ValidationRow *best = nullptr, *found = nullptr, *first = nullptr;
  for (const ValidationRow& row : rows) {  // best first
    const auto& plan =
        *std::find_if(candidates.begin(), candidates.end(), [&](const NamedPlan& c) { return c.name == row.name; });
    if (!plan.within_density || (best != nullptr && !row.stopped.empty())) continue;
    if (best == nullptr) best = &row;
    if (found == nullptr && !plan.baseline) found = &row;
    if (row.name == candidates[0].name) first = &row;
  }
  POLYSPAN_CHECK(best != nullptr);
  for (const ValidationRow* preferred : {first, found})
    if (preferred != nullptr && preferred->loss <= best->loss + kTie) return *preferred;
  return *best;
}

}  // namespace polyspan
