#include "model/hydra_config.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "core/error.h"
#include "model/hydra_state.h"

namespace polyspan {
namespace {

constexpr int64_t kMaxHydraWidth = 1 << 20, kMaxCount = 1 << 16, kMaxHydraVocab = 1 << 24;

// The whole numbers of a configuration by their keys in a GGUF file (after "hydra.") and in a TOML file, with their limits.
template <typename Config, typename Visit>
void for_each_size(Config& c, Visit visit) {
  visit("embedding_length", c.d_model, 1, kMaxHydraWidth);
  visit("block_count", c.n_layers, 1, 1024);
  visit("context_length", c.context_length, 1, int64_t{1} << 31);
  visit("chunk_length", c.chunk_len, 1, 4096);
  visit("controller.rank", c.controller_rank, 1, kMaxHydraWidth);
  visit("ssm.inner_size", c.d_inner, 1, kMaxHydraWidth);
  visit("ssm.head_length", c.ssm_head_dim, 1, 1024);
  visit("ssm.state_size", c.d_state, 1, 1024);
  visit("ssm.conv_kernel", c.d_conv, 1, 64);
  visit("attention.interval", c.attention_every, 0, 1024);
  visit("attention.head_count", c.n_heads, 1, 1024);
  visit("attention.head_count_kv", c.n_kv_heads, 1, 1024);
  visit("attention.key_length", c.head_dim, 2, 512);
  visit("attention.window", c.window, 1, 1 << 20);
  visit("attention.global_count", c.n_global, 0, 1 << 20);
  visit("moe.interval", c.moe_every, 0, 1024);
  visit("moe.expert_count", c.n_experts, 1, kMaxCount);
  visit("moe.expert_used_count", c.n_active_experts, 1, kMaxCount);
  visit("moe.feed_forward_length", c.d_expert, 1, kMaxHydraWidth);
  visit("workspace.slot_count", c.n_slots, 0, kMaxCount);
  visit("workspace.slot_length", c.d_slot, 1, kMaxHydraWidth);
  visit("workspace.rank", c.slot_rank, 1, kMaxHydraWidth);
  visit("pkm.sub_key_count", c.n_sub_keys, 1, kMaxCount);
  visit("pkm.head_count", c.pkm_heads, 1, 1024);
  visit("pkm.top", c.pkm_top, 1, kMaxCount);
  visit("pkm.query_length", c.d_pkm_query, 2, kMaxHydraWidth);
  visit("pkm.value_length", c.d_value, 1, kMaxHydraWidth);
}

void wanted_multiple(const char* key, int64_t value, const char* of, int64_t divisor) {
  if (divisor < 1 || value % divisor != 0)
    throw Error::bad_input(key, " is ", value, "; it must be a multiple of ", of, ", ", divisor);
}

}  // namespace

std::string_view ssm_kind_name(SsmKind kind) { return kind == SsmKind::kDiagonal ? "diagonal" : "mamba2"; }

bool HydraConfig::has_pkm(int64_t layer) const {
  return std::find(pkm_layers.begin(), pkm_layers.end(), layer) != pkm_layers.end();
}

void HydraConfig::check() const {
  for_each_size(*this, [](const char* key, int64_t value, int64_t least, int64_t most) {
    if (value < least || value > most)
      throw Error::bad_input(key, " is ", value, "; it must be between ", least, " and ", most);
  });
  if (vocab_size < 1 || vocab_size > kMaxHydraVocab)
    throw Error::bad_input("vocab_size is ", vocab_size, "; it must be between 1 and ", kMaxHydraVocab);
  if (!(norm_eps > 0 && norm_eps < 1))
    throw Error::bad_input("norm_eps is ", norm_eps, "; wanted a small positive number");
  if (!(rope_base > 0 && rope_base < 1e12))
    throw Error::bad_input("attention.rope_base is ", rope_base, "; it must be positive");
  if (ssm_kind == SsmKind::kMamba2) wanted_multiple("ssm.d_inner", d_inner, "ssm.head_dim", ssm_head_dim);
  wanted_multiple("attention.n_heads", n_heads, "attention.n_kv_heads", n_kv_heads);
  wanted_multiple("attention.head_dim", head_dim, "the two of a rotated pair", 2);
  wanted_multiple("attention.window", window, "chunk_len", chunk_len);
  wanted_multiple("pkm.d_query", d_pkm_query, "its two halves", 2);
  if (n_active_experts > n_experts)
    throw Error::bad_input("moe.n_active is ", n_active_experts, "; there are only ", n_experts, " experts");
  if (pkm_top > n_sub_keys)
    throw Error::bad_input("pkm.top is ", pkm_top, "; there are only ", n_sub_keys, " sub-keys");
  for (const int64_t layer : pkm_layers)
    if (layer < 0 || layer >= n_layers)
      throw Error::bad_input("pkm.layers names block ", layer, "; the blocks are 0 to ", n_layers - 1);
  if (!has_ssm && attention_every == 0)
    throw Error::bad_input("neither ssm nor attention: no block would see another token");
  double values = 0;  // sizes that each are in range may still multiply to more than any file holds
  for (const double n : {double(vocab_size) * double(d_model), double(d_ssm_in()) * double(d_model),
                         double(n_experts) * double(d_expert) * double(d_model),
                         double(n_sub_keys) * double(n_sub_keys) * double(d_value)})
    values = std::max(values, n);
  if (values > 1e12) throw Error::bad_input("one tensor would have ", values, " values; the sizes are too large");
}

HydraConfig read_hydra_config(const GgufFile& file) {
  HydraConfig config;
  for_each_size(config, [&](const char* name, int64_t& value, int64_t least, int64_t most) {
    const std::string key = std::string("hydra.") + name;
    value = file.get_int(key);
    if (value < least || value > most)
      throw Error::bad_file(file.path(), "key ", key, " is ", value, "; it must be between ", least, " and ", most);
  });
  config.has_ssm = file.find_bool("hydra.ssm.enabled").value_or(true);
  const std::string_view kind = file.find_string("hydra.ssm.kind").value_or(ssm_kind_name(SsmKind::kMamba2));
  if (kind == ssm_kind_name(SsmKind::kDiagonal))
    config.ssm_kind = SsmKind::kDiagonal;
  else if (kind != ssm_kind_name(SsmKind::kMamba2))
    throw Error::bad_file(file.path(), "key hydra.ssm.kind is \"", kind, "\"; wanted mamba2 or diagonal");
  config.norm_eps = file.get_float("hydra.attention.layer_norm_rms_epsilon");
  config.rope_base = file.get_float("hydra.rope.freq_base");
  if (const auto layers = file.find_ints("hydra.pkm.layers")) config.pkm_layers = *layers;
  const GgufTensor* embedding = file.find_tensor("token_embd.weight");
  if (embedding == nullptr || embedding->dims.size() != 2)
    throw Error::bad_file(file.path(), "tensor token_embd.weight is missing or no matrix");
  config.vocab_size = embedding->dims[1];
  try {
    config.check();
  } catch (const Error& error) {
    throw Error::bad_file(file.path(), error.what());
  }
  return config;
}

void write_hydra_config(const HydraConfig& config, GgufWriter& writer) {
  writer.add_string("general.architecture", "hydra");
  for_each_size(config, [&](const char* name, int64_t value, int64_t, int64_t) {
    writer.add_u32(std::string("hydra.") + name, static_cast<uint32_t>(value));
  });
  writer.add_bool("hydra.ssm.enabled", config.has_ssm);
  writer.add_string("hydra.ssm.kind", std::string(ssm_kind_name(config.ssm_kind)));
  writer.add_f32("hydra.attention.layer_norm_rms_epsilon", static_cast<float>(config.norm_eps));
  writer.add_f32("hydra.rope.freq_base", static_cast<float>(config.rope_base));
  std::vector<int32_t> layers(config.pkm_layers.begin(), config.pkm_layers.end());
  if (!layers.empty()) writer.add_i32s("hydra.pkm.layers", layers);
}

std::string_view part_name(HydraPart part) {
  switch (part) {
    case HydraPart::kEmbedding: return "embedding";
    case HydraPart::kNorm: return "norm";
    case HydraPart::kController: return "controller";
    case HydraPart::kSsm: return "ssm";
    case HydraPart::kAttention: return "attention";
    case HydraPart::kMoe: return "moe";
    case HydraPart::kWorkspace: return "workspace";
    case HydraPart::kPkm: return "pkm";
    case HydraPart::kFfn: return "ffn";
  }
  return "";
}

int64_t TensorSpec::n_values() const {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

std::vector<TensorSpec> hydra_tensors(const HydraConfig& c) {
  std::vector<TensorSpec> tensors;
  const auto matrix = [&](std::string name, HydraPart part, std::vector<int64_t> shape) {
    const double deviation = 1.0 / std::sqrt(static_cast<double>(shape.back()));
    tensors.push_back({std::move(name), std::move(shape), part, TensorInit::kNormal, deviation, true, true});
  };
  const auto small = [&](std::string name, HydraPart part, std::vector<int64_t> shape, TensorInit init, double scale) {
    tensors.push_back({std::move(name), std::move(shape), part, init, scale, false, false});
  };
  const int64_t d = c.d_model;
  // Of deviation 0.02: tied to the output, where larger values would begin with confident wrong answers.
  tensors.push_back(
      {"token_embd.weight", {c.vocab_size, d}, HydraPart::kEmbedding, TensorInit::kNormal, 0.02, false, true});
  for (int64_t layer = 0; layer < c.n_layers; ++layer) {
    const std::string b = "blk." + std::to_string(layer) + ".";
    small(b + "norm.weight", HydraPart::kNorm, {d}, TensorInit::kConstant, 1);
    small(b + "path_scales", HydraPart::kController, {3}, TensorInit::kPathScales, 0);
    small(b + "controller_down.weight", HydraPart::kController, {c.controller_rank, 2 * d}, TensorInit::kNormal, 0.02);
    small(b + "controller_up.weight", HydraPart::kController, {3, c.controller_rank}, TensorInit::kConstant,
          0);  // multipliers begin at 1
    small(b + "controller_up.bias", HydraPart::kController, {3}, TensorInit::kConstant, 0);
    if (c.has_diagonal_ssm()) {
      matrix(b + "ssm_in.weight", HydraPart::kSsm, {4 * d, d});  // Delta, B, C, U
      small(b + "ssm_lambda_log", HydraPart::kSsm, {d}, TensorInit::kLogRate, 0);
      matrix(b + "ssm_skip.weight", HydraPart::kSsm, {d, d});
    }
    if (c.has_mamba2()) {
      matrix(b + "ssm_in.weight", HydraPart::kSsm, {c.d_ssm_in(), d});
      small(b + "ssm_conv.weight", HydraPart::kSsm, {c.d_conv_channels(), c.d_conv}, TensorInit::kNormal, 0.5);
      small(b + "ssm_conv.bias", HydraPart::kSsm, {c.d_conv_channels()}, TensorInit::kConstant, 0);
      small(b + "ssm_dt.bias", HydraPart::kSsm, {c.n_ssm_heads()}, TensorInit::kTimeStep, 0);
      small(b + "ssm_a_log", HydraPart::kSsm, {c.n_ssm_heads()}, TensorInit::kLogUniform, 0);
      small(b + "ssm_d", HydraPart::kSsm, {c.n_ssm_heads()}, TensorInit::kConstant, 1);
      small(b + "ssm_norm.weight", HydraPart::kSsm, {c.d_inner}, TensorInit::kConstant, 1);
      matrix(b + "ssm_out.weight", HydraPart::kSsm, {d, c.d_inner});
    }
    if (c.has_attention(layer)) {
      matrix(b + "attn_q.weight", HydraPart::kAttention, {c.n_heads * c.head_dim, d});
      matrix(b + "attn_k.weight", HydraPart::kAttention, {c.n_kv_heads * c.head_dim, d});
      matrix(b + "attn_v.weight", HydraPart::kAttention, {c.n_kv_heads * c.head_dim, d});
      matrix(b + "attn_output.weight", HydraPart::kAttention, {d, c.n_heads * c.head_dim});
      if (c.n_global > 0) {
        small(b + "attn_score.weight", HydraPart::kAttention, {d}, TensorInit::kNormal, 0.02);
        small(b + "attn_score.bias", HydraPart::kAttention, {1}, TensorInit::kConstant, 0);
      }
    }
    if (c.has_workspace(layer)) {
      small(b + "slots_init", HydraPart::kWorkspace, {c.n_slots, c.d_slot}, TensorInit::kNormal, 0.5);
      matrix(b + "slots_read_q.weight", HydraPart::kWorkspace, {c.slot_rank, d});
      matrix(b + "slots_read_k.weight", HydraPart::kWorkspace, {c.slot_rank, c.d_slot});
      matrix(b + "slots_read_v.weight", HydraPart::kWorkspace, {c.slot_rank, c.d_slot});
      matrix(b + "slots_read_out.weight", HydraPart::kWorkspace, {d, c.slot_rank});
      matrix(b + "slots_write_q.weight", HydraPart::kWorkspace, {c.slot_rank, c.d_slot});
      matrix(b + "slots_write_k.weight", HydraPart::kWorkspace, {c.slot_rank, d});
      matrix(b + "slots_write_v.weight", HydraPart::kWorkspace, {c.d_slot, d});
      matrix(b + "slots_gate.weight", HydraPart::kWorkspace, {c.d_slot, 2 * c.d_slot});
      small(b + "slots_gate.bias", HydraPart::kWorkspace, {c.d_slot}, TensorInit::kConstant, 0);
    }
    if (c.has_moe(layer)) {
      small(b + "moe_router.weight", HydraPart::kMoe, {c.n_experts, 2 * d}, TensorInit::kNormal, 0.02);
      matrix(b + "moe_gate.weight", HydraPart::kMoe, {c.n_experts, c.d_expert, d});
      matrix(b + "moe_up.weight", HydraPart::kMoe, {c.n_experts, c.d_expert, d});
      matrix(b + "moe_down.weight", HydraPart::kMoe, {c.n_experts, d, c.d_expert});
    }
    if (c.has_pkm(layer)) {
      matrix(b + "pkm_query.weight", HydraPart::kPkm, {c.pkm_heads * c.d_pkm_query, d});
      small(b + "pkm_query_norm.weight", HydraPart::kPkm, {c.d_pkm_query}, TensorInit::kConstant, 1);
      small(b + "pkm_keys", HydraPart::kPkm, {c.pkm_heads, 2, c.n_sub_keys, c.d_pkm_query / 2}, TensorInit::kNormal,
            1.0 / std::sqrt(static_cast<double>(c.d_pkm_query / 2)));
      small(b + "pkm_values", HydraPart::kPkm, {c.n_sub_keys * c.n_sub_keys, c.d_value}, TensorInit::kNormal,
            1.0 / std::sqrt(static_cast<double>(c.d_value)));
      matrix(b + "pkm_out.weight", HydraPart::kPkm, {d, c.d_value});
      small(b + "pkm_gate.weight", HydraPart::kPkm, {d}, TensorInit::kConstant, 0);
      small(b + "pkm_gate.bias", HydraPart::kPkm, {1}, TensorInit::kConstant, -2);
    }
  }
  small("output_norm.weight", HydraPart::kNorm, {d}, TensorInit::kConstant, 1);
  return tensors;
}

HydraAccount account(const HydraConfig& c) {
  HydraAccount total;
  std::map<HydraPart, HydraAccount::Part> parts;
  for (const TensorSpec& tensor : hydra_tensors(c)) {
    HydraAccount::Part& part = parts[tensor.part];
    const int64_t n = tensor.n_values();
    part.parameters += n;
    int64_t active = n;  // of the embedding too: the tied output layer reads all of it
    if (tensor.part == HydraPart::kMoe && tensor.shape.size() == 3) active = n / c.n_experts * c.n_active_experts;
    if (tensor.name.ends_with("pkm_values")) active = c.pkm_heads * c.pkm_top * c.d_value;
    part.active_parameters += active;
    // Every active weight is one multiply-add a token, but for what a chunk (or its slots) shares.
    double uses = 1;
    if (tensor.part == HydraPart::kController || tensor.name.ends_with("moe_router.weight"))
      uses = 1.0 / double(c.chunk_len);
    if (tensor.name.ends_with("slots_init")) uses = 0;
    if (tensor.part == HydraPart::kWorkspace && tensor.shape.back() != c.d_model &&
        !tensor.name.ends_with("read_out.weight"))
      uses = double(c.n_slots) / double(c.chunk_len);  // slots are projected once a chunk
    part.flops_per_token += 2.0 * double(active) * uses;
  }
  const double n_layers = double(c.n_layers);
  double n_attention = 0;
  for (int64_t layer = 0; layer < c.n_layers; ++layer) n_attention += c.has_attention(layer);
  if (c.has_ssm) {
    HydraAccount::Part& ssm = parts[HydraPart::kSsm];
    // Decay, (outer) product with B, sum, y = S C.
    ssm.flops_per_token += n_layers * 5.0 * double(c.has_mamba2() ? c.d_inner * c.d_state : c.d_model);
  }
  HydraAccount::Part& attention = parts[HydraPart::kAttention];
  attention.flops_per_token += n_attention * 4.0 * double(c.n_heads * c.head_dim * (c.window + c.n_global));
  if (c.n_slots > 0 && n_attention > 0) {
    HydraAccount::Part& workspace = parts[HydraPart::kWorkspace];
    workspace.flops_per_token +=
        n_attention * double(c.n_slots) * (4.0 * double(c.slot_rank) + 2.0 * double(c.slot_rank + c.d_slot));
  }
  for (const auto& [part, bytes] : HydraStateLayout(c).part_bytes) parts[part].state_bytes = bytes;
  for (auto& [key, part] : parts) {
    part.name = part_name(key);
    if (part.parameters == 0) continue;
    total.parameters += part.parameters;
    total.active_parameters += part.active_parameters;
    total.flops_per_token += part.flops_per_token;
    total.state_bytes += part.state_bytes;
    total.parts.push_back(part);
  }
  return total;
}

}  // namespace polyspan
