// plan/plan_file.h: the JSON form of a plan, as written in a file and before it is fitted to a model (docs/plans.md).
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "plan/span_plan.h"

namespace polyspan {

inline constexpr int64_t kPlanFormatVersion = 1;
inline constexpr int64_t kMaxPlanFileBytes = 64ll << 20;
inline constexpr int64_t kMaxPlanLayers = 4096;      // far above any model: bounds what a hostile file can make us hold
inline constexpr int64_t kMaxPlanHeads = 1ll << 16;  // of a layer
inline constexpr int64_t kMaxPlanRules = 1ll << 22;
inline constexpr int64_t kMaxSinkTokens = 1ll << 20;
inline constexpr int64_t kMaxWindow = 1ll << 20;

// What a plan file says. Every number has been checked by itself (finite, in its range); nothing has been compared with
// anything else yet, so alphas and betas may still differ in shape.
struct PlanFile {
  std::vector<std::vector<double>> alphas, betas;  // [n_layers][query heads or KV heads]
  std::optional<int64_t> n_sink_tokens, n_heads, n_kv_heads;
  std::optional<int64_t> window, span_step;  // of a model whose heads have windows
  SpanPlan::Info info;
};

// Throws Error (kBadFile; kUnsupported for a later format) naming file, place, what was found and what was wanted.
// Memory stays proportional to `json`, whatever it holds.
PlanFile read_plan_file(std::string_view json, const std::filesystem::path& name);

// Rules of one plan as text: one row of numbers a layer. `alphas` and `betas` as in PlanFile.
std::string write_plan_file(const PlanFile& plan);

}  // namespace polyspan
