#include "io/random_model.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <numbers>
#include <utility>
#include <vector>

#include "core/error.h"
#include "io/byte_vocabulary.h"
#include "io/transformer_keys.h"

namespace polyspan {
namespace {

constexpr float kDeviation = 0.02f;     // of every weight; near that of trained models
constexpr int64_t kMaxVocab = 400'000;  // more than any model has

using NamedShape = std::pair<std::string_view, RandomModelConfig>;

std::span<const NamedShape> model_shapes() {
  static const NamedShape kShapes[] = {
      {"qwen2.5-1.5b",
       {.arch = "qwen2",
        .n_layers = 28,
        .d_model = 1536,
        .d_ff = 8960,
        .n_heads = 12,
        .n_kv_heads = 2,
        .head_dim = 128,
        .vocab_size = 151936,
        .context_length = 32768,
        .rope_base = 1e6,
        .norm_eps = 1e-6}},
      {"llama-3.2-1b",
       {.arch = "llama",
        .n_layers = 16,
        .d_model = 2048,
        .d_ff = 8192,
        .n_heads = 32,
        .n_kv_heads = 8,
        .head_dim = 64,
        .vocab_size = 128256,
        .context_length = 131072,
        .rope_base = 5e5,
        .norm_eps = 1e-5,
        .rope_factors = true}},
      {"vicuna-7b",
       {.arch = "llama",
        .n_layers = 32,
        .d_model = 4096,
        .d_ff = 11008,
        .n_heads = 32,
        .n_kv_heads = 32,
        .head_dim = 128,
        .vocab_size = 32000,
        .context_length = 16384,
        .norm_eps = 1e-5,
        .tied = false}},
      {"vicuna-13b",
       {.arch = "llama",
        .n_layers = 40,
        .d_model = 5120,
        .d_ff = 13824,
        .n_heads = 40,
        .n_kv_heads = 40,
        .head_dim = 128,
        .vocab_size = 32000,
        .context_length = 16384,
        .norm_eps = 1e-5,
        .tied = false}},
      {"llama-3-8b",
       {.arch = "llama",
        .n_layers = 32,
        .d_model = 4096,
        .d_ff = 14336,
        .n_heads = 32,
        .n_kv_heads = 8,
        .head_dim = 128,
        .vocab_size = 128256,
        .context_length = 8192,
        .rope_base = 5e5,
        .norm_eps = 1e-5,
        .tied = false}},
      {"smollm2-135m",
       {.arch = "llama",
        .n_layers = 30,
        .d_model = 576,
        .d_ff = 1536,
        .n_heads = 9,
        .n_kv_heads = 3,
        .head_dim = 64,
        .vocab_size = 49152,
        .context_length = 8192,
        .rope_base = 1e5,
        .norm_eps = 1e-5}},
      {"tiny-llama", {.arch = "llama"}},
      {"tiny-qwen2", {.arch = "qwen2", .rope_base = 1e6, .norm_eps = 1e-6}},
  };
  return kShapes;
}

// A byte-level vocabulary of the right size: the 256 bytes, then longer and longer words of the letters a to z, with or
// without a space before them, each made by a merge of an earlier word and one letter; then the special tokens.
struct Vocabulary {
  std::vector<std::string> tokens, merges;
  std::vector<int32_t> types;  // 1 an ordinary token, 3 a control token
};

Vocabulary make_vocabulary(const std::string& arch, int64_t vocab_size) {
  Vocabulary vocabulary;
  vocabulary.tokens = byte_letters();
  std::vector<std::string> words = {vocabulary.tokens[' ']};  // in order of length: grows while it is read
  for (char letter = 'a'; letter <= 'z'; ++letter) words.emplace_back(1, letter);
  const size_t n_ordinary = static_cast<size_t>(vocab_size - kRandomModelSpecials);
  for (size_t i = 0; vocabulary.tokens.size() < n_ordinary; ++i) {
    for (char letter = 'a'; letter <= 'z' && vocabulary.tokens.size() < n_ordinary; ++letter) {
      vocabulary.merges.push_back(words[i] + " " + letter);
      vocabulary.tokens.push_back(words[i] + letter);
      words.push_back(vocabulary.tokens.back());
    }
  }
  vocabulary.types.assign(n_ordinary, 1);
  using Specials = std::array<std::string_view, kRandomModelSpecials>;
  constexpr Specials kLlama = {"<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"};
  constexpr Specials kQwen2 = {"<|endoftext|>", "<|im_start|>", "<|fim_prefix|>", "<|im_end|>"};
  for (const std::string_view special : arch == "qwen2" ? kQwen2 : kLlama) {
    vocabulary.tokens.emplace_back(special);
    vocabulary.types.push_back(3);
  }
  return vocabulary;
}

void add_tokenizer(const RandomModelConfig& config, GgufWriter& writer) {
  const Vocabulary vocabulary = make_vocabulary(config.arch, config.vocab_size);
  const uint32_t first_special = static_cast<uint32_t>(config.vocab_size - kRandomModelSpecials);
  writer.add_string("tokenizer.ggml.model", "gpt2");
  writer.add_string("tokenizer.ggml.pre", config.arch == "qwen2" ? "qwen2" : "llama-bpe");
  writer.add_strings("tokenizer.ggml.tokens", vocabulary.tokens);
  writer.add_i32s("tokenizer.ggml.token_type", vocabulary.types);
  writer.add_strings("tokenizer.ggml.merges", vocabulary.merges);
  writer.add_u32("tokenizer.ggml.bos_token_id", first_special);
  writer.add_u32("tokenizer.ggml.eos_token_id", static_cast<uint32_t>(config.vocab_size - 1));
  writer.add_bool("tokenizer.ggml.add_bos_token", config.arch == "llama");
}

void add_hyperparameters(const RandomModelConfig& config, GgufWriter& writer) {
  writer.add_string("general.architecture", config.arch);
  writer.add_string("general.name", "random weights");
  add_transformer_sizes(config.arch, config, writer);
  writer.add_u32(config.arch + ".vocab_size", static_cast<uint32_t>(config.vocab_size));
  writer.add_f32(config.arch + ".rope.freq_base", static_cast<float>(config.rope_base));
  writer.add_f32(config.arch + ".attention.layer_norm_rms_epsilon", static_cast<float>(config.norm_eps));
}

// Llama 3.2's stretch of the rotary wavelengths (its published scaling parameters): by 32 from 8,192 tokens on, the
// length of its first training, not at all below a quarter of that, and a blend between.
std::vector<float> llama3_rope_factors(int64_t head_dim, double rope_base) {
  constexpr double kFactor = 32, kLowFrequency = 1, kHighFrequency = 4, kTrainedTokens = 8192;
  std::vector<float> factors;
  for (int64_t pair = 0; pair < head_dim / 2; ++pair) {
    const double exponent = 2.0 * static_cast<double>(pair) / static_cast<double>(head_dim);
    const double wavelength = 2 * std::numbers::pi * std::pow(rope_base, exponent);  // tokens
    const double blend = (kTrainedTokens / wavelength - kLowFrequency) / (kHighFrequency - kLowFrequency);
    const double kept = std::clamp(blend, 0.0, 1.0);  // 1: as it was; 0: stretched by kFactor
    factors.push_back(static_cast<float>(1 / ((1 - kept) / kFactor + kept)));
  }
  return factors;
}

// Adds tensors with seeds of their own, so that a tensor's weights do not depend on how the others are made.
class TensorAdder {
 public:
  TensorAdder(const RandomModelConfig& config, GgufWriter& writer) : config_(config), writer_(writer) {}

