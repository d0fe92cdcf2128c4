#include "moa/compress.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <sstream>

#include "core/error.h"
#include "moa/profile_stage.h"
#include "moa/refine_stage.h"
#include "moa/search_stage.h"
#include "moa/validation.h"
#include "ops/isa.h"

namespace polyspan {
namespace {

using Clock = std::chrono::steady_clock;

// Adds the time that it lives to a stage's seconds.
class Stopwatch {
 public:
  explicit Stopwatch(double& seconds) : seconds_(seconds), start_(Clock::now()) {}
  ~Stopwatch() { seconds_ += std::chrono::duration<double>(Clock::now() - start_).count(); }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  double& seconds_;
  Clock::time_point start_;
};

class Compressor {
 public:
  Compressor(Engine& engine, RunDirectory& run, const CompressOptions& options, Progress& progress)
      : engine_(engine),
        run_(run),
        options_(options),
        progress_(progress),
        samples_(run, engine, options),
        stage_(run, engine, options, samples_, progress),
        refine_(engine, run, options, samples_, stage_, progress) {
    lengths_ = options.lengths;
    lengths_.insert(lengths_.end(), options.extend.begin(), options.extend.end());
    std::sort(lengths_.begin(), lengths_.end());
  }

  std::vector<CompressedPlan> run() {
    begin();
    ProfileRound dense;
    {
      const Stopwatch watch(seconds_["profile"]);
      dense = stage_.dense();
    }
    write_description(false);
    SpanPlan::Info info;
    info.model_name = engine_.config().name;
    info.model_fingerprint = description_["model"]["fingerprint"].get<std::string>();
    info.created_by = "polyspan compress";
    info.lengths = options_.lengths;
    double under_seconds = 0;  // of the search that are the profile's
    SearchStage search(
        options_, engine_.config().head_shape(), info, dense,
        [&](const SpanPlan& plan, const std::string& name, int64_t length) {
          const Stopwatch watch(under_seconds);
          return stage_.under(plan, name, length);
        },
        run_, progress_);
    std::vector<double> densities = options_.densities;
    std::sort(densities.rbegin(), densities.rend());
    std::vector<CompressedPlan> plans;
    for (const double density : densities) {
      std::vector<NamedPlan> candidates;
      {
        const Stopwatch watch(seconds_["search"]);
        candidates = search.find(density);
      }
      seconds_["profile"] += under_seconds, seconds_["search"] -= under_seconds;
      under_seconds = 0;
      if (options_.refine > 0) {
        const Stopwatch watch(seconds_["refinement"]);
        if (std::optional<SpanPlan> refined = refine_.refine(search.problem(density), candidates)) {
          SpanPlan::Info of_plan = info;
          of_plan.density = density, of_plan.influence = estimator_name(options_.influence);
          refined->set_info(of_plan);
          refined->save(run_.path("candidates/" + density_name(density) + "/refined.json"));
          // It was better than the others on far more samples than validation has: only the baselines stay beside it.
          std::erase_if(candidates, [](const NamedPlan& candidate) { return !candidate.baseline; });
          candidates.insert(candidates.begin(), {"refined", std::move(*refined)});
        }
      }
      {
        const Stopwatch watch(seconds_["validation"]);
        plans.push_back(choose(density, candidates));
      }
      write_description(density == densities.back());
    }
    run_.log("finished");
    return plans;
  }

