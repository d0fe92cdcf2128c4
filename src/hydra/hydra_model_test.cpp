// The parts of a Hydra model together and by themselves: gradients, causality to the bit, sparse routing.
#include "hydra/hydra_model.h"

#include <dlfcn.h>

#include "hydra/controller.h"
#include "hydra/cpu_threads.h"
#include "hydra/experts.h"
#include "hydra/hydra_test_util.h"
#include "hydra/precision.h"
#include "hydra/product_keys.h"
#include "hydra/sparse_attention.h"
#include "hydra/ssm.h"
#include "hydra/transformer_model.h"
#include "hydra/workspace.h"
#include "model/hydra_state.h"

namespace polyspan {
namespace {

// Every parameter of the whole model, through every part.
void expect_gradients_of(const HydraConfig& config) {
  HydraModel model(config, 1, float64());
  stir(model.parameters(), 0.05);
  const torch::Tensor tokens = random_tokens(2, 22, 260);
  torch::manual_seed(4);
  const torch::Tensor weight = torch::randn({2, 22, 260}, float64()) * 0.1;
  const auto loss = [&] {
    const ForwardOutput out = model.forward(tokens, {});
    return (out.logits * weight).sum() + 0.3 * out.balance_loss + 0.1 * out.z_loss;
  };
  for (size_t i = 0; i < model.parameters().specs().size(); ++i)
    expect_gradient(model.parameters().specs()[i].name, loss, model.parameters().tensors()[i], 4, 1e-5);
}
TEST(HydraModel, GradientsMatchFiniteDifferences) { expect_gradients_of(tiny_config()); }
TEST(HydraModel, GradientsOfTheDiagonalOneMatchFiniteDifferences) { expect_gradients_of(tiny_diagonal_config()); }

// Changing token t changes no earlier logit, bit for bit, and no other sequence: for every t around the chunks.
void expect_causal(const HydraConfig& config) {
  const torch::NoGradGuard no_grad;
  for (const int64_t n_tokens : {24, 27}) {  // whole chunks, and a padded one
    HydraModel model(config, 1, float32());
    stir(model.parameters(), 0.1);
    const torch::Tensor tokens = random_tokens(3, n_tokens, 260);
    const torch::Tensor before = model.forward(tokens, {}).logits;
    for (int64_t t = 0; t < n_tokens; ++t) {
      torch::Tensor changed = tokens.clone();
      changed[1][t] = (tokens[1][t].item<int64_t>() + 101) % 260;
      const torch::Tensor after = model.forward(changed, {}).logits;
      EXPECT_TRUE(same_bits(after[1].slice(0, 0, t), before[1].slice(0, 0, t))) << "token " << t << " of " << n_tokens;
      EXPECT_FALSE(same_bits(after[1][t], before[1][t])) << "token " << t;
      EXPECT_TRUE(same_bits(after[0], before[0]) && same_bits(after[2], before[2]))
          << "token " << t << " reached another sequence";
    }
  }
}
TEST(HydraModel, IsCausalToTheBit) { expect_causal(tiny_config()); }
TEST(HydraModel, TheDiagonalOneIsCausalToTheBit) { expect_causal(tiny_diagonal_config()); }

TEST(TransformerModel, IsCausalToTheBit) {
  const torch::NoGradGuard no_grad;
  TransformerSizes sizes;
  sizes.d_model = 32, sizes.n_layers = 2, sizes.n_heads = 4, sizes.n_kv_heads = 2, sizes.head_dim = 8, sizes.d_ff = 48;
  TransformerModel model(sizes, 1, float32());
  const torch::Tensor tokens = random_tokens(2, 20, 260), before = model.forward(tokens, {}).logits;
  for (int64_t t = 0; t < 20; ++t) {
    torch::Tensor changed = tokens.clone();
    changed[1][t] = (tokens[1][t].item<int64_t>() + 7) % 260;
    const torch::Tensor after = model.forward(changed, {}).logits;
    EXPECT_TRUE(same_bits(after[1].slice(0, 0, t), before[1].slice(0, 0, t))) << t;
    EXPECT_TRUE(same_bits(after[0], before[0])) << t;
  }
}

// Far tokens reach an output only through the state, the global set and the slots: with all three off, they do not.
TEST(HydraModel, FarTokensArriveThroughTheNamedPaths) {
  const torch::NoGradGuard no_grad;
  HydraConfig c = tiny_config();
  c.n_layers = 1, c.attention_every = 1, c.moe_every = 0, c.pkm_layers = {}, c.n_slots = 3;
  const torch::Tensor tokens = random_tokens(1, 32, 260);
  torch::Tensor changed = tokens.clone();
  changed[0][1] = (tokens[0][1].item<int64_t>() + 5) % 260;
  const auto reaches_end = [&](bool has_ssm, int64_t n_global, int64_t n_slots) {
    HydraConfig one = c;
    one.has_ssm = has_ssm, one.n_global = n_global, one.n_slots = n_slots;
    HydraModel model(one, 1, float32());
    stir(model.parameters(), 0.1);
    return !same_bits(model.forward(tokens, {}).logits[0][31], model.forward(changed, {}).logits[0][31]);
  };
  EXPECT_FALSE(reaches_end(false, 0, 0));
  EXPECT_TRUE(reaches_end(true, 0, 0));
  EXPECT_TRUE(reaches_end(false, 24, 0));
  EXPECT_TRUE(reaches_end(false, 0, 3));
}

// An expert that no chunk chose and a value that no token read may be NaN: they are not touched.
TEST(HydraModel, UnusedExpertsAndValuesAreNotTouched) {
  HydraConfig c = tiny_config();
  c.n_experts = 8;
  HydraModel model(c, 1, float32());
  const torch::Tensor tokens = random_tokens(1, 8, 260);
  const ForwardOutput before = model.forward(tokens, {});
  const torch::Tensor use = before.statistics.at("moe.use.1");
  const BlockParameters w(model.parameters(), 1);
  int64_t n_unused = 0;
  {
    const torch::NoGradGuard no_grad;
    for (int64_t e = 0; e < 8; ++e) {
      if (use[e].item<double>() > 0) continue;
      ++n_unused;
      for (const char* name : {"moe_gate.weight", "moe_up.weight", "moe_down.weight"})
        torch::Tensor(w[name])[e].fill_(NAN);
    }
  }
  ASSERT_GE(n_unused, 4);  // two chunks choose at most four
  const ForwardOutput after = model.forward(tokens, {});
  EXPECT_TRUE(same_bits(after.logits, before.logits));
  after.logits.square().sum().backward();
  EXPECT_TRUE(torch::isfinite(w["norm.weight"].grad()).all().item<bool>());
  const torch::Tensor values_grad = w["pkm_values"].grad();
  ASSERT_TRUE(values_grad.is_sparse());
  const int64_t n_read = static_cast<int64_t>(before.statistics.at("pkm.values_read.1").item<double>());
  EXPECT_LE(values_grad.coalesce()._values().size(0), n_read);
  EXPECT_LT(n_read, 64);
}

TEST(Experts, BalanceLossHasAGradientAndIsOneWhenEven) {
  HydraConfig c = tiny_config();
  HydraModel model(c, 1, float64());
  const BlockParameters w(model.parameters(), 1);
  torch::manual_seed(2);
  const Routing routing = route(c, w, torch::randn({2, 5, 32}, float64()) * 5, {});
  routing.balance_loss.backward();
  EXPECT_GT(w["moe_router.weight"].grad().abs().max().item<double>(), 1e-6);
  EXPECT_NEAR(routing.weights.sum(-1).mean().item<double>(), 1.0, 1e-12);
  EXPECT_GT(routing.balance_loss.item<double>(), 0.9);
}

// grouped_experts against every expert computed for every chunk.
TEST(Experts, EqualTheDenseSum) {
  torch::manual_seed(3);
  const torch::Tensor x = torch::randn({2, 3, 4, 6}, float64()), gate = torch::randn({5, 7, 6}, float64()),
                      up = torch::randn({5, 7, 6}, float64()), down = torch::randn({5, 6, 7}, float64());
  const auto [weights, experts] = torch::softmax(torch::randn({2, 3, 5}, float64()), -1).topk(2, -1);
  const torch::Tensor y = grouped_experts(x, experts, weights, gate, up, down);
  torch::Tensor expected = torch::zeros_like(x);
  for (int64_t e = 0; e < 5; ++e) {
    const torch::Tensor share = (weights * (experts == e)).sum(-1).unsqueeze(-1).unsqueeze(-1);
    expected =
        expected + share * torch::linear(torch::silu(torch::linear(x, gate[e])) * torch::linear(x, up[e]), down[e]);
  }
  EXPECT_TRUE(torch::allclose(y, expected, 1e-12, 1e-12));
}

// The threads of a CPU share the chunks: forward to the bit as one, the gradients within rounding.
TEST(Experts, AreTheSameOnSeveralThreads) {
  torch::manual_seed(3);
  const auto leaf = [](at::IntArrayRef shape) { return torch::randn(shape).set_requires_grad(true); };
  const torch::Tensor x = leaf({2, 9, 16, 24}), gate = leaf({5, 40, 24}), up = leaf({5, 40, 24}),
                      down = leaf({5, 24, 40});
  const auto [best, experts] = torch::softmax(torch::randn({2, 9, 5}), -1).topk(2, -1);
  const torch::Tensor weights = best.clone().set_requires_grad(true), chosen = experts;
  const int before = at::get_num_threads();
  torch::Tensor y[2];
  std::vector<torch::Tensor> grads[2];
  for (const int n_threads : {1, 3}) {
    set_cpu_threads(n_threads);
    const int i = n_threads > 1;
    y[i] = grouped_experts(x, chosen, weights, gate, up, down);
    grads[i] = torch::autograd::grad({y[i].square().sum()}, {x, weights, gate, up, down});
  }
  set_cpu_threads(before);
  EXPECT_TRUE(same_bits(y[0], y[1]));
  for (size_t i = 0; i < grads[0].size(); ++i) EXPECT_TRUE(torch::allclose(grads[1][i], grads[0][i], 1e-4, 1e-3)) << i;
}

// Each part once, with the caller's gradient mode, on one thread; the products' threads are as before afterwards.
TEST(CpuThreads, EachPartIsCalledOnce) {
  const auto blas_threads = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "openblas_get_num_threads"));
  const int before = at::get_num_threads();
  set_cpu_threads(2);
  std::vector<int> calls(100), recorded(100), of_products(100, 1);
  {
    const torch::NoGradGuard no_grad;
    for_each_part(torch::kCPU, 100, [&](int64_t i) {
      const auto at = static_cast<size_t>(i);
      ++calls[at];
      recorded[at] = at::GradMode::is_enabled();
      if (blas_threads != nullptr) of_products[at] = blas_threads();
    });
  }
  EXPECT_EQ(calls, std::vector<int>(100, 1));
  EXPECT_EQ(recorded, std::vector<int>(100, 0));
  EXPECT_EQ(of_products, std::vector<int>(100, 1));
  if (blas_threads != nullptr) {
    EXPECT_EQ(blas_threads(), 2);
  }
  set_cpu_threads(1);
  EXPECT_EQ(at::get_num_threads(), 1);
  if (blas_threads != nullptr) {
    EXPECT_EQ(blas_threads(), 1);
  }
  set_cpu_threads(before);
}

