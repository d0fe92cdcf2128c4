// report/train_data.h: the folder of a training run (`polyspan train`, docs/hydra.md) in memory, checked.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "recipe/train_config.h"

namespace polyspan::report {

// A line of metrics.jsonl: one step.
struct StepRow {
  int64_t step = 0;  // done, this one counted
  std::string stage;
  double loss = 0, lr = 0, grad_norm = 0, tokens_per_s = 0;
  std::optional<double> balance_loss, z_loss;
  std::map<std::string, std::map<int64_t, std::vector<double>>> statistics;  // by kind ("moe.use") and layer
};

struct EvalRow {
  int64_t step = 0;
  std::string stage;
  double loss = 0, accuracy = 0;
};

// A call of `polyspan train`: where it began and what it ran on.
struct TrainSession {
  int64_t step = 0, n_threads = 0;
  std::string device, processor, libtorch;
};

struct TrainRun {
  std::filesystem::path folder;
  TrainConfig config;
  std::string config_text;
  std::vector<TrainSession> sessions;  // none in runs of older versions
  std::vector<StepRow> steps;          // at least one; ascending
  std::vector<EvalRow> evals;          // ascending

  int64_t last_step() const { return steps.back().step; }
  int64_t n_parameters() const;
  std::string name() const;  // of the folder
  // One value a logged step: element `at` of a statistic of a layer; empty where it was not logged.
  using Points = std::vector<std::pair<int64_t, double>>;
  Points statistic(const std::string& kind, int64_t layer, size_t at = 0) const;
  // The entropy of how a layer's chunks chose among the experts, as a share of the largest: 1 is all alike.
  Points expert_entropy(int64_t layer) const;
};

// Whether the folder looks like a run of `polyspan train`, whole or not.
bool is_training_run(const std::filesystem::path& folder);

// Throws Error that names the file, the line, what was found and what was wanted.
TrainRun read_training_run(const std::filesystem::path& folder);

}  // namespace polyspan::report
