#include "hydra/decoder.h"

#include <ATen/autocast_mode.h>

#include <cmath>
#include <limits>
#include <map>

#include "core/error.h"
#include "hydra/controller.h"
#include "hydra/device_graph.h"
#include "hydra/experts.h"
#include "hydra/fused_block.h"
#include "hydra/fused_ssm.h"
#include "hydra/precision.h"
#include "hydra/product_keys.h"
#include "hydra/ssm.h"

namespace polyspan {
namespace {

constexpr double kUnseen = -std::numeric_limits<double>::infinity();

// x as the products of a step read it: cast once instead of in each of them.
torch::Tensor for_products(const torch::Tensor& x) {
  return Bf16Products::are_on(x.device().type()) ? x.to(torch::kBFloat16) : x;
}

// silu(gate) up factor. gate, up [n, d]; factor [n].
torch::Tensor gated_rows(const torch::Tensor& gate, const torch::Tensor& up, const torch::Tensor& factor) {
  if (fused_swiglu_takes(gate)) return fused_swiglu(gate, up, factor);
  return torch::silu(not_bf16(gate)) * up * factor.unsqueeze(-1);
}

// Rotary embedding at one position: pairs of numbers as complex ones.
class Rotation {
 public:
  Rotation(int64_t head_dim, double base, const torch::TensorOptions& options)
      : type_(options.dtype() == torch::kFloat64 ? torch::kComplexDouble : torch::kComplexFloat) {
    const int64_t half = head_dim / 2;
    frequencies_ = torch::pow(base, torch::arange(half, options.dtype(torch::kFloat64)) / -static_cast<double>(half));
    ones_ = torch::ones_like(frequencies_);
  }
  void move_to(const torch::Tensor& position) { turn_ = torch::polar(ones_, frequencies_ * position).to(type_); }
  // x [n_heads, head_dim]
  torch::Tensor of(const torch::Tensor& x) const {
    const torch::Tensor pairs = torch::view_as_complex(not_bf16(x).view({x.size(0), x.size(1) / 2, 2}));
    return torch::view_as_real(pairs * turn_).view(x.sizes());
  }

 private:
  torch::ScalarType type_;
  torch::Tensor frequencies_, ones_;  // [head_dim / 2], double
  torch::Tensor turn_;                // [head_dim / 2], complex
};

// q [n_heads, head_dim]; keys, values [n_kv_heads, n, head_dim]; bias [n]. -> [1, n_heads * head_dim]
torch::Tensor attend(const torch::Tensor& q, const torch::Tensor& keys, const torch::Tensor& values,
                     const torch::Tensor& bias) {
  const double scale = 1.0 / std::sqrt(static_cast<double>(q.size(1)));
  torch::Tensor logits = not_bf16(torch::matmul((q * scale).view({keys.size(0), -1, q.size(1)}), keys.transpose(1, 2)));
  return torch::matmul(torch::softmax(logits + bias, -1), values).reshape({1, -1});
}

// row [n_kv_heads, head_dim] into a cache [n_kv_heads, n, head_dim]. place [1], int64.
void keep_at(const torch::Tensor& place, const torch::Tensor& row, torch::Tensor& cache) {
  cache.index_copy_(1, place, row.to(cache.scalar_type()).unsqueeze(1));
}

torch::TensorOptions cache_options(const torch::TensorOptions& options) {
  return Bf16Products::are_on(options.device().type()) ? options.dtype(torch::kBFloat16) : options;
}

// Without it autocast keeps weights that it has cast, and a recorded step would read what is gone by then.
class NoCastWeights {
 public:
  NoCastWeights() : before_(at::autocast::is_autocast_cache_enabled()) {
    at::autocast::set_autocast_cache_enabled(false);
  }
  ~NoCastWeights() { at::autocast::set_autocast_cache_enabled(before_); }
  NoCastWeights(const NoCastWeights&) = delete;
  NoCastWeights& operator=(const NoCastWeights&) = delete;

