// model/config.h: the sizes and settings of a model, read from a GGUF file and checked.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "io/gguf.h"
#include "model/hydra_config.h"
#include "ops/rope.h"
#include "plan/span_plan.h"

namespace polyspan {

struct ModelConfig {
  std::string architecture;  // "llama"
  std::string name;          // general.name, may be empty
  std::string quantization;  // type of most weight bytes: "Q4_1"
  int64_t n_layers = 0, n_heads = 0, n_kv_heads = 0, head_dim = 0;
  int64_t d_model = 0, d_ff = 0, vocab_size = 0;
  int64_t context_length = 0;  // that the model was trained for
  int64_t n_parameters = 0;
  float norm_eps = 1e-5f;
  RopeConfig rope;
  int64_t sliding_window = 0;  // 0: none. Mistral: every head sees this many keys and no sink
  bool qkv_bias = false;
  std::optional<HydraConfig> hydra;  // of a Hydra model: a sequence keeps its state in place of a KV cache

  // The heads that a plan gives spans: of a Hydra model those of its blocks with attention, each with its window.
  HeadShape head_shape() const;
  // The plan that the model itself implies: dense, or its sliding window.
  SpanPlan default_plan() const;
};

// Reads the keys that all transformer architectures share ("ARCH.block_count", ...). Throws Error (kBadFile) naming the
// key, what was found and what was wanted; kUnsupported for settings that would change results (RoPE scaling of a type
// that is not implemented, ...).
ModelConfig read_transformer_config(const GgufFile& file, RopePairing pairing);
// Sets n_parameters, and quantization: the type that holds most bytes of the matrices.
void describe_tensors(const GgufFile& file, ModelConfig& config);

}  // namespace polyspan
