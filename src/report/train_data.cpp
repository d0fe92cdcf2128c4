#include "report/train_data.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <set>

#include "core/error.h"
#include "report/json_value.h"

namespace polyspan::report {
namespace {

constexpr int64_t kMaxStep = int64_t{1} << 40;
constexpr double kMaxNumber = 1e30;  // sums and axes of such numbers stay finite
constexpr size_t kMaxVector = 1 << 16;

// The statistics that the page shows, and how many numbers each has ("moe.use.3" is of layer 3). Others are left out.
std::optional<size_t> statistic_size(const std::string& kind, const HydraConfig& config) {
  if (kind == "moe.use") return static_cast<size_t>(config.n_experts);
  if (kind == "multipliers") return 3;
  if (kind == "workspace.touched" || kind == "pkm.gate" || kind == "pkm.values_read") return 1;
  return std::nullopt;
}

void read_statistic(const std::string& key, const JsonValue& value, const TrainConfig& config, StepRow& row) {
  const size_t dot = key.rfind('.');
  if (dot == std::string::npos) return;
  const std::string kind = key.substr(0, dot);
  const std::optional<size_t> size = statistic_size(kind, config.hydra);
  if (!size) return;
  int64_t layer = -1;
  const char* const end = key.data() + key.size();
  const auto [rest, error] = std::from_chars(key.data() + dot + 1, end, layer);
  if (error != std::errc() || rest != end || layer < 0 || layer >= config.hydra.n_layers)
    value.wrong("a key that ends in a layer, 0 to " + std::to_string(config.hydra.n_layers - 1));
  std::vector<double> numbers =
      *size == 1 ? std::vector{value.number(-kMaxNumber, kMaxNumber)} : value.numbers(kMaxVector);
  if (numbers.size() != *size) value.wrong(std::to_string(*size) + " numbers");
  row.statistics[kind][layer] = std::move(numbers);
}

StepRow read_step(const JsonValue& from, const TrainConfig& config) {
  StepRow row;
  row.step = from.at("step").integer(1, kMaxStep);
  row.stage = from.at("stage").text();
  row.loss = from.at("loss").number(-kMaxNumber, kMaxNumber);
  row.lr = from.at("lr").number(0, kMaxNumber);
  row.grad_norm = from.at("grad_norm").number(0, kMaxNumber);
  row.tokens_per_s = from.at("tokens_per_s").number(0, kMaxNumber);
  if (const auto value = from.find("balance_loss")) row.balance_loss = value->number(-kMaxNumber, kMaxNumber);
  if (const auto value = from.find("z_loss")) row.z_loss = value->number(-kMaxNumber, kMaxNumber);
  if (config.architecture == "hydra")
    for (const std::string& key : from.keys()) read_statistic(key, from.at(key), config, row);
  return row;
}

EvalRow read_eval(const JsonValue& from) {
  return {from.at("step").integer(0, kMaxStep), from.at("stage").text(),
          from.at("loss").number(-kMaxNumber, kMaxNumber), from.at("accuracy").number(0, 1)};
}

TrainSession read_session(const JsonValue& from) {
  TrainSession session;
  session.step = from.at("step").integer(0, kMaxStep);
  session.device = from.at("device").text();
  session.n_threads = from.at("threads").integer(1, 1 << 20);
  if (const auto value = from.find("processor")) session.processor = value->text();
  session.libtorch = from.at("libtorch").text();
  return session;
}

template <typename Row>
void add_ascending(std::vector<Row>& rows, Row row, const JsonValue& root) {
  if (!rows.empty() && row.step <= rows.back().step)
    root.at("step").wrong("a step after " + std::to_string(rows.back().step) + ", the one before it");
  rows.push_back(std::move(row));
}

// A call that was killed before its first checkpoint left nothing but its line.
void add_session(std::vector<TrainSession>& sessions, TrainSession session) {
  if (!sessions.empty() && sessions.back().step == session.step) sessions.pop_back();
  sessions.push_back(std::move(session));
}

void read_metrics(const std::filesystem::path& file, TrainRun& run) {
  const std::string text = read_file(file);
  int64_t line_number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    const std::filesystem::path place = file.string() + " line " + std::to_string(++line_number);
    if (end == std::string::npos)
      throw Error::bad_file(place, "the file ends inside this line; it is cut (train --resume mends it)");
    const JsonDocument document = parse_json(std::string_view(text).substr(begin, end - begin), place);
    const JsonValue root = document.root();
    const JsonValue type = root.at("type");
    if (type.text() == "step")
      add_ascending(run.steps, read_step(root, run.config), root);
    else if (type.text() == "eval")
      add_ascending(run.evals, read_eval(root), root);
    else if (type.text() == "run")
      add_session(run.sessions, read_session(root));
    else
      type.wrong("step, eval or run");
    begin = end + 1;
  }
  if (run.steps.empty()) throw Error::bad_file(file, "no step is logged in it yet; wanted at least one");
}

}  // namespace

int64_t TrainRun::n_parameters() const {
  int64_t n = 0;
  for (const TensorSpec& tensor : config.tensors()) n += tensor.n_values();
  return n;
}

std::string TrainRun::name() const {
  std::error_code error;
  const std::filesystem::path whole = std::filesystem::weakly_canonical(folder, error);
  return (error ? folder : whole).filename().string();
}

TrainRun::Points TrainRun::statistic(const std::string& kind, int64_t layer, size_t at) const {
  Points points;
  for (const StepRow& row : steps) {
    const auto found = row.statistics.find(kind);
    if (found == row.statistics.end()) continue;
    if (const auto values = found->second.find(layer); values != found->second.end())
      points.emplace_back(row.step, values->second.at(at));
  }
  return points;
}

TrainRun::Points TrainRun::expert_entropy(int64_t layer) const {
  Points points;
  const double largest = std::log(static_cast<double>(std::max<int64_t>(2, config.hydra.n_experts)));
  for (const StepRow& row : steps) {
    const auto found = row.statistics.find("moe.use");
    if (found == row.statistics.end() || !found->second.contains(layer)) continue;
    const std::vector<double>& use = found->second.at(layer);
    double sum = 0, entropy = 0;
    for (const double share : use) sum += std::max(0.0, share);
    for (const double share : use)
      if (share > 0) entropy -= share / sum * std::log(share / sum);
    points.emplace_back(row.step, entropy / largest);
  }
  return points;
}

bool is_training_run(const std::filesystem::path& folder) {
  std::error_code error;
  for (const char* name : {"metrics.jsonl", "config.toml", "checkpoint.safetensors"})
    if (std::filesystem::exists(folder / name, error)) return true;
  return false;
}

TrainRun read_training_run(const std::filesystem::path& folder) {
  for (const char* name : {"config.toml", "metrics.jsonl"}) {
    std::error_code error;
    if (!std::filesystem::exists(folder / name, error))
      throw Error::io(folder / name, "there is no such file; wanted the folder of a polyspan train");
  }
  TrainRun run;
  run.folder = folder;
  run.config_text = read_config_text(folder / "config.toml");
  run.config = parse_train_config(run.config_text, folder / "config.toml");
  if (run.config.stages.empty()) throw Error::bad_file(folder / "config.toml", "no [[stage]]: this is no run's");
  read_metrics(folder / "metrics.jsonl", run);
  return run;
}

}  // namespace polyspan::report
