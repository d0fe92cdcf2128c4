#include "report/measured.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "core/error.h"
#include "core/fnv1a.h"
#include "report/json_value.h"

namespace polyspan::report {
namespace {

constexpr size_t kMaxRows = 1 << 16;

void add_once(std::vector<std::string>& list, const std::string& text) {
  if (!text.empty() && std::find(list.begin(), list.end(), text) == list.end()) list.push_back(text);
}

MeasuredPlan read_plan(const JsonValue& root) {
  MeasuredPlan plan;
  const JsonValue name = root.at("plan_name");
  plan.name = name.text();
  if (plan.name != "dense" && plan.name != "uniform" && plan.name != "plan") name.wrong("dense, uniform or plan");
  plan.density = plan.name == "dense" ? 1 : root.at("density").number(0, 1);
  return plan;
}

// Later files replace what earlier ones say of the same plan and length.
template <typename Result>
Result& result_of(std::vector<Result>& results, const MeasuredPlan& plan, int64_t length) {
  for (Result& result : results)
    if (result.plan == plan && result.length == length) return result;
  results.push_back({});
  results.back().plan = plan;
  results.back().length = length;
  return results.back();
}

void read_retrieval(const JsonValue& root, const MeasuredPlan& plan, Measurements& measured) {
  for (const JsonValue& row : root.at("rows").items(kMaxRows)) {
    Retrieval result{.plan = plan,
                     .length = row.at("length").integer(1, kMaxTokens),
                     .n = row.at("n").integer(1, kMaxTokens),
                     .accuracy = row.at("accuracy").number(0, 1),
                     .depths = {}};
    if (const auto depths = row.find("depths"))
      for (const JsonValue& cell : depths->items(1000))
        result.depths.push_back({.depth = cell.at("depth").number(0, 1),
                                 .accuracy = cell.at("accuracy").number(0, 1),
                                 .n = cell.at("n").integer(1, kMaxTokens)});
    std::sort(result.depths.begin(), result.depths.end(),
              [](const DepthCell& a, const DepthCell& b) { return a.depth < b.depth; });
    result_of(measured.retrieval, plan, result.length) = result;
  }
}

void read_speed(const JsonValue& root, const MeasuredPlan& plan, Measurements& measured) {
  const auto planned = root.find("length");
  for (const JsonValue& row : root.at("rows").items(kMaxRows)) {
    const JsonValue test = row.at("test");
    const int64_t n_tokens = row.at("n_tokens").integer(1, kMaxTokens), depth = row.at("depth").integer(0, kMaxTokens);
    const double rate = row.at("tokens_per_s").number(0, 1e12);
    const int64_t length = planned ? planned->integer(1, kMaxTokens) : std::max<int64_t>(1, depth + n_tokens);
    Speed& speed = result_of(measured.speed, plan, length);
    if (test.text() == "prefill") {
      speed.prefill_tokens_per_s = rate;
    } else if (test.text() == "decode") {
      speed.decode_tokens_per_s = rate;
    } else {
      test.wrong("prefill or decode");
    }
  }
  add_once(measured.machines,
           std::to_string(root.at("threads").integer(1, 1 << 20)) + " threads, " + root.at("isa").text());
}

template <typename Result>
const Result* find_result(const std::vector<Result>& results, const MeasuredPlan& plan, int64_t length) {
  for (const Result& result : results)
    if (result.plan == plan && result.length == length) return &result;
  return nullptr;
}

}  // namespace

const Retrieval* Measurements::find_retrieval(const MeasuredPlan& plan, int64_t length) const {
  return find_result(retrieval, plan, length);
}

const Speed* Measurements::find_speed(const MeasuredPlan& plan, int64_t length) const {
  return find_result(speed, plan, length);
}

std::string plan_id(const SpanPlan& plan) {
  Fnv1a hash;  // over what decides the spans
  const auto add = [&hash](const auto& value) { hash.add(std::as_bytes(std::span(&value, 1))); };
  add(plan.n_sink_tokens());
  for (int64_t layer = 0; layer < plan.shape().n_layers; ++layer)
    for (int64_t head = 0; head < plan.rules_per_layer(); ++head) {
      add(plan.rule(layer, head).alpha + 0.0);
      add(plan.rule(layer, head).beta + 0.0);
    }
  return hash.hex();
}

Measurements read_measurements(const std::filesystem::path& folder, const std::vector<CurrentPlan>& plans) {
  Measurements measured;
  std::error_code error;
  if (!std::filesystem::exists(folder, error)) return measured;
  std::vector<std::filesystem::path> files;
  std::filesystem::directory_iterator entries(folder, error);
  if (error) throw Error::io(folder, "cannot be listed: ", error.message());
  for (const auto& entry : entries)
    if (entry.path().extension() == ".json") files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  for (const std::filesystem::path& file : files) {
    const JsonDocument document = read_json(file);
    const JsonValue root = document.root();
    const MeasuredPlan plan = read_plan(root);
    if (const auto id = root.find("plan_id")) {
      const auto current = std::find_if(plans.begin(), plans.end(),
                                        [&](const CurrentPlan& known) { return known.density == plan.density; });
      if (plan.name != "dense" && (current == plans.end() || current->id != id->text())) {
        ++measured.n_stale;
        continue;
      }
    }
    if (const auto task = root.find("task")) {
      if (task->text() != "passkey") task->wrong("passkey");
      read_retrieval(root, plan, measured);
    } else {
      read_speed(root, plan, measured);
    }
    if (const auto type = root.find("kv_type")) add_once(measured.kv_types, type->text());
  }
  return measured;
}

}  // namespace polyspan::report