// Against one softmax over all tokens with the mask that the definition gives.
TEST(SparseAttention, EqualsTheMaskedWhole) {
  const torch::NoGradGuard no_grad;
  HydraConfig c = tiny_config();
  HydraModel model(c, 1, float64());
  stir(model.parameters(), 0.2);
  const BlockParameters w(model.parameters(), 1);
  torch::manual_seed(8);
  const int64_t n = 40;
  const torch::Tensor x = torch::randn({1, n, c.d_model}, float64());
  const torch::Tensor y = sparse_attention(c, w, x);
  const auto heads = [&](const char* name, int64_t n_heads) {
    return torch::linear(x, w[name]).view({1, n, n_heads, c.head_dim});
  };
  const torch::Tensor q = rope(heads("attn_q.weight", 4), c.rope_base).transpose(1, 2) / std::sqrt(8.0);
  const torch::Tensor k = rope(heads("attn_k.weight", 2), c.rope_base).repeat_interleave(2, 2).transpose(1, 2);
  const torch::Tensor v = heads("attn_v.weight", 2).repeat_interleave(2, 2).transpose(1, 2);
  const torch::Tensor scores = (torch::matmul(x, w["attn_score.weight"]) + w["attn_score.bias"])[0];
  torch::Tensor bias = torch::full({n, n}, -INFINITY, float64());
  for (int64_t t = 0; t < n; ++t) {
    std::vector<std::pair<double, int64_t>> candidates;  // of chunks that have begun to leave the window
    for (int64_t j = 0; j < std::max<int64_t>(0, (t / 4 - 1) * 4); ++j)
      candidates.emplace_back(-scores[j].item<double>(), j);
    std::sort(candidates.begin(), candidates.end());
    for (size_t i = 0; i < std::min<size_t>(3, candidates.size()); ++i)
      if (t - candidates[i].second >= 8) bias[t][candidates[i].second] = -candidates[i].first;
    for (int64_t j = std::max<int64_t>(0, t - 7); j <= t; ++j) bias[t][j] = 0;
  }
  const torch::Tensor out = torch::matmul(torch::softmax(torch::matmul(q, k.transpose(-1, -2)) + bias, -1), v)
                                .transpose(1, 2)
                                .reshape({1, n, 32});
  EXPECT_TRUE(torch::allclose(y, torch::linear(out, w["attn_output.weight"]), 1e-9, 1e-11));
}

