// cuda/span_profiler.h: SpanProfiler (model/span_profiler.h) of the decoder of cuda/transformer.h.
//
// As model/transformer_profiler.h, whole sequences at a time: the state before and after each layer's attention stays in
// GPU memory, queries, keys, gates are computed again in the backward pass. Weights are decoded to f32 some rows at a
// time, whatever their type, for y = x W^T and for dx = dy W alike: no second copy of them.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "cuda/gradient.h"
#include "cuda/span_gradient.h"
#include "cuda/weights.h"
#include "model/config.h"
#include "model/span_profiler.h"

namespace polyspan::cuda {

struct CudaProfilerOptions {
  Precision weight_products = Precision::kTf32;  // attention is always computed in f32
  int64_t most_decoded_floats = 32 << 20;        // of a matrix at a time: two of 4,096 x 4,096
};

// What it reads of a model; all of it must outlive the profiler.
struct ProfiledModel {
  const ModelConfig& config;
  std::span<const DeviceLayer> layers;
  const float* output_norm;
  std::span<const MatrixPart> output;
  DeviceMatrix embedding;
  const double* frequencies;  // [n_pairs]
  const Stream& stream;
};

class CudaSpanProfiler final : public SpanProfiler {
 public:
  CudaSpanProfiler(const ProfiledModel& model, const CudaProfilerOptions& options);

  std::vector<TargetScore> forward(const ProfileRequest& request) override;
  SpanInfluence backward(const ProfileRequest& request) override;
  std::span<const float> input_gradient() const override { return input_gradient_; }
  int64_t bytes_needed(int64_t n_tokens) const override;
  void check_memory(int64_t n_tokens) const override;

 private:
  // Of a sequence, in one allocation. Per token:
  struct Buffers {
    float *inputs = nullptr,
          *mids = nullptr;  // [n_layers + 1 | n_layers][d_model]: before and after a layer's attention
    float *gradient = nullptr, *normed = nullptr, *d_normed = nullptr;    // [d_model]
    float *qkv = nullptr, *attention = nullptr;                           // [qkv_dim], [q_dim]
    float *q = nullptr, *k = nullptr, *v = nullptr, *of_heads = nullptr;  // head rows; outputs or their gradients
    float *dq = nullptr, *dk = nullptr, *dv = nullptr;
    float *gate_up = nullptr, *act = nullptr;  // [2 * d_ff], [d_ff]
    RopeTurn* rope = nullptr;
    int32_t *tokens = nullptr, *rows = nullptr, *target_ids = nullptr;  // rows: of the targets
    TargetScore* scores = nullptr;
    // Whatever the length:
    HeadSpan* spans = nullptr;  // [n_layers][n_heads]
    int32_t* candidates = nullptr;
    double* sums = nullptr;  // [4][n_layers][n_heads][n_candidates]
    float *logits = nullptr, *decoded = nullptr;
    std::byte* attention_op = nullptr;
  };
  // Where they are from `base` on (null: only counted). Returns their bytes.
  int64_t place(int64_t n_tokens, std::byte* base, Buffers& buffers) const;
  GradientShape gradient_shape(int64_t n_tokens) const;
  void reserve(int64_t n_tokens);
  void upload(const ProfileRequest& request);

  float* input(int64_t layer) const { return b_.inputs + layer * n_tokens_ * config_.d_model; }
  float* mid(int64_t layer) const { return b_.mids + layer * n_tokens_ * config_.d_model; }
  const DeviceLayer& weights(int64_t layer) const { return model_.layers[static_cast<size_t>(layer)]; }

  // Rows of each part's matrix in b_.decoded, some at a time: body(column of the first row's output, n_rows, d_in).
  template <typename Body>
  void for_each_decoded(std::span<const MatrixPart> parts, Body body) const;
  // out [n, out_stride] = x W^T (+ out when `add`), x [n, d_in] of the parts.
  void multiply(std::span<const MatrixPart> parts, const float* x, int64_t n, float* out, int64_t out_stride,
                bool add) const;
  // d_x [n, d_in] = d_y W, d_y [n, d_y_stride].
  void multiply_back(std::span<const MatrixPart> parts, const float* d_y, int64_t n, int64_t d_y_stride,
                     float* d_x) const;
  void norm(const float* x, const int32_t* rows, const float* weight, int64_t n) const;  // -> normed
  void queries_and_keys(int64_t layer) const;
  SpanGradientInputs attention_inputs(int64_t layer) const;
  // logits of the targets [first, first + n).
  void target_logits(int64_t first, int64_t n) const;
  void loss_gradient_of(const ProfileRequest& request) const;
  void ffn_backward(int64_t layer) const;  // gradient: of a layer's output -> of its mid
  void attention_backward(int64_t layer, int64_t n_candidates, bool go_on) const;  // -> of its input
  HeadRows head_rows(float* q, float* k, float* v) const;

  ProfiledModel model_;
  const ModelConfig& config_;
  const Stream& stream_;
  Precision precision_;
  Blas blas_;
  int64_t q_dim_, kv_dim_, qkv_dim_;
  int64_t decoded_floats_;  // of weights at a time

  int64_t n_tokens_ = 0;  // of the last forward()
  DeviceBuffer memory_;
  Buffers b_;
  std::optional<CudaSpanGradient> attention_op_;
  std::vector<float> input_gradient_;
};

}  // namespace polyspan::cuda
