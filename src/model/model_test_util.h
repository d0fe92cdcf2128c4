// model/model_test_util.h: tiny random models in memory, for tests. Included by tests and by nothing else.
#pragma once

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "io/random_model.h"
#include "model/model.h"
#include "ops/test_util.h"

namespace polyspan::testing_util {

// A random model in memory. The weights' deviation of 0.02 makes scores near 0: `sharpen` multiplies queries and keys
// of F32 models, so that attention has something to choose.
struct TinyModel {
  RandomModelConfig config;
  std::vector<std::byte> bytes;
  OpContext context;
  std::unique_ptr<Model> model;
  TinyModel(const RandomModelConfig& c, int n_threads)
      : config(c), bytes(make_random_model(c).to_bytes()), context(n_threads) {
    sharpen();
    model = Model::load(std::make_unique<GgufFile>(GgufFile::from_bytes(bytes, "tiny")), context, no_progress());
  }
  void sharpen() {
    if (config.type != DType::kF32) return;
    const GgufFile file = GgufFile::from_bytes(bytes, "tiny");
    for (const GgufTensor& tensor : file.tensors()) {
      if (tensor.name.find("attn_q.weight") == tensor.name.npos &&
          tensor.name.find("attn_k.weight") == tensor.name.npos)
        continue;
      std::byte* data = bytes.data() + (tensor.data.data() - bytes.data());
      for (int64_t i = 0; i < tensor.n_values(); ++i) {
        float value;
        std::memcpy(&value, data + 4 * i, sizeof value);
        value *= 5.0f;
        std::memcpy(data + 4 * i, &value, sizeof value);
      }
    }
  }
  KvCache cache(const SpanPlan& plan, int64_t length, KvType type = KvType::kF16) const {
    return KvCache(KvLayout(model->config(), plan, length, type));
  }
};

inline RandomModelConfig tiny(const std::string& arch, DType type = DType::kF32, int64_t n_heads = 6,
                              int64_t n_kv_heads = 2) {
  RandomModelConfig config = find_model_shape("tiny-" + arch).value();
  config.type = type, config.n_heads = n_heads, config.n_kv_heads = n_kv_heads;
  if (type == DType::kF32) config.d_model = 64, config.d_ff = 96, config.head_dim = 16, config.vocab_size = 270;
  return config;
}

inline std::vector<int32_t> random_tokens(const TinyModel& tiny_model, int64_t n, uint64_t seed) {
  Random random(seed);
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < n; ++i) tokens.push_back(static_cast<int32_t>(random.below(tiny_model.config.vocab_size)));
  return tokens;
}

}  // namespace polyspan::testing_util
