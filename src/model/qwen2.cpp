// model/qwen2.cpp: Qwen2 and Qwen2.5: a Llama with biases on queries, keys and values and RoPE over halves.
#include "model/transformer.h"

namespace polyspan {
namespace {

ModelConfig read_qwen2(const GgufFile& file) {
  ModelConfig config = read_transformer_config(file, RopePairing::kHalves);
  config.qkv_bias = true;
  return config;
}

}  // namespace

extern const Architecture kQwen2Architecture;
const Architecture kQwen2Architecture = {"qwen2", read_qwen2, make_transformer};

}  // namespace polyspan