 private:
  bool before_;
};

// Steps computed or replayed. What a step changes it changes in place, and where it is in the sequence it reads on the device.
class SteppingDecoder : public Decoder {
 public:
  torch::Tensor step(const torch::Tensor& token) final {
    const torch::NoGradGuard no_grad;
    const NoCastWeights no_cast_weights;
    Kind& kind = kinds_[kind_of_step()];
    if (kind.graph == nullptr && (!graphs_ || ++kind.n_computed == 1)) {
      kind.logits = compute(token);
    } else {
      token_.copy_(token);
      if (kind.graph == nullptr)
        kind.graph = std::make_unique<DeviceGraph>(token_.device(), [&] { kind.logits = compute(token_); });
      kind.graph->replay();
      ++n_replayed_, n_launches_ += kind.graph->n_launches();
    }
    ++n_read_;
    return kind.logits;
  }

  void pretend(int64_t n_tokens) override { n_read_ = n_tokens, position_.fill_(n_tokens); }
  double launches_per_step() const final {
    return n_replayed_ == 0 ? 0 : static_cast<double>(n_launches_) / static_cast<double>(n_replayed_);
  }

 protected:
  SteppingDecoder(const Parameters& parameters, bool graphs)
      : parameters_(parameters),
        options_(parameters["output_norm.weight"].options().requires_grad(false)),
        position_(torch::zeros({1}, options_.dtype(torch::kInt64))),
        token_(torch::zeros_like(position_)),
        graphs_(graphs && DeviceGraph::is_for(position_.device())) {}

  // Steps of one kind differ in the values on the device alone.
  virtual int64_t kind_of_step() const = 0;
  virtual torch::Tensor compute(const torch::Tensor& token) = 0;  // adds 1 to position_ at its end

  const Parameters& parameters_;
  const torch::TensorOptions options_;  // of what a step computes
  int64_t n_read_ = 0;                  // tokens read before this step, as the host knows
  torch::Tensor position_;              // [1], int64: the same on the device

 private:
  struct Kind {
    int64_t n_computed = 0;
    std::unique_ptr<DeviceGraph> graph;
    torch::Tensor logits;
  };
  torch::Tensor token_;
  bool graphs_;
  std::map<int64_t, Kind> kinds_;
  int64_t n_replayed_ = 0, n_launches_ = 0;
};

int64_t bytes_of(const torch::Tensor& tensor) { return tensor.defined() ? static_cast<int64_t>(tensor.nbytes()) : 0; }

class TransformerDecoder final : public SteppingDecoder {
 public:
  TransformerDecoder(const TransformerSizes& sizes, const Parameters& parameters, const DecoderOptions& options)
      : SteppingDecoder(parameters, options.graphs),
        c_(sizes),
        bias_(torch::full({options.capacity}, kUnseen, options_)),
        one_(torch::ones({1}, options_)),
        rotation_(c_.head_dim, c_.rope_base, options_) {
    for (int64_t layer = 0; layer < c_.n_layers; ++layer)
      for (std::vector<torch::Tensor>* cache : {&keys_, &values_})
        cache->push_back(torch::zeros({c_.n_kv_heads, options.capacity, c_.head_dim}, cache_options(options_)));
  }

  void pretend(int64_t n_tokens) override {
    SteppingDecoder::pretend(n_tokens);
    bias_.narrow(0, 0, n_tokens).zero_();
  }
  int64_t state_bytes() const override { return 2 * c_.n_layers * bytes_of(keys_[0]); }

 private:
  int64_t kind_of_step() const override { return 0; }

  torch::Tensor compute(const torch::Tensor& token) override {
    rotation_.move_to(position_);
    bias_.index_fill_(0, position_, 0);
    torch::Tensor x = not_bf16(torch::embedding(parameters_["token_embd.weight"], token));  // [1, d_model]
    for (int64_t layer = 0; layer < c_.n_layers; ++layer) {
      const BlockParameters w(parameters_, layer);
      const torch::Tensor n = for_products(rms_norm(x, w["attn_norm.weight"], c_.norm_eps));
      const auto heads = [&](const char* name) { return torch::linear(n, w[name]).view({-1, c_.head_dim}); };
      torch::Tensor &keys = keys_[static_cast<size_t>(layer)], &values = values_[static_cast<size_t>(layer)];
      keep_at(position_, rotation_.of(heads("attn_k.weight")), keys);
      keep_at(position_, heads("attn_v.weight"), values);
      const torch::Tensor read = attend(rotation_.of(heads("attn_q.weight")), keys, values, bias_);
      x = x + not_bf16(torch::linear(read, w["attn_output.weight"]));
      const torch::Tensor m = for_products(rms_norm(x, w["ffn_norm.weight"], c_.norm_eps));
      const torch::Tensor hidden =
          gated_rows(torch::linear(m, w["ffn_gate.weight"]), torch::linear(m, w["ffn_up.weight"]), one_);
      x = x + not_bf16(torch::linear(hidden, w["ffn_down.weight"]));
    }
    position_.add_(1);
    return output_logits(parameters_, x, c_.norm_eps);
  }

