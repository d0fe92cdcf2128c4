// report/charts.h: the pictures of a report, each one SVG. What each means: docs/report.md.
// They are 340 px wide, or as wide as their cells need: a phone shows one, a desktop several beside each other.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "report/axis.h"
#include "report/run_data.h"
#include "report/svg.h"

namespace polyspan::report {

inline constexpr double kChartWidth = 340;
inline constexpr int kShades = 9;  // classes h0 ... h8: eighths, and all of it

// How a plan is drawn everywhere: its class and its marker.
struct PlanStyle {
  std::string css;
  Marker marker = Marker::kCircle;
};
PlanStyle plan_style(const std::string& name);  // "dense", "uniform", "two-valued"; anything else is a searched plan
PlanStyle density_style(size_t index);          // of the run's densities, where they stand in one picture

int shade_of(double share);  // 0 ... 8

// Layers from left to right, heads from top to bottom; colour is the kept share of `length`, sink included.
// query_heads: what each query head sees instead of what each KV head keeps.
std::string span_map(const SpanPlan& plan, int64_t length, bool query_heads);

// The curves of all heads at one length, coloured by third of the depth.
std::string influence_overlay(const LossCurve& curve, int64_t n_layers, bool query_heads);

// The curves of one layer's heads, with a mark where each plan put its span.
struct SpanMark {
  const SpanPlan* plan = nullptr;
  PlanStyle style;
  std::string name;
};
struct LayerChart {
  const LossCurve* curve = nullptr;
  int64_t layer = 0, heads_per_layer = 0;
  Axis y;  // shared by all layers
  std::vector<SpanMark> marks;
};
Axis influence_axis(const LossCurve& curve);
std::string influence_layer(const LayerChart& chart);

// Loss at the curve `x` against loss at the curve `y`, both positions in the lengths.
struct FrontPoint {
  std::string name, hint;
  std::vector<double> losses;  // one a curve length
  bool on_front = false, is_winner = false;
};
std::string front_chart(const std::vector<FrontPoint>& points, const std::vector<int64_t>& lengths, size_t x, size_t y);

// Held-out loss of each candidate, best first, and of the dense model. At most kMostCandidates rows.
inline constexpr size_t kMostCandidates = 30;
std::string validation_chart(const Validation& validation);

// Values over lengths.
struct Series {
  std::string name;
  PlanStyle style;
  std::vector<std::pair<int64_t, double>> points;  // by length, ascending
  std::vector<std::string> hints;                  // one a point
};
std::string length_chart(const std::string& title, const std::string& unit, const std::vector<Series>& series);

// Values over the steps of a training run; a broken line where a stage ends.
enum class StepScale { kFitting, kFromZero, kShare };  // kShare: 0 to 1
struct StepSeries {
  std::string name, css;  // css: of the line
  PlanStyle style = {};   // of the points
  std::vector<std::pair<int64_t, double>> points = {};
  bool has_dots = false;  // a marker a point that says its value
};
struct StepChart {
  std::string title, unit;
  StepScale scale = StepScale::kFitting;
  int64_t last_step = 1;
  std::vector<int64_t> stage_ends = {};
  std::vector<StepSeries> series = {};
};
std::string step_chart(const StepChart& chart);
// Each point the mean of itself and up to width - 1 before it.
std::vector<std::pair<int64_t, double>> moving_mean(const std::vector<std::pair<int64_t, double>>& points,
                                                    size_t width);

// Accuracy by place of the key (top: beginning) and length.
std::string retrieval_grid(const std::string& title, const std::vector<const Retrieval*>& by_length);

}  // namespace polyspan::report
