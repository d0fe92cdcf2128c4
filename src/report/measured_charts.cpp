#include <algorithm>
#include <set>

#include "report/charts.h"
#include "report/words.h"

namespace polyspan::report {

std::string length_chart(const std::string& title, const std::string& unit, const std::vector<Series>& series) {
  std::set<int64_t> lengths;
  double most = 0;
  for (const Series& line : series)
    for (const auto& [length, value] : line.points) {
      lengths.insert(length);
      most = std::max(most, value);
    }
  const double height = 234;
  const PlotArea area{46, kChartWidth - 16, 28, height - 34};
  const Axis x = Axis::of_lengths({lengths.begin(), lengths.end()}), y = Axis::linear(0, most, true);
  Svg svg(kChartWidth, height, title, "The table beside it has the numbers.");
  draw_axes(svg, area, x, y, "length, tokens", unit);
  for (const Series& line : series) {
    std::vector<Point> points;
    for (const auto& [length, value] : line.points) points.push_back(area.at(x, y, static_cast<double>(length), value));
    if (points.size() > 1) svg.polyline(points, "series " + line.style.css);
    for (size_t i = 0; i < points.size(); ++i)
      svg.marker(line.style.marker, points[i], 4, "dot " + line.style.css, line.hints[i]);
  }
  return svg.finish();
}

std::string retrieval_grid(const std::string& title, const std::vector<const Retrieval*>& by_length) {
  std::set<double> depths;
  for (const Retrieval* result : by_length)
    for (const DepthCell& cell : result->depths) depths.insert(cell.depth);
  const double cell_width = 44, cell_height = 26, left = 42, top = 4;
  const size_t n_rows = std::max<size_t>(1, depths.size());
  const double bottom = top + cell_height * static_cast<double>(n_rows);
  Svg svg(left + cell_width * static_cast<double>(by_length.size()) + 4, bottom + 22, title,
          "Columns are lengths, rows are the places of the key from the beginning to the end.");
  size_t row = 0;
  for (const double depth : depths)
    svg.text({left - 6, top + cell_height * (static_cast<double>(row++) + 0.5) + 4}, Anchor::kEnd, "tick",
             percent_text(depth));
  if (depths.empty()) svg.text({left - 6, top + cell_height / 2 + 4}, Anchor::kEnd, "tick", "any");
  for (size_t column = 0; column < by_length.size(); ++column) {
    const Retrieval& result = *by_length[column];
    const double x = left + cell_width * static_cast<double>(column);
    std::vector<DepthCell> cells = result.depths;
    if (cells.empty()) cells = {{.depth = 0, .accuracy = result.accuracy, .n = result.n}};
    for (const DepthCell& cell : cells) {
      const auto index = result.depths.empty() ? 0 : std::distance(depths.begin(), depths.find(cell.depth));
      const double y = top + cell_height * static_cast<double>(index);
      const std::string shade = std::to_string(shade_of(cell.accuracy));
      svg.rect(x, y, cell_width - 1.5, cell_height - 1.5, "a" + shade,
               count_text(result.length) + " tokens, key at " +
                   (result.depths.empty() ? "random places" : percent_text(cell.depth)) + ": " +
                   percent_text(cell.accuracy) + " of " + count_text(cell.n) + " prompts");
      svg.text({x + cell_width / 2 - 0.75, y + cell_height / 2 + 3.5}, Anchor::kMiddle, "cell b" + shade,
               percent_text(cell.accuracy));
    }
    svg.text({x + cell_width / 2, bottom + 14}, Anchor::kMiddle, "tick", count_text(result.length));
  }
  return svg.finish();
}

}  // namespace polyspan::report
