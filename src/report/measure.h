// report/measure.h: measures retrieval and speed under a run's plans and stores what it finds in RUNDIR/measured/.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "core/progress.h"
#include "engine/engine.h"
#include "report/run_data.h"

namespace polyspan::report {

struct MeasureOptions {
  std::vector<int64_t> lengths;      // empty: the run's, as far as the model's context reaches
  std::optional<int64_t> n_samples;  // prompts a length, kind of filler and place of the key
  std::string text;                  // natural filler
  std::string kv_type = "f16";
  uint64_t seed = 1;
};
inline constexpr int64_t kMeasureSamples = 1, kMeasureDepths = 5;

// Throws Error (kBadInput) that names what differs, where `file` is not the model that the run was made for.
void check_same_model(const RunModel& run_model, const GgufFile& file);

// Dense, and uniform and the plan of each density that has one, at each length: pass key with the key at five places, a
// prompt as long as the length, and decoding at its end. Every length of every plan is a document of its own
// (passkey-0.5-plan-4096.json, speed-...), written when it is measured; a document that is there of the same plan with
// at least as many prompts is kept, so what was stopped goes on. `progress` is told tokens. Throws Error before any
// work where a length does not fit.
void measure_run(const RunData& run, Engine& engine, const std::filesystem::path& model, const MeasureOptions& options,
                 Progress& progress = no_progress());

}  // namespace polyspan::report
