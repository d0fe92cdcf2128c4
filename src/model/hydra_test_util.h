// model/hydra_test_util.h: tiny random Hydra models in memory, for tests. Included by tests and by nothing else.
#pragma once

#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "io/byte_vocabulary.h"
#include "model/model.h"
#include "ops/test_util.h"

namespace polyspan::testing_util {

// Every part is there, in few numbers: chunks of 16, windows of 128, 24 global tokens.
inline HydraConfig tiny_hydra_config() {
  HydraConfig c;
  c.d_model = 32, c.n_layers = 4, c.vocab_size = 260, c.context_length = 4096, c.chunk_len = 16, c.controller_rank = 4;
  c.d_inner = 32, c.ssm_head_dim = 16, c.d_state = 8, c.d_conv = 4;
  c.attention_every = 2, c.n_heads = 4, c.n_kv_heads = 2, c.head_dim = 16, c.window = 128, c.n_global = 24;
  c.moe_every = 2, c.n_experts = 4, c.n_active_experts = 2, c.d_expert = 32;
  c.n_slots = 3, c.d_slot = 16, c.slot_rank = 16;
  c.pkm_layers = {2}, c.n_sub_keys = 8, c.pkm_heads = 2, c.pkm_top = 3, c.d_pkm_query = 8, c.d_value = 8;
  return c;
}

inline HydraConfig tiny_diagonal_config() {
  HydraConfig c = tiny_hydra_config();
  c.ssm_kind = SsmKind::kDiagonal;
  return c;
}

// Only attention, in one block.
inline HydraConfig attention_only_config() {
  HydraConfig c = tiny_hydra_config();
  c.n_layers = 1, c.attention_every = 1, c.has_ssm = false, c.moe_every = 0, c.n_slots = 0, c.pkm_layers = {};
  return c;
}

using HydraTensors = std::map<std::string, std::vector<float>>;

// Values that leave nothing at 0 or 1. Queries, keys and scores are large enough for attention to choose.
inline HydraTensors random_hydra_tensors(const HydraConfig& config, uint64_t seed) {
  Random random(seed);
  HydraTensors tensors;
  for (const TensorSpec& spec : hydra_tensors(config)) {
    std::vector<float>& values = tensors[spec.name];
    const bool chooses = spec.name.find("attn_q") != spec.name.npos || spec.name.find("attn_k") != spec.name.npos ||
                         spec.name.find("attn_score") != spec.name.npos;
    const float scale = (chooses ? 3.0f : 1.5f) / std::sqrt(static_cast<float>(spec.shape.back()));
    for (int64_t i = 0; i < spec.n_values(); ++i) switch (spec.init) {
        case TensorInit::kNormal: values.push_back(scale * random.unit()); break;
        case TensorInit::kConstant: values.push_back(static_cast<float>(spec.scale) + 0.3f * random.unit()); break;
        case TensorInit::kPathScales: values.push_back(0.7f + 0.2f * random.unit()); break;
        case TensorInit::kLogUniform: values.push_back(1.0f + random.unit()); break;
        case TensorInit::kTimeStep: values.push_back(-3.0f + random.unit()); break;
        case TensorInit::kLogRate: values.push_back(-2.0f + random.unit()); break;
      }
  }
  return tensors;
}

inline std::vector<std::byte> hydra_file(const HydraConfig& config, const HydraTensors& tensors) {
  GgufWriter writer;
  write_hydra_config(config, writer);
  writer.add_string("general.name", "tiny hydra");
  write_byte_tokenizer(config.vocab_size, writer);
  for (const TensorSpec& spec : hydra_tensors(config))
    writer.add_f32_tensor(spec.name, std::vector<int64_t>(spec.shape.rbegin(), spec.shape.rend()),
                          tensors.at(spec.name));
  return writer.to_bytes();
}

struct TinyHydra {
  std::vector<std::byte> bytes;
  OpContext context;
  std::unique_ptr<Model> model;
  explicit TinyHydra(const HydraConfig& config, int n_threads = 2, uint64_t seed = 1)
      : TinyHydra(config, random_hydra_tensors(config, seed), n_threads) {}
  TinyHydra(const HydraConfig& config, const HydraTensors& tensors, int n_threads = 2)
      : bytes(hydra_file(config, tensors)), context(n_threads) {
    model = Model::load(std::make_unique<GgufFile>(GgufFile::from_bytes(bytes, "tiny")), context, no_progress());
  }
  HeadShape shape() const { return model->config().head_shape(); }
  KvCache cache(const SpanPlan& plan) const { return KvCache(KvLayout(model->config(), plan, 1000, KvType::kF16)); }

  // Logits [n_tokens, vocab_size] of `tokens`, read `cut` at a time into the cache.
  std::vector<float> run(KvCache& cache, std::span<const int32_t> tokens, int64_t cut) const {
    std::vector<float> all(tokens.size() * static_cast<size_t>(model->config().vocab_size));
    for (int64_t begin = 0; begin < std::ssize(tokens); begin += cut) {
      const int64_t n = std::min(cut, std::ssize(tokens) - begin);
      const BatchSequence sequence{&cache, 0, n};
      model->forward({tokens.subspan(static_cast<size_t>(begin), static_cast<size_t>(n)), {&sequence, 1}});
      std::vector<int64_t> rows;
      for (int64_t row = 0; row < n; ++row) rows.push_back(row);
      model->logits(rows, all.data() + begin * model->config().vocab_size);
    }
    return all;
  }
  std::vector<float> run(const SpanPlan& plan, std::span<const int32_t> tokens, int64_t cut = 512) const {
    KvCache fresh = cache(plan);
    return run(fresh, tokens, cut);
  }
  // spans: [n_layers][n_kv_heads], in tokens.
  SpanPlan plan(const std::vector<std::vector<double>>& spans) const {
    std::vector<std::vector<SpanRule>> rules;
    for (const auto& row : spans) {
      rules.emplace_back();
      for (const double span : row) rules.back().push_back({span, 0});
    }
    return SpanPlan::from_rules(shape(), std::move(rules), /*per_query_head=*/false);
  }
};

inline std::vector<int32_t> random_bytes(int64_t n, uint64_t seed) {
  Random random(seed);
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < n; ++i) tokens.push_back(static_cast<int32_t>(random.below(256)));
  return tokens;
}

}  // namespace polyspan::testing_util
