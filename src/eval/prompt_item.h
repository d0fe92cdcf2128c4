// eval/prompt_item.h: the common form of tasks that ask a model something and score its answer (pass key, LongEval, RULER,
// LongBench), and the one runner of them. Perplexity is the only task that is not of this form.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "eval/scores.h"

namespace polyspan {

struct PromptItem {
  std::vector<TokenId> tokens = {};  // the prompt, the opening of the answer included
  int64_t max_new_tokens = 0;
  int64_t planned_length = 0;  // what spans and cache are made for: at least the prompt and its answer
  ScoreRule rule = ScoreRule::kContainsAll;
  std::vector<std::string> wanted = {};
  std::vector<std::string> classes = {};  // ScoreRule::kClassification
  bool first_line_only = false;           // the answer ends with its first line that is not empty
  std::optional<double> place = {};       // of what is asked for, in the filler, 0 to 1
  // What the results are grouped by.
  int64_t row_length = 0;
  std::string kind = {};
  std::optional<double> depth = {};  // `place`, where it is one of a few that were asked for
};

struct ItemResult {
  std::string output;
  double score = 0;  // 0 to 1
  int64_t kv_bytes = 0;
  double density = 0;  // of the item's plan at its planned length
};

// The plan of a planned length: the same for all, or one each (uniform_like).
using PlanAt = std::function<SpanPlan(int64_t planned_length)>;
PlanAt same_plan(SpanPlan plan);
// The uniform plan that has the density of `plan` at each length.
PlanAt uniform_like(SpanPlan plan);

// Throws Error for what the model's context or the machine's memory does not allow, before any work.
void check_items(const Engine& engine, const PlanAt& plan, std::span<const PromptItem> items, KvType type);
// Throws Error (kBadInput) for a length that is beyond the model's context or not positive. For task generators, before
// they make a prompt of that length.
void check_length(const Engine& engine, int64_t length);

// Greedy answers of all items, each from an empty cache. progress: tokens of the planned lengths.
std::vector<ItemResult> evaluate_items(Engine& engine, const PlanAt& plan, std::span<const PromptItem> items,
                                       KvType type, Progress& progress = no_progress());
int64_t work_tokens(std::span<const PromptItem> items);  // the total that evaluate_items tells

}  // namespace polyspan
