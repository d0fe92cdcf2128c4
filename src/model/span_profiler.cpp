#include "model/span_profiler.h"

#include <algorithm>
#include <cmath>

namespace polyspan {

std::vector<AttentionSpan> query_spans(const SpanPlan& plan, int64_t length) {
  std::vector<AttentionSpan> spans;
  for (const auto& layer : plan.spans(length).query_head_spans)
    for (const int64_t span : layer) spans.push_back({span, plan.n_sink_tokens()});
  return spans;
}

TargetScore score_target(const float* logits, int64_t vocab_size, int32_t target) {
  constexpr double kLeastShare = 2e-9;  // of the other tokens: e^-20, below the rounding of a sum of floats
  const float largest = kernels().max_value(logits, vocab_size);
  const double total = kernels().sum_exp(logits, vocab_size, largest),
               shifted = static_cast<double>(logits[target]) - static_cast<double>(largest);
  const double others = std::max(total - std::exp(shifted), kLeastShare * total);
  return {shifted - std::log(total), shifted - std::log(others), logits[target] >= largest};
}

}  // namespace polyspan