 private:
  void begin() {
    description_ = {{"created_by", "polyspan 0.1.0"},
                    {"model", describe_model(engine_.model().file(), engine_.config())},
                    {"options", options_.to_json()},
                    {"device", {{"threads", engine_.n_threads()}, {"isa", isa_name(current_isa())}}},
                    {"seconds", OrderedJson::object()},
                    {"finished", false}};
    description_["options"]["kinds"] = samples_.kinds();
    if (const std::string_view device = engine_.model().device(); device != "cpu")
      description_["device"]["processor"] = device;
    description_["material"] = samples_.fingerprint();
    if (!run_.has_run()) {
      samples_.check(*std::min_element(options_.lengths.begin(), options_.lengths.end()));
      run_.write_json("run.json", description_);
      samples_.save();
      run_.log("started");
      return;
    }
    const OrderedJson before = run_.read_json("run.json");
    if (before.contains("model") && before["model"].value("fingerprint", "") != description_["model"]["fingerprint"])
      throw Error::bad_input(run_.folder().string(), ": this run is of the model ", before["model"].value("file", "?"),
                             ", not of ", description_["model"]["file"].get<std::string>(),
                             "; use another folder, or that model");
    was_finished_ = before.value("finished", false);
    if (!was_finished_ && before.value("material", samples_.fingerprint()) != samples_.fingerprint())
      throw Error::bad_input(run_.folder().string(), ": the running text or the documents (",
                             options_.text.empty() ? "the system's own" : options_.text,
                             options_.documents.empty() ? "" : ", ", options_.documents,
                             ") have changed since this run was started; put them back, or start another run");
    // What earlier processes took counts as well, as far as they came to write it down.
    if (before.contains("seconds"))
      for (const auto& [stage, value] : before["seconds"].items())
        if (value.is_number()) seconds_[stage] = value.get<double>();
    run_.log("resumed");
  }

  // A run that was finished before keeps what it says of itself.
  void write_description(bool finished) {
    if (was_finished_) return;
    for (const auto& [stage, value] : seconds_) description_["seconds"][stage] = std::round(10 * value) / 10;
    description_["finished"] = finished;
    run_.write_json("run.json", description_);
  }

  // Held-out samples that dense gets right, of the kinds in turn; what dense made of them is kept in the directory.
  const std::vector<ValidationSample>& validation_samples() {
    if (!validation_.empty()) return validation_;
    const std::string file = "validation/dense.json";
    const int64_t length = options_.validation_length();
    OrderedJson known =
        run_.has(file) ? run_.read_json(file) : OrderedJson{{"length", length}, {"samples", OrderedJson::object()}};
    const SpanPlan dense = SpanPlan::dense(engine_.config().head_shape());
    std::vector<std::string> kinds = stage_.kinds_at(length);
    if (kinds.empty()) kinds = samples_.kinds();
    std::vector<int64_t> next(kinds.size(), 0);
    progress_.start("the dense model on held-out samples", options_.validation_samples);
    for (int64_t tried = 0;
         std::ssize(validation_) < options_.validation_samples && tried < 4 * options_.validation_samples; ++tried) {
      const size_t kind = static_cast<size_t>(tried) % kinds.size();
      const CalibrationSample& sample = samples_.get("validation", kinds[kind], length, next[kind]++);
      OrderedJson& entry = known["samples"][sample.id];
      if (entry.is_null()) {
        const std::vector<TargetScore> scores = score_targets(engine_, dense, sample, sample.targets);
        const std::optional<std::vector<int64_t>> counted = accepted_targets(sample, scores);
        entry = {{"accepted", counted.has_value()}};
        if (counted) {
          std::vector<TargetScore> of_counted;
          for (size_t i = 0; i < scores.size(); ++i)
            if (std::binary_search(counted->begin(), counted->end(), sample.targets[i]))
              of_counted.push_back(scores[i]);
          entry["targets"] = *counted;
          entry["loss"] = mean_loss(of_counted);
        }
        run_.write_json(file, known);
      }
      if (entry["accepted"].get<bool>())
        validation_.push_back({&sample, entry["targets"].get<std::vector<int64_t>>(), entry["loss"].get<double>()});
      progress_.update(std::ssize(validation_));
    }
    progress_.finish();
    // Retrieval tells plans apart: who is left after the first sample is left for that.
    std::stable_partition(validation_.begin(), validation_.end(),
                          [](const ValidationSample& sample) { return sample.sample->retrieval; });
    if (validation_.empty())
      throw Error::bad_input(
          "no held-out sample of ", length,
          " tokens is answered rightly by the dense model, so no plan can be chosen; the candidates are in ",
          run_.path("candidates").string());
    return validation_;
  }

