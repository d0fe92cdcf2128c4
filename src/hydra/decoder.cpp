#include "hydra/decoder.h"

#include <cmath>
#include <limits>

#include "core/error.h"
#include "hydra/controller.h"
#include "hydra/experts.h"
#include "hydra/precision.h"
#include "hydra/product_keys.h"
#include "hydra/ssm.h"

namespace polyspan {
namespace {

constexpr double kUnseen = -std::numeric_limits<double>::infinity();

// Rotary embedding at one position.
struct Rotation {
  torch::Tensor cos, sin;  // [head_dim / 2]

  Rotation(int64_t position, int64_t head_dim, double base, const torch::TensorOptions& options) {
    const int64_t half = head_dim / 2;
    const torch::Tensor pair = torch::arange(half, options.dtype(torch::kFloat64));
    const torch::Tensor angle = torch::pow(base, pair / -static_cast<double>(half)) * static_cast<double>(position);
    cos = angle.cos().to(options), sin = angle.sin().to(options);
  }
  // x [n_heads, head_dim]
  torch::Tensor of(const torch::Tensor& x) const {
    const torch::Tensor pairs = not_bf16(x).view({x.size(0), x.size(1) / 2, 2});
    const torch::Tensor a = pairs.select(-1, 0), b = pairs.select(-1, 1);
    return torch::stack({a * cos - b * sin, a * sin + b * cos}, -1).view(x.sizes());
  }
};

// q [n_heads, head_dim]; keys, values [n_kv_heads, n, head_dim]; bias [n], or undefined. -> [1, n_heads * head_dim]
torch::Tensor attend(const torch::Tensor& q, const torch::Tensor& keys, const torch::Tensor& values,
                     const torch::Tensor& bias) {
  const double scale = 1.0 / std::sqrt(static_cast<double>(q.size(1)));
  torch::Tensor logits = not_bf16(torch::matmul((q * scale).view({keys.size(0), -1, q.size(1)}), keys.transpose(1, 2)));
  if (bias.defined()) logits = logits + bias;
  return torch::matmul(torch::softmax(logits, -1), values).reshape({1, -1});
}

torch::TensorOptions cache_options(const torch::TensorOptions& options) {
  return Bf16Products::are_on(options.device().type()) ? options.dtype(torch::kBFloat16) : options;
}

int64_t bytes_of(const torch::Tensor& tensor) { return tensor.defined() ? static_cast<int64_t>(tensor.nbytes()) : 0; }

class TransformerDecoder final : public Decoder {
 public:
  TransformerDecoder(const TransformerSizes& sizes, const Parameters& parameters, int64_t capacity)
      : c_(sizes), parameters_(parameters), options_(parameters["output_norm.weight"].options().requires_grad(false)) {
    for (int64_t layer = 0; layer < c_.n_layers; ++layer)
      for (std::vector<torch::Tensor>* cache : {&keys_, &values_})
        cache->push_back(torch::zeros({c_.n_kv_heads, capacity, c_.head_dim}, cache_options(options_)));
  }

  torch::Tensor step(const torch::Tensor& token) override {
    const torch::NoGradGuard no_grad;
    const Rotation rotation(position_, c_.head_dim, c_.rope_base, options_);
    torch::Tensor x = not_bf16(torch::embedding(parameters_["token_embd.weight"], token));  // [1, d_model]
    for (int64_t layer = 0; layer < c_.n_layers; ++layer) {
      const BlockParameters w(parameters_, layer);
      const torch::Tensor n = rms_norm(x, w["attn_norm.weight"], c_.norm_eps);
      const auto heads = [&](const char* name) { return torch::linear(n, w[name]).view({-1, c_.head_dim}); };
      const torch::Tensor &keys = keys_[static_cast<size_t>(layer)], &values = values_[static_cast<size_t>(layer)];
      keys.select(1, position_).copy_(rotation.of(heads("attn_k.weight")));
      values.select(1, position_).copy_(heads("attn_v.weight"));
      const torch::Tensor read = attend(rotation.of(heads("attn_q.weight")), keys.narrow(1, 0, position_ + 1),
                                        values.narrow(1, 0, position_ + 1), {});
      x = x + torch::linear(read, w["attn_output.weight"]);
      x = x + not_bf16(swiglu(rms_norm(x, w["ffn_norm.weight"], c_.norm_eps), w["ffn_gate.weight"], w["ffn_up.weight"],
                              w["ffn_down.weight"]));
    }
    ++position_;
    return output_logits(parameters_, x, c_.norm_eps);
  }

