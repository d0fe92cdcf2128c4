// model/transformer.h: the pre-norm decoder with RMSNorm, RoPE, grouped-query span attention and SwiGLU (arXiv 2302.13971).
#pragma once

#include <memory>
#include <vector>

#include "core/huge_buffer.h"
#include "model/model.h"
#include "model/weights.h"
#include "ops/matmul.h"
#include "ops/rope.h"
#include "ops/span_attention.h"

namespace polyspan {

class Transformer final : public Model {
 public:
  Transformer(std::unique_ptr<GgufFile> file, ModelConfig config, OpContext& context, Progress& progress);

  void forward(const Batch& batch) override;
  void logits(std::span<const int64_t> rows, float* out) override;
  std::unique_ptr<SpanProfiler> make_span_profiler(Progress& progress) override;
  int64_t max_batch_tokens() const override;
  int64_t weight_bytes() const override { return weights_.bytes(); }
  int64_t bytes_per_token() const override { return weights_.bytes(); }

 private:
  // Working memory for up to `capacity` tokens; grows with the largest batch seen.
  struct Activations {
    int64_t capacity = 0;
    std::vector<float> x, normed, q, k, v, attention, ffn;  // [capacity, ...]
    std::vector<ActBlock> blocks;                           // the input of the next product, quantised
  };

  void reserve(int64_t n_tokens);
  void run_layer(int64_t layer, const Batch& batch);
  // act_.q, k, v -> act_.attention; the new keys and values go into the caches.
  void attend(int64_t layer, const Batch& batch);
  void norm(const std::vector<float>& weight, int64_t n_tokens);
  MatmulInput input(const std::vector<float>& values, int64_t n_tokens, int64_t d_in);

  OpContext& context_;
  Weights weights_;
  Activations act_;
  RopeTable rope_table_;
  SpanAttention attention_;
  // Keys and values of a chunk that would overwrite ring slots its own queries still need; one layer at a time.
  HugeBuffer chunk_;
  std::vector<AttentionHead> heads_;  // [n_sequences * n_kv_heads] of the current layer
  std::vector<AttentionSequence> attention_sequences_;
};

std::unique_ptr<Model> make_transformer(std::unique_ptr<GgufFile> file, ModelConfig config, OpContext& context,
                                        Progress& progress);

}  // namespace polyspan
