#include "recipe/train_config.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <set>
#include <sstream>

#include "core/error.h"
#include "recipe/toml_reader.h"

namespace polyspan {
namespace {

constexpr int64_t kMostWidth = 1 << 20, kMostCount = 1 << 16, kMostVocab = 1 << 24, kMostSteps = 1 << 30;
const std::set<std::string> kParts = {"ssm", "attention", "moe", "workspace", "pkm", "ffn"};

// Of an attention: by default as many KV heads as heads, which divide d_model among them.
template <typename Sizes>
void read_heads(TomlTable& table, Sizes& c) {
  table.read("n_heads", c.n_heads, 1, 1024);
  c.n_kv_heads = c.n_heads;
  table.read("n_kv_heads", c.n_kv_heads, 1, 1024);
  c.head_dim = std::max<int64_t>(2, c.d_model / c.n_heads);
  table.read("head_dim", c.head_dim, 2, 512);
}

SsmKind read_ssm_kind(TomlTable& ssm) {
  const std::string mamba2(ssm_kind_name(SsmKind::kMamba2)), diagonal(ssm_kind_name(SsmKind::kDiagonal));
  std::string kind = mamba2;
  ssm.read("kind", kind);
  if (kind != mamba2 && kind != diagonal) {
    const std::string nearest = nearest_name(kind, {mamba2, diagonal});
    throw Error::bad_input(ssm.where("kind"), " is \"", kind, "\"; ",
                           nearest.empty() ? "wanted mamba2 or diagonal" : "did you mean " + nearest + "?");
  }
  if (kind == mamba2) return SsmKind::kMamba2;
  for (const char* key : {"d_inner", "head_dim", "d_state", "d_conv"})
    if (ssm.has(key)) throw Error::bad_input(ssm.where(key), " is a size of mamba2; kind is diagonal, which has none");
  return SsmKind::kDiagonal;
}

void read_hydra(TomlTable& file, HydraConfig& c) {
  TomlTable model = file.table("model");
  model.read("d_model", c.d_model, 1, kMostWidth);
  model.read("n_layers", c.n_layers, 1, 1024);
  model.read("vocab_size", c.vocab_size, 1, kMostVocab);
  model.read("context_length", c.context_length, 1, int64_t{1} << 31);
  model.read("norm_eps", c.norm_eps, 1e-12, 0.1);
  model.read("chunk_len", c.chunk_len, 1, 4096);
  model.read("controller_rank", c.controller_rank, 1, kMostWidth);
  model.check_unknown();
  c.d_inner = 2 * c.d_model;
  TomlTable ssm = file.table("ssm");
  ssm.read("enabled", c.has_ssm);
  c.ssm_kind = read_ssm_kind(ssm);
  ssm.read("d_inner", c.d_inner, 1, kMostWidth);
  ssm.read("head_dim", c.ssm_head_dim, 1, 1024);
  ssm.read("d_state", c.d_state, 1, 1024);
  ssm.read("d_conv", c.d_conv, 1, 64);
  ssm.check_unknown();
  TomlTable attention = file.table("attention");
  attention.read("every", c.attention_every, 0, 1024);
  read_heads(attention, c);
  attention.read("window", c.window, 1, 1 << 20);
  attention.read("n_global", c.n_global, 0, 1 << 20);
  attention.read("rope_base", c.rope_base, 1.0, 1e12);
  attention.check_unknown();
  TomlTable moe = file.table("moe");
  moe.read("every", c.moe_every, 0, 1024);
  moe.read("n_experts", c.n_experts, 1, kMostCount);
  moe.read("n_active", c.n_active_experts, 1, kMostCount);
  moe.read("d_expert", c.d_expert, 1, kMostWidth);
  moe.check_unknown();
  TomlTable workspace = file.table("workspace");
  workspace.read("n_slots", c.n_slots, 0, kMostCount);
  workspace.read("d_slot", c.d_slot, 1, kMostWidth);
  workspace.read("rank", c.slot_rank, 1, kMostWidth);
  workspace.check_unknown();
  TomlTable pkm = file.table("pkm");
  pkm.read("layers", c.pkm_layers);
  pkm.read("n_sub_keys", c.n_sub_keys, 1, kMostCount);
  pkm.read("n_heads", c.pkm_heads, 1, 1024);
  pkm.read("top", c.pkm_top, 1, kMostCount);
  pkm.read("d_query", c.d_pkm_query, 2, kMostWidth);
  pkm.read("d_value", c.d_value, 1, kMostWidth);
  pkm.check_unknown();
  c.check();
}

void read_transformer(TomlTable& file, TransformerSizes& c) {
  TomlTable model = file.table("model");
  model.read("d_model", c.d_model, 1, kMostWidth);
  model.read("n_layers", c.n_layers, 1, 1024);
  read_heads(model, c);
  model.read("d_ff", c.d_ff, 1, kMostWidth);
  model.read("vocab_size", c.vocab_size, 1, kMostVocab);
  model.read("context_length", c.context_length, 1, int64_t{1} << 31);
  model.read("norm_eps", c.norm_eps, 1e-12, 0.1);
  model.read("rope_base", c.rope_base, 1.0, 1e12);
  model.read("naive_attention", c.naive_attention);
  if (c.n_heads % c.n_kv_heads != 0)
    throw Error::bad_input(model.where("n_heads"), " is ", c.n_heads, "; it must be a multiple of n_kv_heads, ",
                           c.n_kv_heads);
  if (c.head_dim % 2 != 0)
    throw Error::bad_input(model.where("head_dim"), " is ", c.head_dim, "; rotated heads must be even");
  model.check_unknown();
}

std::vector<TrainStage> read_stages(TomlTable& file) {
  std::vector<TrainStage> stages;
  for (TomlTable& table : file.tables("stage")) {
    TrainStage stage;
    stage.name = "stage " + std::to_string(stages.size() + 1);
    table.read("name", stage.name);
    table.read("steps", stage.steps, 1, kMostSteps);
    table.read("length", stage.length, 2, 1 << 24);
    table.read("batch", stage.batch, 1, 1 << 20);
    table.read("lr", stage.lr, 0.0, 10.0);
    table.read("router_noise", stage.router_noise, 0.0, 100.0);
    std::set<std::string> seen;
    for (auto [key, parts] :
         {std::pair{"off", &stage.off}, std::pair{"frozen", &stage.frozen}, std::pair{"ramp", &stage.ramp}}) {
      table.read(key, *parts);
      for (const std::string& part : *parts) {
        if (!kParts.contains(part)) {
          const std::string nearest = nearest_name(part, kParts);
          if (nearest.empty())
            throw Error::bad_input(table.where(key), " names the part \"", part,
                                   "\"; parts are ssm, attention, moe, workspace, pkm and ffn");
          throw Error::bad_input(table.where(key), " names the part \"", part, "\"; did you mean ", nearest, "?");
        }
        if (!seen.insert(part).second)
          throw Error::bad_input(table.where(key), " names \"", part,
                                 "\", which another list of this stage (or this one) names too");
      }
    }
    if (!table.has("steps")) throw Error::bad_input(table.where("steps"), " is missing");
    table.check_unknown();
    stages.push_back(std::move(stage));
  }
  return stages;
}

}  // namespace

std::vector<TensorSpec> transformer_tensors(const TransformerSizes& c) {
  std::vector<TensorSpec> tensors;
  const auto add = [&](std::string name, HydraPart part, std::vector<int64_t> shape) {
    const bool matrix = shape.size() == 2;
    const double scale = matrix ? 1.0 / std::sqrt(static_cast<double>(shape.back())) : 1.0;
    tensors.push_back({std::move(name), std::move(shape), part, matrix ? TensorInit::kNormal : TensorInit::kConstant,
                       scale, matrix, matrix});
  };
  tensors.push_back(
      {"token_embd.weight", {c.vocab_size, c.d_model}, HydraPart::kEmbedding, TensorInit::kNormal, 0.02, false, true});
  for (int64_t layer = 0; layer < c.n_layers; ++layer) {
    const std::string b = "blk." + std::to_string(layer) + ".";
    add(b + "attn_norm.weight", HydraPart::kNorm, {c.d_model});
    add(b + "attn_q.weight", HydraPart::kAttention, {c.n_heads * c.head_dim, c.d_model});
    add(b + "attn_k.weight", HydraPart::kAttention, {c.n_kv_heads * c.head_dim, c.d_model});
    add(b + "attn_v.weight", HydraPart::kAttention, {c.n_kv_heads * c.head_dim, c.d_model});
    add(b + "attn_output.weight", HydraPart::kAttention, {c.d_model, c.n_heads * c.head_dim});
    add(b + "ffn_norm.weight", HydraPart::kNorm, {c.d_model});
    add(b + "ffn_gate.weight", HydraPart::kFfn, {c.d_ff, c.d_model});
    add(b + "ffn_up.weight", HydraPart::kFfn, {c.d_ff, c.d_model});
    add(b + "ffn_down.weight", HydraPart::kFfn, {c.d_model, c.d_ff});
  }
  add("output_norm.weight", HydraPart::kNorm, {c.d_model});
  return tensors;
}

int64_t TrainConfig::total_steps() const {
  int64_t total = 0;
  for (const TrainStage& stage : stages) total += stage.steps;
  return total;
}

std::vector<TensorSpec> TrainConfig::tensors() const {
  return architecture == "hydra" ? hydra_tensors(hydra) : transformer_tensors(transformer);
}

std::string TrainConfig::fingerprint_text() const {
  std::ostringstream out;
  out.precision(17);
  out << architecture << " seed " << seed << "\n";
  for (const TensorSpec& tensor : tensors()) {
    out << tensor.name;
    for (const int64_t n : tensor.shape) out << " " << n;
    out << "\n";
  }
  const HydraConfig& h = hydra;
  if (architecture == "hydra")
    out << h.chunk_len << " " << h.window << " " << h.n_global << " " << h.rope_base << " " << h.norm_eps << " "
        << h.n_active_experts << " " << h.pkm_top << " " << h.head_dim << " " << h.ssm_head_dim << " " << h.d_state
        << "\n";
  else
    out << transformer.rope_base << " " << transformer.norm_eps << " " << transformer.head_dim << "\n";
  out << weight_decay << " " << beta1 << " " << beta2 << " " << adam_eps << " " << clip << " " << value_lr_scale << " "
      << warmup_steps << " " << final_lr_share << " " << balance_weight << " " << z_weight << "\n";
  if (precision != "f32") out << precision << "\n";
  for (const TrainStage& stage : stages) {
    out << stage.steps << " " << stage.length << " " << stage.batch << " " << stage.lr << " " << stage.router_noise;
    for (const auto* parts : {&stage.off, &stage.frozen, &stage.ramp}) {
      out << " |";
      for (const std::string& part : *parts) out << " " << part;
    }
    out << "\n";
  }
  return out.str();
}

TrainConfig parse_train_config(const std::string& text, const std::filesystem::path& name) {
  TomlTable file = TomlTable::parse(text, name);
  TrainConfig config;
  file.read("architecture", config.architecture);
  int64_t seed = 1;
  file.read("seed", seed, 0, INT64_MAX);
  config.seed = static_cast<uint64_t>(seed);
  try {
    if (config.architecture == "hydra") {
      read_hydra(file, config.hydra);
    } else if (config.architecture == "transformer") {
      read_transformer(file, config.transformer);
    } else {
      throw Error::bad_input(file.where("architecture"), " is \"", config.architecture,
                             "\"; wanted hydra or transformer");
    }
  } catch (const Error& error) {
    const std::string message = error.what();  // what a configuration's own check finds does not know the file
    throw message.starts_with(name.string()) ? error : Error::bad_input(name.string(), ": ", message);
  }
  TomlTable data = file.table("data");
  std::string train, valid;
  data.read("train", train);
  data.read("valid", valid);
  data.read("tokenizer", config.tokenizer);
  data.check_unknown();
  const std::filesystem::path folder = name.parent_path();
  if (!train.empty()) config.train_tokens = folder / train;
  if (!valid.empty()) config.valid_tokens = folder / valid;
  if (config.tokenizer != "bytes") config.tokenizer = (folder / config.tokenizer).string();
  TomlTable optimizer = file.table("optimizer");
  optimizer.read("weight_decay", config.weight_decay, 0.0, 10.0);
  optimizer.read("beta1", config.beta1, 0.0, 0.999999);
  optimizer.read("beta2", config.beta2, 0.0, 0.9999999);
  optimizer.read("eps", config.adam_eps, 1e-16, 1.0);
  optimizer.read("clip", config.clip, 0.0, 1e9);
  optimizer.read("value_lr_scale", config.value_lr_scale, 0.0, 1e6);
  optimizer.read("warmup_steps", config.warmup_steps, 0, kMostSteps);
  optimizer.read("final_lr_share", config.final_lr_share, 0.0, 1.0);
  optimizer.read("balance_weight", config.balance_weight, 0.0, 100.0);
  optimizer.read("z_weight", config.z_weight, 0.0, 100.0);
  optimizer.read("max_loss_jump", config.max_loss_jump, 0.0, 1e9);
  optimizer.check_unknown();
  TomlTable run = file.table("run");
  run.read("precision", config.precision);
  if (config.precision != "f32" && config.precision != "bf16")
    throw Error::bad_input(run.where("precision"), " is \"", config.precision, "\"; wanted f32 or bf16");
  run.read("checkpoint_every", config.checkpoint_every, 0, kMostSteps);
  run.read("log_every", config.log_every, 1, kMostSteps);
  run.read("eval_every", config.eval_every, 1, kMostSteps);
  run.read("eval_sequences", config.eval_sequences, 1, 1 << 20);
  run.read("threads", config.threads, 0, 1024);
  run.check_unknown();
  config.stages = read_stages(file);
  file.check_unknown();
  return config;
}

std::string read_config_text(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::error_code error;
  if (!file || std::filesystem::is_directory(path, error)) throw Error::io(path, "the file cannot be opened");
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

TrainConfig load_train_config(const std::filesystem::path& path) {
  return parse_train_config(read_config_text(path), path);
}

}  // namespace polyspan
