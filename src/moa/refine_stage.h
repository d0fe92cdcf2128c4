// moa/refine_stage.h: from a found plan to a better one of the same density by what is measured. A round measures first every
// KV head with longer and shorter spans, alone, then choices that follow from that, as a whole (moa/measured_effects.h). Heads
// are measured on fresh samples in each round, choices on others, and the end on samples that decided nothing.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/progress.h"
#include "engine/engine.h"
#include "moa/compress_options.h"
#include "moa/measured_effects.h"
#include "moa/profile_stage.h"
#include "moa/refine_samples.h"
#include "moa/run_directory.h"
#include "moa/search.h"
#include "moa/validation.h"

namespace polyspan {

class RefineStage {
 public:
  // All references must outlive it.
  RefineStage(Engine& engine, RunDirectory& run, const CompressOptions& options, SampleStore& samples,
              ProfileStage& profiles, Progress& progress)
      : engine_(engine), run_(run), options_(options), samples_(samples), profiles_(profiles), progress_(progress) {}

  // options.refine rounds from the candidate that loses least, baselines apart. The plan that they end with, where it loses
  // less on the samples that decided nothing; else none. Everything measured is kept in refine/.
  std::optional<SpanPlan> refine(const SearchProblem& problem, std::span<const NamedPlan> candidates);

 private:
  using Losses = std::vector<double>;  // [n_samples]
  Losses losses_of(const SpanPlan& plan, std::span<const RefineSample> samples);
  // Adds what each of the probes `wanted` loses on the samples to its losses. Each sample's are kept in `folder`.
  void measure_probes(const SearchProblem& problem, const Choice& now, std::span<const Probe> probes,
                      std::span<const size_t> wanted, std::span<const RefineSample> samples, const std::string& folder,
                      std::vector<Losses>& losses);
  // The losses of `choice` on the choosing samples, in blocks, until they are clearly more than `best` (may be empty).
  // entry: what is kept of them; save() keeps it.
  Losses measure_choice(const SpanPlan& plan, const Losses& best, OrderedJson& entry,
                        const std::function<void()>& save);
  // One round from `now`; the best choice that was measured.
  Choice round(const SearchProblem& problem, const ChoiceTables& tables, const Choice& now, int64_t index);

  Engine& engine_;
  RunDirectory& run_;
  const CompressOptions& options_;
  SampleStore& samples_;
  ProfileStage& profiles_;
  Progress& progress_;
  std::vector<RefineSample> probing_;  // options_.refine_samples a round
  std::vector<RefineSample> choosing_, held_out_;
};

}  // namespace polyspan
