#include "moa/refine_samples.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <utility>

#include "moa/validation.h"

namespace polyspan {
namespace {

constexpr double kOddsMargin = 3;    // of the log-odds of an answer's tokens
constexpr double kTextFactor = 14;   // docs/compress.md, "What was tried": with 4, retrieval is paid for with text
constexpr double kBelowDense = 0.5;  // what an answer surer than dense's counts
constexpr int64_t kTextTargets = 256;
constexpr int64_t kTriesPerPlace = 3;  // for a place in a block

double softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); }

// Of a sample that a plan or dense has scored.
double loss_of(std::span<const TargetScore> scores, bool retrieval) {
  if (!retrieval) return kTextFactor * mean_loss(scores);
  double loss = 0;
  for (const TargetScore& score : scores)
    loss += softplus(kOddsMargin - score.log_odds) / static_cast<double>(scores.size());
  return loss;
}

struct Place {
  std::string kind;
  int64_t length;
};

std::vector<Place> block_of(const std::vector<int64_t>& lengths, const ProfileStage& profiles, int64_t block) {
  const int64_t shorter = lengths[0], longer = lengths[std::min<size_t>(1, lengths.size() - 1)],
                longest = lengths.back();
  const std::vector<std::string> kinds = profiles.kinds_at(shorter);
  const bool has_text = std::find(kinds.begin(), kinds.end(), kRunningText) != kinds.end();
  // Of the retrieval kinds at that length: the first, or one of the others.
  const auto retrieval = [&](int64_t length, std::optional<int64_t> other) -> Place {
    std::vector<std::string> answered = profiles.kinds_at(length);
    std::erase(answered, kRunningText);
    if (answered.empty()) return {std::string(kRunningText), length};
    const int64_t n_others = std::ssize(answered) - 1;
    return {answered[other && n_others > 0 ? static_cast<size_t>(1 + *other % n_others) : 0], length};
  };
  const auto first = [&](int64_t length) { return retrieval(length, std::nullopt); };
  const auto text = [&](int64_t length) { return has_text ? Place{std::string(kRunningText), length} : first(length); };
  const bool even = block % 2 == 0;
  return {first(shorter),
          first(longer),
          text(longest),
          retrieval(longer, block),
          first(longer),
          text(longer),
          first(shorter),
          text(even ? longer : shorter),
          first(longer),
          first(longest),
          even ? first(shorter) : retrieval(shorter, block),
          retrieval(longest, 0)};
}

// The targets that count, by what dense makes of the sample; nullopt: it is set aside.
std::optional<std::vector<int64_t>> counted_targets(Engine& engine, const CalibrationSample& sample) {
  if (sample.retrieval)
    return accepted_targets(
        sample, score_targets(engine, SpanPlan::dense(engine.config().head_shape()), sample, sample.targets));
  const int64_t all = std::ssize(sample.targets), some = std::min(all, kTextTargets);
  std::vector<int64_t> targets;
  for (int64_t i = 0; i < some; ++i) targets.push_back(sample.targets[static_cast<size_t>(i * all / some)]);
  return targets;
}

}  // namespace

double refine_loss(Engine& engine, const CompressOptions& options, const SpanPlan& plan, const RefineSample& sample,
                   LayerInputs* inputs, int64_t first_layer) {
  const auto sequence = engine.new_sequence(plan, sample.sample->length, KvType::kF16);
  const double above_dense =
      loss_of(engine.score_targets(*sequence, sample.sample->tokens, sample.targets, inputs, first_layer),
              sample.sample->retrieval) -
      sample.dense_loss;
  const double counts = sample.sample->retrieval ? 0.5 : 1;  // a text's default weight is 1, that of retrieval 2
  return counts * options.weight(sample.sample->kind) *
         (sample.sample->retrieval && above_dense < 0 ? kBelowDense * above_dense : above_dense);
}

std::vector<RefineSample> draw_refine_samples(Engine& engine, RunDirectory& run, const CompressOptions& options,
                                              SampleStore& store, const ProfileStage& profiles, const std::string& role,
                                              int64_t n, Progress& progress) {
  const std::vector<int64_t> lengths = options.refine_lengths();
  const std::string file = "refine/" + role + ".json";
  OrderedJson known = run.has(file) ? run.read_json(file) : OrderedJson{{"samples", OrderedJson::object()}};
  const SpanPlan dense = SpanPlan::dense(engine.config().head_shape());
  std::map<std::pair<std::string, int64_t>, int64_t> next;
  std::vector<RefineSample> drawn;
  progress.start("the dense model on samples to " + role, n);
  for (int64_t place = 0; std::ssize(drawn) < n && place < 2 * n; ++place) {
    const auto [kind, length] =
        block_of(lengths, profiles, place / kRefineBlock)[static_cast<size_t>(place % kRefineBlock)];
    for (int64_t tries = 0; tries < kTriesPerPlace; ++tries) {
      const CalibrationSample& sample = store.get(role, kind, length, next[{kind, length}]++, false);
      OrderedJson& entry = known["samples"][sample.id];
      if (entry.is_null()) {
        const std::optional<std::vector<int64_t>> targets = counted_targets(engine, sample);
        entry = {{"accepted", targets.has_value()}};
        if (targets) {
          entry["targets"] = *targets;
          entry["loss"] = loss_of(score_targets(engine, dense, sample, *targets), sample.retrieval);
        }
      }
      if (!entry["accepted"].get<bool>()) continue;
      drawn.push_back({&sample, entry["targets"].get<std::vector<int64_t>>(), entry["loss"].get<double>()});
      break;
    }
    progress.update(std::ssize(drawn));
  }
  progress.finish();
  run.write_json(file, known);
  store.save();
  return drawn;
}

}  // namespace polyspan