  const TransformerSizes c_;
  std::vector<torch::Tensor> keys_, values_;  // [n_kv_heads, capacity, head_dim]
  torch::Tensor bias_;                        // [capacity]: 0 where there is a token
  torch::Tensor one_;
  Rotation rotation_;
};

// The state of the engine's model (model/hydra_state.h) in tensors.
struct BlockState {
  torch::Tensor chunk_sum, last_mean;  // [1, d_model]
  torch::Tensor multipliers;           // [3] of this chunk
  // The matrices of this chunk's experts, copied once a chunk: [n_active_experts * d_expert, d_model], down as its transpose.
  torch::Tensor gate, up, down;
  torch::Tensor expert_weights;  // [n_active_experts]
  SsmState ssm;
  torch::Tensor keys, values;  // [n_kv_heads, window + n_global, head_dim]: the window's ring, then the global set
  torch::Tensor bias;          // [window + n_global]
  torch::Tensor near_scores;   // [window]
  torch::Tensor far_scores, far_at;     // [n_global]
  torch::Tensor slots, slot_k, slot_v;  // [n_slots, ...]
  torch::Tensor write_k, write_v;       // [chunk_len, ...]
};

class HydraDecoder final : public SteppingDecoder {
 public:
  HydraDecoder(const HydraConfig& config, const Parameters& parameters, const DecoderOptions& options)
      : SteppingDecoder(parameters, options.graphs),
        c_(config),
        rows_(torch::arange(c_.chunk_len, position_.options())),
        rotation_(c_.head_dim, c_.rope_base, options_) {
    const torch::NoGradGuard no_grad;
    const auto zeros = [&](std::vector<int64_t> shape) { return torch::zeros(shape, options_); };
    for (int64_t layer = 0; layer < c_.n_layers; ++layer) {
      BlockState& s = blocks_.emplace_back();
      const BlockParameters w(parameters_, layer);
      s.chunk_sum = zeros({1, c_.d_model}), s.last_mean = zeros({1, c_.d_model}), s.multipliers = zeros({3});
      if (c_.has_ssm && c_.ssm_kind == SsmKind::kDiagonal) s.ssm.scan = zeros({1, c_.d_model});
      if (c_.has_ssm && c_.ssm_kind == SsmKind::kMamba2) {
        s.ssm.conv = zeros({1, c_.d_conv - 1, c_.d_conv_channels()});
        s.ssm.scan = zeros({1, c_.n_ssm_heads(), c_.ssm_head_dim, c_.d_state});
      }
      if (c_.has_attention(layer)) {
        const int64_t n_keys = c_.window + c_.n_global;
        s.keys = torch::zeros({c_.n_kv_heads, n_keys, c_.head_dim}, cache_options(options_));
        s.values = torch::zeros_like(s.keys);
        s.bias = torch::full({n_keys}, kUnseen, options_);
        s.near_scores = zeros({c_.window});
        s.far_scores = torch::full({c_.n_global}, kUnseen, options_);
        s.far_at = torch::full({c_.n_global}, std::numeric_limits<int64_t>::max() / 2, position_.options());
      }
      if (c_.has_workspace(layer)) {
        s.slots = w["slots_init"].detach().clone();
        s.slot_k = zeros({c_.n_slots, c_.slot_rank}), s.slot_v = torch::zeros_like(s.slot_k);
        project_slots(w, s);
        s.write_k = zeros({c_.chunk_len, c_.slot_rank}), s.write_v = zeros({c_.chunk_len, c_.d_slot});
      }
      if (c_.has_moe(layer)) {
        const int64_t n = c_.n_active_experts * c_.d_expert;
        const torch::TensorOptions type = w["moe_gate.weight"].options().requires_grad(false);
        s.gate = torch::zeros({n, c_.d_model}, type), s.up = torch::zeros_like(s.gate);
        s.down = torch::zeros({c_.d_model, n}, type);
        s.expert_weights = zeros({c_.n_active_experts});
      }
    }
  }

