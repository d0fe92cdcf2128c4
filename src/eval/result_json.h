// eval/result_json.h: results as the JSON documents that `polyspan eval --json` and `polyspan bench --json` print and
// `polyspan report --measure` stores.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "engine/engine.h"
#include "eval/speed.h"
#include "eval/summary.h"

namespace polyspan {

// What was measured, as far as both documents say it.
struct ResultHead {
  std::string model;  // as it was named
  std::string plan;   // "dense", "uniform:0.5", a file
  std::string kv_type;
  uint64_t seed = 1;
};

nlohmann::ordered_json to_json(const EvalRow& row, const std::string& task);
nlohmann::ordered_json to_json(const SpeedRow& row);
// {length, kind, place where it is known, tokens, wanted, output, score}
nlohmann::ordered_json to_json(const PromptItem& item, const ItemResult& result);

// {task, model, plan, kv_type, seed} and, for passkey, `keys`; rows are for the caller to add.
nlohmann::ordered_json eval_document(const ResultHead& head, const std::string& task, int64_t n_keys);
// {rows, model, plan, kv_type, threads, isa, weight_bytes, peak_resident_bytes, seed}
nlohmann::ordered_json bench_document(const ResultHead& head, Engine& engine, nlohmann::ordered_json rows);

// As text that is valid UTF-8 whatever the names hold, with a line end.
std::string document_text(const nlohmann::ordered_json& document);
std::string document_line(const nlohmann::ordered_json& document);  // the same on one line, for JSONL

}  // namespace polyspan
