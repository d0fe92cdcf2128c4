// The parts of a run that belong to one density: search, candidates, validation, plan.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <set>

#include "core/error.h"
#include "report/json_value.h"
#include "report/run_data.h"

namespace polyspan::report {
namespace {

constexpr size_t kMaxRounds = 64, kMaxCurves = 64, kMaxSpans = 4096, kMaxCandidates = 4096;
constexpr size_t kMaxLosses = size_t{1} << 25;
constexpr double kMaxLoss = 1e30;

// The files of a density are named by it: the name among search/, validation/, plans/ and candidates/ that is this
// number.
std::string find_key(const std::filesystem::path& folder, double density) {
  std::set<std::string> keys;
  for (const char* part : {"search", "validation", "plans", "candidates"}) {
    std::error_code error;
    std::filesystem::directory_iterator entries(folder / part, error);
    if (error) continue;
    for (const auto& entry : entries) {
      const bool is_folder = entry.is_directory(error);
      if (!is_folder && entry.path().extension() != ".json") continue;
      const std::string name = is_folder ? entry.path().filename().string() : entry.path().stem().string();
      double value = 0;
      const auto [end, problem] = std::from_chars(name.data(), name.data() + name.size(), value);
      if (problem == std::errc() && end == name.data() + name.size() && std::abs(value - density) < 1e-9)
        keys.insert(name);
    }
  }
  return keys.empty() ? std::string() : *keys.begin();
}

void check_density(const JsonValue& root, double density) {
  const JsonValue value = root.at("density");
  if (std::abs(value.number(0, 1) - density) > 1e-9) value.wrong("the density of the file's name");
}

// Numbers or text: a round may be called either way.
std::string name_of(const std::optional<JsonValue>& value) {
  if (!value) return {};
  return value->is_text() ? value->text() : std::to_string(value->integer(0, 1 << 20));
}

LossCurve read_curve(const JsonValue& from, int64_t n_heads) {
  LossCurve curve;
  curve.length = from.at("length").integer(1, kMaxTokens);
  curve.source_length = from.at("source_length").integer(1, kMaxTokens);
  const JsonValue spans = from.at("spans");
  curve.spans = spans.integers(0, kMaxTokens, kMaxSpans);
  if (curve.spans.empty()) spans.wrong("at least one span");
  if (std::adjacent_find(curve.spans.begin(), curve.spans.end(), std::greater_equal<>()) != curve.spans.end())
    spans.wrong("spans in ascending order");
  const JsonValue loss = from.at("loss");
  curve.loss = loss.numbers(kMaxLosses);
  const size_t wanted = static_cast<size_t>(n_heads) * curve.spans.size();
  if (curve.loss.size() != wanted)
    loss.wrong(std::to_string(wanted) + " numbers (" + std::to_string(n_heads) + " heads, " +
               std::to_string(curve.spans.size()) + " spans)");
  for (const double value : curve.loss)
    if (std::abs(value) > kMaxLoss) loss.wrong("numbers of at most 1e30");
  return curve;
}

SearchResult read_search(const std::filesystem::path& file, double density, int64_t n_heads) {
  const JsonDocument document = read_versioned(file);
  const JsonValue root = document.root();
  check_density(root, density);
  SearchResult search;
  for (const JsonValue& from : root.at("rounds").items(kMaxRounds)) {
    SearchRound round{.name = name_of(from.find("round")),
                      .plan_of_round = name_of(from.find("plan_of_round")),
                      .curves = {},
                      .candidates = {}};
    for (const JsonValue& curve : from.at("curves").items(kMaxCurves))
      round.curves.push_back(read_curve(curve, n_heads));
    if (const auto names = from.find("candidates"))
      for (const JsonValue& name : names->items(kMaxCandidates)) round.candidates.push_back(name.text());
    search.rounds.push_back(std::move(round));
  }
  search.curve_lengths = root.at("curve_lengths").integers(1, kMaxTokens, kMaxCurves);
  for (const JsonValue& from : root.at("front").items(kMaxCandidates)) {
    FrontPlan plan{.name = from.at("name").text(), .losses = from.at("losses").numbers(kMaxCurves), .densities = {}};
    if (plan.losses.size() != search.curve_lengths.size())
      from.at("losses").wrong(std::to_string(search.curve_lengths.size()) + " numbers, one a curve length");
    if (const auto densities = from.find("densities")) plan.densities = densities->numbers(kMaxCurves);
    search.front.push_back(std::move(plan));
  }
  return search;
}

ValidationRow read_validation_row(const JsonValue& from) {
  ValidationRow row;
  row.name = from.at("name").text();
  row.loss = from.at("loss").number(-kMaxLoss, kMaxLoss);
  row.n_samples = from.at("n_samples").integer(0, kMaxTokens);
  if (const auto stopped = from.find("stopped"); stopped && stopped->is_text()) row.stopped = stopped->text();
  if (const auto right = from.find("right")) row.right = right->number(0, 1);
  for (const JsonValue& entry : from.at("densities").items(kMaxCurves))
    row.densities.emplace_back(entry.at("length").integer(1, kMaxTokens), entry.at("density").number(0, 1));
  return row;
}

Validation read_validation(const std::filesystem::path& file, double density) {
  const JsonDocument document = read_versioned(file);
  const JsonValue root = document.root();
  check_density(root, density);
  Validation validation;
  validation.length = root.at("length").integer(1, kMaxTokens);
  validation.n_samples = root.at("n_samples").integer(0, kMaxTokens);
  validation.dense_loss = root.at("dense_loss").number(-kMaxLoss, kMaxLoss);
  for (const JsonValue& row : root.at("rows").items(kMaxCandidates))
    validation.rows.push_back(read_validation_row(row));
  const JsonValue winner = root.at("winner");
  validation.winner = winner.text();
  if (validation.row(validation.winner) == nullptr) winner.wrong("the name of one of the rows");
  if (const auto why = root.find("why")) validation.why = why->text();
  return validation;
}

std::vector<std::pair<std::string, SpanPlan>> read_candidates(const std::filesystem::path& folder,
                                                              const HeadShape& shape) {
  std::vector<std::pair<std::string, SpanPlan>> candidates;
  std::error_code error;
  std::filesystem::directory_iterator entries(folder, error);
  if (error) return candidates;  // none yet
  std::vector<std::filesystem::path> files;
  for (const auto& entry : entries)
    if (entry.path().extension() == ".json") files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  if (files.size() > kMaxCandidates) files.resize(kMaxCandidates);
  for (const auto& file : files) candidates.emplace_back(file.stem().string(), SpanPlan::load(file, shape));
  return candidates;
}

}  // namespace

DensityResult read_density(const std::filesystem::path& folder, double density, const RunModel& model,
                           const RunOptions& options) {
  DensityResult result;
  result.density = density;
  result.key = find_key(folder, density);
  if (result.key.empty()) return result;
  const std::string name = result.key + ".json";
  const auto is_there = [&](const char* part) {
    std::error_code error;
    return std::filesystem::exists(folder / part / name, error);
  };
  const int64_t n_heads = model.n_layers * (options.per_query_head ? model.n_heads : model.n_kv_heads);
  if (is_there("search")) result.search = read_search(folder / "search" / name, density, n_heads);
  if (is_there("validation")) result.validation = read_validation(folder / "validation" / name, density);
  if (is_there("plans")) result.plan = SpanPlan::load(folder / "plans" / name, model.shape());
  result.candidates = read_candidates(folder / "candidates" / result.key, model.shape());
  return result;
}

const SearchRound* front_round(const DensityResult& result, bool per_query_head) {
  const SearchRound* last = nullptr;
  for (auto round = result.search->rounds.rbegin(); round != result.search->rounds.rend(); ++round) {
    std::vector<int64_t> lengths;
    for (const LossCurve& curve : round->curves) lengths.push_back(curve.length);
    if (lengths != result.search->curve_lengths) continue;
    if (last == nullptr) last = &*round;
    for (const FrontPlan& plan : result.search->front) {
      const SpanPlan* candidate = result.candidate(plan.name);
      const auto losses = candidate == nullptr ? std::nullopt : plan_losses(*candidate, *round, per_query_head);
      if (!losses) continue;
      const auto is_close = [](double a, double b) {
        return std::abs(a - b) <= 1e-6 * (std::abs(a) + std::abs(b)) + 1e-9;
      };
      if (std::equal(losses->begin(), losses->end(), plan.losses.begin(), is_close)) return &*round;
      break;
    }
  }
  return last;
}

std::optional<std::vector<double>> plan_losses(const SpanPlan& plan, const SearchRound& round, bool per_query_head) {
  const HeadShape& shape = plan.shape();
  if (plan.per_query_head() && !per_query_head) return std::nullopt;
  const int64_t per_layer = per_query_head ? shape.n_heads : shape.n_kv_heads;
  const int64_t group = plan.per_query_head() ? 1 : per_layer / shape.n_kv_heads;
  std::vector<double> losses;
  for (const LossCurve& curve : round.curves) {
    double sum = 0;
    for (int64_t layer = 0; layer < shape.n_layers; ++layer)
      for (int64_t head = 0; head < per_layer; ++head) {
        const SpanRule& rule = plan.rule(layer, head / group);
        sum += curve.at(layer * per_layer + head, static_cast<double>(shape.span(rule, curve.length)));
      }
    losses.push_back(sum);
  }
  return losses;
}

}  // namespace polyspan::report