  void pretend(int64_t n_tokens) override {
    POLYSPAN_CHECK(n_tokens % c_.chunk_len == 0);
    SteppingDecoder::pretend(n_tokens);
    for (BlockState& s : blocks_)
      if (s.bias.defined() && n_tokens >= c_.window) s.bias.narrow(0, 0, c_.window).zero_();
  }

  // Without the copies of experts.
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
  bool begins_chunk() const { return n_read_ % c_.chunk_len == 0; }
  bool ends_chunk() const { return (n_read_ + 1) % c_.chunk_len == 0; }
  bool fills_global_set() const { return begins_chunk() && n_read_ >= c_.window; }
  int64_t kind_of_step() const override {
    return (begins_chunk() ? 1 : 0) + (ends_chunk() ? 2 : 0) + (fills_global_set() ? 4 : 0);
  }

  torch::Tensor compute(const torch::Tensor& token) override {
    const Places at{position_.remainder(c_.chunk_len), position_.remainder(c_.window), position_ - c_.window};
    rotation_.move_to(position_);
    torch::Tensor x = not_bf16(torch::embedding(parameters_["token_embd.weight"], token));  // [1, d_model]
    for (int64_t layer = 0; layer < c_.n_layers; ++layer) {
      const BlockParameters w(parameters_, layer);
      BlockState& s = blocks_[static_cast<size_t>(layer)];
      const torch::Tensor n = rms_norm(x, w["norm.weight"], c_.norm_eps), in = for_products(n);
      if (begins_chunk()) decide(w, n, layer, s);
      const auto add = [&](int64_t path, const torch::Tensor& y) {
        x = torch::addcmul(x, not_bf16(y), s.multipliers[path]);
      };
      if (c_.has_ssm) add(0, ssm_of(w, in, s.ssm));
      if (c_.has_attention(layer)) add(1, attention(w, in, at, s));
      if (c_.has_workspace(layer)) add(1, workspace_of(w, n, at, s));
      if (c_.has_moe(layer)) add(2, experts_of(in, s));
      if (c_.has_pkm(layer)) x = x + not_bf16(product_keys(c_, w, n.unsqueeze(0)).y.squeeze(0));
      s.chunk_sum.add_(n);
      if (!ends_chunk()) continue;
      s.last_mean.copy_(s.chunk_sum / static_cast<double>(c_.chunk_len));
      s.chunk_sum.zero_();
    }
    position_.add_(1);
    return output_logits(parameters_, x, c_.norm_eps);
  }

  // [1], int64, on the device.
  struct Places {
    torch::Tensor in_chunk, in_ring;
    torch::Tensor left;  // the newest token outside the window
  };

  void decide(const BlockParameters& w, const torch::Tensor& n, int64_t layer, BlockState& s) const {
    const torch::Tensor summary = torch::cat({s.last_mean, n}, -1).unsqueeze(0);
    s.multipliers.copy_(not_bf16(path_multipliers(w, summary)).view({3}) * w["path_scales"]);
    if (!c_.has_moe(layer)) return;
    const Routing routing = route(c_, w, summary, {});
    s.expert_weights.copy_(routing.weights.flatten());
    const torch::Tensor chosen = routing.experts.flatten();
    const auto of_chosen = [&](const char* name) { return w[name].index_select(0, chosen); };
    s.gate.copy_(of_chosen("moe_gate.weight").flatten(0, 1)), s.up.copy_(of_chosen("moe_up.weight").flatten(0, 1));
    s.down.view({c_.d_model, c_.n_active_experts, c_.d_expert}).copy_(of_chosen("moe_down.weight").permute({1, 0, 2}));
  }

  torch::Tensor ssm_of(const BlockParameters& w, const torch::Tensor& in, SsmState& state) const {
    const torch::Tensor one = in.unsqueeze(0);
    if (c_.ssm_kind == SsmKind::kMamba2) {
      const torch::Tensor projected = torch::linear(one, w["ssm_in.weight"]);
      if (ssm_step_takes(c_, projected))
        return torch::linear(for_products(ssm_step(c_, w, projected, state)), w["ssm_out.weight"]).squeeze(0);
    }
    SsmState next = state;
    const torch::Tensor y = ssm(c_, w, one, &next).squeeze(0);
    state.scan.copy_(next.scan);
    if (state.conv.defined()) state.conv.copy_(next.conv);
    return y;
  }

