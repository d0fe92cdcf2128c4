#include "model/weights.h"

#include <string>

#include "model/weight_packer.h"

namespace polyspan {

Weights Weights::load(const GgufFile& file, const ModelConfig& config, OpContext& context, Progress& progress) {
  Weights weights;
  WeightPacker packer(file);
  const auto add = [&](const std::string& name, int64_t d_out, int64_t d_in, PackedMatrix& matrix) {
    packer.add(name, d_out, d_in, matrix);
  };
  const auto read_vector = [](const GgufFile& from, const std::string& name, int64_t n) {
    return read_floats(from, name, {n});
  };

  const int64_t q_dim = config.n_heads * config.head_dim, kv_dim = config.n_kv_heads * config.head_dim;
  weights.layers.resize(static_cast<size_t>(config.n_layers));
  for (int64_t layer = 0; layer < config.n_layers; ++layer) {
    LayerWeights& w = weights.layers[static_cast<size_t>(layer)];
    const std::string prefix = "blk." + std::to_string(layer) + ".";
    w.attn_norm = read_vector(file, prefix + "attn_norm.weight", config.d_model);
    w.ffn_norm = read_vector(file, prefix + "ffn_norm.weight", config.d_model);
    add(prefix + "attn_q.weight", q_dim, config.d_model, w.q);
    add(prefix + "attn_k.weight", kv_dim, config.d_model, w.k);
    add(prefix + "attn_v.weight", kv_dim, config.d_model, w.v);
    add(prefix + "attn_output.weight", config.d_model, q_dim, w.attn_out);
    add(prefix + "ffn_gate.weight", config.d_ff, config.d_model, w.gate);
    add(prefix + "ffn_up.weight", config.d_ff, config.d_model, w.up);
    add(prefix + "ffn_down.weight", config.d_model, config.d_ff, w.down);
    if (config.qkv_bias) {
      w.q_bias = read_vector(file, prefix + "attn_q.bias", q_dim);
      w.k_bias = read_vector(file, prefix + "attn_k.bias", kv_dim);
      w.v_bias = read_vector(file, prefix + "attn_v.bias", kv_dim);
    }
  }
  weights.output_norm = read_vector(file, "output_norm.weight", config.d_model);
  const bool tied = file.find_tensor("output.weight") == nullptr;
  add(tied ? "token_embd.weight" : "output.weight", config.vocab_size, config.d_model, weights.output);
  if (!tied) weights.embedding_in_file_ = file.find_tensor("token_embd.weight");

  weights.memory_ = packer.pack(context, progress);
  return weights;
}

void Weights::embedding(int64_t token, float* out) const {
  if (embedding_in_file_ == nullptr) return unpack_row(output, token, out);
  const int64_t d_model = embedding_in_file_->dims[0], bytes = row_bytes(embedding_in_file_->type, d_model);
  dequantize_row(embedding_in_file_->type, embedding_in_file_->data.data() + token * bytes, d_model, out);
}

}  // namespace polyspan
