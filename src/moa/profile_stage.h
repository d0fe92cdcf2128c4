// moa/profile_stage.h: draws samples and profiles them in rounds, each result on disk as soon as it is there.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/progress.h"
#include "moa/calibration.h"
#include "moa/compress_options.h"
#include "moa/influence.h"
#include "moa/run_directory.h"

namespace polyspan {

// The samples of a run: stored ones are taken again, new ones are drawn and stored.
class SampleStore {
 public:
  // What is in the directory must have been made from the same options. All three must outlive it.
  SampleStore(RunDirectory& run, Engine& engine, const CompressOptions& options);
  // The sample `index` of a kind and length for a role; drawn from a stream of its own for each role.
  // It is stored at once, or by the next save(): each time all samples are written.
  const CalibrationSample& get(std::string_view role, std::string_view kind, int64_t length, int64_t index,
                               bool store_at_once = true);
  void save();
  // Draws one sample of each kind at `length`. Throws Error (kBadInput) where the texts are too short, or the length.
  void check(int64_t length);
  // Of the running text and the documents, 16 digits: other ones make other samples.
  const std::string& fingerprint() const { return fingerprint_; }
  const std::vector<std::string>& kinds() const { return kinds_; }

 private:
  RunDirectory& run_;
  Engine& engine_;
  std::vector<std::string> kinds_;
  std::vector<std::unique_ptr<StoredSample>> samples_;
  std::map<std::string, size_t> by_id_;                                // role + "/" + id
  std::map<std::string, std::unique_ptr<CalibrationSource>> sources_;  // [role]
  CalibrationOptions calibration_;
  std::string fingerprint_;
  int64_t longest_;
};

class ProfileStage {
 public:
  ProfileStage(RunDirectory& run, Engine& engine, const CompressOptions& options, SampleStore& samples,
               Progress& progress)
      : run_(run), engine_(engine), options_(options), samples_(samples), progress_(progress) {}

  // Under the dense plan: `samples` accepted ones of each kind and length, or as many as kTriesPerSample draws for each give;
  // none after as many draws for the first. A kind of which a length keeps none is not drawn at longer ones. Throws Error
  // (kBadInput) where a length keeps no sample.
  ProfileRound dense();
  // Under `plan`, at one length: `step_samples` of each kind (of records twice as many), none of them seen before.
  ProfileRound under(const SpanPlan& plan, const std::string& name, int64_t length);
  // The kinds that are drawn at a length: all but those of which dense() kept none at it or at a shorter one.
  std::vector<std::string> kinds_at(int64_t length) const;

 private:
  // A sample that dense gets wrong is not accepted: its result says so and has no influence.
  SampleProfile profile(const CalibrationSample& sample, const SpanPlan& plan, std::string_view round);
  SampleProfile compute(const CalibrationSample& sample, const SpanPlan& plan);
  // Draws and profiles until `n` samples are accepted, the first kTriesPerSample were not, or kTriesPerSample * n are tried;
  // into round.samples. Returns the accepted.
  int64_t take(ProfileRound& round, const std::string& kind, int64_t length, int64_t n);

  RunDirectory& run_;
  Engine& engine_;
  const CompressOptions& options_;
  SampleStore& samples_;
  Progress& progress_;
  using KindAndLength = std::pair<std::string, int64_t>;
  std::map<KindAndLength, int64_t> next_index_;
  std::map<KindAndLength, double> dense_log_odds_;  // mean over the accepted samples of the dense profile
  std::map<std::string, int64_t> unanswered_from_;  // the length from which on a kind is not drawn
  int64_t work_done_ = 0;
  std::unique_ptr<SpanProfiler> profiler_;  // made when it is first needed: a resumed run may not
};

}  // namespace polyspan
