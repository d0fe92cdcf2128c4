#include "report/axis.h"

#include <algorithm>
#include <cmath>

#include "report/words.h"

namespace polyspan::report {
namespace {

constexpr int kSteps = 4;  // about as many ticks as a small chart has room for

// 1, 2 or 5 times a power of ten, at least `size`.
double round_step(double size) {
  const double power = std::pow(10, std::floor(std::log10(size)));
  for (const double step : {1.0, 2.0, 5.0})
    if (step * power >= size * (1 - 1e-9)) return step * power;
  return 10 * power;
}

std::string tick_text(double value, double step) {
  if (std::abs(value) < step * 1e-6) return "0";
  const int digits =
      1 + static_cast<int>(std::floor(std::log10(std::abs(value)))) - static_cast<int>(std::floor(std::log10(step)));
  if (std::abs(value) >= 1000 && std::abs(value) < 1e6) return count_text(std::llround(value));
  return number_text(value, std::max(1, digits));
}

std::string tokens_text(int64_t tokens) {
  if (tokens >= 1024 && tokens % 1024 == 0) return std::to_string(tokens / 1024) + "k";
  return std::to_string(tokens);
}

}  // namespace

Axis::Axis(double least, double most, Map map, std::vector<Tick> ticks)
    : from_(map(least)), to_(map(most)), map_(std::move(map)), ticks_(std::move(ticks)) {
  if (!(to_ > from_)) to_ = from_ + 1;
}

double Axis::place(double value, double from, double to) const {
  return from + (map_(value) - from_) / (to_ - from_) * (to - from);
}

Axis Axis::linear(double least, double most, bool from_zero) {
  if (from_zero) least = std::min(0.0, least);
  if (!(most > least)) most = least + std::max(std::abs(least) * 0.1, 1e-6);
  const double step = round_step((most - least) / kSteps);
  least = std::floor(least / step + 1e-9) * step;
  most = std::ceil(most / step - 1e-9) * step;
  std::vector<Tick> ticks;
  for (int i = 0; i <= 2 * kSteps + 2 && least + i * step <= most + step / 2; ++i)
    ticks.push_back({least + i * step, tick_text(least + i * step, step)});
  return Axis(
      least, most, [](double v) { return v; }, std::move(ticks));
}

Axis Axis::fitting(const std::vector<double>& values) {
  if (values.empty()) return linear(0, 1);
  const auto [least, most] = std::minmax_element(values.begin(), values.end());
  const double pad = 0.06 * (*most - *least);
  if (!(*least > 0 && *most > 8 * *least)) return linear(*least - pad, *most + pad);
  const double low = *least / 1.2, high = *most * 1.2;
  std::vector<Tick> ticks;
  const bool wide = high / low > 1000;  // then whole decades only
  for (double power = std::pow(10, std::floor(std::log10(low))); power <= high; power *= 10)
    for (const double part : {1.0, 2.0, 5.0})
      if ((part == 1.0 || !wide) && part * power >= low && part * power <= high)
        ticks.push_back({part * power, number_text(part * power, 1)});
  Axis axis(
      low, high, [](double v) { return std::log(std::max(v, 1e-300)); }, std::move(ticks));
  axis.is_log_ = true;
  return axis;
}

Axis Axis::of_lengths(const std::vector<int64_t>& lengths) {
  std::vector<Tick> ticks;
  double last = -1;
  const auto least = static_cast<double>(lengths.front()), most = static_cast<double>(lengths.back());
  for (const int64_t length : lengths) {
    // Labels closer than an eighth of the axis would touch.
    const double place = most > least ? std::log(static_cast<double>(length) / least) / std::log(most / least) : 0;
    if (last >= 0 && place - last < 0.125) continue;
    last = place;
    ticks.push_back({static_cast<double>(length), tokens_text(length)});
  }
  return Axis(
      least, most, [](double v) { return std::log2(std::max(v, 1.0)); }, std::move(ticks));
}

Axis Axis::of_spans(int64_t least, int64_t most) {
  least = std::max<int64_t>(1, least);
  std::vector<Tick> ticks;
  const double octaves = std::max(1.0, std::log2(static_cast<double>(most) / static_cast<double>(least)));
  const double step = std::ceil(octaves / 4 - 1e-9);
  for (double at = std::log2(static_cast<double>(most)); at >= std::log2(static_cast<double>(least)) - 1e-9;
       at -= step) {
    const double value = std::exp2(at);
    ticks.push_back({value, tokens_text(std::llround(value))});
  }
  return Axis(
      static_cast<double>(least), static_cast<double>(most), [](double v) { return std::log2(std::max(v, 1.0)); },
      std::move(ticks));
}

Axis Axis::near_zero(double least, double most) {
  const double size = std::max({std::abs(least), std::abs(most), 1e-12});
  const double unit = std::pow(10, std::floor(std::log10(size)) - 2);
  std::vector<Tick> ticks = {{0, "0"}};
  for (double value = unit; value <= size * 1.0001; value *= 10) {
    if (value <= most * 1.0001) ticks.push_back({value, number_text(value, 1)});
    if (value <= -least * 1.0001) ticks.push_back({-value, number_text(-value, 1)});
  }
  return Axis(
      std::min(0.0, least), std::max(0.0, most) * 1.05 + unit * 1e-3, [unit](double v) { return std::asinh(v / unit); },
      std::move(ticks));
}

void draw_axes(Svg& svg, const PlotArea& area, const Axis& x, const Axis& y, const std::string& x_name,
               const std::string& y_name) {
  for (const Tick& tick : y.ticks()) {
    const double at = y.place(tick.value, area.bottom, area.top);
    if (at < area.top - 1 || at > area.bottom + 1) continue;
    svg.line({area.left, at}, {area.right, at}, "gridline");
    svg.text({area.left - 6, at + 3.5}, Anchor::kEnd, "tick", tick.label);
  }
  for (const Tick& tick : x.ticks()) {
    const double at = x.place(tick.value, area.left, area.right);
    if (at < area.left - 1 || at > area.right + 1) continue;
    svg.line({at, area.bottom}, {at, area.bottom + 4}, "axis");
    svg.text({at, area.bottom + 15}, Anchor::kMiddle, "tick", tick.label);
  }
  svg.line({area.left, area.bottom}, {area.right, area.bottom}, "axis");
  svg.text({area.right, area.bottom + 29}, Anchor::kEnd, "name", x_name);
  svg.text({2, area.top - 16}, Anchor::kStart, "name", y_name);
}

}  // namespace polyspan::report
