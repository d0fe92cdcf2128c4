// report/run_data.h: a run directory of `polyspan compress` (docs/compress.md) in memory, checked.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "moa/search.h"
#include "plan/span_plan.h"
#include "report/measured.h"

namespace polyspan::report {

struct RunModel {
  std::string name, file, fingerprint, architecture, quantization;
  int64_t n_layers = 0, n_heads = 0, n_kv_heads = 0, head_dim = 0, context_length = 0;
  int64_t window = 0, span_step = 1;  // of heads with windows (Hydra)
  HeadShape shape() const { return {n_layers, n_heads, n_kv_heads, window, span_step}; }
};

struct RunOptions {
  std::vector<double> densities;
  std::vector<int64_t> lengths, extend;
  std::vector<std::string> kinds;
  std::string influence, loss, text, documents;  // documents: empty where there were none
  int64_t n_samples = 0;
  uint64_t seed = 0;
  bool per_query_head = false, quick = false;
  std::vector<std::pair<std::string, std::string>> others;  // further options of the file: name and value as text
};

struct SampleKind {
  std::string kind = {};
  int64_t n_drawn = 0;       // for profiling
  int64_t n_profiled = 0;    // under the dense model
  int64_t n_accepted = 0;    // of those
  int64_t n_validation = 0;  // drawn for validation
  int64_t n_refinement = 0;  // drawn for refinement
};

struct SearchRound {
  std::string name = {};           // "0"
  std::string plan_of_round = {};  // the plan that it was profiled under
  std::vector<LossCurve> curves = {};
  std::vector<std::string> candidates = {};
};

struct FrontPlan {
  std::string name;
  std::vector<double> losses;     // one a curve length
  std::vector<double> densities;  // at the bounded lengths
};

struct SearchResult {
  std::vector<SearchRound> rounds;
  std::vector<FrontPlan> front;
  std::vector<int64_t> curve_lengths;
};

struct ValidationRow {
  std::string name, stopped;  // stopped: the sample after which it was left; empty: it saw all
  double loss = 0;
  int64_t n_samples = 0;
  std::optional<double> right;                        // share of retrieval targets that were predicted
  std::vector<std::pair<int64_t, double>> densities;  // by length
};

struct Validation {
  int64_t length = 0, n_samples = 0;
  double dense_loss = 0;
  std::vector<ValidationRow> rows;  // best first
  std::string winner, why;
  const ValidationRow* row(const std::string& name) const;  // null where there is none
};

// What the run has for one density; any part may not be there yet.
struct DensityResult {
  double density = 0;
  std::string key;  // of its files: "0.5"; empty where there are none
  std::optional<SearchResult> search;
  std::optional<Validation> validation;
  std::optional<SpanPlan> plan;
  std::vector<std::pair<std::string, SpanPlan>> candidates;  // by name
  const SpanPlan* candidate(const std::string& name) const;
};

struct RunData {
  std::filesystem::path folder;
  std::string created_by;
  RunModel model;
  RunOptions options;
  std::string processor, isa;
  int64_t n_threads = 0;
  std::vector<std::pair<std::string, double>> seconds;  // of each phase
  bool finished = false;
  std::vector<SampleKind> samples;
  std::vector<DensityResult> densities;  // as the options order them
  Measurements measured;
  std::vector<std::string> log;  // its lines, the newest last
  std::string date;              // of the log's first line, "2025-11-02"; empty where it says none

  // Profile and extension lengths, ascending.
  std::vector<int64_t> all_lengths() const;
  // What an unfinished run still lacks, in words; empty where all is there.
  std::vector<std::string> missing() const;
};

// Throws Error that names the file, what was found and what was wanted. run.json must be there; every other part may be
// missing, but what is there must be right.
RunData read_run(const std::filesystem::path& folder);

// The parts that belong to one density (run_density.cpp).
DensityResult read_density(const std::filesystem::path& folder, double density, const RunModel& model,
                           const RunOptions& options);
// The round whose curves the front was found with: the last one by which the front's plans have the front's losses.
// Null where there are no rounds of the front's lengths.
const SearchRound* front_round(const DensityResult& result, bool per_query_head);
// The losses of a plan by a round's curves, one a curve; nothing where it has a rule for each query head and the curves
// are of KV heads.
std::optional<std::vector<double>> plan_losses(const SpanPlan& plan, const SearchRound& round, bool per_query_head);

}  // namespace polyspan::report
