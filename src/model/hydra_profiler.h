// model/hydra_profiler.h: SpanProfiler of a Hydra model, by forward passes alone.
//
// A Hydra model has few heads with attention, and a head has few spans: whole chunks, up to its window. So what a span costs
// is measured, not estimated: a pass with this one KV head's span changed and all others as they are. A sample takes KV heads x
// (candidate spans - 1) + 1 passes, where the gradients of a transformer take about three.
#pragma once

#include "model/model.h"

namespace polyspan {

class HydraProfiler final : public SpanProfiler {
 public:
  // The model must be a Hydra one, have attention, and outlive it.
  explicit HydraProfiler(Model& model) : model_(model) {}

  // Query heads of a group have one span: REQUIRES that in request.spans.
  std::vector<TargetScore> forward(const ProfileRequest& request) override;
  // A KV head's effects stand at the first query head of its group, 0 at the others. Means over the targets. With c the change
  // of a target's loss: log-odds (retrieval) have c as span, |c| as span_abs, c^2 as span_square. Of running text, whose c is
  // mostly noise (it has one target a row), span is D, what the narrower of the two spans loses of the wider one's prediction,
  // the divergence KL(wider | narrower): c's expectation if the wider is right; negative where the candidate is the wider.
  // There span_square is 2 |D|, which c^2 is to second order. pairwise stays 0: no attention weight is looked at.
  SpanInfluence backward(const ProfileRequest& request) override;
  std::span<const float> input_gradient() const override { return {}; }
  int64_t bytes_needed(int64_t n_tokens) const override;
  void check_memory(int64_t n_tokens) const override;

 private:
  using Spans = std::vector<std::vector<int64_t>>;  // [n_layers][n_kv_heads]
  // visit(target, logits [vocab_size]) for each target in turn: an index of request.targets, and the row that predicts it.
  template <typename Visit>
  void run(const Spans& spans, const ProfileRequest& request, Visit visit) const;
  Spans kv_head_spans(const ProfileRequest& request) const;

  Model& model_;
};

}  // namespace polyspan
