#include "report/run_data.h"

#include <algorithm>
#include <cctype>
#include <map>
#include <set>
#include <sstream>

#include "core/error.h"
#include "plan/plan_file.h"
#include "report/json_value.h"

namespace polyspan::report {
namespace {

constexpr int64_t kMaxLength = int64_t{1} << 27;  // tokens; bytes of a cache stay within 63 bits
constexpr int64_t kMaxCount = int64_t{1} << 40;
constexpr size_t kMaxList = 64;        // densities, lengths, kinds, phases
constexpr size_t kMaxLogLines = 4000;  // the newest ones

std::string optional_text(const JsonValue& object, std::string_view key) {
  const auto value = object.find(key);
  return value ? value->text() : std::string();
}

RunModel read_model(const JsonValue& from) {
  RunModel model;
  model.name = from.at("name").text();
  model.file = optional_text(from, "file");
  model.fingerprint = optional_text(from, "fingerprint");
  model.architecture = optional_text(from, "architecture");
  model.quantization = optional_text(from, "quantization");
  model.n_layers = from.at("n_layers").integer(1, kMaxPlanLayers);
  model.n_heads = from.at("n_heads").integer(1, kMaxPlanHeads);
  model.n_kv_heads = from.at("n_kv_heads").integer(1, model.n_heads);
  if (model.n_heads % model.n_kv_heads != 0)
    from.at("n_kv_heads").wrong("a number that divides the " + std::to_string(model.n_heads) + " heads");
  if (model.n_layers * model.n_heads > kMaxPlanRules)
    from.at("n_heads").wrong("at most " + std::to_string(kMaxPlanRules) + " heads in all layers");
  model.head_dim = from.at("head_dim").integer(1, 512);
  model.context_length = from.at("context_length").integer(1, kMaxLength);
  if (const auto window = from.find("window")) model.window = window->integer(1, kMaxWindow);
  if (const auto step = from.find("span_step")) model.span_step = step->integer(1, kMaxWindow);
  if (model.window % model.span_step != 0) from.at("window").wrong("a multiple of span_step");
  return model;
}

RunOptions read_options(const JsonValue& from) {
  RunOptions options;
  for (const JsonValue& density : from.at("densities").items(kMaxList))
    options.densities.push_back(density.number(1e-6, 1));
  if (options.densities.empty()) from.at("densities").wrong("at least one density");
  options.lengths = from.at("lengths").integers(1, kMaxLength, kMaxList);
  if (options.lengths.empty()) from.at("lengths").wrong("at least one length");
  if (const auto extend = from.find("extend")) options.extend = extend->integers(1, kMaxLength, kMaxList);
  if (const auto kinds = from.find("kinds"))
    for (const JsonValue& kind : kinds->items(kMaxList)) options.kinds.push_back(kind.text());
  options.influence = optional_text(from, "influence");
  options.loss = optional_text(from, "loss");
  options.text = optional_text(from, "text");
  if (const auto documents = from.find("documents")) {
    if (documents->is_text())
      options.documents = documents->text();
    else
      for (const JsonValue& name : documents->items(kMaxList))
        options.documents += (options.documents.empty() ? "" : ", ") + name.text();
  }
  if (const auto samples = from.find("samples")) options.n_samples = samples->integer(0, kMaxCount);
  if (const auto seed = from.find("seed")) options.seed = seed->unsigned_integer();
  if (const auto per_query_head = from.find("per_query_head")) options.per_query_head = per_query_head->boolean();
  if (const auto quick = from.find("quick")) options.quick = quick->boolean();
  static const std::set<std::string> kShown = {"densities", "lengths", "extend",    "kinds", "influence",      "loss",
                                               "text",      "samples", "documents", "seed",  "per_query_head", "quick"};
  for (const std::string& name : from.keys()) {
    if (kShown.contains(name) || options.others.size() >= kMaxList) continue;
    const JsonValue value = from.at(name);
    options.others.emplace_back(name.substr(0, 100), value.is_text() ? value.text() : value.dump());
  }
  return options;
}

void read_run_file(const std::filesystem::path& file, RunData& run) {
  std::error_code error;
  if (!std::filesystem::exists(file, error))
    throw Error::io(file, "there is no such file; wanted the run directory of a polyspan compress");
  const JsonDocument document = read_versioned(file);
  const JsonValue root = document.root();
  run.created_by = optional_text(root, "created_by");
  run.model = read_model(root.at("model"));
  run.options = read_options(root.at("options"));
  if (const auto device = root.find("device")) {
    run.processor = optional_text(*device, "processor");
    run.isa = optional_text(*device, "isa");
    if (const auto threads = device->find("threads")) run.n_threads = threads->integer(0, 1 << 20);
  }
  if (const auto seconds = root.find("seconds"))
    for (const char* phase : {"profile", "search", "refinement", "validation"})
      if (const auto value = seconds->find(phase)) run.seconds.emplace_back(phase, value->number(0, 1e12));
  if (const auto finished = root.find("finished")) run.finished = finished->boolean();
}

int64_t SampleKind::*count_of_role(const JsonValue& role) {
  const std::string name = role.text();
  if (name == "profile") return &SampleKind::n_drawn;
  if (name == "validation") return &SampleKind::n_validation;
  if (name != "refine" && name != "choose" && name != "check")
    role.wrong("profile, validation, refine, choose or check");
  return &SampleKind::n_refinement;
}

// samples.jsonl, and what the first round made of its profile samples: by kind, in the order of the options.
std::vector<SampleKind> read_samples(const RunData& run) {
  std::vector<SampleKind> kinds;
  for (const std::string& kind : run.options.kinds) kinds.push_back({.kind = kind});
  std::map<std::string, size_t> kind_of_id;
  const std::filesystem::path file = run.folder / "samples.jsonl";
  std::error_code error;
  if (std::filesystem::exists(file, error)) {
    std::istringstream lines(read_file(file));
    int64_t line_number = 0;
    for (std::string line; std::getline(lines, line);) {
      ++line_number;
      if (line.empty()) continue;
      const JsonDocument document = parse_json(line, file.string() + " line " + std::to_string(line_number), "tokens");
      const JsonValue root = document.root();
      const std::string kind = root.at("kind").text();
      const JsonValue role = root.at("role");
      int64_t SampleKind::*const count = count_of_role(role);
      auto found =
          std::find_if(kinds.begin(), kinds.end(), [&](const SampleKind& known) { return known.kind == kind; });
      if (found == kinds.end()) found = kinds.insert(found, {.kind = kind});
      ++((*found).*count);
      kind_of_id.emplace(root.at("id").text(), static_cast<size_t>(found - kinds.begin()));
    }
  }
  const std::filesystem::path profiles = run.folder / "profile" / "dense";
  if (!std::filesystem::exists(profiles, error)) return kinds;
  std::filesystem::directory_iterator entries(profiles, error);
  if (error) throw Error::io(profiles, "cannot be listed: ", error.message());
  std::vector<std::filesystem::path> files;
  for (const auto& entry : entries)
    if (entry.path().extension() == ".json") files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  for (const std::filesystem::path& path : files) {
    const JsonDocument document = read_versioned(path, "influence");
    const JsonValue id = document.root().at("id");
    const auto found = kind_of_id.find(id.text());
    if (found == kind_of_id.end()) id.wrong("the id of a line of samples.jsonl");
    ++kinds[found->second].n_profiled;
    kinds[found->second].n_accepted += document.root().at("accepted").boolean();
  }
  return kinds;
}

// The first "2025-11-02" of a line.
std::string find_date(const std::string& line) {
  const auto digits = [&](size_t at, size_t n) {
    return std::all_of(line.begin() + static_cast<std::ptrdiff_t>(at),
                       line.begin() + static_cast<std::ptrdiff_t>(at + n),
                       [](unsigned char c) { return std::isdigit(c) != 0; });
  };
  for (size_t i = 0; i + 10 <= line.size(); ++i)
    if (line[i + 4] == '-' && line[i + 7] == '-' && digits(i, 4) && digits(i + 5, 2) && digits(i + 8, 2))
      return line.substr(i, 10);
  return {};
}

void read_log(RunData& run) {
  const std::filesystem::path file = run.folder / "log.txt";
  std::error_code error;
  if (!std::filesystem::exists(file, error)) return;
  std::istringstream lines(read_file(file));
  for (std::string line; std::getline(lines, line);) {
    if (run.log.empty()) run.date = find_date(line);
    run.log.push_back(line.substr(0, 400));
    if (run.log.size() > 2 * kMaxLogLines) run.log.erase(run.log.begin(), run.log.end() - kMaxLogLines);
  }
}

}  // namespace

const ValidationRow* Validation::row(const std::string& name) const {
  const auto found = std::find_if(rows.begin(), rows.end(), [&](const ValidationRow& r) { return r.name == name; });
  return found == rows.end() ? nullptr : &*found;
}

const SpanPlan* DensityResult::candidate(const std::string& name) const {
  for (const auto& [known, candidate_plan] : candidates)
    if (known == name) return &candidate_plan;
  return nullptr;
}

std::vector<int64_t> RunData::all_lengths() const {
  std::vector<int64_t> lengths = options.lengths;
  lengths.insert(lengths.end(), options.extend.begin(), options.extend.end());
  std::sort(lengths.begin(), lengths.end());
  lengths.erase(std::unique(lengths.begin(), lengths.end()), lengths.end());
  return lengths;
}

std::vector<std::string> RunData::missing() const {
  std::vector<std::string> parts;
  if (samples.empty() ||
      std::all_of(samples.begin(), samples.end(), [](const SampleKind& kind) { return kind.n_profiled == 0; }))
    parts.push_back("the profiles");
  for (const DensityResult& result : densities) {
    std::ostringstream of;
    of << " of density " << result.density;
    if (!result.search) parts.push_back("the search" + of.str());
    if (!result.validation) parts.push_back("the validation" + of.str());
    if (!result.plan) parts.push_back("the plan" + of.str());
  }
  return parts;
}

RunData read_run(const std::filesystem::path& folder) {
  std::error_code error;
  if (!std::filesystem::is_directory(folder, error))
    throw Error::io(folder, "this is no directory; wanted the run directory of a polyspan compress");
  RunData run;
  run.folder = folder;
  read_run_file(folder / "run.json", run);
  run.samples = read_samples(run);
  std::vector<CurrentPlan> plans;
  for (const double density : run.options.densities) {
    run.densities.push_back(read_density(folder, density, run.model, run.options));
    if (const auto& plan = run.densities.back().plan) plans.push_back({density, plan_id(*plan)});
  }
  run.measured = read_measurements(folder / "measured", plans);
  read_log(run);
  return run;
}

}  // namespace polyspan::report
