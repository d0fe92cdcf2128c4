#include "hydra/decoder.h"

#include "hydra/device_graph.h"
#include "hydra/hydra_test_util.h"
#include "hydra/precision.h"
#include "hydra/transformer_model.h"

namespace polyspan {
namespace {

TrainConfig train_config(const HydraConfig& hydra) {
  TrainConfig config;
  config.hydra = hydra;
  return config;
}

// Over several windows and chunks, and to a token in the middle of one.
void expect_the_models_logits(const TrainConfig& config, LanguageModel& model) {
  const torch::NoGradGuard no_grad;
  const int64_t n_tokens = 47;
  const torch::Tensor tokens = random_tokens(1, n_tokens, 260), expected = model.forward(tokens, {}).logits[0];
  const std::unique_ptr<Decoder> decoder = make_decoder(config, model, {.capacity = n_tokens});
  for (int64_t t = 0; t < n_tokens; ++t)
    EXPECT_LT(distance(decoder->step(tokens[0].slice(0, t, t + 1))[0], expected[t]), 1e-10) << "token " << t;
}

TEST(Decoder, HasTheLogitsOfTheHydraModel) {
  HydraConfig without = tiny_config();
  without.n_global = 0, without.n_slots = 0, without.pkm_layers = {};
  HydraConfig uneven = tiny_config();  // no two sizes of a part are equal
  uneven.n_slots = 5, uneven.d_slot = 12, uneven.slot_rank = 6, uneven.n_kv_heads = 1, uneven.head_dim = 6;
  uneven.d_pkm_query = 10, uneven.d_value = 7, uneven.d_inner = 64, uneven.n_experts = 5, uneven.d_expert = 20;
  for (const HydraConfig& c : {tiny_config(), tiny_diagonal_config(), without, uneven}) {
    HydraModel model(c, 1, float64());
    stir(model.parameters(), 0.2);
    expect_the_models_logits(train_config(c), model);
  }
}

TEST(Decoder, HasTheLogitsOfTheTransformer) {
  TrainConfig config;
  config.architecture = "transformer";
  TransformerSizes& sizes = config.transformer;
  sizes.d_model = 32, sizes.n_layers = 2, sizes.n_heads = 4, sizes.n_kv_heads = 2, sizes.head_dim = 8, sizes.d_ff = 48;
  TransformerModel model(sizes, 1, float64());
  stir(model.parameters(), 0.1);
  expect_the_models_logits(config, model);
}

// In bf16 near the logits in float32; after tokens that were not read, numbers still come out.
TEST(Decoder, Bf16IsNearFloat32) {
  const torch::NoGradGuard no_grad;
  const TrainConfig config = train_config(tiny_config());
  HydraModel model(config.hydra, 1, float32());
  const torch::Tensor token = random_tokens(1, 1, 260)[0];
  const torch::Tensor expected = make_decoder(config, model, {})->step(token);
  store_matrices_in_bf16(model.parameters());
  const Bf16Products on(torch::kCPU, true);
  const std::unique_ptr<Decoder> decoder = make_decoder(config, model, {});
  const torch::Tensor logits = not_bf16(decoder->step(token));
  EXPECT_FALSE(same_bits(logits, expected));
  EXPECT_LT(distance(logits, expected), 0.03);
  const int64_t bytes = decoder->state_bytes();
  decoder->pretend(4096);
  for (int64_t t = 0; t < 9; ++t) EXPECT_TRUE(torch::isfinite(decoder->step(token)).all().item<bool>()) << t;
  EXPECT_EQ(decoder->state_bytes(), bytes);
}

// On a GPU, in bf16: steps that are replayed are those that are computed, and their loss is that of the model's forward pass.
void expect_replayed_steps(const TrainConfig& config, LanguageModel& model) {
  const torch::NoGradGuard no_grad;
  const int64_t n_tokens = 170;
  const torch::Tensor tokens = random_tokens(1, n_tokens, 260).to(torch::kCUDA);
  const Bf16Products products(torch::kCUDA, true);
  const auto loss_of = [&](const torch::Tensor& logits) {
    return at::cross_entropy_loss(not_bf16(logits).slice(0, 0, n_tokens - 1), tokens[0].slice(0, 1)).item<double>();
  };
  const double expected = loss_of(model.forward(tokens, {}).logits[0]);
  store_matrices_in_bf16(model.parameters());
  std::vector<torch::Tensor> logits[2];
  for (const bool graphs : {false, true}) {
    const std::unique_ptr<Decoder> decoder = make_decoder(config, model, {.capacity = n_tokens, .graphs = graphs});
    for (int64_t t = 0; t < n_tokens; ++t)
      logits[graphs].push_back(not_bf16(decoder->step(tokens[0].slice(0, t, t + 1))).clone());
    EXPECT_EQ(decoder->launches_per_step() > 10, graphs);
    EXPECT_NEAR(loss_of(torch::cat(logits[graphs])), expected, 0.02) << (graphs ? "replayed" : "computed");
  }
  for (size_t t = 0; t < logits[0].size(); ++t) EXPECT_LT(distance(logits[1][t], logits[0][t]), 1e-3) << "token " << t;
}

TEST(DecoderOnGpu, ReplaysHydrasSteps) {
  if (!DeviceGraph::is_for(torch::cuda::is_available() ? torch::kCUDA : torch::kCPU)) GTEST_SKIP() << "no GPU";
  const HydraConfig c = config_for_kernels();
  HydraModel model(c, 1, float32().device(torch::kCUDA));
  stir(model.parameters(), 0.1);
  expect_replayed_steps(train_config(c), model);
}

TEST(DecoderOnGpu, ReplaysTheTransformersSteps) {
  if (!DeviceGraph::is_for(torch::cuda::is_available() ? torch::kCUDA : torch::kCPU)) GTEST_SKIP() << "no GPU";
  TrainConfig config;
  config.architecture = "transformer";
  TransformerSizes& sizes = config.transformer;
  sizes.d_model = 32, sizes.n_layers = 2, sizes.n_heads = 4, sizes.n_kv_heads = 2, sizes.head_dim = 8, sizes.d_ff = 48;
  TransformerModel model(sizes, 1, float32().device(torch::kCUDA));
  stir(model.parameters(), 0.1);
  expect_replayed_steps(config, model);
}

}  // namespace
}  // namespace polyspan