TEST(ProductKeys, ReadTheBestOfAllPairs) {
  const torch::NoGradGuard no_grad;
  HydraConfig c = tiny_config();
  HydraModel model(c, 1, float64());
  stir(model.parameters(), 0.2);
  const BlockParameters w(model.parameters(), 1);
  torch::manual_seed(9);
  const torch::Tensor x = torch::randn({1, 5, c.d_model}, float64());
  const torch::Tensor q =
      rms_norm(torch::linear(x[0], w["pkm_query.weight"]).view({5, 2, 8}), w["pkm_query_norm.weight"], c.norm_eps)
          .view({5, 2, 2, 4});
  const torch::Tensor halves = torch::einsum("nhsd,hskd->nhsk", {q, w["pkm_keys"]});
  const torch::Tensor all =
      (halves.select(2, 0).unsqueeze(-1) + halves.select(2, 1).unsqueeze(-2)).flatten(2);  // every one of the 64 values
  const auto [best, index] = all.topk(3, -1);
  const torch::Tensor read =
      (torch::softmax(best, -1).unsqueeze(-1) * w["pkm_values"].index_select(0, index.flatten()).view({5, 2, 3, 8}))
          .sum(at::IntArrayRef({1, 2}));
  const torch::Tensor gate =
      torch::sigmoid(torch::matmul(x[0], w["pkm_gate.weight"]) + w["pkm_gate.bias"]).unsqueeze(-1);
  EXPECT_TRUE(
      torch::allclose(product_keys(c, w, x).y[0], torch::linear(read, w["pkm_out.weight"]) * gate, 1e-10, 1e-12));
}

