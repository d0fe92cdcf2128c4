// model/llama.cpp: Llama 2, 3, 3.1, 3.2, Vicuna, SmolLM2, Mistral and others that use the name "llama" in GGUF files.
#include "model/transformer.h"

namespace polyspan {
namespace {

ModelConfig read_llama(const GgufFile& file) { return read_transformer_config(file, RopePairing::kInterleaved); }

}  // namespace

extern const Architecture kLlamaArchitecture;
const Architecture kLlamaArchitecture = {"llama", read_llama, make_transformer};

}  // namespace polyspan