  void pretend(int64_t n_tokens) override { position_ = n_tokens; }
  int64_t state_bytes() const override { return 2 * c_.n_layers * bytes_of(keys_[0]); }

 private:
  const TransformerSizes c_;
  const Parameters& parameters_;
  const torch::TensorOptions options_;
  std::vector<torch::Tensor> keys_, values_;  // [n_kv_heads, capacity, head_dim]
  int64_t position_ = 0;
};

// The state of the engine's model (model/hydra_state.h) in tensors.
struct BlockState {
  torch::Tensor chunk_sum, last_mean;  // [1, d_model]
  torch::Tensor multipliers;           // [3] of this chunk
  std::vector<int64_t> experts;        // of this chunk
  torch::Tensor expert_weights;        // [n_active_experts]
  SsmState ssm;
  torch::Tensor keys, values;  // [n_kv_heads, window + n_global, head_dim]: the window's ring, then the global set
  torch::Tensor bias;          // [window + n_global]
  torch::Tensor near_scores;   // [window]
  torch::Tensor far_scores, far_at;     // [n_global]
  torch::Tensor slots, slot_k, slot_v;  // [n_slots, ...]
  torch::Tensor write_k, write_v;       // [chunk_len, ...]
};

class HydraDecoder final : public Decoder {
 public:
  HydraDecoder(const HydraConfig& config, const Parameters& parameters)
      : c_(config), parameters_(parameters), options_(parameters["output_norm.weight"].options().requires_grad(false)) {
    const torch::NoGradGuard no_grad;
    const auto zeros = [&](std::vector<int64_t> shape) { return torch::zeros(shape, options_); };
    for (int64_t layer = 0; layer < c_.n_layers; ++layer) {
      BlockState& s = blocks_.emplace_back();
      s.chunk_sum = zeros({1, c_.d_model}), s.last_mean = zeros({1, c_.d_model});
      if (c_.has_attention(layer)) {
        const int64_t n_keys = c_.window + c_.n_global;
        s.keys = torch::zeros({c_.n_kv_heads, n_keys, c_.head_dim}, cache_options(options_));
        s.values = torch::zeros_like(s.keys);
        s.bias = torch::full({n_keys}, kUnseen, options_);
        s.near_scores = zeros({c_.window});
        s.far_scores = torch::full({c_.n_global}, kUnseen, options_);
        s.far_at = torch::full({c_.n_global}, std::numeric_limits<int64_t>::max() / 2, options_.dtype(torch::kInt64));
      }
      if (c_.has_workspace(layer)) {
        const BlockParameters w(parameters_, layer);
        s.slots = w["slots_init"].detach().clone();
        project_slots(w, s);
        s.write_k = zeros({c_.chunk_len, c_.slot_rank}), s.write_v = zeros({c_.chunk_len, c_.d_slot});
      }
    }
  }

