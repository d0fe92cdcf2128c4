// report/measured.h: what was measured under a run's plans: the documents of RUNDIR/measured/ (docs/report.md).
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "plan/span_plan.h"

namespace polyspan::report {

// "dense", "uniform" (of the density that the plan has at that length) or "plan"; dense has density 1.
struct MeasuredPlan {
  std::string name;
  double density = 1;
  bool operator==(const MeasuredPlan&) const = default;
};

struct DepthCell {
  double depth = 0, accuracy = 0;
  int64_t n = 0;
};

// Pass-key retrieval at one length.
struct Retrieval {
  MeasuredPlan plan;
  int64_t length = 0, n = 0;
  double accuracy = 0;
  std::vector<DepthCell> depths;  // ascending; empty where the key stood at random places
};

// Speed at one length: of a prompt as long, and of decoding up to it.
struct Speed {
  MeasuredPlan plan;
  int64_t length = 0;
  std::optional<double> prefill_tokens_per_s, decode_tokens_per_s;
};

struct Measurements {
  std::vector<Retrieval> retrieval;
  std::vector<Speed> speed;
  std::vector<std::string> kv_types, machines;  // all that occur: "f16"; "2 threads, avx512"
  int64_t n_stale = 0;                          // documents of plans that the run no longer has: left out
  bool empty() const { return retrieval.empty() && speed.empty(); }
  const Retrieval* find_retrieval(const MeasuredPlan& plan, int64_t length) const;
  const Speed* find_speed(const MeasuredPlan& plan, int64_t length) const;
};

// A short text that changes with a plan's rules: kept in a document as `plan_id`.
std::string plan_id(const SpanPlan& plan);

// The plans of a run, by density: what tells whether a document is of the plan that the run has.
struct CurrentPlan {
  double density = 0;
  std::string id;
};

// Reads every *.json of `folder`, which may be missing. Throws Error for what is wrong.
Measurements read_measurements(const std::filesystem::path& folder, const std::vector<CurrentPlan>& plans);

}  // namespace polyspan::report
