#include "model/hydra_profiler.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "core/error.h"
#include "core/huge_buffer.h"

namespace polyspan {
namespace {

constexpr int64_t kLogitRows = 32;
constexpr int64_t kMostTargets = 2048;  // of a text: moa/calibration.h

KvLayout layout_of(const ModelConfig& config, const std::vector<std::vector<int64_t>>& spans, int64_t n_tokens) {
  std::vector<std::vector<SpanRule>> rules;
  for (const auto& row : spans) {
    std::vector<SpanRule>& of_row = rules.emplace_back();
    for (const int64_t span : row) of_row.push_back({static_cast<double>(span), 0.0});
  }
  const SpanPlan plan = SpanPlan::from_rules(config.head_shape(), std::move(rules), /*per_query_head=*/false);
  return KvLayout(config, plan, n_tokens, KvType::kF16);
}

double loss_of(const TargetScore& score, ProfileLoss loss) {
  return loss == ProfileLoss::kLogOdds ? -score.log_odds : -score.log_probability;
}

double log_sum_exp(const float* logits, int64_t n) {
  const float largest = kernels().max_value(logits, n);
  return static_cast<double>(largest) + std::log(kernels().sum_exp(logits, n, largest));
}

// KL(p | q) of the predictions with these logits [n].
double divergence(const float* p, const float* q, int64_t n) {
  const double log_p = log_sum_exp(p, n);
  double sum = log_sum_exp(q, n) - log_p;
  for (int64_t i = 0; i < n; ++i) {
    const double x = static_cast<double>(p[i]);
    sum += std::exp(x - log_p) * (x - static_cast<double>(q[i]));
  }
  return std::max(sum, 0.0);
}

}  // namespace

HydraProfiler::Spans HydraProfiler::kv_head_spans(const ProfileRequest& request) const {
  const HeadShape shape = model_.config().head_shape();
  const int64_t group = shape.n_heads / shape.n_kv_heads;
  POLYSPAN_CHECK(std::ssize(request.spans) == shape.n_layers * shape.n_heads);
  Spans spans(static_cast<size_t>(shape.n_layers));
  for (int64_t head = 0; head < std::ssize(request.spans); ++head) {
    const int64_t span = request.spans[static_cast<size_t>(head)].span;
    auto& row = spans[static_cast<size_t>(head / shape.n_heads)];
    if (head % group == 0) row.push_back(span);
    POLYSPAN_CHECK(row.back() == span, "a span for each KV head");
  }
  return spans;
}

template <typename Visit>
void HydraProfiler::run(const Spans& spans, const ProfileRequest& request, Visit visit) const {
  const int64_t n = std::ssize(request.tokens), vocab = model_.config().vocab_size, most = model_.max_batch_tokens();
  KvCache cache = model_.make_cache(layout_of(model_.config(), spans, n));
  std::vector<float> logits(static_cast<size_t>(kLogitRows * vocab));
  size_t done = 0;
  for (int64_t begin = 0; begin < n; begin += most) {
    const int64_t n_rows = std::min(most, n - begin);
    const BatchSequence sequence{&cache, 0, n_rows};
    model_.forward({request.tokens.subspan(static_cast<size_t>(begin), static_cast<size_t>(n_rows)), {&sequence, 1}});
    while (done < request.targets.size()) {
      std::vector<int64_t> rows;
      for (size_t i = done; i < request.targets.size() && std::ssize(rows) < kLogitRows; ++i)
        if (request.targets[i] - 1 < begin + n_rows) rows.push_back(request.targets[i] - 1 - begin);
      if (rows.empty()) break;
      model_.logits(rows, logits.data());
      for (size_t i = 0; i < rows.size(); ++i) visit(done++, logits.data() + static_cast<int64_t>(i) * vocab);
    }
  }
}

std::vector<TargetScore> HydraProfiler::forward(const ProfileRequest& request) {
  std::vector<TargetScore> scores;
  run(kv_head_spans(request), request, [&](size_t target, const float* logits) {
    const int64_t position = request.targets[target];
    scores.push_back(score_target(logits, model_.config().vocab_size, request.tokens[static_cast<size_t>(position)]));
  });
  return scores;
}

SpanInfluence HydraProfiler::backward(const ProfileRequest& request) {
  const HeadShape shape = model_.config().head_shape();
  const int64_t vocab = model_.config().vocab_size;
  POLYSPAN_CHECK(!request.input_gradient && !request.targets.empty());
  SpanInfluence influence{shape.n_layers, shape.n_heads, std::ssize(request.candidate_spans), {}, {}, {}, {}};
  const size_t n_values = influence.at(shape.n_layers, 0, 0);
  for (std::vector<double>* values :
       {&influence.span, &influence.span_abs, &influence.span_square, &influence.pairwise})
    values->assign(n_values, 0.0);
  const auto loss = [&](size_t target, const float* logits) {
    const int64_t position = request.targets[target];
    return loss_of(score_target(logits, vocab, request.tokens[static_cast<size_t>(position)]), request.loss);
  };
  Spans spans = kv_head_spans(request);
  const bool is_text = request.loss == ProfileLoss::kCrossEntropy;
  const double share = 1.0 / static_cast<double>(request.targets.size());
  std::vector<double> losses;
  std::vector<float> logits_before;  // of text
  run(spans, request, [&](size_t target, const float* logits) {
    losses.push_back(loss(target, logits));
    if (is_text) logits_before.insert(logits_before.end(), logits, logits + vocab);
  });
  for (int64_t layer = 0; layer < shape.n_layers; ++layer)
    for (int64_t kv_head = 0; kv_head < shape.n_kv_heads; ++kv_head) {
      int64_t& span = spans[static_cast<size_t>(layer)][static_cast<size_t>(kv_head)];
      const int64_t own = span;
      for (int64_t c = 0; c < influence.n_candidates; ++c) {
        span = request.candidate_spans[static_cast<size_t>(c)];
        if (span == own) continue;
        const size_t at = influence.at(layer, kv_head * (shape.n_heads / shape.n_kv_heads), c);
        run(spans, request, [&](size_t target, const float* logits) {
          const double change = loss(target, logits) - losses[target];
          influence.span_abs[at] += share * std::abs(change);
          if (is_text) {
            const float* const before = logits_before.data() + static_cast<int64_t>(target) * vocab;
            const double lost = span < own ? divergence(before, logits, vocab) : divergence(logits, before, vocab);
            influence.span[at] += share * (span < own ? lost : -lost);
            influence.span_square[at] += 2 * share * lost;
          } else {
            influence.span[at] += share * change;
            influence.span_square[at] += share * change * change;
          }
        });
      }
      span = own;
    }
  return influence;
}

int64_t HydraProfiler::bytes_needed(int64_t n_tokens) const {
  const ModelConfig& config = model_.config();
  return KvLayout(config, SpanPlan::dense(config.head_shape()), n_tokens, KvType::kF16).bytes +
         (kLogitRows + std::min(n_tokens, kMostTargets)) * config.vocab_size * static_cast<int64_t>(sizeof(float));
}

void HydraProfiler::check_memory(int64_t n_tokens) const {
  check_memory_available(bytes_needed(n_tokens), "profiling samples of " + std::to_string(n_tokens) + " tokens");
}

}  // namespace polyspan
