// The kernels of the state-space path against its plain form, outputs and gradients, in every size that they take. They run
// on a GPU; without one the tests are skipped.
#include "hydra/fused_ssm.h"

#include "hydra/hydra_test_util.h"
#include "hydra/ssm.h"

namespace polyspan {
namespace {

constexpr const char* kSsmWeights[] = {"ssm_conv.weight", "ssm_conv.bias", "ssm_dt.bias",
                                       "ssm_a_log",       "ssm_d",         "ssm_norm.weight"};

struct SsmCase {
  int64_t n_seqs, n_tokens, n_heads, head_dim, d_state, d_conv;
};

void PrintTo(const SsmCase& c, std::ostream* out) {
  *out << c.n_seqs << " sequences of " << c.n_tokens << ", " << c.n_heads << " heads of " << c.head_dim << ", state "
       << c.d_state << ", convolution " << c.d_conv;
}

class FusedSsm : public testing::TestWithParam<SsmCase> {
 protected:
  FusedSsm() { stir(parameters_, 0.1); }
  static HydraConfig config_of(const SsmCase& size) {
    HydraConfig c = tiny_config();
    c.d_inner = size.n_heads * size.head_dim, c.ssm_head_dim = size.head_dim, c.d_state = size.d_state;
    c.d_conv = size.d_conv, c.chunk_len = 16;
    return c;
  }
  const torch::Device device_{torch::cuda::is_available() ? torch::kCUDA : torch::kCPU};
  const HydraConfig c_ = config_of(GetParam());
  Parameters parameters_{hydra_tensors(c_), 1, float32().device(device_)};
  const BlockParameters w_{parameters_, 0};
};

TEST_P(FusedSsm, IsThePlainForm) {
  const SsmCase& size = GetParam();
  torch::manual_seed(5);
  const torch::Tensor in =
      torch::randn({size.n_seqs, size.n_tokens, c_.d_ssm_in()}).to(device_, torch::kBFloat16).set_requires_grad(true);
  if (!fused_ssm_takes(c_, in)) GTEST_SKIP() << "the kernels are not there, or there is no GPU";
  const torch::Tensor direction = torch::randn({size.n_seqs, size.n_tokens, c_.d_inner}).to(device_);
  const auto gradients = [&](const torch::Tensor& out) {
    std::vector<torch::Tensor> inputs = {in}, grads;
    for (const char* name : kSsmWeights) inputs.push_back(w_[name]);
    return torch::autograd::grad({(out.to(torch::kFloat32) * direction).sum()}, inputs);
  };
  const torch::Tensor plain = ssm_middle(c_, w_, in.to(torch::kFloat32)), fused = fused_ssm(c_, w_, in);
  ASSERT_EQ(fused.sizes(), plain.sizes());
  EXPECT_LT(distance(fused, plain), 0.01);  // bf16 keeps 8 bits: half a unit is 0.002, at four places
  const std::vector<torch::Tensor> expected = gradients(plain), actual = gradients(fused);
  EXPECT_LT(distance(actual[0], expected[0]), 0.02) << "of the input";
  for (size_t i = 0; i < std::size(kSsmWeights); ++i) {
    // One token from an empty state: nothing has decayed yet, and the decays' gradient is zero but for rounding.
    if (size.n_tokens == 1 && std::string_view(kSsmWeights[i]) == "ssm_a_log")
      EXPECT_LT(actual[i + 1].norm().item<double>(), 1e-3 * expected[0].norm().item<double>());
    else
      EXPECT_LT(distance(actual[i + 1], expected[i + 1]), 0.02) << kSsmWeights[i];
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, FusedSsm,
                         testing::Values(SsmCase{2, 192, 4, 64, 64, 4}, SsmCase{1, 64, 4, 64, 128, 4},
                                         SsmCase{3, 96, 4, 32, 64, 4}, SsmCase{2, 130, 4, 32, 128, 3},
                                         SsmCase{16, 1, 4, 64, 64, 4}, SsmCase{1, 1100, 4, 32, 64, 2}));

// Token after token, from a state that is not empty.
TEST_P(FusedSsm, AStepIsThePlainForm) {
  const torch::NoGradGuard no_grad;
  const SsmCase& size = GetParam();
  torch::manual_seed(8);
  const torch::Tensor in = torch::randn({1, 5, c_.d_ssm_in()}).to(device_, torch::kBFloat16);
  if (!ssm_step_takes(c_, in.slice(1, 0, 1).contiguous())) GTEST_SKIP() << "the kernels are not there, or no GPU";
  const SsmState state{torch::randn({1, c_.d_conv - 1, c_.d_conv_channels()}).to(device_),
                       torch::randn({1, size.n_heads, size.head_dim, size.d_state}).to(device_)};
  SsmState expected = state, moved = {state.conv.clone(), state.scan.clone()};
  for (int64_t t = 0; t < 5; ++t) {
    const torch::Tensor one = in.slice(1, t, t + 1).contiguous();
    const torch::Tensor plain = ssm_middle(c_, w_, one.to(torch::kFloat32), &expected),
                        y = ssm_step(c_, w_, one, moved);
    ASSERT_EQ(y.sizes(), plain.sizes());
    EXPECT_LT(distance(y, plain), 1e-4) << "token " << t;
    EXPECT_LT(distance(moved.scan, expected.scan), 1e-4) << "token " << t;
    EXPECT_LT(distance(moved.conv, expected.conv), 1e-6) << "token " << t;
  }
}

// To the bit: a later token reaches no earlier output, and no other sequence.
TEST(FusedSsmCausality, HoldsToTheBit) {
  const torch::NoGradGuard no_grad;
  const torch::Device device(torch::cuda::is_available() ? torch::kCUDA : torch::kCPU);
  HydraConfig c = tiny_config();
  c.d_inner = 128, c.ssm_head_dim = 32, c.d_state = 64, c.chunk_len = 16;
  Parameters parameters(hydra_tensors(c), 1, float32().device(device));
  const BlockParameters w(parameters, 0);
  torch::manual_seed(6);
  const torch::Tensor in = torch::randn({2, 150, c.d_ssm_in()}).to(device, torch::kBFloat16);
  if (!fused_ssm_takes(c, in)) GTEST_SKIP() << "the kernels are not there, or there is no GPU";
  const torch::Tensor before = fused_ssm(c, w, in);
  for (const int64_t t : {0, 1, 63, 64, 100, 149}) {
    torch::Tensor changed = in.clone();
    changed[1][t] += 1;
    const torch::Tensor after = fused_ssm(c, w, changed);
    EXPECT_TRUE(same_bits(after[0], before[0]) && same_bits(after[1].slice(0, 0, t), before[1].slice(0, 0, t)))
        << "token " << t;
    EXPECT_FALSE(same_bits(after[1][t], before[1][t])) << "token " << t;
  }
}

}  // namespace
}  // namespace polyspan