  void add_matrix(const std::string& name, int64_t d_in, int64_t d_out) { add_matrix(name, d_in, d_out, config_.type); }

  void add_matrix(const std::string& name, int64_t d_in, int64_t d_out, DType type) {
    if (d_in % dtype_info(type).block_len != 0)
      throw Error::bad_input("random model: tensor ", name, " has rows of ", d_in, " values, ", dtype_name(type),
                             " wants a multiple of ", dtype_info(type).block_len);
    add_random(name, type, {d_in, d_out});
  }

  void add_ones(const std::string& name, int64_t length) {
    writer_.add_f32_tensor(name, {length}, std::vector<float>(static_cast<size_t>(length), 1.0f));
  }

  void add_bias(const std::string& name, int64_t length) { add_random(name, DType::kF32, {length}); }

 private:
  void add_random(const std::string& name, DType type, const std::vector<int64_t>& dims) {
    const uint64_t seed = config_.seed * 0x9e3779b97f4a7c15u + (++n_tensors_ << 32);
    writer_.add_tensor(name, type, dims,
                       [type, seed](std::span<std::byte> out) { fill_random_blocks(type, kDeviation, seed, out); });
  }

  const RandomModelConfig& config_;
  GgufWriter& writer_;
  uint64_t n_tensors_ = 0;
};

void add_layer(const RandomModelConfig& config, int64_t layer, TensorAdder& adder) {
  const std::string prefix = "blk." + std::to_string(layer) + ".";
  const int64_t d_q = config.n_heads * config.head_dim, d_kv = config.n_kv_heads * config.head_dim;
  adder.add_ones(prefix + "attn_norm.weight", config.d_model);
  adder.add_matrix(prefix + "attn_q.weight", config.d_model, d_q);
  adder.add_matrix(prefix + "attn_k.weight", config.d_model, d_kv);
  adder.add_matrix(prefix + "attn_v.weight", config.d_model, d_kv);
  adder.add_matrix(prefix + "attn_output.weight", d_q, config.d_model);
  if (config.arch == "qwen2") {
    adder.add_bias(prefix + "attn_q.bias", d_q);
    adder.add_bias(prefix + "attn_k.bias", d_kv);
    adder.add_bias(prefix + "attn_v.bias", d_kv);
  }
  adder.add_ones(prefix + "ffn_norm.weight", config.d_model);
  adder.add_matrix(prefix + "ffn_gate.weight", config.d_model, config.d_ff);
  adder.add_matrix(prefix + "ffn_up.weight", config.d_model, config.d_ff);
  adder.add_matrix(prefix + "ffn_down.weight", config.d_ff, config.d_model);
}

void check_range(std::string_view name, int64_t value, int64_t least, int64_t most) {
  if (value < least || value > most)
    throw Error::bad_input("random model: ", name, " is ", value, ", wanted ", least, " to ", most);
}

void check_config(const RandomModelConfig& config) {
  if (config.arch != "llama" && config.arch != "qwen2")
    throw Error::bad_input("random model: arch is \"", config.arch, "\", wanted llama or qwen2");
  check_range("n_layers", config.n_layers, 1, 1024);
  check_range("d_model", config.d_model, 1, 1 << 16);
  check_range("d_ff", config.d_ff, 1, 1 << 18);
  check_range("n_heads", config.n_heads, 1, 1024);
  check_range("n_kv_heads", config.n_kv_heads, 1, config.n_heads);
  check_range("head_dim", config.head_dim, 2, 1024);
  check_range("vocab_size", config.vocab_size, 256 + kRandomModelSpecials, kMaxVocab);
  check_range("context_length", config.context_length, 1, int64_t{1} << 31);
  if (config.n_heads % config.n_kv_heads != 0 || config.head_dim % 2 != 0)
    throw Error::bad_input("random model: found ", config.n_heads, " heads, ", config.n_kv_heads,
                           " kv heads, head_dim ", config.head_dim,
                           ", wanted a multiple of the kv heads and an even head_dim");
}

}  // namespace

std::optional<RandomModelConfig> find_model_shape(std::string_view name) {
  for (const auto& [shape_name, config] : model_shapes())
    if (shape_name == name) return config;
  return std::nullopt;
}

std::string model_shape_names() {
  std::string out;
  for (const auto& [name, config] : model_shapes()) out.append(out.empty() ? "" : ", ").append(name);
  return out;
}

GgufWriter make_random_model(const RandomModelConfig& config) {
  check_config(config);
  GgufWriter writer;
  add_hyperparameters(config, writer);
  add_tokenizer(config, writer);
  TensorAdder adder(config, writer);
  const DType output_type = config.output_type.value_or(config.type);
  adder.add_matrix("token_embd.weight", config.d_model, config.vocab_size, config.tied ? output_type : config.type);
  for (int64_t layer = 0; layer < config.n_layers; ++layer) add_layer(config, layer, adder);
  adder.add_ones("output_norm.weight", config.d_model);
  if (!config.tied) adder.add_matrix("output.weight", config.d_model, config.vocab_size, output_type);
  if (config.rope_factors)
    writer.add_f32_tensor("rope_freqs.weight", {config.head_dim / 2},
                          llama3_rope_factors(config.head_dim, config.rope_base));
  return writer;
}

void write_random_model(const RandomModelConfig& config, const std::filesystem::path& path) {
  make_random_model(config).write(path);
}

}  // namespace polyspan
