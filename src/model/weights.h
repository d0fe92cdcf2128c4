// model/weights.h: a transformer's weights: small vectors as floats, matrices repacked for the kernels.
//
// The repacked matrices are the only copy in memory: each file page is dropped as soon as it was packed. An embedding
// table that is not shared with the output layer stays in the mapped file (a token needs one row).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/huge_buffer.h"
#include "core/progress.h"
#include "io/gguf.h"
#include "model/config.h"
#include "ops/context.h"
#include "ops/packed_matrix.h"

namespace polyspan {

struct LayerWeights {
  std::vector<float> attn_norm, ffn_norm;     // [d_model]
  std::vector<float> q_bias, k_bias, v_bias;  // [n_heads * head_dim], [n_kv_heads * head_dim] x 2; or empty
  PackedMatrix q, k, v;                       // [n_heads * head_dim, d_model], [n_kv_heads * head_dim, d_model] x 2
  PackedMatrix attn_out;                      // [d_model, n_heads * head_dim]
  PackedMatrix gate, up;                      // [d_ff, d_model]
  PackedMatrix down;                          // [d_model, d_ff]
};

class Weights {
 public:
  // Packs everything with all threads of `context`. Throws Error (kBadFile: missing tensors, wrong shapes or types;
  // kOutOfMemory before anything is allocated).
  static Weights load(const GgufFile& file, const ModelConfig& config, OpContext& context, Progress& progress);

  std::vector<LayerWeights> layers;
  std::vector<float> output_norm;  // [d_model]
  PackedMatrix output;             // [vocab_size, d_model]

  // Row `token` of the embedding table as floats [d_model]. REQUIRES: 0 <= token < vocab_size.
  void embedding(int64_t token, float* out) const;
  int64_t bytes() const { return memory_.size_bytes(); }

 private:
  HugeBuffer memory_;
  const GgufTensor* embedding_in_file_ = nullptr;  // null: the embedding is the output matrix
};

}  // namespace polyspan
