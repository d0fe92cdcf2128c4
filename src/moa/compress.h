// moa/compress.h: from a model to plans: calibrate, profile, search, validate (MoA, arXiv 2406.14909; docs/compress.md).
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "core/progress.h"
#include "engine/engine.h"
#include "moa/compress_options.h"
#include "moa/run_directory.h"

namespace polyspan {

struct CompressedPlan {
  double density = 0;          // that was asked for
  std::filesystem::path file;  // plans/DENSITY.json
  std::string winner, why;
  std::vector<std::pair<int64_t, double>> densities;  // at the profile and extension lengths
  double loss = 0, uniform_loss = 0;                  // above dense, mean over the validation samples that each saw
  int64_t n_samples = 0, n_uniform_samples = 0;
};

// Runs or resumes: what is in the directory is taken, what is missing is made. With the same options, model and number of
// threads or not, the plans are the same to the byte. Throws Error; whatever was finished stays on disk.
std::vector<CompressedPlan> compress(Engine& engine, RunDirectory& run, const CompressOptions& options,
                                     Progress& progress);

}  // namespace polyspan
