// model/kept_layers.h: what a profile's backward pass would else compute again, kept of as many layers as a budget of memory
// holds: of the first layers the feed-forward part's input and products, of the first of them queries, keys and values.
#pragma once

#include <cstdint>

#include "core/huge_buffer.h"
#include "model/config.h"

namespace polyspan {

class KeptLayers {
 public:
  // with_ffn: whether the feed-forward parts may be kept at all.
  KeptLayers(const ModelConfig& config, bool with_ffn)
      : n_layers_(config.n_layers),
        n_ffn_layers_(with_ffn ? config.n_layers : 0),
        d_model_(config.d_model),
        d_ff_(config.d_ff),
        q_dim_(config.n_heads * config.head_dim),
        kv_dim_(config.n_kv_heads * config.head_dim) {}

  // What reserve() would take of `budget`, in bytes.
  int64_t bytes_needed(int64_t n_tokens, int64_t budget) const;
  // For sequences of n_tokens. Takes the budget once, whatever the lengths are: pages that were touched serve the next one,
  // too (taking them costs up to 1 s a GB). Keeps nothing where as much is not free.
  void reserve(int64_t n_tokens, int64_t budget);
  void release();

  bool has_ffn(int64_t layer) const { return layer < kept_.n_ffn; }
  bool has_attention(int64_t layer) const { return layer < kept_.n_attention; }
  // REQUIRES: has_ffn(layer).
  float* middle(int64_t layer, int64_t row) const { return ffn(layer) + row * d_model_; }  // [n_tokens, d_model]
  // [n_tokens, 2 * d_ff] of f16: gate, then up.
  uint16_t* gate_up(int64_t layer, int64_t row) const {
    return reinterpret_cast<uint16_t*>(ffn(layer) + n_tokens_ * d_model_) + row * 2 * d_ff_;
  }
  // REQUIRES: has_attention(layer). After RoPE, q scaled.
  float* q(int64_t layer) const { return ffn(kept_.n_ffn) + layer * n_tokens_ * (q_dim_ + 2 * kv_dim_); }
  float* k(int64_t layer) const { return q(layer) + n_tokens_ * q_dim_; }
  float* v(int64_t layer) const { return k(layer) + n_tokens_ * kv_dim_; }

 private:
  struct Counts {
    int64_t n_ffn = 0, n_attention = 0;  // layers
  };
  Counts counts(int64_t n_tokens, int64_t budget) const;
  int64_t ffn_bytes(int64_t n_tokens) const;  // of one layer
  int64_t attention_bytes(int64_t n_tokens) const;
  float* ffn(int64_t layer) const { return memory_.as<float>().data() + layer * n_tokens_ * (d_model_ + d_ff_); }

  int64_t n_layers_, n_ffn_layers_, d_model_, d_ff_, q_dim_, kv_dim_;
  int64_t n_tokens_ = 0;
  Counts kept_;
  HugeBuffer memory_;  // [n_ffn]{middle, gate and up}, [n_attention]{q, k, v}
};

}  // namespace polyspan
