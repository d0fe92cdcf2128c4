// moa/refine_samples.h: the samples that a refinement measures on (moa/refine_stage.h), and what a plan loses on one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/progress.h"
#include "engine/engine.h"
#include "moa/compress_options.h"
#include "moa/profile_stage.h"
#include "moa/run_directory.h"

namespace polyspan {

// They come in blocks of so many, each a mixture: half of it the first retrieval kind, a quarter text, a quarter other
// retrieval; a third at the shortest of options.refine_lengths(), a fourth at the longest.
inline constexpr int64_t kRefineBlock = 12;

// A sample that dense answers.
struct RefineSample {
  const CalibrationSample* sample = nullptr;
  std::vector<int64_t> targets;
  double dense_loss = 0;
};

// Of an answer the mean of log(1 + exp(3 - log-odds)) over its tokens, which has something to gain until a token is right by a
// margin; of text 14 times the cross-entropy. Less what dense loses; what an answer loses less than dense counts half. Times
// half the kind's weight in retrieval, its weight in text: both are 1 by default.
// inputs, first_layer: as Engine::score_targets.
double refine_loss(Engine& engine, const CompressOptions& options, const SpanPlan& plan, const RefineSample& sample,
                   LayerInputs* inputs = nullptr, int64_t first_layer = 0);

// n samples of a role, fewer where dense answers too few; what dense makes of them is kept in refine/ROLE.json.
// REQUIRES: profiles has made its dense profile.
std::vector<RefineSample> draw_refine_samples(Engine& engine, RunDirectory& run, const CompressOptions& options,
                                              SampleStore& store, const ProfileStage& profiles, const std::string& role,
                                              int64_t n, Progress& progress);

}  // namespace polyspan
