#include "moa/influence.h"

#include <algorithm>
#include <set>

#include "core/error.h"
#include "moa/calibration.h"

namespace polyspan {
namespace {

// [heads of the curve][candidate]: what a sample says of every head's spans, relative to the span it ran with.
struct HeadCurves {
  size_t n_heads, n_candidates;
  std::vector<double> main, square;
};

// The span that a curve's head (a KV head: the longest of its group) had in the round.
int64_t current_span(const SpanTable& spans, bool per_query_head, size_t head, size_t per_layer) {
  const auto& rows = per_query_head ? spans.query_head_spans : spans.kv_head_spans;
  return rows[head / per_layer][head % per_layer];
}

HeadCurves head_curves(const SampleProfile& sample, const SpanPlan& plan, const CurveOptions& options) {
  const SpanInfluence& in = sample.influence;
  const HeadShape& shape = plan.shape();
  POLYSPAN_CHECK(in.n_layers == shape.n_layers && in.n_heads == shape.n_heads &&
                 in.n_candidates == std::ssize(sample.candidate_spans));
  const int64_t per_layer = options.per_query_head ? shape.n_heads : shape.n_kv_heads,
                group = shape.n_heads / per_layer;
  const SpanTable spans = plan.spans(sample.length);
  HeadCurves curves{static_cast<size_t>(shape.n_layers * per_layer), sample.candidate_spans.size(), {}, {}};
  for (size_t head = 0; head < curves.n_heads; ++head) {
    const int64_t layer = static_cast<int64_t>(head) / per_layer,
                  first = static_cast<int64_t>(head) % per_layer * group;
    const int64_t now = current_span(spans, options.per_query_head, head, static_cast<size_t>(per_layer));
    for (int64_t c = 0; c < in.n_candidates; ++c) {
      double span = 0, absolute = 0, square = 0, pairwise = 0;
      for (int64_t r = 0; r < group; ++r) {
        const size_t at = in.at(layer, first + r, c);
        span += in.span[at], absolute += in.span_abs[at];
        square += in.span_square[at], pairwise += in.pairwise[at];
      }
      const bool longer = sample.candidate_spans[static_cast<size_t>(c)] > now;
      const double sign = longer ? -1 : 1;  // keys that come back can only help, keys that go can only hurt
      switch (options.estimator) {
        case Estimator::kSpan: curves.main.push_back(longer ? std::min(span, 0.0) : std::max(span, 0.0)); break;
        case Estimator::kSpanAbs: curves.main.push_back(sign * absolute); break;
        case Estimator::kPairwise: curves.main.push_back(sign * pairwise); break;
      }
      curves.square.push_back(sign * square);
    }
  }
  return curves;
}

// Mean over the accepted samples of one length and kind that are not broken.
struct KindMean {
  HeadCurves sum{0, 0, {}, {}};
  int64_t n = 0;
  std::vector<int64_t> spans;
  void add(const HeadCurves& sample, const std::vector<int64_t>& candidates) {
    if (n == 0) sum = sample, spans = candidates;
    POLYSPAN_CHECK(candidates == spans, "samples of a length ask about the same spans");
    if (n++ == 0) return;
    for (size_t i = 0; i < sum.main.size(); ++i) sum.main[i] += sample.main[i], sum.square[i] += sample.square[i];
  }
};
using KindMeans = std::map<std::pair<int64_t, std::string>, KindMean>;

KindMeans kind_means(const ProfileRound& round, const CurveOptions& options) {
  KindMeans means;
  for (const SampleProfile& sample : round.samples)
    if (sample.accepted && !sample.is_broken())
      means[{sample.length, sample.kind}].add(head_curves(sample, round.plan, options), sample.candidate_spans);
  for (auto& [key, mean] : means)
    for (size_t i = 0; i < mean.sum.main.size(); ++i)
      mean.sum.main[i] /= static_cast<double>(mean.n), mean.sum.square[i] /= static_cast<double>(mean.n);
  return means;
}

double inverse_or_zero(double scale) { return scale > 0 ? 1 / scale : 0; }

}  // namespace

std::optional<double> SampleProfile::kept_share() const {
  if (kind == kRunningText || dense_log_odds <= 0) return std::nullopt;
  return std::clamp(log_odds / dense_log_odds, -1.0, 1.0);
}

std::map<std::string, double> ProfileRound::kept_shares() const {
  std::map<std::string, double> sums;
  std::map<std::string, int64_t> counts;
  for (const SampleProfile& sample : samples) {
    const std::optional<double> share = sample.kept_share();
    if (!sample.accepted || !share) continue;
    sums[sample.kind] += *share;
    ++counts[sample.kind];
  }
  for (auto& [kind, sum] : sums) sum /= static_cast<double>(counts[kind]);
  return sums;
}

KindScales kind_scales(const ProfileRound& dense, const CurveOptions& options) {
  KindScales scales;
  for (const auto& [key, mean] : kind_means(dense, options)) {
    KindScale& scale = scales[key];
    for (size_t head = 0; head < mean.sum.n_heads; ++head) {
      scale.main += mean.sum.main[head * mean.sum.n_candidates];
      scale.square += mean.sum.square[head * mean.sum.n_candidates];
    }
  }
  return scales;
}

CostTables cost_tables(const ProfileRound& round, const KindScales& scales, const CurveOptions& options) {
  const auto square_share = [&](const std::string& kind) {
    if (options.estimator != Estimator::kSpan) return 0.0;
    return kind == kRunningText ? options.text_square_share : options.square_share;
  };
  CostTables tables;
  for (const auto& [key, mean] : kind_means(round, options)) {
    const auto scale = scales.find(key);
    if (scale == scales.end()) continue;  // a kind that the dense profile has no accepted sample of
    const HeadCurves& of_kind = mean.sum;
    const double main = inverse_or_zero(scale->second.main),
                 square = square_share(key.second) * inverse_or_zero(scale->second.square);
    CostTable& table = tables[key];
    table.spans = mean.spans;
    for (size_t head = 0; head < of_kind.n_heads; ++head) {
      const size_t at = head * of_kind.n_candidates, dense = at + of_kind.n_candidates - 1;
      const double whole = main * of_kind.main[dense] + square * of_kind.square[dense];
      for (size_t c = 0; c < of_kind.n_candidates; ++c)
        table.cost.push_back(main * of_kind.main[at + c] + square * of_kind.square[at + c] - whole);
    }
  }
  return tables;
}

void blend(CostTables& tables, const CostTables& updates, double share) {
  for (const auto& [key, update] : updates) {
    const auto found = tables.find(key);
    if (found == tables.end()) continue;
    POLYSPAN_CHECK(found->second.spans == update.spans && found->second.cost.size() == update.cost.size());
    for (size_t i = 0; i < update.cost.size(); ++i)
      found->second.cost[i] = (1 - share) * found->second.cost[i] + share * update.cost[i];
  }
}

std::vector<LossCurve> loss_curves(const CostTables& tables,
                                   const std::function<double(std::string_view kind)>& weight) {
  std::map<int64_t, LossCurve> curves;
  for (const auto& [key, table] : tables) {
    LossCurve& curve = curves[key.first];
    if (curve.spans.empty()) curve = {key.first, key.first, table.spans, std::vector<double>(table.cost.size(), 0.0)};
    POLYSPAN_CHECK(curve.spans == table.spans, "kinds of a length ask about the same spans");
    const double times = weight(key.second);
    for (size_t i = 0; i < table.cost.size(); ++i) curve.loss[i] += times * table.cost[i];
  }
  std::vector<LossCurve> result;
  for (auto& [length, curve] : curves) result.push_back(std::move(curve));
  return result;
}

LossCurve extension_curve(const std::vector<LossCurve>& curves, int64_t length) {
  POLYSPAN_CHECK(!curves.empty());
  LossCurve extension = *std::max_element(curves.begin(), curves.end(),
                                          [](const LossCurve& a, const LossCurve& b) { return a.length < b.length; });
  extension.length = length;
  return extension;
}

std::vector<int64_t> candidate_spans(const HeadShape& shape, int64_t length) {
  std::set<int64_t> spans = {shape.plan_length(length)};
  if (shape.window > 0) {
    const int64_t step = (shape.window / shape.span_step + 7) / 8 * shape.span_step;
    for (int64_t span = step; span < shape.window; span += step)
      if (span >= kBlockTokens) spans.insert(span);
    return {spans.begin(), spans.end()};
  }
  for (const int64_t window : {64, 128, 192, 256, 384, 512})
    if (window < length) spans.insert(window);
  for (int64_t part = 1; part < 16; ++part)
    if (length * part / 16 >= kBlockTokens) spans.insert(length * part / 16);
  return {spans.begin(), spans.end()};
}

}  // namespace polyspan
