#include <algorithm>
#include <cmath>

#include "report/charts.h"
#include "report/words.h"

namespace polyspan::report {
namespace {

// A head's curve as points of the picture, ended at the dense span, where nothing is lost.
std::vector<Point> curve_points(const LossCurve& curve, int64_t head, const PlotArea& area, const Axis& x,
                                const Axis& y) {
  std::vector<Point> points;
  const size_t n_spans = curve.spans.size();
  for (size_t i = 0; i < n_spans; ++i)
    if (curve.spans[i] < curve.source_length)
      points.push_back(area.at(x, y, static_cast<double>(std::max<int64_t>(1, curve.spans[i])),
                               curve.loss[static_cast<size_t>(head) * n_spans + i]));
  points.push_back(area.at(x, y, static_cast<double>(curve.source_length), 0));
  return points;
}

Axis span_axis(const LossCurve& curve) {
  return Axis::of_spans(std::min(curve.spans.front(), curve.source_length), curve.source_length);
}

}  // namespace

Axis influence_axis(const LossCurve& curve) {
  const auto [least, most] = std::minmax_element(curve.loss.begin(), curve.loss.end());
  return Axis::near_zero(std::min(0.0, *least), std::max(0.0, *most));
}

std::string influence_overlay(const LossCurve& curve, int64_t n_layers, bool query_heads) {
  const double height = 238;
  const PlotArea area{46, kChartWidth - 12, 28, height - 34};
  const Axis x = span_axis(curve), y = influence_axis(curve);
  Svg svg(kChartWidth, height, "Loss against span at " + count_text(curve.length) + " tokens, one line a head",
          "Lines fall to the right: a longer span costs less.");
  draw_axes(svg, area, x, y, "span, tokens", "loss");
  const auto n_heads = static_cast<int64_t>(curve.loss.size() / curve.spans.size());
  const int64_t per_layer = std::max<int64_t>(1, n_heads / n_layers);
  for (int64_t head = 0; head < n_heads; ++head) {
    const int64_t layer = head / per_layer, third = std::min<int64_t>(2, 3 * layer / n_layers);
    svg.polyline(curve_points(curve, head, area, x, y), "curve d" + std::to_string(third),
                 "layer " + std::to_string(layer) + (query_heads ? ", query head " : ", KV head ") +
                     std::to_string(head % per_layer));
  }
  return svg.finish();
}

std::string influence_layer(const LayerChart& chart) {
  const LossCurve& curve = *chart.curve;
  const double width = 108, height = 84;
  const PlotArea area{6, width - 6, 18, height - 8};
  const Axis x = span_axis(curve);
  Svg svg(width, height, "Layer " + std::to_string(chart.layer) + ": loss against span",
          "The scales are those of the picture of all heads.");
  svg.text({area.left, 12}, Anchor::kStart, "tick", "layer " + std::to_string(chart.layer));
  svg.line({area.left, area.bottom}, {area.right, area.bottom}, "axis");
  for (int64_t i = 0; i < chart.heads_per_layer; ++i)
    svg.polyline(curve_points(curve, chart.layer * chart.heads_per_layer + i, area, x, chart.y), "curve one",
                 "layer " + std::to_string(chart.layer) + ", head " + std::to_string(i));
  for (const SpanMark& mark : chart.marks) {
    const SpanTable table = mark.plan->spans(curve.length);
    const auto& spans = (chart.heads_per_layer == mark.plan->shape().n_kv_heads
                             ? table.kv_head_spans
                             : table.query_head_spans)[static_cast<size_t>(chart.layer)];
    for (int64_t i = 0; i < chart.heads_per_layer; ++i) {
      const int64_t span = std::min(curve.length, spans[static_cast<size_t>(i)]);
      const double loss = curve.at(chart.layer * chart.heads_per_layer + i, static_cast<double>(span));
      svg.marker(
          mark.style.marker, area.at(x, chart.y, static_cast<double>(std::max(span, curve.spans.front())), loss), 2.6,
          "dot " + mark.style.css,
          mark.name + ": head " + std::to_string(i) + ", span " + count_text(span) + ", loss " + number_text(loss, 3));
    }
  }
  return svg.finish();
}

}  // namespace polyspan::report
