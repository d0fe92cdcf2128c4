#include "io/random_model.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <set>
#include <string>
#include <vector>

#include "core/error.h"
#include "io/gguf.h"

namespace polyspan {
namespace {

std::vector<float> values_of(const GgufTensor& tensor) {
  std::vector<float> values(static_cast<size_t>(tensor.n_values()));
  dequantize_row(tensor.type, tensor.data.data(), tensor.n_values(), values.data());
  return values;
}

TEST(FillRandomBlocks, HasTheWantedMoments) {
  constexpr int64_t kValues = 1 << 16;
  for (const DTypeInfo& info : all_dtypes()) {
    for (const float deviation : {0.02f, 1.0f}) {
      SCOPED_TRACE(testing::Message() << info.name << ", deviation " << deviation);
      std::vector<std::byte> blocks(static_cast<size_t>(row_bytes(info.type, kValues)));
      fill_random_blocks(info.type, deviation, /*seed=*/3, blocks);
      std::vector<float> values(kValues);
      dequantize_row(info.type, blocks.data(), kValues, values.data());
      double sum = 0, sum_of_squares = 0;
      for (const float value : values) {
        ASSERT_TRUE(std::isfinite(value));
        sum += value;
        sum_of_squares += double{value} * value;
      }
      EXPECT_NEAR(std::sqrt(sum_of_squares / kValues), deviation, 0.06 * deviation);
      EXPECT_NEAR(sum / kValues, 0, 0.03 * deviation);  // 256 K blocks whose scale is shared: wider than 1 / sqrt(n)
    }
  }
}

TEST(RandomModel, EveryTypeOpens) {
  for (const char* shape : {"tiny-llama", "tiny-qwen2"}) {
    for (const DTypeInfo& info : all_dtypes()) {
      SCOPED_TRACE(testing::Message() << shape << ", " << info.name);
      RandomModelConfig config = find_model_shape(shape).value();
      config.type = info.type;
      config.rope_factors = true;
      const std::vector<std::byte> bytes = make_random_model(config).to_bytes();
      const GgufFile file = GgufFile::from_bytes(bytes, shape);
      EXPECT_EQ(file.get_string("general.architecture"), config.arch);
      EXPECT_EQ(file.get_int(config.arch + ".block_count"), config.n_layers);
      EXPECT_EQ(file.get_float(config.arch + ".rope.freq_base"), config.rope_base);
      const int64_t down_dims[] = {config.d_ff, config.d_model};
      const GgufTensor& down = file.get_tensor("blk.1.ffn_down.weight", down_dims);
      EXPECT_EQ(down.type, info.type);
      for (const float value : values_of(down)) ASSERT_TRUE(std::isfinite(value));
      EXPECT_EQ(file.find_tensor("output.weight"), nullptr);
      EXPECT_EQ(file.find_tensor("blk.0.attn_q.bias") != nullptr, config.arch == "qwen2");
    }
  }
}

TEST(RandomModel, BytesFollowTheSeed) {
  RandomModelConfig config;
  config.type = DType::kQ4_K;
  const std::vector<std::byte> first = make_random_model(config).to_bytes();
  EXPECT_EQ(make_random_model(config).to_bytes(), first);
  config.seed = 2;
  EXPECT_NE(make_random_model(config).to_bytes(), first);
}

TEST(RandomModel, OutputMatrix) {
  for (const bool tied : {true, false}) {
    SCOPED_TRACE(testing::Message() << "tied " << tied);
    RandomModelConfig config;
    config.type = DType::kQ4_K;
    config.output_type = DType::kQ6_K;
    config.tied = tied;
    const std::vector<std::byte> bytes = make_random_model(config).to_bytes();
    const GgufFile file = GgufFile::from_bytes(bytes, "test");
    const int64_t dims[] = {config.d_model, config.vocab_size};
    EXPECT_EQ(file.get_tensor("token_embd.weight", dims).type, tied ? DType::kQ6_K : DType::kQ4_K);
    EXPECT_EQ(file.find_tensor("output.weight") == nullptr, tied);
    if (!tied) {
      EXPECT_EQ(file.get_tensor("output.weight", dims).type, DType::kQ6_K);
    }
  }
}

// The tokens differ, and every merge joins two tokens into a third.
TEST(RandomModel, VocabularyIsValid) {
  for (const int64_t vocab_size : {260, 261, 286, 287, 5000}) {
    SCOPED_TRACE(vocab_size);
    RandomModelConfig config;
    config.vocab_size = vocab_size;
    const std::vector<std::byte> bytes = make_random_model(config).to_bytes();
    const GgufFile file = GgufFile::from_bytes(bytes, "test");
    const std::vector<std::string_view> tokens = file.get_strings("tokenizer.ggml.tokens");
    const std::vector<std::string_view> merges = file.get_strings("tokenizer.ggml.merges");
    EXPECT_EQ(std::ssize(tokens), vocab_size);
    EXPECT_EQ(std::ssize(merges), vocab_size - 256 - kRandomModelSpecials);
    EXPECT_EQ(std::ssize(file.find_ints("tokenizer.ggml.token_type").value()), vocab_size);
    EXPECT_EQ(file.get_int("tokenizer.ggml.bos_token_id"), vocab_size - kRandomModelSpecials);
    EXPECT_EQ(file.get_int("tokenizer.ggml.eos_token_id"), vocab_size - 1);
    const std::set<std::string_view> known(tokens.begin(), tokens.end());
    EXPECT_EQ(known.size(), tokens.size());
    for (const std::string_view merge : merges) {
      const size_t space = merge.find(' ');
      const std::string left(merge.substr(0, space)), right(merge.substr(space + 1));
      EXPECT_TRUE(known.contains(left) && known.contains(right) && known.contains(left + right)) << merge;
    }
  }
}

// Llama 3.2's own factors, from the published rope parameters: 1 for the short wavelengths, 32 for the long ones.
TEST(RandomModel, RopeFactors) {
  RandomModelConfig config = find_model_shape("llama-3.2-1b").value();
  config.n_layers = 1;
  config.d_model = 32;
  config.d_ff = 32;
  config.vocab_size = 512;
  const std::vector<std::byte> bytes = make_random_model(config).to_bytes();
  const GgufFile file = GgufFile::from_bytes(bytes, "test");
  const int64_t dims[] = {32};
  const std::vector<float> factors = values_of(file.get_tensor("rope_freqs.weight", dims));
  for (size_t pair = 0; pair < 32; ++pair) {
    SCOPED_TRACE(pair);
    const double wavelength = 2 * std::numbers::pi * std::pow(5e5, static_cast<double>(pair) / 32);
    const double least = wavelength <= 8192 ? 1.0 : 32.0, most = wavelength < 2048 ? 1.0 : 32.0;
    EXPECT_GE(factors[pair], pair > 0 ? std::max<double>(least, factors[pair - 1]) : least);
    EXPECT_LE(factors[pair], most);
  }
}

TEST(RandomModel, RefusesShapesThatDoNotFit) {
  using Change = void (*)(RandomModelConfig&);
  const std::pair<Change, std::string> cases[] = {
      {[](RandomModelConfig& c) { c.arch = "gpt2"; }, "arch is \"gpt2\", wanted llama or qwen2"},
      {[](RandomModelConfig& c) { c.n_layers = 0; }, "n_layers is 0, wanted 1 to"},
      {[](RandomModelConfig& c) { c.n_kv_heads = 3; }, "3 kv heads"},
      {[](RandomModelConfig& c) { c.n_kv_heads = 9; }, "n_kv_heads is 9, wanted 1 to 8"},
      {[](RandomModelConfig& c) { c.head_dim = 31; }, "head_dim 31"},
      {[](RandomModelConfig& c) { c.vocab_size = 259; }, "vocab_size is 259, wanted 260 to"},
      {[](RandomModelConfig& c) { c.d_model = 128, c.type = DType::kQ4_K; },
       "rows of 128 values, Q4_K wants a multiple"},
  };
  for (const auto& [change, message] : cases) {
    SCOPED_TRACE(message);
    RandomModelConfig config;
    change(config);
    try {
      make_random_model(config);
      ADD_FAILURE() << "no error";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kBadInput);
      EXPECT_NE(std::string(error.what()).find(message), std::string::npos) << error.what();
    }
  }
  EXPECT_FALSE(find_model_shape("gpt-5"));
}

}  // namespace
}  // namespace polyspan