TEST(Ssm, StatePassedAcrossCallsIsOneLongCall) {
  const torch::NoGradGuard no_grad;
  const HydraConfig c = tiny_config();
  HydraModel model(c, 1, float64());
  stir(model.parameters(), 0.2);
  const BlockParameters w(model.parameters(), 0);
  torch::manual_seed(6);
  const torch::Tensor x = torch::randn({2, 21, c.d_model}, float64()), whole = ssm(c, w, x);
  for (const int64_t cut : {1, 2, 4, 7, 20}) {
    SsmState state;
    const torch::Tensor first = ssm(c, w, x.slice(1, 0, cut), &state), second = ssm(c, w, x.slice(1, cut), &state);
    EXPECT_TRUE(torch::allclose(torch::cat({first, second}, 1), whole, 1e-10, 1e-12)) << "cut at " << cut;
  }
}

// Large tensors are made of blocks with a random stream each, in parallel.
TEST(Parameters, DoNotDependOnTheNumberOfThreads) {
  const std::vector<TensorSpec> specs = {{"a", {700, 2000}, HydraPart::kNorm, TensorInit::kNormal, 1.0, false, false},
                                         {"b", {30}, HydraPart::kNorm, TensorInit::kNormal, 1.0, false, false}};
  const int before = at::get_num_threads();
  at::set_num_threads(1);
  const Parameters one(specs, 1, float32());
  at::set_num_threads(2);
  const Parameters two(specs, 1, float32());
  at::set_num_threads(before);
  for (const char* name : {"a", "b"}) EXPECT_TRUE(same_bits(one[name], two[name])) << name;
  const torch::Tensor all = one["a"].detach().flatten();
  EXPECT_NEAR(all.slice(0, 1 << 20).mean().item<double>(), 0.0, 0.01);  // of the second block
  EXPECT_NEAR(all.slice(0, 1 << 20).std().item<double>(), 1.0, 0.01);
  EXPECT_FALSE(same_bits(all.slice(0, 0, 1000), all.slice(0, 1 << 20, (1 << 20) + 1000)));
}

