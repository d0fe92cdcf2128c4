#include "eval/result_json.h"

#include <utility>

#include "core/huge_buffer.h"
#include "eval/longbench.h"
#include "ops/isa.h"

namespace polyspan {
namespace {

using Json = nlohmann::ordered_json;

Json cell_json(const ScoreCell& cell) { return {{"accuracy", cell.accuracy()}, {"n", cell.n}}; }

}  // namespace

Json to_json(const EvalRow& row, const std::string& task) {
  Json json = {{"length", row.length}, {"accuracy", row.accuracy}, {"n", row.n}};
  Json kinds = Json::object();
  for (const auto& [kind, cell] : row.kinds) {
    kinds[kind] = cell_json(cell);
    if (task == "longbench") kinds[kind]["metric"] = score_rule_name(longbench_rule(kind));
  }
  if (task == "passkey") json.update(kinds);
  if (task == "ruler") json["kinds"] = kinds;
  if (task == "longbench") json["datasets"] = kinds;
  for (const auto& [depth, cell] : row.depths)
    json["depths"].push_back({{"depth", depth}, {"accuracy", cell.accuracy()}, {"n", cell.n}});
  json["kv_bytes"] = row.kv_bytes;
  json["density"] = row.density;
  return json;
}

Json to_json(const SpeedRow& row) {
  Json json = {{"test", row.test},         {"n_tokens", row.n_tokens},
               {"depth", row.depth},       {"tokens_per_s", row.tokens_per_s},
               {"kv_bytes", row.kv_bytes}, {"repeats", row.repeats}};
  if (row.bytes_per_token) json["bytes_per_token"] = *row.bytes_per_token;
  if (row.gb_per_s) json["gb_per_s"] = *row.gb_per_s;
  return json;
}

Json to_json(const PromptItem& item, const ItemResult& result) {
  Json json = {{"length", item.row_length}, {"kind", item.kind}};
  if (item.place) json["place"] = *item.place;
  json.update(
      {{"tokens", item.tokens.size()}, {"wanted", item.wanted}, {"output", result.output}, {"score", result.score}});
  return json;
}

Json eval_document(const ResultHead& head, const std::string& task, int64_t n_keys) {
  Json document = {
      {"task", task}, {"model", head.model}, {"plan", head.plan}, {"kv_type", head.kv_type}, {"seed", head.seed}};
  if (task == "passkey") document["keys"] = n_keys;
  return document;
}

Json bench_document(const ResultHead& head, Engine& engine, Json rows) {
  return {{"rows", std::move(rows)},
          {"model", head.model},
          {"plan", head.plan},
          {"kv_type", head.kv_type},
          {"threads", engine.n_threads()},
          {"isa", isa_name(current_isa())},
          {"weight_bytes", engine.model().weight_bytes()},
          {"peak_resident_bytes", peak_resident_bytes()},
          {"seed", head.seed}};
}

std::string document_text(const Json& document) {
  return document.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string document_line(const Json& document) {
  return document.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace polyspan
