// moa/compress_options.h: what a run of `compress` is asked for, as run.json keeps it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "moa/estimator.h"
#include "model/config.h"
#include "model/span_profiler.h"

namespace polyspan {

struct CompressOptions {
  std::vector<double> densities = {0.5, 0.25};
  std::vector<int64_t> lengths = {1024, 2048, 4096};  // profiled
  std::vector<int64_t> extend = {8192};               // bounded and weighed in the search, never profiled
  std::vector<std::string> kinds;  // of samples; empty: the built-in ones, and documents where there are any
  int64_t samples = 2;             // accepted ones of each kind and length, dense profile
  int64_t steps = 2;               // profiles under the plan found so far, for each halving of the density
  int64_t step_samples = 1;        // of each kind (of records twice as many), at one length
  int64_t validation_samples = 3;
  int64_t refine = 0;                     // rounds of refinement with the measured loss, for each density
  int64_t refine_samples = 48;            // a round measures heads on; choices take twice as many, the end as many
  std::map<std::string, double> weights;  // of kinds; absent: 2 for retrieval, 1 for running text
  Estimator influence = Estimator::kSpan;
  ProfileLoss loss = ProfileLoss::kLogOdds;
  bool per_query_head = false;
  bool quick = false;
  uint64_t seed = 1;
  std::string documents, text;  // files; empty: none, and the system's own text

  // The preset of --quick: fewer lengths, samples and rounds.
  static CompressOptions quick_preset();
  // Throws Error: kUsage for what no model could do, kBadInput for lengths beyond the model's context.
  void check() const;
  void check_model(const ModelConfig& config) const;
  nlohmann::ordered_json to_json() const;
  // Throws Error (kBadFile) naming the field.
  static CompressOptions from_json(const nlohmann::ordered_json& json, const std::filesystem::path& file);
  // The length of the validation samples: a quarter of the way from the longest profiled to the shortest extension length
  // (further on, small models answer little), or the longest profiled one where there is no extension.
  int64_t validation_length() const;
  // Ascending: the two longest profiled ones and the shortest extension.
  std::vector<int64_t> refine_lengths() const;
  double weight(std::string_view kind) const;
};

std::string_view profile_loss_name(ProfileLoss loss);
ProfileLoss profile_loss_by_name(std::string_view name);  // throws Error (kUsage)

// "0.5": the text of a density in file names.
std::string density_name(double density);

}  // namespace polyspan
