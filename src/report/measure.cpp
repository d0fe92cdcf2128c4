#include "report/measure.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/mapped_file.h"
#include "core/whole_progress.h"
#include "eval/passkey.h"
#include "eval/result_json.h"
#include "eval/speed.h"
#include "moa/run_directory.h"
#include "report/json_value.h"
#include "report/page_parts.h"

namespace polyspan::report {
namespace {

using OrderedJson = nlohmann::ordered_json;

// Decoding is timed over the last 96 tokens of a length.
constexpr int64_t kDecodeTokens = 32, kDecodeReps = 3, kPrefillReps = 1;

struct Subject {
  MeasuredPlan plan;
  PlanAt plan_at;
  std::string id;         // of the plan; empty for dense
  std::string plan_file;  // as documents name it
};

std::vector<Subject> subjects_of(const RunData& run, const Engine& engine) {
  std::vector<Subject> subjects = {{{"dense", 1}, same_plan(engine.config().default_plan()), "", "dense"}};
  for (const DensityResult& result : run.densities) {
    if (!result.plan) continue;
    const std::string id = plan_id(*result.plan), file = "plans/" + result.key + ".json";
    subjects.push_back({{"uniform", result.density}, uniform_like(*result.plan), id, "uniform as " + file});
    subjects.push_back({{"plan", result.density}, same_plan(*result.plan), id, file});
  }
  return subjects;
}

struct Task {
  const Subject* subject = nullptr;
  int64_t length = 0;
  bool is_speed = false;
  std::filesystem::path file;
};

std::filesystem::path file_of(const RunData& run, const Subject& subject, int64_t length, bool is_speed) {
  std::string name = is_speed ? "speed-" : "passkey-";
  if (subject.plan.name != "dense") name += density_text(subject.plan.density) + "-";
  return run.folder / "measured" / (name + subject.plan.name + "-" + std::to_string(length) + ".json");
}

// Whether a document holds what would be measured: the same plan, settings, and no fewer prompts.
bool is_measured(const Task& task, const MeasureOptions& options, int64_t n_prompts) {
  std::error_code error;
  if (!std::filesystem::exists(task.file, error)) return false;
  const JsonDocument document = read_json(task.file);
  const JsonValue root = document.root();
  const auto id = root.find("plan_id");
  if ((id ? id->text() : "") != task.subject->id || root.at("kv_type").text() != options.kv_type) return false;
  if (task.is_speed) return true;
  const std::vector<JsonValue> rows = root.at("rows").items(1);
  return !rows.empty() && (!options.n_samples || rows[0].at("n").integer(0, INT64_MAX) >= n_prompts);
}

OrderedJson rows_of(Engine& engine, const Task& task, std::span<const PromptItem> items, KvType type, uint64_t seed,
                    Progress& progress) {
  const PlanAt& plan_at = task.subject->plan_at;
  OrderedJson rows = OrderedJson::array();
  if (!task.is_speed) {
    const std::vector<ItemResult> results = evaluate_items(engine, plan_at, items, type, progress);
    for (const EvalRow& row : summarize(items, results)) rows.push_back(to_json(row, "passkey"));
    return rows;
  }
  const SpanPlan plan = plan_at(task.length);
  SpeedMeter meter(engine, plan, type, seed);
  progress.start("speed", 2 * task.length);
  rows.push_back(to_json(meter.prefill(task.length, kPrefillReps)));
  progress.update(task.length);
  const int64_t depth = task.length - SpeedMeter::decode_length(0, kDecodeTokens, kDecodeReps);
  if (depth >= 0) rows.push_back(to_json(meter.decode(depth, kDecodeTokens, kDecodeReps)));
  progress.update(2 * task.length);
  return rows;
}

}  // namespace

void check_same_model(const RunModel& run_model, const GgufFile& file) {
  const ModelConfig config = read_config(file);
  const auto check = [&](const char* what, const auto& found, const auto& wanted) {
    if (found != wanted)
      throw Error::bad_input(file.path().string(), ": found ", what, " ", found, ", wanted ", wanted,
                             " as the model that the run was made for");
  };
  if (!run_model.architecture.empty()) check("architecture", config.architecture, run_model.architecture);
  check("layers:", config.head_shape().n_layers, run_model.n_layers);
  check("heads:", config.n_heads, run_model.n_heads);
  check("KV heads:", config.n_kv_heads, run_model.n_kv_heads);
  check("dimensions of a head:", config.head_dim, run_model.head_dim);
  if (!config.name.empty()) check("name", config.name, run_model.name);
  if (!run_model.quantization.empty()) check("quantisation", config.quantization, run_model.quantization);
  if (!run_model.fingerprint.empty()) check("fingerprint", model_fingerprint(file), run_model.fingerprint);
}

void measure_run(const RunData& run, Engine& engine, const std::filesystem::path& model, const MeasureOptions& options,
                 Progress& progress) {
  check_same_model(run.model, engine.model().file());
  const KvType type = kv_type_by_name(options.kv_type);
  std::vector<int64_t> lengths = options.lengths;
  if (lengths.empty()) {
    lengths = run.all_lengths();
    std::erase_if(lengths, [&](int64_t length) { return length > engine.config().context_length; });
  }
  const std::vector<Subject> subjects = subjects_of(run, engine);
  const int64_t n_samples = options.n_samples.value_or(kMeasureSamples);

  // The shortest lengths of all plans first: there is something to see early, and what cannot be served is found before
  // any work.
  std::sort(lengths.begin(), lengths.end());
  std::vector<std::pair<int64_t, std::vector<PromptItem>>> prompts;
  for (const int64_t length : lengths) {
    check_length(engine, length);
    prompts.emplace_back(length,
                         passkey_items(engine, options.text, {{length}, n_samples, options.seed, 1, kMeasureDepths}));
    for (const Subject& subject : subjects) check_items(engine, subject.plan_at, prompts.back().second, type);
  }
  std::vector<std::pair<Task, const std::vector<PromptItem>*>> tasks;
  int64_t total = 0;
  for (const auto& [length, items] : prompts)
    for (const bool is_speed : {true, false})
      for (const Subject& subject : subjects) {
        Task task{&subject, length, is_speed, file_of(run, subject, length, is_speed)};
        if (is_measured(task, options, static_cast<int64_t>(items.size()))) continue;
        total += is_speed ? 2 * length : work_tokens(items);
        tasks.emplace_back(std::move(task), &items);
      }
  if (tasks.empty()) return;
  std::error_code error;
  std::filesystem::create_directories(run.folder / "measured", error);
  if (error) throw Error::io(run.folder / "measured", "cannot be made: ", error.message());
  WholeProgress whole(progress, "measuring", total);
  for (const auto& [task, items] : tasks) {
    OrderedJson rows = rows_of(engine, task, *items, type, options.seed, whole);
    const ResultHead head{model.string(), task.subject->plan_file, options.kv_type, options.seed};
    OrderedJson document = task.is_speed ? bench_document(head, engine, rows) : eval_document(head, "passkey", 1);
    if (!task.is_speed) document["rows"] = std::move(rows);
    document["density"] = task.subject->plan.density;
    document["plan_name"] = task.subject->plan.name;
    document["length"] = task.length;
    if (!task.subject->id.empty()) document["plan_id"] = task.subject->id;
    write_file_atomically(task.file, document_text(document));
  }
}

}  // namespace polyspan::report
