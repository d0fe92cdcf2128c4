// The kernels of a block's parts against their plain forms. They run on a GPU; without one those tests are skipped.
#include "hydra/fused_block.h"

#include "hydra/batched_experts.h"
#include "hydra/device_stream.h"
#include "hydra/experts.h"
#include "hydra/hydra_test_util.h"
#include "hydra/precision.h"
#include "hydra/product_keys.h"
#include "hydra/sparse_attention.h"
#include "hydra/workspace.h"

namespace polyspan {
namespace {

torch::Device kernel_device() { return torch::cuda::is_available() ? torch::kCUDA : torch::kCPU; }
#define NEEDS_KERNELS() \
  if (!DeviceStream::is_for(kernel_device())) GTEST_SKIP() << "the kernels are not there, or there is no GPU"

torch::Tensor random_leaf(at::IntArrayRef shape, torch::ScalarType type = torch::kFloat32) {
  return torch::randn(shape).to(kernel_device(), type).set_requires_grad(true);
}

// Gradients of a sum of both by `inputs`.
void expect_same_gradients(const torch::Tensor& actual, const torch::Tensor& expected,
                           const std::vector<torch::Tensor>& inputs, double tolerance) {
  EXPECT_LT(distance(actual, expected), tolerance);
  const torch::Tensor direction = torch::randn(expected.sizes()).to(kernel_device());
  const auto gradients = [&](const torch::Tensor& out) {
    return torch::autograd::grad({(out.to(torch::kFloat32) * direction).sum()}, inputs);
  };
  const std::vector<torch::Tensor> wanted = gradients(expected), found = gradients(actual);
  for (size_t i = 0; i < inputs.size(); ++i) EXPECT_LT(distance(found[i], wanted[i]), tolerance) << "of input " << i;
}

TEST(FusedBlock, Norm) {
  NEEDS_KERNELS();
  torch::manual_seed(1);
  for (const int64_t d : {4, 64, 516, 1028})
    for (const int64_t n : {1, 65}) {
      SCOPED_TRACE(std::to_string(n) + " rows of " + std::to_string(d));
      const torch::Tensor x = random_leaf({n, d}), weight = random_leaf({d});
      const torch::Tensor plain = x * torch::rsqrt(x.square().mean(-1, true) + 1e-5) * weight;
      expect_same_gradients(fused_norm(x, weight, 1e-5), plain, {x, weight}, 1e-5);
    }
}

TEST(FusedBlock, Rope) {
  NEEDS_KERNELS();
  torch::manual_seed(2);
  for (const int64_t head_dim : {2, 32, 64}) {
    const torch::Tensor x = random_leaf({2, 37, 3, head_dim}), on_cpu = x.detach().cpu().to(torch::kFloat64);
    const torch::Tensor y = fused_rope(x, 10000.0);
    EXPECT_LT(distance(y.cpu(), rope(on_cpu, 10000.0)), 1e-6) << head_dim;
    // A rotation: the gradient of x . r(x) along d is r^T d, and rotating that gives d again.
    const torch::Tensor d = torch::randn_like(x);
    EXPECT_LT(distance(fused_rope(torch::autograd::grad({(y * d).sum()}, {x})[0], 10000.0), d), 1e-5) << head_dim;
    EXPECT_LT(distance(fused_rope(x.to(torch::kBFloat16), 10000.0), y), 0.01) << head_dim;
  }
}

TEST(FusedBlock, Paths) {
  NEEDS_KERNELS();
  torch::manual_seed(3);
  const torch::Tensor x = random_leaf({2, 48, 20}), multipliers = random_leaf({2, 3, 3}), a = random_leaf({2, 48, 20}),
                      b = random_leaf({2, 48, 20}, torch::kBFloat16), c = random_leaf({2, 48, 20}, torch::kBFloat16);
  const std::vector<Path> paths = {{a, 1, 1.0}, {b, 1, 0.5}, {c, 2, 1.0}, {a, -1, 0.25}};
  expect_same_gradients(add_paths(x, paths, multipliers, 16), add_paths_plain(x, paths, multipliers, 16),
                        {x, multipliers, a, b, c}, 0.005);
}

TEST(FusedBlock, GlobalSets) {
  NEEDS_KERNELS();
  for (const auto& [n_tokens, window, n_global] :
       {std::array<int64_t, 3>{640, 32, 24}, {640, 32, 1}, {64, 64, 8}, {320, 0, 400}, {2048, 16, 100}}) {
    torch::manual_seed(4);
    torch::Tensor scores = torch::randn({3, n_tokens});
    scores[1] = (scores[1] * 3).round();  // many equal ones, and zeros of both signs
    scores[2].zero_();
    EXPECT_TRUE(torch::equal(global_sets(scores.to(kernel_device()), 16, window, n_global).cpu(),
                             global_sets(scores.to(torch::kFloat64), 16, window, n_global)))
        << n_tokens << " tokens, a window of " << window << ", " << n_global;
  }
}

TEST(FusedBlock, BestPairs) {
  NEEDS_KERNELS();
  HydraConfig c = tiny_config();
  c.d_model = 32, c.n_sub_keys = 40, c.pkm_heads = 3, c.pkm_top = 7, c.d_pkm_query = 16;
  Parameters on_device(hydra_tensors(c), 1, float32().device(kernel_device())), plain(hydra_tensors(c), 1, float64());
  const torch::Tensor x = torch::randn({2, 20, 32}, float64());
  const MemoryOutput found = product_keys(c, BlockParameters(on_device, 1), x.to(kernel_device(), torch::kFloat32)),
                     wanted = product_keys(c, BlockParameters(plain, 1), x);
  EXPECT_TRUE(torch::equal(found.indices.cpu(), wanted.indices));
  EXPECT_LT(distance(found.y.cpu(), wanted.y), 1e-5);
}

// The loop over chunks against the plain one in double; matrices that fit into shared memory, and 300 numbers a slot, whose do not.
TEST(FusedBlock, Workspace) {
  NEEDS_KERNELS();
  for (const auto& [d_slot, rank, len] : {std::array<int64_t, 3>{24, 16, 16}, {128, 32, 64}, {300, 20, 64}}) {
    SCOPED_TRACE(std::to_string(d_slot) + " numbers a slot");
    HydraConfig c = tiny_config();
    c.d_model = 16, c.n_slots = 8, c.d_slot = d_slot, c.slot_rank = rank, c.chunk_len = len;
    Parameters on_device(hydra_tensors(c), 1, float32().device(kernel_device())), plain(hydra_tensors(c), 1, float64());
    {
      const torch::NoGradGuard no_grad;
      torch::manual_seed(7);
      for (size_t i = 0; i < plain.tensors().size(); ++i) {
        torch::Tensor(plain.tensors()[i]).add_(torch::randn_like(plain.tensors()[i]) * 0.3);
        torch::Tensor(on_device.tensors()[i]).copy_(plain.tensors()[i]);
      }
    }
    const torch::Tensor x = torch::randn({2, 5 * len, 16}, float64()).set_requires_grad(true),
                        x_there = x.detach().to(kernel_device(), torch::kFloat32).set_requires_grad(true);
    const BlockParameters w(plain, 1), w_there(on_device, 1);
    const WorkspaceOutput wanted = workspace(c, w, x), found = workspace(c, w_there, x_there);
    EXPECT_LT(distance(found.y.cpu(), wanted.y), 1e-4);
    EXPECT_LT(distance(found.slots.cpu(), wanted.slots), 1e-4);
    EXPECT_NEAR(found.touched.item<double>(), wanted.touched.item<double>(), 0.01);
    const char* const names[] = {"slots_write_q.weight", "slots_write_k.weight", "slots_write_v.weight",
                                 "slots_gate.weight",    "slots_gate.bias",      "slots_init",
                                 "slots_read_k.weight"};
    std::vector<torch::Tensor> inputs = {x}, inputs_there = {x_there};
    for (const char* name : names) inputs.push_back(w[name]), inputs_there.push_back(w_there[name]);
    const torch::Tensor d_y = torch::randn_like(wanted.y), d_slots = torch::randn_like(wanted.slots);
    const std::vector<torch::Tensor> grads =
        torch::autograd::grad({(wanted.y * d_y).sum() + (wanted.slots * d_slots).sum()}, inputs);
    const auto there = [](const torch::Tensor& t) { return t.to(kernel_device(), torch::kFloat32); };
    const std::vector<torch::Tensor> grads_there =
        torch::autograd::grad({(found.y * there(d_y)).sum() + (found.slots * there(d_slots)).sum()}, inputs_there);
    for (size_t i = 0; i < inputs.size(); ++i)
      EXPECT_LT(distance(grads_there[i].cpu(), grads[i]), 1e-3) << (i == 0 ? "the input" : names[i - 1]);
  }
}

#if TORCH_VERSION_MAJOR > 2 || (TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 9)
// Of one chunk to experts 1 and 3, of another to 3 and 0: expert 2 is idle.
TEST(BatchedExperts, AreTheGroupedExperts) {
  torch::manual_seed(5);
  const torch::Tensor x = random_leaf({1, 3, 16, 16}), gate = random_leaf({4, 24, 16}), up = random_leaf({4, 24, 16}),
                      down = random_leaf({4, 16, 24}), weights = random_leaf({1, 3, 2});
  const torch::Tensor experts = torch::tensor({1, 3, 3, 0, 3, 1}, torch::kInt64).view({1, 3, 2}).to(kernel_device());
  const torch::Tensor plain = grouped_experts(x, experts, weights, gate, up, down);
  const torch::Tensor batched =
      batched_experts(x.flatten(0, 1), experts.flatten(0, 1), weights.flatten(0, 1), gate, up, down).view(x.sizes());
  expect_same_gradients(batched, plain, {x, weights, gate, up, down}, 0.02);
}
#endif

#ifdef POLYSPAN_HAS_FUSED_ATTENTION
TEST(SparseAttention, FusedIsThePlainForm) {
  for (const bool with_globals : {true, false}) {
    HydraConfig c = tiny_config();
    c.d_model = 32, c.chunk_len = 16, c.window = 32, c.n_global = 16;
    Parameters parameters(hydra_tensors(c), 1, float32());
    stir(parameters, 0.3);
    const BlockParameters w(parameters, 1);
    torch::manual_seed(6);
    const torch::Tensor x = torch::randn({2, 160, 32}).set_requires_grad(true);
    std::vector<torch::Tensor> inputs = {x, w["attn_q.weight"], w["attn_k.weight"], w["attn_v.weight"]};
    if (with_globals) inputs.push_back(w["attn_score.weight"]);
    const torch::Tensor plain = sparse_attention(c, w, x, with_globals), direction = torch::randn_like(plain);
    const torch::Tensor fused = sparse_attention_fused(c, w, x, with_globals);
    EXPECT_LT(distance(fused, plain), 1e-5);
    const auto gradients = [&](const torch::Tensor& out) {
      return torch::autograd::grad({(out * direction).sum()}, inputs);
    };
    const std::vector<torch::Tensor> wanted = gradients(plain), found = gradients(fused);
    for (size_t i = 0; i < inputs.size(); ++i) EXPECT_LT(distance(found[i], wanted[i]), 1e-4) << "of input " << i;
  }
}
#endif

#define NEEDS_A_GPU()                                                      \
  if (!torch::cuda::is_available() || !DeviceStream::is_for(torch::kCUDA)) \
  GTEST_SKIP() << "the kernels are not there, or there is no GPU"

// Loss and gradients in bf16 on a GPU against float32 on the CPU: rounding, and a choice that falls the other way, remain.
TEST(HydraOnGpu, LearnsAsOnTheCpu) {
  NEEDS_A_GPU();
  const HydraConfig c = config_for_kernels();
  HydraModel here(c, 1, float32()), there(c, 1, float32().device(torch::kCUDA));
  const torch::Tensor tokens = random_tokens(3, 170, 260);
  const auto run = [&](HydraModel& model, const torch::Device& where) {
    const Bf16Products products(where.type(), where.is_cuda());
    const ForwardOutput out = model.forward(tokens.to(where), {});
    const torch::Tensor loss = at::cross_entropy_loss(out.logits.to(torch::kFloat32).slice(1, 0, 169).flatten(0, 1),
                                                      tokens.to(where).slice(1, 1).flatten());
    (loss + 0.01 * out.balance_loss).backward();
    return loss.item<double>();
  };
  EXPECT_NEAR(run(there, torch::kCUDA), run(here, torch::kCPU), 0.01);
  double apart = 0, whole = 0;
  for (size_t i = 0; i < here.parameters().tensors().size(); ++i) {
    const auto dense = [](const torch::Tensor& t) {
      return (t.grad().is_sparse() ? t.grad().to_dense() : t.grad()).cpu().to(torch::kFloat64);
    };
    const torch::Tensor wanted = dense(here.parameters().tensors()[i]), found = dense(there.parameters().tensors()[i]);
    apart += (found - wanted).square().sum().item<double>();
    whole += wanted.square().sum().item<double>();
    EXPECT_LT(distance(found, wanted), 0.5) << here.parameters().specs()[i].name;
  }
  EXPECT_LT(std::sqrt(apart / whole), 0.1);
}

TEST(HydraOnGpu, IsCausalToTheBit) {
  NEEDS_A_GPU();
  const torch::NoGradGuard no_grad;
  HydraModel model(config_for_kernels(), 1, float32().device(torch::kCUDA));
  stir(model.parameters(), 0.1);
  const torch::Tensor tokens = random_tokens(3, 170, 260).to(torch::kCUDA);
  const Bf16Products products(torch::kCUDA, true);
  const torch::Tensor before = model.forward(tokens, {}).logits;
  EXPECT_TRUE(same_bits(model.forward(tokens, {}).logits, before)) << "not even the same twice";
  for (int64_t t = 0; t < 170; t += 13) {
    torch::Tensor changed = tokens.clone();
    changed[1][t] = (tokens[1][t].item<int64_t>() + 101) % 260;
    const torch::Tensor after = model.forward(changed, {}).logits;
    EXPECT_TRUE(same_bits(after[1].slice(0, 0, t), before[1].slice(0, 0, t))) << "token " << t;
    EXPECT_FALSE(same_bits(after[1][t], before[1][t])) << "token " << t;
    EXPECT_TRUE(same_bits(after[0], before[0]) && same_bits(after[2], before[2])) << "another sequence, token " << t;
  }
}

}  // namespace
}  // namespace polyspan
