// model/transformer_reference.h: the whole forward pass in double and in plain loops, straight from the file: what the
// tests hold Transformer to. Knows nothing of caches, batches, packing or instruction levels.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "io/gguf.h"
#include "model/config.h"
#include "ops/kernels.h"

namespace polyspan::testing_util {

using Vector = std::vector<double>;

class TransformerReference {
 public:
  TransformerReference(const GgufFile& file, const ModelConfig& config) : file_(file), config_(config) {}

  // For finite differences: added to the input of layer 0 [n_tokens * d_model]; and one head's output O of one layer
  // replaced by O + amount * (its output with another span - O).
  Vector input_offset;
  struct Blend {
    int64_t layer = -1, head = 0, span = 0;
    double amount = 0;
  } blend;

  // Logits [n_tokens][vocab_size] of every position. spans: [n_layers * n_heads].
  std::vector<Vector> logits(std::span<const int32_t> tokens, std::span<const AttentionSpan> spans) const {
    const size_t d_model = static_cast<size_t>(config_.d_model);
    const Vector embedding = values("token_embd.weight");
    std::vector<Vector> x;
    for (const int32_t token : tokens) {
      const auto row = embedding.begin() + token * config_.d_model;
      x.emplace_back(row, row + config_.d_model);
      if (!input_offset.empty())
        for (size_t i = 0; i < d_model; ++i) x.back()[i] += input_offset[(x.size() - 1) * d_model + i];
    }
    for (int64_t layer = 0; layer < config_.n_layers; ++layer) {
      const std::string prefix = "blk." + std::to_string(layer) + ".";
      const auto layer_spans =
          spans.subspan(static_cast<size_t>(layer * config_.n_heads), static_cast<size_t>(config_.n_heads));
      const std::vector<Vector> y_attention = normed(x, prefix + "attn_norm.weight");
      std::vector<Vector> attended = attention(prefix, y_attention, layer_spans);
      if (layer == blend.layer) {
        std::vector<AttentionSpan> other(layer_spans.begin(), layer_spans.end());
        other[static_cast<size_t>(blend.head)].span = blend.span;
        const std::vector<Vector> changed = attention(prefix, y_attention, other);
        for (size_t t = 0; t < x.size(); ++t)
          for (size_t i = 0; i < attended[t].size(); ++i)
            attended[t][i] += blend.amount * (changed[t][i] - attended[t][i]);
      }
      for (size_t t = 0; t < x.size(); ++t) add(x[t], product(prefix + "attn_output", attended[t], d_model));
      const std::vector<Vector> y = normed(x, prefix + "ffn_norm.weight");
      for (size_t t = 0; t < x.size(); ++t) {
        Vector gate = product(prefix + "ffn_gate", y[t], static_cast<size_t>(config_.d_ff));
        const Vector up = product(prefix + "ffn_up", y[t], static_cast<size_t>(config_.d_ff));
        for (size_t i = 0; i < gate.size(); ++i) gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
        add(x[t], product(prefix + "ffn_down", gate, d_model));
      }
    }
    const std::string output = file_.find_tensor("output.weight") != nullptr ? "output" : "token_embd";
    std::vector<Vector> out;
    for (const Vector& row : normed(x, "output_norm.weight"))
      out.push_back(product(output, row, static_cast<size_t>(config_.vocab_size)));
    return out;
  }