  torch::Tensor step(const torch::Tensor& token) override {
    const torch::NoGradGuard no_grad;
    const Rotation rotation(position_, c_.head_dim, c_.rope_base, options_);
    torch::Tensor x = not_bf16(torch::embedding(parameters_["token_embd.weight"], token));  // [1, d_model]
    for (int64_t layer = 0; layer < c_.n_layers; ++layer) {
      const BlockParameters w(parameters_, layer);
      BlockState& s = blocks_[static_cast<size_t>(layer)];
      const torch::Tensor n = rms_norm(x, w["norm.weight"], c_.norm_eps), one = n.unsqueeze(0);
      if (in_chunk() == 0) decide(w, n, layer, s);
      const auto add = [&](int64_t path, const torch::Tensor& y) { x = x + s.multipliers[path] * not_bf16(y); };
      if (c_.has_ssm) add(0, ssm(c_, w, one, &s.ssm).squeeze(0));
      if (c_.has_attention(layer)) add(1, attention(w, n, rotation, s));
      if (c_.has_workspace(layer)) add(1, workspace_of(w, n, s));
      if (c_.has_moe(layer)) add(2, experts_of(w, n, s));
      if (c_.has_pkm(layer)) x = x + not_bf16(product_keys(c_, w, one).y.squeeze(0));
      s.chunk_sum = s.chunk_sum + n;
      if (in_chunk() + 1 < c_.chunk_len) continue;
      s.last_mean = s.chunk_sum / static_cast<double>(c_.chunk_len);
      s.chunk_sum = torch::zeros_like(s.chunk_sum);
    }
    ++position_;
    return output_logits(parameters_, x, c_.norm_eps);
  }

  void pretend(int64_t n_tokens) override {
    POLYSPAN_CHECK(n_tokens % c_.chunk_len == 0);
    position_ = n_tokens;
    for (BlockState& s : blocks_)
      if (s.bias.defined() && n_tokens >= c_.window) s.bias.narrow(0, 0, c_.window).zero_();
  }

  int64_t state_bytes() const override {
    int64_t bytes = 0;
    for (const BlockState& s : blocks_)
      for (const torch::Tensor* t :
           {&s.chunk_sum, &s.last_mean, &s.ssm.conv, &s.ssm.scan, &s.keys, &s.values, &s.bias, &s.near_scores,
            &s.far_scores, &s.far_at, &s.slots, &s.slot_k, &s.slot_v, &s.write_k, &s.write_v})
        bytes += bytes_of(*t);
    return bytes;
  }

 private:
  int64_t in_chunk() const { return position_ % c_.chunk_len; }

  void decide(const BlockParameters& w, const torch::Tensor& n, int64_t layer, BlockState& s) const {
    const torch::Tensor summary = torch::cat({s.last_mean, n}, -1).unsqueeze(0);
    s.multipliers = not_bf16(path_multipliers(w, summary)).view({3}) * w["path_scales"];
    if (!c_.has_moe(layer)) return;
    const Routing routing = route(c_, w, summary, {});
    const torch::Tensor chosen = routing.experts.flatten().to(torch::kCPU);  // waits for the device, once a chunk
    s.experts.assign(chosen.data_ptr<int64_t>(), chosen.data_ptr<int64_t>() + chosen.numel());
    s.expert_weights = routing.weights.flatten();
  }

  torch::Tensor attention(const BlockParameters& w, const torch::Tensor& n, const Rotation& rotation,
                          BlockState& s) const {
    if (in_chunk() == 0 && c_.n_global > 0) update_global_set(s);
    const int64_t slot = position_ % c_.window;
    const auto heads = [&](const char* name) { return torch::linear(n, w[name]).view({-1, c_.head_dim}); };
    s.keys.select(1, slot).copy_(rotation.of(heads("attn_k.weight")));
    s.values.select(1, slot).copy_(heads("attn_v.weight"));
    s.bias[slot].zero_();
    if (c_.n_global > 0) {
      s.near_scores[slot].copy_((not_bf16(torch::matmul(n, w["attn_score.weight"])) + w["attn_score.bias"]).squeeze(0));
      s.bias.narrow(0, c_.window, c_.n_global)
          .copy_(s.far_scores.masked_fill(s.far_at > position_ - c_.window, kUnseen));
    }
    return torch::linear(attend(rotation.of(heads("attn_q.weight")), s.keys, s.values, s.bias),
                         w["attn_output.weight"]);
  }