  void write_validation(const std::string& file, double density, std::span<const NamedPlan> candidates) {
    const std::vector<ValidationSample>& samples = validation_samples();
    const std::vector<ValidationRow> rows = validate(engine_, candidates, samples, progress_);
    double dense_loss = 0;
    for (const ValidationSample& sample : samples)
      dense_loss += sample.dense_loss / static_cast<double>(samples.size());
    const ValidationRow& best = winner(rows, candidates);
    std::ostringstream why;
    why.precision(3);
    why << (best.name == rows[0].name ? "the least loss" : "close to the least loss") << " above dense on "
        << best.n_samples << " held-out samples of " << options_.validation_length() << " tokens: " << best.loss;
    for (const ValidationRow& row : rows)
      if (row.name == "uniform") why << "; uniform " << row.loss << (row.stopped.empty() ? "" : ", left early");
    OrderedJson row_json = OrderedJson::array();
    for (const ValidationRow& row : rows) {
      const auto named =
          std::find_if(candidates.begin(), candidates.end(), [&](const NamedPlan& c) { return c.name == row.name; });
      OrderedJson densities = OrderedJson::array();
      for (const int64_t length : lengths_)
        densities.push_back({{"length", length}, {"density", named->plan.density(length)}});
      row_json.push_back({{"name", row.name},
                          {"loss", dense_loss + row.loss},
                          {"loss_above_dense", row.loss},
                          {"n_samples", row.n_samples},
                          {"stopped", row.stopped.empty() ? OrderedJson() : OrderedJson(row.stopped)},
                          {"right", row.n_targets == 0 ? OrderedJson()
                                                       : OrderedJson(static_cast<double>(row.n_right) /
                                                                     static_cast<double>(row.n_targets))},
                          {"densities", densities}});
    }
    run_.write_json(file, {{"density", density},
                           {"length", options_.validation_length()},
                           {"n_samples", std::ssize(samples)},
                           {"dense_loss", dense_loss},
                           {"rows", row_json},
                           {"winner", best.name},
                           {"why", why.str()}});
  }

  CompressedPlan choose(double density, std::span<const NamedPlan> candidates) {
    const std::string name = density_name(density), file = "validation/" + name + ".json";
    if (!run_.has(file)) write_validation(file, density, candidates);
    const OrderedJson document = run_.read_json(file);
    CompressedPlan result;
    result.density = density;
    result.winner = document.value("winner", ""), result.why = document.value("why", "");
    for (const OrderedJson& row : document["rows"]) {
      const auto loss = row["loss_above_dense"].get<double>();
      const auto n_samples = row["n_samples"].get<int64_t>();
      if (row["name"] == result.winner) result.loss = loss, result.n_samples = n_samples;
      if (row["name"] == "uniform") result.uniform_loss = loss, result.n_uniform_samples = n_samples;
    }
    const auto found =
        std::find_if(candidates.begin(), candidates.end(), [&](const NamedPlan& c) { return c.name == result.winner; });
    if (found == candidates.end())
      throw Error::bad_file(run_.path(file), "the winner \"", result.winner, "\" is none of the candidates");
    result.file = run_.path("plans/" + name + ".json");
    std::filesystem::create_directories(result.file.parent_path());
    SpanPlan::load(run_.path("candidates/" + name + "/" + result.winner + ".json"), engine_.config().head_shape())
        .save(result.file);
    for (const int64_t length : lengths_) result.densities.emplace_back(length, found->plan.density(length));
    run_.log("density " + name + ": " + result.winner + " wins; " + result.why);
    return result;
  }

  Engine& engine_;
  RunDirectory& run_;
  const CompressOptions& options_;
  Progress& progress_;
  SampleStore samples_;
  ProfileStage stage_;
  RefineStage refine_;
  std::vector<int64_t> lengths_;  // profiled and extension, ascending
  std::vector<ValidationSample> validation_;
  std::map<std::string, double> seconds_;
  OrderedJson description_;
  bool was_finished_ = false;  // when this process began
};

}  // namespace

std::vector<CompressedPlan> compress(Engine& engine, RunDirectory& run, const CompressOptions& options,
                                     Progress& progress) {
  options.check();
  options.check_model(engine.config());
  check_densities(options, engine.config().head_shape());
  return Compressor(engine, run, options, progress).run();
}

}  // namespace polyspan