  torch::Tensor attention(const BlockParameters& w, const torch::Tensor& in, const Places& at, BlockState& s) const {
    if (fills_global_set() && c_.n_global > 0) update_global_set(at, s);
    const auto heads = [&](const char* name) { return torch::linear(in, w[name]).view({-1, c_.head_dim}); };
    keep_at(at.in_ring, rotation_.of(heads("attn_k.weight")), s.keys);
    keep_at(at.in_ring, heads("attn_v.weight"), s.values);
    s.bias.index_fill_(0, at.in_ring, 0);
    if (c_.n_global > 0) {
      s.near_scores.index_copy_(0, at.in_ring,
                                not_bf16(torch::matmul(in, w["attn_score.weight"])) + w["attn_score.bias"]);
      s.bias.narrow(0, c_.window, c_.n_global).copy_(s.far_scores.masked_fill(s.far_at > at.left, kUnseen));
    }
    return torch::linear(attend(rotation_.of(heads("attn_q.weight")), s.keys, s.values, s.bias),
                         w["attn_output.weight"]);
  }

  // The chunk that begins to leave the window, whose rows of the ring are about to be written, joins the candidates.
  void update_global_set(const Places& at, BlockState& s) const {
    const torch::Tensor leaving = rows_ + at.in_ring;  // of the ring: it holds whole chunks
    const auto [scores, best] =
        torch::cat({s.far_scores, s.near_scores.index_select(0, leaving)}).topk(c_.n_global, -1);
    s.far_scores.copy_(scores);
    s.far_at.copy_(torch::cat({s.far_at, rows_ + at.left}).index_select(0, best));
    for (torch::Tensor* rows : {&s.keys, &s.values}) {
      torch::Tensor far = rows->narrow(1, c_.window, c_.n_global);
      far.copy_(torch::cat({far, rows->index_select(1, leaving)}, 1).index_select(1, best));
    }
  }

  torch::Tensor experts_of(const torch::Tensor& in, const BlockState& s) const {
    const auto of_each = [&](const torch::Tensor& weight) {
      return torch::linear(in, weight).view({c_.n_active_experts, c_.d_expert});
    };
    return torch::linear(gated_rows(of_each(s.gate), of_each(s.up), s.expert_weights).view({1, -1}), s.down);
  }

  torch::Tensor workspace_of(const BlockParameters& w, const torch::Tensor& n, const Places& at, BlockState& s) const {
    const Bf16Products off(n.device().type(), false);
    const double scale = 1.0 / std::sqrt(static_cast<double>(c_.slot_rank));
    const torch::Tensor q = torch::linear(n, w["slots_read_q.weight"]) * scale;
    const torch::Tensor read = torch::matmul(torch::softmax(torch::matmul(q, s.slot_k.t()), -1), s.slot_v);
    s.write_k.index_copy_(0, at.in_chunk, torch::linear(n, w["slots_write_k.weight"]) * scale);
    s.write_v.index_copy_(0, at.in_chunk, torch::linear(n, w["slots_write_v.weight"]));
    if (ends_chunk()) {
      const torch::Tensor queries = torch::linear(s.slots, w["slots_write_q.weight"]);
      const torch::Tensor u = torch::matmul(torch::softmax(torch::matmul(queries, s.write_k.t()), -1), s.write_v);
      const torch::Tensor z =
          torch::sigmoid(torch::linear(torch::cat({s.slots, u}, -1), w["slots_gate.weight"], w["slots_gate.bias"]));
      s.slots.copy_(torch::lerp(s.slots, u, z));
      project_slots(w, s);
    }
    return torch::linear(read, w["slots_read_out.weight"]);
  }

  static void project_slots(const BlockParameters& w, BlockState& s) {
    const Bf16Products off(s.slots.device().type(), false);
    s.slot_k.copy_(torch::linear(s.slots, w["slots_read_k.weight"]));
    s.slot_v.copy_(torch::linear(s.slots, w["slots_read_v.weight"]));
  }

  const HydraConfig c_;
  torch::Tensor rows_;  // 0, 1 ... of a chunk
  Rotation rotation_;
  std::vector<BlockState> blocks_;
};

}  // namespace

std::unique_ptr<Decoder> make_decoder(const TrainConfig& config, const LanguageModel& model,
                                      const DecoderOptions& options) {
  if (config.architecture == "hydra") return std::make_unique<HydraDecoder>(config.hydra, model.parameters(), options);
  return std::make_unique<TransformerDecoder>(config.transformer, model.parameters(), options);
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
