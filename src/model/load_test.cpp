// What is wrong with a model file is an Error that names the key or tensor, what was found and what was wanted.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <map>
#include <string>

#include "core/error.h"
#include "io/gguf_writer.h"
#include "model/model.h"

namespace polyspan {
namespace {

// The parts of a small valid model, each of which a test may change or leave out before the file is made.
struct Parts {
  std::map<std::string, std::function<void(GgufWriter&, const std::string&)>> keys;
  std::map<std::string, std::pair<DType, std::vector<int64_t>>> tensors;

  void set_int(const std::string& key, uint32_t value) {
    keys[key] = [value](GgufWriter& writer, const std::string& name) { writer.add_u32(name, value); };
  }
  void set_float(const std::string& key, float value) {
    keys[key] = [value](GgufWriter& writer, const std::string& name) { writer.add_f32(name, value); };
  }
  void set_string(const std::string& key, const std::string& value) {
    keys[key] = [value](GgufWriter& writer, const std::string& name) { writer.add_string(name, value); };
  }
  explicit Parts(const std::string& arch = "llama") {
    set_string("general.architecture", arch);
    set_int(arch + ".block_count", 1);
    set_int(arch + ".embedding_length", 64);
    set_int(arch + ".feed_forward_length", 96);
    set_int(arch + ".attention.head_count", 4);
    set_int(arch + ".attention.head_count_kv", 2);
    set_int(arch + ".context_length", 1024);
    set_float(arch + ".attention.layer_norm_rms_epsilon", 1e-5f);
    const std::vector<int64_t> d_model = {64};
    tensors = {
        {"token_embd.weight", {DType::kF32, {64, 40}}},      {"output_norm.weight", {DType::kF32, d_model}},
        {"blk.0.attn_norm.weight", {DType::kF32, d_model}},  {"blk.0.ffn_norm.weight", {DType::kF32, d_model}},
        {"blk.0.attn_q.weight", {DType::kQ8_0, {64, 64}}},   {"blk.0.attn_k.weight", {DType::kQ8_0, {64, 32}}},
        {"blk.0.attn_v.weight", {DType::kF16, {64, 32}}},    {"blk.0.attn_output.weight", {DType::kQ4_0, {64, 64}}},
        {"blk.0.ffn_gate.weight", {DType::kQ4_1, {64, 96}}}, {"blk.0.ffn_up.weight", {DType::kQ4_1, {64, 96}}},
        {"blk.0.ffn_down.weight", {DType::kQ5_0, {96, 64}}}};
    if (arch == "qwen2")
      for (const auto& [name, n] : {std::pair<std::string, int64_t>{"q", 64}, {"k", 32}, {"v", 32}})
        tensors["blk.0.attn_" + name + ".bias"] = {DType::kF32, {n}};
  }

