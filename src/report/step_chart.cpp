#include <algorithm>
#include <cmath>

#include "report/charts.h"
#include "report/words.h"

namespace polyspan::report {
namespace {

constexpr size_t kMostBuckets = 240;  // a chart is 280 px wide inside

// A long curve by the least and the largest value of each stretch, so that no spike is lost.
std::vector<std::pair<int64_t, double>> thinned(const std::vector<std::pair<int64_t, double>>& points) {
  if (points.size() <= 2 * kMostBuckets) return points;
  std::vector<std::pair<int64_t, double>> kept;
  for (size_t bucket = 0; bucket < kMostBuckets; ++bucket) {
    const auto at = [&](size_t i) {
      return points.begin() + static_cast<std::ptrdiff_t>(i * points.size() / kMostBuckets);
    };
    const auto by_value = [](const auto& a, const auto& b) { return a.second < b.second; };
    const auto [least, most] = std::minmax_element(at(bucket), at(bucket + 1), by_value);
    kept.push_back(least < most ? *least : *most);
    if (least != most) kept.push_back(least < most ? *most : *least);
  }
  return kept;
}

Axis value_axis(const StepChart& chart) {
  std::vector<double> values;
  for (const StepSeries& line : chart.series)
    for (const auto& [step, value] : line.points) values.push_back(value);
  if (chart.scale == StepScale::kFitting) return Axis::fitting(values);
  const double most = values.empty() ? 1 : *std::max_element(values.begin(), values.end());
  return Axis::linear(0, chart.scale == StepScale::kShare ? std::max(1.0, most) : most, /*from_zero=*/true);
}

}  // namespace

std::vector<std::pair<int64_t, double>> moving_mean(const std::vector<std::pair<int64_t, double>>& points,
                                                    size_t width) {
  std::vector<std::pair<int64_t, double>> means;
  double sum = 0;
  for (size_t i = 0; i < points.size(); ++i) {
    sum += points[i].second;
    if (i >= width) sum -= points[i - width].second;
    means.emplace_back(points[i].first, sum / static_cast<double>(std::min(i + 1, width)));
  }
  return means;
}

std::string step_chart(const StepChart& chart) {
  const double height = 234;
  const PlotArea area{46, kChartWidth - 16, 28, height - 34};
  const Axis x = Axis::linear(0, static_cast<double>(chart.last_step), /*from_zero=*/true), y = value_axis(chart);
  Svg svg(kChartWidth, height, chart.title, "Steps from left to right.");
  draw_axes(svg, area, x, y, "step", chart.unit + (y.is_log() ? " (log)" : ""));
  for (const int64_t end : chart.stage_ends) {
    const double at = x.place(static_cast<double>(end), area.left, area.right);
    svg.line({at, area.top}, {at, area.bottom}, "dense-line");
  }
  for (const StepSeries& line : chart.series) {
    const auto shown = line.has_dots ? line.points : thinned(line.points);
    std::vector<Point> points;
    for (const auto& [step, value] : shown) points.push_back(area.at(x, y, static_cast<double>(step), value));
    if (points.size() > 1) svg.polyline(points, line.css, line.name);
    if (!line.has_dots && points.size() > 1) continue;  // a single point has no line
    for (size_t i = 0; i < points.size(); ++i)
      svg.marker(line.style.marker, points[i], 3.2, "dot " + line.style.css,
                 line.name + ", step " + count_text(shown[i].first) + ": " + number_text(shown[i].second, 4));
  }
  return svg.finish();
}

}  // namespace polyspan::report
