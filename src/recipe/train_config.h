// recipe/train_config.h: what one training run is, as its TOML file says (docs/hydra.md lists the keys).
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "model/hydra_config.h"

namespace polyspan {

// The baseline: a pre-norm transformer with RoPE, grouped queries and SwiGLU; exported as a "llama" GGUF.
struct TransformerSizes {
  int64_t d_model = 256, n_layers = 8, n_heads = 4, n_kv_heads = 4, head_dim = 64, d_ff = 704, vocab_size = 260;
  int64_t context_length = 1 << 17;
  double norm_eps = 1e-5, rope_base = 10000.0;
  bool naive_attention = false;  // make every score, for comparisons; else flash attention where LibTorch has it
};
std::vector<TensorSpec> transformer_tensors(const TransformerSizes& sizes);

// One stage of the curriculum.
struct TrainStage {
  std::string name;
  int64_t steps = 0, length = 256, batch = 16;  // tokens of a sequence; sequences of a step
  double lr = 1e-3;                             // the schedule's peak in this stage
  double router_noise = 0;                      // at the stage's start, falling to 0 at its end
  std::vector<std::string> off, frozen, ramp;   // parts by name: not computed; not trained; added in from 0 to 1
};

struct TrainConfig {
  std::string architecture = "hydra";  // or "transformer"
  HydraConfig hydra;
  TransformerSizes transformer;
  uint64_t seed = 1;

  std::filesystem::path train_tokens, valid_tokens;  // made by `polyspan prepare`
  std::string tokenizer = "bytes";                   // or a GGUF file: what export puts into the model

  double weight_decay = 0.1, beta1 = 0.9, beta2 = 0.95, adam_eps = 1e-8, clip = 1.0;
  double value_lr_scale = 4.0;  // of the product-key memory's values
  int64_t warmup_steps = 100;
  double final_lr_share = 0.1;  // the cosine ends at this share of the peak
  double balance_weight = 0.01, z_weight = 1e-3;
  double max_loss_jump = 5.0;  // nats above the smoothed loss: the run stops

  std::string precision = "f32";   // or "bf16": products of matrices (hydra/precision.h)
  int64_t checkpoint_every = 200;  // 0: none, not even at the end
  int64_t log_every = 10, eval_every = 200, eval_sequences = 64, threads = 0;
  std::vector<TrainStage> stages;

  int64_t total_steps() const;
  int64_t vocab_size() const { return architecture == "hydra" ? hydra.vocab_size : transformer.vocab_size; }
  std::vector<TensorSpec> tensors() const;
  // All that decides the numbers of a run, normalised: runs of equal text may be resumed by each other.
  std::string fingerprint_text() const;
};

// The text of a configuration file. Throws Error (kIo).
std::string read_config_text(const std::filesystem::path& path);
// Relative paths are taken from the file's folder. Throws Error (kIo, kBadFile, kBadInput naming file, line and key).
TrainConfig load_train_config(const std::filesystem::path& path);
TrainConfig parse_train_config(const std::string& text, const std::filesystem::path& name);

}  // namespace polyspan
