// The kernels of a block's parts against their plain forms. They run on a GPU; without one those tests are skipped.
#include "hydra/fused_block.h"

#include "hydra/batched_experts.h"
#include "hydra/device_stream.h"
#include "hydra/experts.h"
#include "hydra/hydra_test_util.h"
#include "hydra/product_keys.h"
#include "hydra/sparse_attention.h"

namespace polyspan {
namespace {

torch::Device device() { return torch::cuda::is_available() ? torch::kCUDA : torch::kCPU; }
#define NEEDS_KERNELS() \
  if (!DeviceStream::is_for(device())) GTEST_SKIP() << "the kernels are not there, or there is no GPU"

double distance(const torch::Tensor& a, const torch::Tensor& b) {
  const torch::Tensor x = a.to(torch::kFloat64), y = b.to(torch::kFloat64);
  return ((x - y).norm() / (y.norm() + 1e-12)).item<double>();
}

torch::Tensor random(at::IntArrayRef shape, torch::ScalarType type = torch::kFloat32) {
  return torch::randn(shape).to(device(), type).set_requires_grad(true);
}

// Gradients of a sum of both by `inputs`.
void expect_same(const torch::Tensor& actual, const torch::Tensor& expected, const std::vector<torch::Tensor>& inputs,
                 double tolerance) {
  EXPECT_LT(distance(actual, expected), tolerance);
  const torch::Tensor direction = torch::randn(expected.sizes()).to(device());
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
      const torch::Tensor x = random({n, d}), weight = random({d});
      const torch::Tensor plain = x * torch::rsqrt(x.square().mean(-1, true) + 1e-5) * weight;
      expect_same(fused_norm(x, weight, 1e-5), plain, {x, weight}, 1e-5);
    }
}

TEST(FusedBlock, Rope) {
  NEEDS_KERNELS();
  torch::manual_seed(2);
  for (const int64_t head_dim : {2, 32, 64}) {
    const torch::Tensor x = random({2, 37, 3, head_dim}), on_cpu = x.detach().cpu().to(torch::kFloat64);
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
  const torch::Tensor x = random({2, 48, 20}), multipliers = random({2, 3, 3}), a = random({2, 48, 20}),
                      b = random({2, 48, 20}, torch::kBFloat16), c = random({2, 48, 20}, torch::kBFloat16);
  const std::vector<Path> paths = {{a, 1, 1.0}, {b, 1, 0.5}, {c, 2, 1.0}, {a, -1, 0.25}};
  expect_same(add_paths(x, paths, multipliers, 16), add_paths_plain(x, paths, multipliers, 16),
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
    EXPECT_TRUE(torch::equal(global_sets(scores.to(device()), 16, window, n_global).cpu(),
                             global_sets(scores.to(torch::kFloat64), 16, window, n_global)))
        << n_tokens << " tokens, a window of " << window << ", " << n_global;
  }
}

TEST(FusedBlock, BestPairs) {
  NEEDS_KERNELS();
  HydraConfig c = tiny_config();
  c.d_model = 32, c.n_sub_keys = 40, c.pkm_heads = 3, c.pkm_top = 7, c.d_pkm_query = 16;
  Parameters on_device(hydra_tensors(c), 1, float32().device(device())), plain(hydra_tensors(c), 1, float64());
  const torch::Tensor x = torch::randn({2, 20, 32}, float64());
  const MemoryOutput found = product_keys(c, BlockParameters(on_device, 1), x.to(device(), torch::kFloat32)),
                     wanted = product_keys(c, BlockParameters(plain, 1), x);
  EXPECT_TRUE(torch::equal(found.indices.cpu(), wanted.indices));
  EXPECT_LT(distance(found.y.cpu(), wanted.y), 1e-5);
}

#if TORCH_VERSION_MAJOR > 2 || (TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 9)
// Of one chunk to experts 1 and 3, of another to 3 and 0: expert 2 is idle.
TEST(BatchedExperts, AreTheGroupedExperts) {
  torch::manual_seed(5);
  const torch::Tensor x = random({1, 3, 16, 16}), gate = random({4, 24, 16}), up = random({4, 24, 16}),
                      down = random({4, 16, 24}), weights = random({1, 3, 2});
  const torch::Tensor experts = torch::tensor({1, 3, 3, 0, 3, 1}, torch::kInt64).view({1, 3, 2}).to(device());
  const torch::Tensor plain = grouped_experts(x, experts, weights, gate, up, down);
  const torch::Tensor batched =
      batched_experts(x.flatten(0, 1), experts.flatten(0, 1), weights.flatten(0, 1), gate, up, down).view(x.sizes());
  expect_same(batched, plain, {x, weights, gate, up, down}, 0.02);
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

}  // namespace
}  // namespace polyspan
