// model/hydra_profiler.h: SpanProfiler of a Hydra model, by forward passes alone.
//
// A Hydra model has few heads with attention, and a head has few spans: whole chunks, up to its window. So what a span costs
// is measured, not estimated: a pass with this one KV head's span changed and all others as they are. The change of the loss
// is exact; a sample takes KV heads x (candidate spans - 1) + 1 passes, where the gradients of a transformer take about three.
#pragma once

#include "model/model.h"

namespace polyspan {

class HydraProfiler final : public SpanProfiler {
 public:
  // The model must be a Hydra one, have attention, and outlive it.
  explicit HydraProfiler(Model& model) : model_(model) {}

  // Query heads of a group have one span: REQUIRES that in request.spans.
  std::vector<TargetScore> forward(const ProfileRequest& request) override;
  // A KV head's effects stand at the first query head of its group, 0 at the others. With c_t the change of the loss of
  // target t: span is the mean of c_t, span_abs that of |c_t|, span_square that of c_t^2 (of a text's cross-entropy, twice the
  // cost to second order, as ever); pairwise stays 0: no attention weight is looked at.
  SpanInfluence backward(const ProfileRequest& request) override;
  std::span<const float> input_gradient() const override { return {}; }
  int64_t bytes_needed(int64_t n_tokens) const override;
  void check_memory(int64_t) const override {}  // a state of fixed size, as every sequence has

 private:
  // spans: [n_layers][n_kv_heads]. One loss a target.
  std::vector<TargetScore> score(const std::vector<std::vector<int64_t>>& spans, const ProfileRequest& request) const;
  std::vector<std::vector<int64_t>> kv_head_spans(const ProfileRequest& request) const;

  Model& model_;
};

}  // namespace polyspan
