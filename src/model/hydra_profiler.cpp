#include "model/hydra_profiler.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"

namespace polyspan {
namespace {

constexpr int64_t kLogitRows = 32;

KvLayout layout_of(const ModelConfig& config, const std::vector<std::vector<int64_t>>& spans, int64_t n_tokens) {
  std::vector<std::vector<SpanRule>> rules;
  for (const auto& row : spans) {
    std::vector<SpanRule>& of_row = rules.emplace_back();
    for (const int64_t span : row) of_row.push_back({static_cast<double>(span), 0.0});
  }
  const SpanPlan plan = SpanPlan::from_rules(config.head_shape(), std::move(rules), /*per_query_head=*/false);
  return KvLayout(config, plan, n_tokens, KvType::kF16);
}

std::vector<double> losses(const std::vector<TargetScore>& scores, ProfileLoss loss) {
  std::vector<double> values;
  for (const TargetScore& score : scores)
    values.push_back(loss == ProfileLoss::kLogOdds ? -score.log_odds : -score.log_probability);
  return values;
}

}  // namespace

std::vector<std::vector<int64_t>> HydraProfiler::kv_head_spans(const ProfileRequest& request) const {
  const HeadShape shape = model_.config().head_shape();
  const int64_t group = shape.n_heads / shape.n_kv_heads;
  POLYSPAN_CHECK(std::ssize(request.spans) == shape.n_layers * shape.n_heads);
  std::vector<std::vector<int64_t>> spans(static_cast<size_t>(shape.n_layers));
  for (int64_t head = 0; head < std::ssize(request.spans); ++head) {
    const int64_t span = request.spans[static_cast<size_t>(head)].span;
    auto& row = spans[static_cast<size_t>(head / shape.n_heads)];
    if (head % group == 0) row.push_back(span);
    POLYSPAN_CHECK(row.back() == span, "a span for each KV head");
  }
  return spans;
}

std::vector<TargetScore> HydraProfiler::score(const std::vector<std::vector<int64_t>>& spans,
                                              const ProfileRequest& request) const {
  const int64_t n = std::ssize(request.tokens), vocab = model_.config().vocab_size, most = model_.max_batch_tokens();
  KvCache cache = model_.make_cache(layout_of(model_.config(), spans, n));
  std::vector<float> logits(static_cast<size_t>(kLogitRows * vocab));
  std::vector<TargetScore> scores;
  for (int64_t begin = 0; begin < n; begin += most) {
    const int64_t n_rows = std::min(most, n - begin);
    const BatchSequence sequence{&cache, 0, n_rows};
    model_.forward({request.tokens.subspan(static_cast<size_t>(begin), static_cast<size_t>(n_rows)), {&sequence, 1}});
    while (scores.size() < request.targets.size()) {
      std::vector<int64_t> rows;
      for (size_t i = scores.size(); i < request.targets.size() && std::ssize(rows) < kLogitRows; ++i)
        if (request.targets[i] - 1 < begin + n_rows) rows.push_back(request.targets[i] - 1 - begin);
      if (rows.empty()) break;
      model_.logits(rows, logits.data());
      for (size_t i = 0; i < rows.size(); ++i) {
        const int64_t target = request.targets[scores.size()];
        scores.push_back(score_target(logits.data() + static_cast<int64_t>(i) * vocab, vocab,
                                      request.tokens[static_cast<size_t>(target)]));
      }
    }
  }
  return scores;
}

std::vector<TargetScore> HydraProfiler::forward(const ProfileRequest& request) {
  return score(kv_head_spans(request), request);
}

SpanInfluence HydraProfiler::backward(const ProfileRequest& request) {
  const HeadShape shape = model_.config().head_shape();
  POLYSPAN_CHECK(!request.input_gradient && !request.targets.empty());
  SpanInfluence influence{shape.n_layers, shape.n_heads, std::ssize(request.candidate_spans), {}, {}, {}, {}};
  const size_t n_values = influence.at(shape.n_layers, 0, 0);
  for (std::vector<double>* values :
       {&influence.span, &influence.span_abs, &influence.span_square, &influence.pairwise})
    values->assign(n_values, 0.0);
  std::vector<std::vector<int64_t>> spans = kv_head_spans(request);
  const std::vector<double> before = losses(score(spans, request), request.loss);
  for (int64_t layer = 0; layer < shape.n_layers; ++layer)
    for (int64_t kv_head = 0; kv_head < shape.n_kv_heads; ++kv_head) {
      int64_t& span = spans[static_cast<size_t>(layer)][static_cast<size_t>(kv_head)];
      const int64_t own = span;
      for (int64_t c = 0; c < influence.n_candidates; ++c) {
        span = request.candidate_spans[static_cast<size_t>(c)];
        if (span == own) continue;
        const std::vector<double> after = losses(score(spans, request), request.loss);
        const size_t at = influence.at(layer, kv_head * (shape.n_heads / shape.n_kv_heads), c);
        for (size_t i = 0; i < before.size(); ++i) {
          const double change = after[i] - before[i], share = 1.0 / static_cast<double>(before.size());
          influence.span[at] += share * change;
          influence.span_abs[at] += share * std::abs(change);
          influence.span_square[at] += share * change * change;
        }
      }
      span = own;
    }
  return influence;
}

int64_t HydraProfiler::bytes_needed(int64_t n_tokens) const {
  const ModelConfig& config = model_.config();
  return KvLayout(config, SpanPlan::dense(config.head_shape()), n_tokens, KvType::kF16).bytes +
         kLogitRows * config.vocab_size * static_cast<int64_t>(sizeof(float));
}

}  // namespace polyspan