  std::vector<std::byte> bytes() const {
    GgufWriter writer;
    for (const auto& [name, add] : keys) add(writer, name);
    for (const auto& [name, tensor] : tensors)
      writer.add_tensor(name, tensor.first, tensor.second, [](std::span<std::byte>) {});
    return writer.to_bytes();
  }
  std::unique_ptr<Model> load(OpContext& context) const {
    const std::vector<std::byte> file = bytes();  // weights are packed: the bytes are needed no longer
    return Model::load(std::make_unique<GgufFile>(GgufFile::from_bytes(file, "test.gguf")), context, no_progress());
  }
};

TEST(ModelLoad, ReadsTheConfiguration) {
  OpContext context(1);
  Parts parts("qwen2");
  parts.set_string("general.name", "small");
  parts.set_float("qwen2.rope.freq_base", 1e6f);
  parts.set_int("qwen2.attention.sliding_window", 100);
  const ModelConfig config = parts.load(context)->config();
  EXPECT_EQ(config.architecture, "qwen2");
  EXPECT_EQ(config.name, "small");
  EXPECT_EQ(config.quantization, "F32");  // the embedding: 64 x 40 x 4 bytes
  EXPECT_TRUE(config.n_layers == 1 && config.n_heads == 4 && config.n_kv_heads == 2 && config.head_dim == 16);
  EXPECT_TRUE(config.d_model == 64 && config.d_ff == 96 && config.vocab_size == 40 && config.context_length == 1024);
  EXPECT_EQ(config.n_parameters, 64 * 40 + 3 * 64 + 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96 + 64 + 32 + 32);
  EXPECT_EQ(config.norm_eps, 1e-5f);
  EXPECT_TRUE(config.rope.pairing == RopePairing::kHalves && config.rope.base == 1e6 && config.rope.n_dims == 16);
  EXPECT_TRUE(config.qkv_bias);
  EXPECT_EQ(config.default_plan().spans(500).kv_head_spans[0][0], 100);

  const ModelConfig plain = Parts().load(context)->config();
  EXPECT_TRUE(plain.rope.pairing == RopePairing::kInterleaved && plain.rope.base == 1e4 && !plain.qkv_bias);
  EXPECT_TRUE(plain.default_plan().is_dense());
}

TEST(ModelLoad, OptionalKeys) {
  OpContext context(1);
  Parts parts;
  parts.set_string("llama.rope.scaling.type", "linear");
  parts.set_float("llama.rope.scaling.factor", 4.0f);
  parts.set_int("llama.rope.dimension_count", 8);
  parts.tensors["rope_freqs.weight"] = {DType::kF32, {4}};
  try {
    parts.load(context);
    FAIL() << "no error for factors of 0";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "test.gguf: tensor rope_freqs.weight holds 0; factors are positive");
  }
  parts.tensors.erase("rope_freqs.weight");
  const ModelConfig config = parts.load(context)->config();
  EXPECT_TRUE(config.rope.linear_scale == 4.0 && config.rope.n_dims == 8);
  parts.set_string("llama.rope.scaling.type", "none");  // a factor without effect
  EXPECT_EQ(parts.load(context)->config().rope.linear_scale, 1.0);
  parts.keys.erase("llama.rope.scaling.type");  // old files: the factor alone
  EXPECT_EQ(parts.load(context)->config().rope.linear_scale, 4.0);

  Parts one_kv_head_each;
  one_kv_head_each.keys.erase("llama.attention.head_count_kv");
  one_kv_head_each.tensors["blk.0.attn_k.weight"].second = {64, 64};
  one_kv_head_each.tensors["blk.0.attn_v.weight"].second = {64, 64};
  EXPECT_EQ(one_kv_head_each.load(context)->config().n_kv_heads, 4);
}

TEST(ModelLoad, EveryMissingTensorIsNamed) {
  OpContext context(1);
  for (const char* arch : {"llama", "qwen2"}) {
    const Parts whole(arch);
    for (const auto& [name, tensor] : whole.tensors) {
      SCOPED_TRACE(name);
      Parts parts(arch);
      parts.tensors.erase(name);
      try {
        parts.load(context);
        ADD_FAILURE() << "no error";
      } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::kBadFile);
        EXPECT_NE(std::string(error.what()).find(name), std::string::npos) << error.what();
        EXPECT_EQ(std::string(error.what()).rfind("test.gguf: ", 0), 0u) << error.what();
      }
    }
  }
}

TEST(ModelLoad, EveryWrongShapeIsNamed) {
  OpContext context(1);
  const Parts whole("qwen2");
  for (const auto& [name, tensor] : whole.tensors)
    for (const size_t dim : {0, 1}) {
      if (dim >= tensor.second.size() || (name == "token_embd.weight" && dim == 1))
        continue;  // the vocabulary may vary
      SCOPED_TRACE(testing::Message() << name << " dim " << dim);
      Parts parts("qwen2");
      parts.tensors[name].second[dim] += 32;
      try {
        parts.load(context);
        ADD_FAILURE() << "no error";
      } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::kBadFile);
        const std::string message = error.what(), found = std::to_string(tensor.second[dim] + 32);
        EXPECT_NE(message.find(name), std::string::npos) << message;
        EXPECT_NE(message.find(found), std::string::npos) << message;
        EXPECT_NE(message.find(std::to_string(tensor.second[dim])), std::string::npos) << message;
      }
    }
}

