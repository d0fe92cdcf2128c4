#include "moa/profile_stage.h"

#include <algorithm>
#include <chrono>
#include <filesystem>

#include "core/error.h"
#include "core/fnv1a.h"
#include "core/mapped_file.h"
#include "moa/calibration_text.h"
#include "moa/validation.h"

namespace polyspan {
namespace {

constexpr int64_t kTriesPerSample = 3;  // drawn for each accepted one, at most; and for the first

// A role's samples are drawn from a stream of its own.
uint64_t role_seed(std::string_view role) {
  constexpr uint64_t kSeed = 0x9e3779b97f4a7c15u;
  return kSeed * (role == "validation" ? 1 : role == "refine" ? 2 : role == "choose" ? 3 : role == "check" ? 4 : 0);
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// About what a sample costs, in tokens: attention grows with the square.
int64_t work(int64_t length) { return length + length * length / 4096; }

int64_t n_right(const std::vector<TargetScore>& scores) {
  return std::count_if(scores.begin(), scores.end(), [](const TargetScore& score) { return score.is_best; });
}

// Of the targets `wanted` among `all` (both ascending), which have `scores`.
std::vector<TargetScore> scores_of(const std::vector<int64_t>& wanted, const std::vector<int64_t>& all,
                                   const std::vector<TargetScore>& scores) {
  std::vector<TargetScore> result;
  for (size_t i = 0; i < all.size(); ++i)
    if (std::binary_search(wanted.begin(), wanted.end(), all[i])) result.push_back(scores[i]);
  return result;
}

}  // namespace

SampleStore::SampleStore(RunDirectory& run, Engine& engine, const CompressOptions& options)
    : run_(run), engine_(engine), kinds_(options.kinds) {
  calibration_.seed = options.seed;
  if (!options.documents.empty()) calibration_.documents = read_documents(options.documents);
  if (!options.text.empty()) {
    calibration_.text = MappedFile(options.text).text();
  } else if (std::optional<std::string> text = default_calibration_text()) {
    calibration_.text = std::move(*text), calibration_.apart = true;
  } else {
    throw Error::bad_input("no running text was found on this system: give one with --text FILE");
  }
  if (kinds_.empty()) {
    kinds_ = {"passkey-natural", "text", "passkey-repeated", "records"};
    if (!calibration_.documents.empty()) kinds_.insert(kinds_.begin(), "document");
  }
  Fnv1a hash;
  hash.add(calibration_.text);
  if (!options.documents.empty()) hash.add(MappedFile(options.documents).text());
  fingerprint_ = hash.hex();
  longest_ = std::max(options.validation_length(), *std::max_element(options.lengths.begin(), options.lengths.end()));
  if (options.refine > 0) longest_ = std::max(longest_, options.refine_lengths().back());
  for (StoredSample& stored : run_.read_samples()) {
    by_id_[stored.role + "/" + stored.sample.id] = samples_.size();
    samples_.push_back(std::make_unique<StoredSample>(std::move(stored)));
  }
}

const CalibrationSample& SampleStore::get(std::string_view role, std::string_view kind, int64_t length, int64_t index,
                                          bool store_at_once) {
  const std::string id = std::to_string(length) + "/" + std::string(kind) + "/" + std::to_string(index),
                    key = std::string(role) + "/" + id;
  if (const auto found = by_id_.find(key); found != by_id_.end()) return samples_[found->second]->sample;
  std::unique_ptr<CalibrationSource>& source = sources_[std::string(role)];
  if (source == nullptr) {
    CalibrationOptions of_role = calibration_;
    of_role.seed ^= role_seed(role);
    source = std::make_unique<CalibrationSource>(engine_, std::move(of_role), longest_);
  }
  CalibrationSample sample = source->make(kind, length, index);
  sample.id = id;
  by_id_[key] = samples_.size();
  samples_.push_back(std::make_unique<StoredSample>(StoredSample{std::move(sample), std::string(role)}));
  if (store_at_once) save();
  return samples_.back()->sample;
}

void SampleStore::check(int64_t length) {
  for (const std::string& kind : kinds_) get("profile", kind, length, 0, /*store_at_once=*/false);
}

void SampleStore::save() {
  std::vector<StoredSample> all;
  for (const auto& stored : samples_) all.push_back(*stored);
  run_.write_samples(all);
}

SampleProfile ProfileStage::compute(const CalibrationSample& sample, const SpanPlan& plan) {
  if (profiler_ == nullptr) {
    profiler_ = engine_.model().make_span_profiler(no_progress());
    const int64_t longest = *std::max_element(options_.lengths.begin(), options_.lengths.end());
    profiler_->check_memory(longest);
  }
  SampleProfile result;
  result.id = sample.id, result.kind = sample.kind, result.length = sample.length;
  result.candidate_spans = candidate_spans(plan.shape(), sample.length);
  const auto start = std::chrono::steady_clock::now();
  const std::vector<AttentionSpan> spans = query_spans(plan, sample.length);
  // Running text is judged as perplexity judges it; log-odds would count most what the model is surest of.
  const ProfileLoss loss = sample.retrieval ? options_.loss : ProfileLoss::kCrossEntropy;
  std::vector<TargetScore> scores =
      profiler_->forward({sample.tokens, sample.targets, spans, result.candidate_spans, loss});
  result.accepted = true, result.targets = sample.targets;
  if (sample.retrieval) {
    // Only what dense answers rightly counts. What the plan answers rightly dense is taken to answer as well: its pass is
    // spared, and its log-odds are those of the dense profile's samples. Else the engine makes that pass: it is faster, and
    // the profiler keeps what backward() needs.
    const auto known = dense_log_odds_.find({sample.kind, sample.length});
    if (!plan.is_dense() && known != dense_log_odds_.end() && n_right(scores) == std::ssize(scores)) {
      result.dense_log_odds = known->second;
    } else {
      const std::vector<TargetScore> of_dense =
          plan.is_dense() ? scores : score_targets(engine_, SpanPlan::dense(plan.shape()), sample, sample.targets);
      const std::optional<std::vector<int64_t>> counted = accepted_targets(sample, of_dense);
      result.accepted = counted.has_value();
      result.targets = counted.value_or(std::vector<int64_t>());
      result.dense_log_odds = mean_log_odds(scores_of(result.targets, sample.targets, of_dense));
      if (!plan.is_dense() && result.accepted) scores = scores_of(result.targets, sample.targets, scores);
    }
  }
  result.loss = mean_loss(scores), result.n_targets = std::ssize(scores), result.n_right = n_right(scores);
  result.log_odds = plan.is_dense() && sample.retrieval ? result.dense_log_odds : mean_log_odds(scores);
  result.forward_s = seconds_since(start);
  if (!result.accepted || result.is_broken()) return result;
  result.influence = profiler_->backward({sample.tokens, result.targets, spans, result.candidate_spans, loss});
  result.backward_s = seconds_since(start) - result.forward_s;
  return result;
}

SampleProfile ProfileStage::profile(const CalibrationSample& sample, const SpanPlan& plan, std::string_view round) {
  if (!run_.has(RunDirectory::profile_name(round, sample.id))) run_.write_profile(round, compute(sample, plan));
  return run_.read_profile(round, sample);  // as a resumed run sees it, to the digit
}

std::vector<std::string> ProfileStage::kinds_at(int64_t length) const {
  std::vector<std::string> kinds = samples_.kinds();
  std::erase_if(kinds, [&](const std::string& kind) {
    const auto found = unanswered_from_.find(kind);
    return found != unanswered_from_.end() && length >= found->second;
  });
  return kinds;
}

int64_t ProfileStage::take(ProfileRound& round, const std::string& kind, int64_t length, int64_t n) {
  int64_t accepted = 0, tried = 0;
  const auto goes_on = [&] { return tried < (accepted > 0 ? kTriesPerSample * n : kTriesPerSample); };
  for (; accepted < n && goes_on(); ++tried) {
    round.samples.push_back(
        profile(samples_.get("profile", kind, length, next_index_[{kind, length}]++), round.plan, round.name));
    if (!round.samples.back().accepted) continue;
    ++accepted;
    progress_.update(work_done_ += work(length));
  }
  work_done_ += (n - accepted) * work(length);
  run_.log("profile " + round.name + ", " + std::to_string(length) + " tokens, " + kind + ": " +
           std::to_string(accepted) + " of " + std::to_string(tried) + " samples accepted");
  return accepted;
}

ProfileRound ProfileStage::dense() {
  ProfileRound round{"dense", SpanPlan::dense(engine_.config().head_shape()), {}};
  int64_t total = 0;
  work_done_ = 0;
  for (const int64_t length : options_.lengths) total += options_.samples * std::ssize(samples_.kinds()) * work(length);
  progress_.start("profiling the dense model", total);
  for (const int64_t length : options_.lengths) {
    int64_t accepted = 0;
    const std::vector<std::string> kinds = kinds_at(length);
    work_done_ += options_.samples * (std::ssize(samples_.kinds()) - std::ssize(kinds)) * work(length);
    for (const std::string& kind : kinds) {
      const int64_t of_kind = take(round, kind, length, options_.samples);
      if (of_kind == 0) unanswered_from_[kind] = length;
      accepted += of_kind;
    }
    if (accepted == 0)
      throw Error::bad_input("no sample of ", length,
                             " tokens was accepted: the dense model answers none of them rightly; try shorter "
                             "--lengths, other --kinds or --documents, or a larger model");
  }
  std::map<KindAndLength, int64_t> counts;
  for (const SampleProfile& sample : round.samples) {
    if (!sample.accepted) continue;
    double& mean = dense_log_odds_[{sample.kind, sample.length}];
    mean += (sample.log_odds - mean) / static_cast<double>(++counts[{sample.kind, sample.length}]);
  }
  progress_.finish();
  return round;
}

ProfileRound ProfileStage::under(const SpanPlan& plan, const std::string& name, int64_t length) {
  ProfileRound round{name, plan, {}};
  const std::vector<std::string> kinds = kinds_at(length);
  // One name among a hundred is a harder test of a plan than the only number: one record, which may stand near the beginning,
  // says little of the others. Qwen2.5-Coder-0.5B at 0.5, seed 1: 0.77 of LongEval's lines of 2,048 tokens, not 0.48.
  const auto n_samples = [&](const std::string& kind) {
    return (kind == "records" && !options_.quick ? 2 : 1) * options_.step_samples;
  };
  int64_t total = 0;
  for (const std::string& kind : kinds) total += n_samples(kind) * work(length);
  work_done_ = 0;
  progress_.start("profile " + name + " under the plan so far", total);
  for (const std::string& kind : kinds) take(round, kind, length, n_samples(kind));
  progress_.finish();
  return round;
}

}  // namespace polyspan
