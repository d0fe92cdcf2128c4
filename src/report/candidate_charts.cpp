#include <algorithm>
#include <cmath>

#include "report/charts.h"
#include "report/words.h"

namespace polyspan::report {

std::string front_chart(const std::vector<FrontPoint>& points, const std::vector<int64_t>& lengths, size_t x,
                        size_t y) {
  const double height = 274;
  const PlotArea area{46, kChartWidth - 14, 28, height - 36};
  std::vector<double> xs, ys;
  for (const FrontPoint& point : points) {
    xs.push_back(point.losses[x]);
    ys.push_back(point.losses[y]);
  }
  const Axis x_axis = Axis::fitting(xs), y_axis = Axis::fitting(ys);
  const std::string x_name = "loss at " + count_text(lengths[x]), y_name = "loss at " + count_text(lengths[y]);
  Svg svg(kChartWidth, height, "Candidates: " + x_name + " tokens against " + y_name + " tokens",
          "Lower left is better.");
  draw_axes(svg, area, x_axis, y_axis, x_name + (x_axis.is_log() ? " (log)" : ""),
            y_name + (y_axis.is_log() ? " (log)" : ""));
  const auto place = [&](const FrontPoint& point) { return area.at(x_axis, y_axis, point.losses[x], point.losses[y]); };
  // Winners last, so that nothing covers them.
  for (const bool winners : {false, true})
    for (const FrontPoint& point : points) {
      if (point.is_winner != winners) continue;
      const PlanStyle style = plan_style(point.name);
      const bool searched = style.css == "s-plan";
      svg.marker(style.marker, place(point), searched ? 4 : 4.6,
                 (searched && !point.on_front ? "dot hollow " : "dot ") + style.css, point.hint);
      if (point.is_winner) svg.marker(Marker::kRing, place(point), 8.5, "ring");
    }
  for (const FrontPoint& point : points) {
    const bool is_baseline = point.name == "uniform" || point.name == "two-valued";
    if (!point.is_winner && !is_baseline) continue;
    const Point at = place(point);
    const bool left = at.x > (area.left + area.right) / 2;
    svg.text({at.x + (left ? -12 : 12), at.y + 4}, left ? Anchor::kEnd : Anchor::kStart,
             point.is_winner ? "label strong" : "label", point.name);
  }
  return svg.finish();
}

std::string validation_chart(const Validation& validation) {
  const size_t n_rows = std::min(validation.rows.size(), kMostCandidates);
  const double row_height = 18, top = 24, left = 106;
  const double height = top + row_height * static_cast<double>(n_rows) + 36;
  const PlotArea area{left, kChartWidth - 14, top, height - 36};
  std::vector<double> values = {validation.dense_loss};
  for (size_t i = 0; i < n_rows; ++i) values.push_back(validation.rows[i].loss);
  const Axis x = Axis::fitting(values);
  Svg svg(kChartWidth, height, "Held-out loss of each candidate at " + count_text(validation.length) + " tokens",
          "Best first; the broken line is the dense model.");
  for (const Tick& tick : x.ticks()) {
    const double at = x.place(tick.value, area.left, area.right);
    if (at < area.left - 1 || at > area.right + 1) continue;
    svg.line({at, area.top}, {at, area.bottom}, "gridline");
    svg.text({at, area.bottom + 15}, Anchor::kMiddle, "tick", tick.label);
  }
  svg.text({area.right, area.bottom + 30}, Anchor::kEnd, "name", x.is_log() ? "held-out loss (log)" : "held-out loss");
  const double dense = x.place(validation.dense_loss, area.left, area.right);
  svg.line({dense, area.top - 4}, {dense, area.bottom}, "dense-line");
  svg.text({dense, area.top - 9},
           dense > area.right - 30  ? Anchor::kEnd
           : dense < area.left + 30 ? Anchor::kStart
                                    : Anchor::kMiddle,
           "label", "dense");
  for (size_t i = 0; i < n_rows; ++i) {
    const ValidationRow& row = validation.rows[i];
    const bool is_winner = row.name == validation.winner;
    const double y = top + row_height * (static_cast<double>(i) + 0.5), at = x.place(row.loss, area.left, area.right);
    const PlanStyle style = plan_style(row.name);
    std::string hint =
        row.name + ": loss " + number_text(row.loss, 4) + " over " + count_text(row.n_samples) + " samples";
    if (!row.stopped.empty()) hint += ", left after " + row.stopped;
    svg.line({area.left, y}, {at, y}, "leader");
    // A name that is longer than its column is cut: the table has it whole.
    const std::string shown = row.name.size() <= 16 ? row.name : row.name.substr(0, 15) + "\xe2\x80\xa6";
    svg.text({left - 8, y + 4}, Anchor::kEnd, is_winner ? "label strong" : "label", shown);
    svg.marker(style.marker, {at, y}, 4.4, (row.stopped.empty() ? "dot " : "dot hollow ") + style.css, hint);
    if (is_winner) svg.marker(Marker::kRing, {at, y}, 7.5, "ring");
  }
  return svg.finish();
}

}  // namespace polyspan::report