TEST(ModelLoad, BadKeysAreNamed) {
  using Change = std::function<void(Parts&)>;
  struct Case {
    ErrorKind kind;
    Change change;
    std::vector<std::string> words;  // that the message holds
  };
  const auto with_int = [](const char* key, uint32_t value) {
    return [=](Parts& parts) { parts.set_int(key, value); };
  };
  const auto with_float = [](const char* key, float value) {
    return [=](Parts& parts) { parts.set_float(key, value); };
  };
  const auto without = [](const char* key) { return [=](Parts& parts) { parts.keys.erase(key); }; };
  const ErrorKind bad = ErrorKind::kBadFile, unsupported = ErrorKind::kUnsupported;
  const Case cases[] = {
      {unsupported, [](Parts& p) { p.set_string("general.architecture", "mamba"); }, {"\"mamba\"", "llama", "qwen2"}},
      {bad, without("general.architecture"), {"general.architecture"}},
      {bad, without("llama.block_count"), {"llama.block_count"}},
      {bad, with_int("llama.block_count", 0), {"llama.block_count", " 0"}},
      {bad, with_int("llama.block_count", 4000000000u), {"llama.block_count", "4000000000", "1024"}},
      {bad, [](Parts& p) { p.set_string("llama.block_count", "two"); }, {"llama.block_count"}},
      {bad, with_int("llama.block_count", 2), {"blk.1."}},
      {bad, with_int("llama.embedding_length", 0), {"llama.embedding_length"}},
      {bad, with_int("llama.feed_forward_length", 1u << 30), {"llama.feed_forward_length", "1073741824"}},
      {bad, with_int("llama.attention.head_count", 3), {"head_count", "3", "2"}},
      {bad, with_int("llama.attention.head_count", 6), {"embedding_length", "64", "6"}},
      {bad, with_int("llama.attention.head_count_kv", 0), {"llama.attention.head_count_kv"}},
      {bad, with_int("llama.attention.key_length", 1024), {"llama.attention.key_length", "1024", "512"}},
      {unsupported,
       [](Parts& p) { p.set_int("llama.attention.key_length", 16), p.set_int("llama.attention.value_length", 8); },
       {"16", "8"}},
      {bad, without("llama.context_length"), {"llama.context_length"}},
      {bad, without("llama.attention.layer_norm_rms_epsilon"), {"llama.attention.layer_norm_rms_epsilon"}},
      {bad, with_float("llama.attention.layer_norm_rms_epsilon", 0.0f), {"layer_norm_rms_epsilon", "0"}},
      {bad, with_float("llama.attention.layer_norm_rms_epsilon", NAN), {"layer_norm_rms_epsilon", "nan"}},
      {bad, with_int("llama.rope.dimension_count", 18), {"llama.rope.dimension_count", "18", "16"}},
      {bad, with_int("llama.rope.dimension_count", 7), {"llama.rope.dimension_count", "7", "even"}},
      {bad, with_float("llama.rope.freq_base", -1.0f), {"llama.rope.freq_base", "-1"}},
      {bad, with_float("llama.rope.freq_base", NAN), {"llama.rope.freq_base", "nan"}},
      {unsupported, [](Parts& p) { p.set_string("llama.rope.scaling.type", "yarn"); }, {"\"yarn\"", "linear"}},
      {bad,
       [](Parts& p) {
         p.set_string("llama.rope.scaling.type", "linear"), p.set_float("llama.rope.scaling.factor", -2.0f);
       },
       {"llama.rope.scaling.factor", "-2"}},
      {bad, with_int("llama.vocab_size", 41), {"llama.vocab_size", "41", "40"}},
      {bad,
       [](Parts& p) {
         p.tensors["rope_freqs.weight"] = {DType::kF32, {5}};
       },
       {"rope_freqs.weight", "[5]", "[8]"}},
      {bad,
       [](Parts& p) { p.tensors["output_norm.weight"].first = DType::kQ8_0; },
       {"output_norm.weight", "Q8_0", "F32"}},
  };
  OpContext context(1);
  for (const Case& c : cases) {
    SCOPED_TRACE(c.words.front() + " ... " + c.words.back());
    Parts parts;
    c.change(parts);
    try {
      parts.load(context);
      ADD_FAILURE() << "no error";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), c.kind) << error.what();
      for (const std::string& word : c.words)
        EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
      EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
    }
  }
}

}  // namespace
}  // namespace polyspan
