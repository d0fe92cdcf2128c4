// eval/summary.h: results of items as rows, one a length, and what can be read off them.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "eval/prompt_item.h"

namespace polyspan {

struct ScoreCell {
  int64_t n = 0;
  double sum = 0;
  double accuracy() const { return n == 0 ? 0 : sum / static_cast<double>(n); }
  void add(double score) { ++n, sum += score; }
};

struct EvalRow {
  int64_t length = 0;
  double accuracy = 0;  // mean over kinds, each counted once
  int64_t n = 0;
  std::vector<std::pair<std::string, ScoreCell>> kinds = {};  // in the items' order
  std::vector<std::pair<double, ScoreCell>> depths = {};      // ascending
  int64_t kv_bytes = 0;                                       // the largest cache of the row
  double density = 0;                                         // mean over the items
};

// One row for each row_length, in the items' order. REQUIRES: a result for each item.
std::vector<EvalRow> summarize(std::span<const PromptItem> items, std::span<const ItemResult> results);

// The longest length up to which, every shorter one included, a plan reaches kEffectiveShare of the dense accuracy. Ends
// at a length where dense finds nothing.
inline constexpr double kEffectiveShare = 0.9;
struct EffectiveContext {
  int64_t tokens = 0;    // 0: not even the shortest
  double mean_span = 0;  // tokens that a KV head keeps at that length, sink included, mean over the heads
  double times_span() const { return mean_span > 0 ? static_cast<double>(tokens) / mean_span : 0; }
};
// REQUIRES: rows of the same lengths in both.
EffectiveContext effective_context(std::span<const EvalRow> dense, std::span<const EvalRow> plan);

}  // namespace polyspan