 private:
  Vector values(const std::string& name) const {
    const GgufTensor& tensor = *file_.find_tensor(name);
    std::vector<float> floats(static_cast<size_t>(tensor.n_values()));
    dequantize_row(tensor.type, tensor.data.data(), tensor.n_values(), floats.data());
    return {floats.begin(), floats.end()};
  }
  // W x, plus the bias where the file has one.
  Vector product(const std::string& name, const Vector& x, size_t d_out) const {
    if (cached_name_ != name) cached_ = values(name + ".weight"), cached_name_ = name;
    Vector y(d_out, 0.0);
    for (size_t i = 0; i < d_out; ++i)
      for (size_t j = 0; j < x.size(); ++j) y[i] += cached_[i * x.size() + j] * x[j];
    if (file_.find_tensor(name + ".bias") != nullptr) add(y, values(name + ".bias"));
    return y;
  }
  static void add(Vector& x, const Vector& y) {
    for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  }
  std::vector<Vector> normed(std::vector<Vector> x, const std::string& name) const {
    const Vector weight = values(name);
    for (Vector& row : x) {
      double squares = 0;
      for (const double value : row) squares += value * value;
      const double inverse =
          1 / std::sqrt(squares / static_cast<double>(row.size()) + static_cast<double>(config_.norm_eps));
      for (size_t i = 0; i < row.size(); ++i) row[i] *= inverse * weight[i];
    }
    return x;
  }
  void rotate(double* x, int64_t position) const {
    const RopeConfig& rope = config_.rope;
    for (int64_t pair = 0; pair < rope.n_dims / 2; ++pair) {
      double angle = static_cast<double>(position) / rope.linear_scale *
                     std::pow(rope.base, -2.0 * static_cast<double>(pair) / static_cast<double>(rope.n_dims));
      if (!rope.frequency_factors.empty())
        angle /= static_cast<double>(rope.frequency_factors[static_cast<size_t>(pair)]);
      const bool interleaved = rope.pairing == RopePairing::kInterleaved;
      double& a = x[interleaved ? 2 * pair : pair];
      double& b = x[interleaved ? 2 * pair + 1 : pair + rope.n_dims / 2];
      const double old_a = a;
      a = old_a * std::cos(angle) - b * std::sin(angle);
      b = old_a * std::sin(angle) + b * std::cos(angle);
    }
  }
  std::vector<Vector> attention(const std::string& prefix, const std::vector<Vector>& x,
                                std::span<const AttentionSpan> spans) const {
    const int64_t d = config_.head_dim, n_rep = config_.n_heads / config_.n_kv_heads, n = std::ssize(x);
    const auto project = [&](const char* name, int64_t n_heads, bool rope) {
      std::vector<Vector> out;
      for (int64_t t = 0; t < n; ++t) {
        out.push_back(product(prefix + name, x[static_cast<size_t>(t)], static_cast<size_t>(n_heads * d)));
        for (int64_t head = 0; rope && head < n_heads; ++head) rotate(out.back().data() + head * d, t);
      }
      return out;
    };
    const std::vector<Vector> q = project("attn_q", config_.n_heads, true),
                              k = project("attn_k", config_.n_kv_heads, true),
                              v = project("attn_v", config_.n_kv_heads, false);
    std::vector<Vector> out(static_cast<size_t>(n), Vector(static_cast<size_t>(config_.n_heads * d), 0.0));
    for (int64_t query = 0; query < n; ++query)
      for (int64_t head = 0; head < config_.n_heads; ++head) {
        const AttentionSpan& span = spans[static_cast<size_t>(head)];
        const size_t kv_at = static_cast<size_t>(head / n_rep * d), q_at = static_cast<size_t>(head * d);
        Vector weights(static_cast<size_t>(query + 1), -INFINITY);
        for (int64_t key = 0; key <= query; ++key) {
          if (key >= span.n_sink_tokens && query - key >= span.span) continue;
          double dot = 0;
          for (size_t i = 0; i < static_cast<size_t>(d); ++i)
            dot += q[static_cast<size_t>(query)][q_at + i] * k[static_cast<size_t>(key)][kv_at + i];
          weights[static_cast<size_t>(key)] = dot / std::sqrt(static_cast<double>(d));
        }
        const double largest = *std::max_element(weights.begin(), weights.end());
        double total = 0;
        for (double& weight : weights) total += weight = std::exp(weight - largest);
        for (size_t key = 0; key < weights.size(); ++key)
          for (size_t i = 0; i < static_cast<size_t>(d); ++i)
            out[static_cast<size_t>(query)][q_at + i] += weights[key] / total * v[key][kv_at + i];
      }
    return out;
  }

  const GgufFile& file_;
  const ModelConfig& config_;
  mutable std::string cached_name_;  // the matrix that was used last, as doubles
  mutable Vector cached_;
};

}  // namespace polyspan::testing_util