  // The chunk that begins to leave the window, whose rows of the ring are about to be written, joins the candidates.
  void update_global_set(BlockState& s) const {
    const int64_t leaving = position_ - c_.window;
    if (leaving < 0) return;
    const int64_t slot = leaving % c_.window;
    const auto [scores, best] =
        torch::cat({s.far_scores, s.near_scores.narrow(0, slot, c_.chunk_len)}).topk(c_.n_global, -1);
    s.far_scores = scores;
    const torch::Tensor at = torch::arange(leaving, leaving + c_.chunk_len, s.far_at.options());
    s.far_at = torch::cat({s.far_at, at}).index_select(0, best);
    for (const torch::Tensor* rows : {&s.keys, &s.values}) {
      const torch::Tensor far = rows->narrow(1, c_.window, c_.n_global);
      far.copy_(torch::cat({far, rows->narrow(1, slot, c_.chunk_len)}, 1).index_select(1, best));
    }
  }

  torch::Tensor experts_of(const BlockParameters& w, const torch::Tensor& n, const BlockState& s) const {
    torch::Tensor sum;
    for (size_t i = 0; i < s.experts.size(); ++i) {
      const int64_t e = s.experts[i];
      const torch::Tensor y =
          not_bf16(swiglu(n, w["moe_gate.weight"][e], w["moe_up.weight"][e], w["moe_down.weight"][e])) *
          s.expert_weights[static_cast<int64_t>(i)];
      sum = i == 0 ? y : sum + y;
    }
    return sum;
  }

  torch::Tensor workspace_of(const BlockParameters& w, const torch::Tensor& n, BlockState& s) const {
    const Bf16Products off(n.device().type(), false);
    const double scale = 1.0 / std::sqrt(static_cast<double>(c_.slot_rank));
    const torch::Tensor q = torch::linear(n, w["slots_read_q.weight"]) * scale;
    const torch::Tensor read = torch::matmul(torch::softmax(torch::matmul(q, s.slot_k.t()), -1), s.slot_v);
    s.write_k.narrow(0, in_chunk(), 1).copy_(torch::linear(n, w["slots_write_k.weight"]) * scale);
    s.write_v.narrow(0, in_chunk(), 1).copy_(torch::linear(n, w["slots_write_v.weight"]));
    if (in_chunk() + 1 == c_.chunk_len) {
      const torch::Tensor queries = torch::linear(s.slots, w["slots_write_q.weight"]);
      const torch::Tensor u = torch::matmul(torch::softmax(torch::matmul(queries, s.write_k.t()), -1), s.write_v);
      const torch::Tensor z =
          torch::sigmoid(torch::linear(torch::cat({s.slots, u}, -1), w["slots_gate.weight"], w["slots_gate.bias"]));
      s.slots = torch::lerp(s.slots, u, z);
      project_slots(w, s);
    }
    return torch::linear(read, w["slots_read_out.weight"]);
  }

  static void project_slots(const BlockParameters& w, BlockState& s) {
    const Bf16Products off(s.slots.device().type(), false);
    s.slot_k = torch::linear(s.slots, w["slots_read_k.weight"]);
    s.slot_v = torch::linear(s.slots, w["slots_read_v.weight"]);
  }

  const HydraConfig c_;
  const Parameters& parameters_;
  const torch::TensorOptions options_;
  std::vector<BlockState> blocks_;
  int64_t position_ = 0;
};

}  // namespace

std::unique_ptr<Decoder> make_decoder(const TrainConfig& config, const LanguageModel& model, int64_t capacity) {
  if (config.architecture == "hydra") return std::make_unique<HydraDecoder>(config.hydra, model.parameters());
  return std::make_unique<TransformerDecoder>(config.transformer, model.parameters(), capacity);
}

void store_matrices_in_bf16(Parameters& parameters) {
  const torch::NoGradGuard no_grad;
  for (size_t i = 0; i < parameters.specs().size(); ++i)
    if (parameters.specs()[i].is_matrix && parameters.specs()[i].part != HydraPart::kWorkspace) {
      torch::Tensor tensor = parameters.tensors()[i];
      tensor.set_data(tensor.to(torch::kBFloat16));
    }
}

}  // namespace polyspan
