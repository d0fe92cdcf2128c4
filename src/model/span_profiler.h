// model/span_profiler.h: the loss of a whole sequence, and how it would change if each head's span were another.
//
// One forward pass with stored layer inputs, one backward pass of activation gradients only (dX = dY W: no weight
// gradients), layer by layer. Source: MoA (arXiv 2406.14909) section 4.2; the estimators: ops/span_gradient.h.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/progress.h"
#include "ops/kernels.h"
#include "plan/span_plan.h"

namespace polyspan {

enum class ProfileLoss {
  kCrossEntropy,  // -log p(target), mean over the targets
  kLogOdds,       // -log(p / (1 - p)), mean over the targets: does not flatten where the model is sure
};

// What each query head sees of an input of `length` tokens under the plan, [n_layers * n_heads].
std::vector<AttentionSpan> query_spans(const SpanPlan& plan, int64_t length);

struct ProfileRequest {
  std::span<const int32_t> tokens;           // [n_tokens], ids within the vocabulary
  std::span<const int64_t> targets;          // ascending, 1 <= p < n_tokens: tokens[p] predicted from row p - 1
  std::span<const AttentionSpan> spans;      // [n_layers * n_heads]: what each query head sees in this pass
  std::span<const int64_t> candidate_spans;  // ascending, >= 1: spans to ask about
  ProfileLoss loss = ProfileLoss::kCrossEntropy;
  bool input_gradient = false;  // also down to the input of layer 0: for tests
};

// [n_layers][n_heads][n_candidates], the head's keys beyond the sink that a candidate span would remove (shorter than the
// head's span) or add (longer).
struct SpanInfluence {
  int64_t n_layers = 0, n_heads = 0, n_candidates = 0;
  std::vector<double> span;      // signed change of the loss, first order: sum over rows of e_i(S)
  std::vector<double> span_abs;  // sum over rows of |e_i(S)|
  // Sum over rows of e_i(S)^2: of a text's cross-entropy twice what removing the keys costs to second order (docs/compress.md).
  std::vector<double> span_square;
  std::vector<double> pairwise;  // sum over rows and removed keys of |E_ij|; 0 for added keys
  size_t at(int64_t layer, int64_t head, int64_t candidate) const {
    return static_cast<size_t>((layer * n_heads + head) * n_candidates + candidate);
  }
};

struct TargetScore {
  double log_probability = 0;
  double log_odds = 0;   // log(p / (1 - p)), at most about 20
  bool is_best = false;  // no token has a larger logit
};

// Of `target` among the logits [vocab_size] of its row.
TargetScore score_target(const float* logits, int64_t vocab_size, int32_t target);

// Not thread-safe. Memory: bytes_needed, kept from one sequence to the next of its length.
class SpanProfiler {
 public:
  virtual ~SpanProfiler() = default;
  // The forward pass alone: one score a target. Keeps what backward() needs. Throws Error (kOutOfMemory) before any work.
  virtual std::vector<TargetScore> forward(const ProfileRequest& request) = 0;
  // REQUIRES: forward() of the same tokens and spans was the last call; targets may be others.
  virtual SpanInfluence backward(const ProfileRequest& request) = 0;
  // d loss / d (input of layer 0) [n_tokens, d_model] of the last backward() whose request asked for it.
  virtual std::span<const float> input_gradient() const = 0;
  virtual int64_t bytes_needed(int64_t n_tokens) const = 0;  // where the model is: host or GPU memory
  // Throws Error (kOutOfMemory), naming the bytes needed and free, where a sequence of n_tokens would not fit.
  virtual void check_memory(int64_t n_tokens) const = 0;
};

}  // namespace polyspan
