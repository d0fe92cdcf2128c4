// io/random_model.h: GGUF models with random weights, for tests of every weight type and benchmarks of real shapes.
//
// Weights have mean 0 and a standard deviation near 0.02, norms are 1: activations stay finite at any depth. The files
// are complete (metadata, tokenizer, tensors), so that other programs load them as well.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "core/dtype.h"
#include "io/gguf_writer.h"

namespace polyspan {

struct RandomModelConfig {
  std::string arch = "llama";  // "llama", or "qwen2" (biases on q, k and v)
  int64_t n_layers = 2;
  int64_t d_model = 256;
  int64_t d_ff = 512;
  int64_t n_heads = 8;
  int64_t n_kv_heads = 2;
  int64_t head_dim = 32;
  int64_t vocab_size = 512;  // at least 256 (the bytes) + kRandomModelSpecials
  int64_t context_length = 4096;
  double rope_base = 10000.0;
  double norm_eps = 1e-5;
  DType type = DType::kF32;                         // of every matrix; norms, biases and rope factors are F32
  std::optional<DType> output_type = std::nullopt;  // of the output matrix (the embedding when tied), where it differs
  bool tied = true;                                 // the output matrix is the token embedding
  bool rope_factors = false;                        // a tensor rope_freqs.weight, computed as Llama 3.2 does
  uint64_t seed = 1;
};

// Control tokens, at the end of the vocabulary; the first of them begins a text, the last ends one.
inline constexpr int64_t kRandomModelSpecials = 4;

// The shapes of known models: "qwen2.5-1.5b", "llama-3.2-1b", "vicuna-7b", "vicuna-13b", "llama-3-8b", "smollm2-135m"; and
// "tiny-llama", "tiny-qwen2", in which every matrix fits every weight type. nullopt for another name.
std::optional<RandomModelConfig> find_model_shape(std::string_view name);
std::string model_shape_names();  // "qwen2.5-1.5b, llama-3.2-1b, ...": for messages

// The whole model, weights made as they are written: equal configs give equal bytes. Throws Error (kBadInput) for
// shapes that do not fit together or do not fit the weight type.
GgufWriter make_random_model(const RandomModelConfig& config);
void write_random_model(const RandomModelConfig& config, const std::filesystem::path& path);

// Fills `out` with random blocks of `type`: mean 0, standard deviation near `deviation`. Every block is valid, and
// every bit of its quantised values is used. REQUIRES: out.size() is a multiple of the type's block_bytes.
void fill_random_blocks(DType type, float deviation, uint64_t seed, std::span<std::byte> out);

}  // namespace polyspan
