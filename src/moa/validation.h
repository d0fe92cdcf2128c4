// moa/validation.h: candidates side by side on samples that the search has not seen, at a length that it did not profile.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/progress.h"
#include "engine/engine.h"
#include "moa/calibration.h"
#include "plan/span_plan.h"

namespace polyspan {

// One score a target, as the engine runs the plan: f16 cache, chunked prefill. REQUIRES: at least one target.
std::vector<TargetScore> score_targets(Engine& engine, const SpanPlan& plan, const CalibrationSample& sample,
                                       std::span<const int64_t> targets);
double mean_loss(std::span<const TargetScore> scores);  // cross-entropy
double mean_log_odds(std::span<const TargetScore> scores);

// The targets of a sample that count, by what the dense model makes of them: of running text all; of a short answer all, if
// it is right as a whole; of a long one the right ones, if they are at least half. Else nullopt: the sample is set aside.
std::optional<std::vector<int64_t>> accepted_targets(const CalibrationSample& sample,
                                                     std::span<const TargetScore> dense);

struct NamedPlan {
  std::string name;
  SpanPlan plan;
  bool baseline = false;       // uniform, two-valued: shown, and the winner only where it is clearly better
  bool within_density = true;  // at every bounded length; else it is shown and never wins
};

struct ValidationRow {
  std::string name;
  double loss = 0;  // mean over its samples of lost()
  int64_t n_samples = 0;
  std::string stopped;                 // the sample after which it was left; empty: it saw all
  int64_t n_targets = 0, n_right = 0;  // of retrieval samples
};

// A sample and what dense makes of it.
struct ValidationSample {
  const CalibrationSample* sample;
  std::vector<int64_t> targets;
  double dense_loss = 0;
};

// What a plan with this cross-entropy loses on the sample: what lies above dense, of running text kTextCounts times, of
// retrieval no less than 0: a plan that happens to answer better than dense at one place must not pay with it for text.
inline constexpr double kTextCounts = 2;
double lost(const ValidationSample& sample, double loss);

// The first candidate sees all samples. Where it then stands no more than kTie above dense, there is next to nothing to
// win: the baselines see one sample, for comparison, the others none. Else all race over the samples in turn, see
// stop_losers. A row for each that saw a sample, best first, those that saw all before those that were left.
inline constexpr double kTie = 0.02;  // a difference that the noise of a few samples makes
std::vector<ValidationRow> validate(Engine& engine, std::span<const NamedPlan> candidates,
                                    std::span<const ValidationSample> samples, Progress& progress);
// After a sample (its id), of rows in the candidates' order: who sees no more is marked as stopped. After n samples those
// whose mean loss is more than kClearlyWorse / n above the best's (baselines: above it at all), and all but the first
// candidate and the kInTheRace best of the others.
inline constexpr double kClearlyWorse = 0.3;
inline constexpr size_t kInTheRace = 2;
void stop_losers(std::span<ValidationRow> rows, std::span<const NamedPlan> candidates, const std::string& sample);
// Of validate's rows: the first candidate where none is better by more than kTie, else the best of those that are no
// baseline, unless a baseline is better by more than that.
const ValidationRow& winner(std::span<const ValidationRow> rows, std::span<const NamedPlan> candidates);

}  // namespace polyspan
