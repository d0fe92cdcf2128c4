#include <algorithm>
#include <cmath>

#include "report/charts.h"
#include "report/words.h"

namespace polyspan::report {
namespace {

std::string rule_text(const SpanRule& rule) {
  return "alpha " + number_text(rule.alpha, 6) + ", beta " + number_text(rule.beta, 4);
}

// The entries of the plan that decide a head's span.
std::string rules_text(const SpanPlan& plan, int64_t layer, int64_t head, bool query_heads) {
  const int64_t group = plan.shape().n_heads / plan.shape().n_kv_heads;
  if (plan.per_query_head() == query_heads) return rule_text(plan.rule(layer, head));
  if (query_heads) return rule_text(plan.rule(layer, head / group));
  return "longest span of query heads " + std::to_string(head * group) + " to " +
         std::to_string(head * group + group - 1);
}

double cell_height(size_t n_heads) { return n_heads <= 4 ? 17 : n_heads <= 8 ? 13 : n_heads <= 16 ? 9 : 6; }

}  // namespace

PlanStyle plan_style(const std::string& name) {
  if (name == "dense") return {"s-dense", Marker::kDiamond};
  if (name == "uniform") return {"s-uniform", Marker::kSquare};
  if (name == "two-valued") return {"s-two", Marker::kTriangle};
  return {"s-plan", Marker::kCircle};
}

PlanStyle density_style(size_t index) {
  static const PlanStyle kStyles[] = {{"s-plan", Marker::kCircle},
                                      {"s-second", Marker::kTriangle},
                                      {"s-third", Marker::kSquare},
                                      {"s-fourth", Marker::kDiamond}};
  return kStyles[index % std::size(kStyles)];
}

int shade_of(double share) {
  if (share >= 1) return kShades - 1;
  return std::clamp(static_cast<int>(std::floor(share * (kShades - 1))), 0, kShades - 2);
}

std::string span_map(const SpanPlan& plan, int64_t length, bool query_heads) {
  const SpanTable table = plan.spans(length);
  const auto& spans = query_heads ? table.query_head_spans : table.kv_head_spans;
  const size_t n_layers = spans.size(), n_heads = spans.front().size();
  const char* const head_name = query_heads ? "query head" : "KV head";
  const double left = 24, top = 4, h = cell_height(n_heads);
  const double w = std::max(8.0, std::floor((kChartWidth - left - 2) / static_cast<double>(n_layers) * 2) / 2);
  const double width = left + std::min(w, 26.0) * static_cast<double>(n_layers) + 2;
  const double height = top + h * static_cast<double>(n_heads) + 20;
  const double cell = std::min(w, 26.0);
  Svg svg(std::max(width, kChartWidth), height,
          std::string("Kept share of ") + count_text(length) + " tokens for each " + head_name + " of each layer",
          std::string("Layers from left to right, ") + head_name + "s from top to bottom.");
  const size_t head_step = n_heads <= 8    ? 1
                           : n_heads <= 16 ? 4
                                           : 8,
               layer_step = n_layers <= 12   ? 1
                            : n_layers <= 48 ? 5
                                             : 10;
  for (size_t head = 0; head < n_heads; ++head) {
    const double y = top + h * static_cast<double>(head);
    if (head % head_step == 0)
      svg.text({left - 5, y + std::min(h, 12.0) / 2 + 4}, Anchor::kEnd, "tick", std::to_string(head));
    for (size_t layer = 0; layer < n_layers; ++layer) {
      const int64_t span = spans[layer][head], kept = std::min(length, span + table.n_sink_tokens);
      const double share = static_cast<double>(kept) / static_cast<double>(length);
      const std::string hint = "layer " + std::to_string(layer) + ", " + head_name + " " + std::to_string(head) +
                               ": keeps " + count_text(kept) + " of " + count_text(length) + " tokens (" +
                               percent_text(share) + "), span " + count_text(span) + "; " +
                               rules_text(plan, static_cast<int64_t>(layer), static_cast<int64_t>(head), query_heads);
      svg.rect(left + cell * static_cast<double>(layer), y, cell - 1, h - 1, "h" + std::to_string(shade_of(share)),
               hint);
    }
  }
  for (size_t layer = 0; layer < n_layers; layer += layer_step)
    svg.text({left + cell * (static_cast<double>(layer) + 0.5) - 0.5, height - 6}, Anchor::kMiddle, "tick",
             std::to_string(layer));
  return svg.finish();
}

}  // namespace polyspan::report
