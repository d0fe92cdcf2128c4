#include "eval/summary.h"

#include <algorithm>
#include <numeric>

#include "core/error.h"

namespace polyspan {
namespace {

template <typename Key>
ScoreCell& cell(std::vector<std::pair<Key, ScoreCell>>& cells, const Key& key) {
  const auto found = std::find_if(cells.begin(), cells.end(), [&](const auto& entry) { return entry.first == key; });
  if (found != cells.end()) return found->second;
  return cells.emplace_back(key, ScoreCell{}).second;
}

}  // namespace

std::vector<EvalRow> summarize(std::span<const PromptItem> items, std::span<const ItemResult> results) {
  POLYSPAN_CHECK(items.size() == results.size(), "one result an item");
  std::vector<EvalRow> rows;
  for (size_t i = 0; i < items.size(); ++i) {
    auto row =
        std::find_if(rows.begin(), rows.end(), [&](const EvalRow& r) { return r.length == items[i].row_length; });
    if (row == rows.end()) {
      rows.push_back({.length = items[i].row_length});
      row = rows.end() - 1;
    }
    ++row->n;
    row->kv_bytes = std::max(row->kv_bytes, results[i].kv_bytes);
    row->density += results[i].density;
    cell(row->kinds, items[i].kind).add(results[i].score);
    if (items[i].depth) cell(row->depths, *items[i].depth).add(results[i].score);
  }
  for (EvalRow& row : rows) {
    row.density /= static_cast<double>(row.n);
    for (const auto& [kind, scores] : row.kinds)
      row.accuracy += scores.accuracy() / static_cast<double>(row.kinds.size());
    std::sort(row.depths.begin(), row.depths.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  }
  return rows;
}

EffectiveContext effective_context(std::span<const EvalRow> dense, std::span<const EvalRow> plan) {
  POLYSPAN_CHECK(dense.size() == plan.size(), "rows of the same lengths");
  std::vector<size_t> order(dense.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return dense[a].length < dense[b].length; });
  EffectiveContext result;
  for (const size_t i : order) {
    POLYSPAN_CHECK(dense[i].length == plan[i].length, "rows of the same lengths");
    // A hair below, so that 0.9 x 1 is not missed by rounding.
    if (dense[i].accuracy <= 0 || plan[i].accuracy < kEffectiveShare * dense[i].accuracy - 1e-9) break;
    result = {plan[i].length, plan[i].density * static_cast<double>(plan[i].length)};
  }
  return result;
}

}  // namespace polyspan