// Products in bf16 are near those in float32, forward and backward, and differ from them.
TEST(HydraModel, Bf16IsNearFloat32) {
  HydraModel model(tiny_config(), 1, float32());
  stir(model.parameters(), 0.05);
  const torch::Tensor tokens = random_tokens(2, 22, 260);
  torch::Tensor logits[2];
  std::vector<torch::Tensor> grads[2];
  for (const bool bf16 : {false, true}) {
    for (const torch::Tensor& tensor : model.parameters().tensors()) tensor.mutable_grad() = torch::Tensor();
    ForwardOutput out;
    {
      const Bf16Products products(torch::kCPU, bf16);
      out = model.forward(tokens, {});
    }
    EXPECT_FALSE(Bf16Products::are_on(torch::kCPU));
    logits[bf16] = not_bf16(out.logits).detach();
    torch::cross_entropy_loss(not_bf16(out.logits).flatten(0, 1), tokens.roll(-1, 1).flatten()).backward();
    for (const char* name : {"ssm_in.weight", "moe_up.weight", "attn_k.weight", "slots_gate.weight"})
      grads[bf16].push_back(BlockParameters(model.parameters(), 1)[name].grad().clone());
  }
  const auto far = [](const torch::Tensor& a, const torch::Tensor& b) {
    return ((a - b).norm() / b.norm()).item<double>();
  };
  EXPECT_FALSE(same_bits(logits[1], logits[0]));
  EXPECT_LT(far(logits[1], logits[0]), 0.02);
  for (size_t i = 0; i < grads[0].size(); ++i) EXPECT_LT(far(grads[1][i], grads[0][i]), 0.05) << i;
}

// The list of tensors, the parameters and the accounting agree.
TEST(HydraModel, AccountAddsUp) {
  for (const HydraConfig& c : {tiny_config(), tiny_diagonal_config()}) {
    HydraModel model(c, 1, float32());
    int64_t n = 0;
    for (const torch::Tensor& tensor : model.parameters().tensors()) n += tensor.numel();
    EXPECT_EQ(account(c).parameters, n);
    EXPECT_LT(account(c).active_parameters, n);
    EXPECT_EQ(account(c).state_bytes, HydraStateLayout(c).bytes());
  }
}

}  // namespace
}  // namespace polyspan
