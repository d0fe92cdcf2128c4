// model/transformer_profiler.h: SpanProfiler of the pre-norm decoder of model/transformer.h.
//
// Of every layer the input and attention's output are stored. The rest that backward() needs is kept of as many layers as
// kKeptBytes hold (model/kept_layers.h) and computed again of the others. The products of gate and up are read as f16, kept or
// not, so that no bit of a result depends on what is kept; with F32 weights, which round nothing, they are not kept.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "model/config.h"
#include "model/kept_layers.h"
#include "model/span_profiler.h"
#include "model/transposed_weights.h"
#include "ops/matmul.h"
#include "ops/rope.h"
#include "ops/span_gradient.h"

namespace polyspan {

class TransformerProfiler final : public SpanProfiler {
 public:
  // All three must outlive it.
  TransformerProfiler(const ModelConfig& config, const Weights& weights, OpContext& context, Progress& progress);

  std::vector<TargetScore> forward(const ProfileRequest& request) override;
  SpanInfluence backward(const ProfileRequest& request) override;
  std::span<const float> input_gradient() const override { return gradient_; }
  int64_t bytes_needed(int64_t n_tokens) const override;
  // Of what is needed without the kept layers: where there is no room for them, none is kept.
  void check_memory(int64_t n_tokens) const override;

  static constexpr int64_t kKeptBytes = int64_t{1} << 30;
  void set_kept_bytes(int64_t bytes);  // of the sequences from now on

 private:
  // Rows of a sequence that are computed together: the products' inputs stay in the caches.
  struct Rows {
    int64_t first, n;
  };
  template <typename Body>
  void for_each_chunk(Body body) const;
  void reserve(int64_t n_tokens);
  int64_t stored_bytes(int64_t n_tokens) const;  // without the kept layers
  GradientShape gradient_shape(int64_t n_tokens) const;

  float* layer_input(int64_t layer, int64_t row) const { return inputs_ + (layer * n_tokens_ + row) * config_.d_model; }
  float* attention_out(int64_t layer, int64_t row) const { return attention_ + (layer * n_tokens_ + row) * q_dim_; }
  float* log_sum(int64_t layer) const { return log_sum_ + layer * n_tokens_ * config_.n_heads; }

  MatmulInput input(const float* values, int64_t n, int64_t d_in);
  void norm(const float* x, const std::vector<float>& weight, int64_t n, float* out) const;
  void norm_gradient(const float* x, const std::vector<float>& weight, const float* d_y, int64_t n, float* d_x) const;
  // Where q, k, v of a layer stand: kept ones, or those of one layer.
  struct Attended {
    float *q, *k, *v;  // [n_tokens, n_heads | n_kv_heads, head_dim]: after RoPE, q scaled
  };
  Attended attended(int64_t layer) const;
  void queries_and_keys(int64_t layer);  // attended(layer), from its stored input
  // out [n, d_model] = x + attn_out(attention): the input of the layer's second half.
  void middle(int64_t layer, const Rows& rows, float* out);
  // gate_, up_ [n, d_ff] of rows whose middle is `mid`.
  void gate_and_up(int64_t layer, const Rows& rows, const float* mid);
  // A row of each as f16, [2 * d_ff].
  void to_halves(const float* gate, const float* up, uint16_t* out) const;
  // gate_ = silu(gate) * up, x [n, d_model] = the middle, to the bit as forward() has them elsewhere; into kept_ too.
  void keep_ffn(int64_t layer, const Rows& rows, float* x);
  // Logits [rows.size(), vocab_size] of some positions' last hidden states.
  void logits(std::span<const int64_t> rows, float* out);
  // Visits the targets some at a time: visit(first target, logits [n, vocab_size], n).
  template <typename Visit>
  void for_each_target(std::span<const int64_t> targets, Visit visit);
  void loss_gradient(const ProfileRequest& request);
  void ffn_backward(int64_t layer);  // gradient_: of a layer's output -> of its middle
  void attention_backward(int64_t layer, const ProfileRequest& request, SpanInfluence& influence);  // -> of its input

  const ModelConfig& config_;
  const Weights& weights_;
  OpContext& context_;
  TransposedWeights transposed_;
  int64_t q_dim_, kv_dim_;
  bool rounds_;  // gate and up to f16
  KeptLayers kept_;
  int64_t kept_bytes_ = kKeptBytes;

  int64_t n_tokens_ = 0;  // of the last forward()
  HugeBuffer memory_;
  float *inputs_ = nullptr, *attention_ = nullptr, *log_sum_ = nullptr;  // [n_layers + 1 | n_layers][n_tokens, ...]
  float *q_ = nullptr, *k_ = nullptr, *v_ = nullptr;                     // of one layer
  float *d_q_ = nullptr, *d_k_ = nullptr, *d_v_ = nullptr, *d_attention_ = nullptr;
  std::optional<SpanGradient> attention_op_;
  RopeTable rope_, inverse_rope_;
  std::vector<float> gradient_;                                     // [n_tokens, d_model]
  std::vector<float> normed_, mid_, gate_, up_, d_act_, d_normed_;  // of one chunk
  std::vector<uint16_t> gate_up_;                                   // likewise, as KeptLayers has it
  std::vector<ActBlock> blocks_;
};

}  // namespace polyspan
