// report/svg.h: builds one SVG picture as text. Colours come from classes that the page's style sheet defines, so that
// light and dark pages share a picture.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace polyspan::report {

// Text as it may stand in HTML or SVG, also inside a quoted attribute: markup escaped, control characters (line ends
// too) as spaces, bytes that are no UTF-8 as U+FFFD.
std::string escape_markup(std::string_view text);

struct Point {
  double x = 0, y = 0;
};

enum class Anchor { kStart, kMiddle, kEnd };
enum class Marker { kCircle, kSquare, kTriangle, kDiamond, kRing };

class Svg {
 public:
  // `title` and `description` are for readers who do not see the picture. Sizes are CSS pixels: the picture is shown at
  // this size or larger, never smaller.
  Svg(double width, double height, std::string_view title, std::string_view description);

  // Everything below takes plain text and escapes it. `hint` is shown on hover; empty: none.
  void rect(double x, double y, double width, double height, std::string_view css, std::string_view hint = "");
  void line(Point from, Point to, std::string_view css);
  void polyline(const std::vector<Point>& points, std::string_view css, std::string_view hint = "");
  void marker(Marker marker, Point at, double radius, std::string_view css, std::string_view hint = "");
  void text(Point at, Anchor anchor, std::string_view css, std::string_view content);
  std::string finish() const;

 private:
  void end(std::string_view element, std::string_view hint);
  double width_, height_;
  std::string head_, body_;
};

// A number for a coordinate: at most two decimals, no trailing zeros.
std::string coordinate(double value);

}  // namespace polyspan::report
