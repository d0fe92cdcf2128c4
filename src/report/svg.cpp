#include "report/svg.h"

#include <cmath>
#include <cstdio>

namespace polyspan::report {
namespace {

// Bytes of the UTF-8 sequence that begins at `at`, 0 where there is none (overlong forms and surrogates included).
size_t sequence_length(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(i < text.size() ? text[i] : 0); };
  const unsigned char first = byte(at), second = byte(at + 1);
  const auto follows = [&](size_t n) {
    for (size_t i = 1; i <= n; ++i)
      if ((byte(at + i) & 0xc0) != 0x80) return false;
    return true;
  };
  if (first < 0x80) return 1;
  if (first >= 0xc2 && first <= 0xdf && follows(1)) return 2;
  if (first >= 0xe0 && first <= 0xef && follows(2) && !(first == 0xe0 && second < 0xa0) &&
      !(first == 0xed && second > 0x9f))
    return 3;
  if (first >= 0xf0 && first <= 0xf4 && follows(3) && !(first == 0xf0 && second < 0x90) &&
      !(first == 0xf4 && second > 0x8f))
    return 4;
  return 0;
}

std::string attribute(std::string_view name, double value) {
  std::string out = " ";
  out.append(name).append("=\"").append(coordinate(value)).append("\"");
  return out;
}

std::string css_class(std::string_view css) {
  return css.empty() ? std::string() : " class=\"" + escape_markup(css) + "\"";
}

std::string point_list(const std::vector<Point>& points) {
  std::string out;
  for (const Point& point : points) out += (out.empty() ? "" : " ") + coordinate(point.x) + "," + coordinate(point.y);
  return out;
}

}  // namespace

std::string escape_markup(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    const size_t length = sequence_length(text, i);
    if (length == 0) {
      out += "\xef\xbf\xbd";
      ++i;
      continue;
    }
    const char c = text[i];
    if (length > 1)
      out += text.substr(i, length);
    else if (c == '&')
      out += "&amp;";
    else if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else if (c == '"')
      out += "&quot;";
    else if (c == '\'')
      out += "&#39;";
    else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f)
      out += ' ';
    else
      out += c;
    i += length;
  }
  return out;
}

std::string coordinate(double value) {
  char text[48];
  std::snprintf(text, sizeof text, "%.2f", std::isfinite(value) ? value : 0.0);
  std::string out = text;
  while (out.back() == '0') out.pop_back();
  if (out.back() == '.') out.pop_back();
  return out == "-0" ? "0" : out;
}

Svg::Svg(double width, double height, std::string_view title, std::string_view description)
    : width_(width), height_(height) {
  head_ = "<desc>" + escape_markup(description) + "</desc>";
  head_ = " role=\"img\" aria-label=\"" + escape_markup(title) + "\">" + head_;
}

void Svg::end(std::string_view element, std::string_view hint) {
  if (hint.empty()) {
    body_ += "/>";
  } else {
    body_.append("><title>").append(escape_markup(hint)).append("</title></").append(element).append(">");
  }
  body_ += '\n';
}

void Svg::rect(double x, double y, double width, double height, std::string_view css, std::string_view hint) {
  body_ += "<rect" + css_class(css) + attribute("x", x) + attribute("y", y) + attribute("width", width) +
           attribute("height", height);
  end("rect", hint);
}

void Svg::line(Point from, Point to, std::string_view css) {
  body_ += "<line" + css_class(css) + attribute("x1", from.x) + attribute("y1", from.y) + attribute("x2", to.x) +
           attribute("y2", to.y);
  end("line", "");
}

void Svg::polyline(const std::vector<Point>& points, std::string_view css, std::string_view hint) {
  body_ += "<polyline" + css_class(css) + " points=\"" + point_list(points) + "\"";
  end("polyline", hint);
}

void Svg::marker(Marker marker, Point at, double radius, std::string_view css, std::string_view hint) {
  const double r = radius;
  if (marker == Marker::kCircle || marker == Marker::kRing) {
    body_ += "<circle" + css_class(css) + attribute("cx", at.x) + attribute("cy", at.y) + attribute("r", r);
    return end("circle", hint);
  }
  std::vector<Point> corners;
  if (marker == Marker::kSquare) {
    const double half = 0.87 * r;
    corners = {
        {at.x - half, at.y - half}, {at.x + half, at.y - half}, {at.x + half, at.y + half}, {at.x - half, at.y + half}};
  } else if (marker == Marker::kTriangle) {
    corners = {{at.x, at.y - 1.15 * r}, {at.x + 1.05 * r, at.y + 0.75 * r}, {at.x - 1.05 * r, at.y + 0.75 * r}};
  } else {
    corners = {{at.x, at.y - 1.2 * r}, {at.x + 1.2 * r, at.y}, {at.x, at.y + 1.2 * r}, {at.x - 1.2 * r, at.y}};
  }
  body_ += "<polygon" + css_class(css) + " points=\"" + point_list(corners) + "\"";
  end("polygon", hint);
}

void Svg::text(Point at, Anchor anchor, std::string_view css, std::string_view content) {
  body_ += "<text" + css_class(css) + attribute("x", at.x) + attribute("y", at.y);
  if (anchor != Anchor::kStart) body_ += anchor == Anchor::kMiddle ? " text-anchor=\"middle\"" : " text-anchor=\"end\"";
  body_ += ">" + escape_markup(content) + "</text>\n";
}

std::string Svg::finish() const {
  const std::string w = coordinate(width_), h = coordinate(height_);
  return "<svg viewBox=\"0 0 " + w + " " + h + "\" width=\"" + w + "\" height=\"" + h + "\" style=\"min-width:" + w +
         "px\"" + head_ + "\n" + body_ + "</svg>\n";
}

}  // namespace polyspan::report
