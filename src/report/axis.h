// report/axis.h: from a value to a place in a picture, and where the ticks stand.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "report/svg.h"

namespace polyspan::report {

struct Tick {
  double value = 0;
  std::string label;
};

class Axis {
 public:
  // Round ticks over [least, most], from 0 where `from_zero`.
  static Axis linear(double least, double most, bool from_zero = false);
  // Logarithmic where all values are positive and the largest is more than 8 times the least, else linear.
  static Axis fitting(const std::vector<double>& values);
  // Powers of two, ticks at `lengths`.
  static Axis of_lengths(const std::vector<int64_t>& lengths);
  // Powers of two from `least` to `most` tokens, with about four ticks.
  static Axis of_spans(int64_t least, int64_t most);
  // asinh: linear near 0, logarithmic beyond about a hundredth of `most`; negative values have their place.
  static Axis near_zero(double least, double most);

  // The place of a value where the axis runs from pixel `from` to `to`.
  double place(double value, double from, double to) const;
  const std::vector<Tick>& ticks() const { return ticks_; }
  bool is_log() const { return is_log_; }

 private:
  using Map = std::function<double(double)>;
  Axis(double least, double most, Map map, std::vector<Tick> ticks);
  double from_ = 0, to_ = 1;  // after map_
  Map map_;
  std::vector<Tick> ticks_;
  bool is_log_ = false;
};

// The area of a chart inside its axes, in pixels.
struct PlotArea {
  double left = 0, right = 0, top = 0, bottom = 0;
  Point at(const Axis& x, const Axis& y, double x_value, double y_value) const {
    return {x.place(x_value, left, right), y.place(y_value, bottom, top)};
  }
};

// Grid lines, tick labels and the names of the axes.
void draw_axes(Svg& svg, const PlotArea& area, const Axis& x, const Axis& y, const std::string& x_name,
               const std::string& y_name);

}  // namespace polyspan::report
