// engine/engine_test_util.h: a tiny engine with random weights, for tests. Included by tests and by nothing else.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"
#include "core/test_util.h"
#include "engine/engine.h"
#include "io/random_model.h"
#include "ops/test_util.h"

namespace polyspan::testing_util {

inline constexpr std::string_view kChatMlTemplate =
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
    "'\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

// 2 layers, 6 heads in groups of 3, 270 tokens: the bytes, ten short words, four control tokens (those of Qwen2, so
// that ChatML can be written). The output matrix is not the embedding: greedy text of such a model wanders.
inline RandomModelConfig tiny_engine_config(DType type = DType::kF32) {
  RandomModelConfig config = find_model_shape("tiny-qwen2").value();
  config.type = type, config.n_heads = 6, config.tied = false, config.vocab_size = 270;
  if (type == DType::kF32) config.d_model = 64, config.d_ff = 96, config.head_dim = 16;
  return config;
}

// Engine::load wants a file: it lives in a temporary folder for as long as the engine.
class TinyEngine {
 public:
  explicit TinyEngine(const RandomModelConfig& config = tiny_engine_config(),
                      std::string_view chat_template = kChatMlTemplate, int n_threads = 1,
                      const Device& device = {DeviceKind::kCpu, 0}) {
    GgufWriter writer = make_random_model(config);
    if (!chat_template.empty()) writer.add_string("tokenizer.chat_template", std::string(chat_template));
    writer.write(folder_.path() / "tiny.gguf");
    engine_ = Engine::load(folder_.path() / "tiny.gguf", n_threads, no_progress(), device);
  }

  Engine& operator*() const { return *engine_; }
  Engine* operator->() const { return engine_.get(); }
  SpanPlan dense() const { return SpanPlan::dense(engine_->config().head_shape()); }
  SpanPlan uniform(double density, int64_t n_sink = kDefaultSinkTokens) const {
    return SpanPlan::uniform(engine_->config().head_shape(), density, n_sink);
  }
  std::vector<TokenId> random_tokens(int64_t n, uint64_t seed) const {
    Random random(seed);
    std::vector<TokenId> tokens;
    for (int64_t i = 0; i < n; ++i) tokens.push_back(static_cast<TokenId>(random.below(engine_->config().vocab_size)));
    return tokens;
  }
  // Feeds the tokens to the sequence by itself and returns the logits after the last.
  std::vector<float> feed(Sequence& sequence, std::span<const TokenId> tokens) const {
    std::vector<float> logits(static_cast<size_t>(engine_->config().vocab_size), NAN);
    const StepRequest request{&sequence, tokens, logits.data()};
    engine_->step({&request, 1});
    return logits;
  }

 private:
  const TemporaryFolder folder_;
  std::unique_ptr<Engine> engine_;
};

// Root mean square of the difference over that of `expected`.
inline double relative_error(std::span<const float> actual, std::span<const float> expected) {
  EXPECT_EQ(actual.size(), expected.size());
  double difference = 0, size = 0;
  for (size_t i = 0; i < std::min(actual.size(), expected.size()); ++i) {
    const double wanted = expected[i], error = static_cast<double>(actual[i]) - wanted;
    difference += error * error;
    size += wanted * wanted;
  }
  return std::sqrt(difference / size);
}

// That `call` throws an Error of this kind whose message is one line that has all of `mentions`.
template <typename Call>
void expect_error(Call call, ErrorKind kind, const std::vector<std::string>& mentions) {
  try {
    call();
    ADD_FAILURE() << "nothing was thrown";
  } catch (const Error& error) {
    const std::string message = error.what();
    EXPECT_EQ(error.kind(), kind) << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    for (const std::string& word : mentions)
      EXPECT_NE(message.find(word), std::string::npos) << "\"" << word << "\" is not in: " << message;
  }
}

}  // namespace polyspan::testing_util
