#include "hydra/diagonal_ssm.h"

#include "hydra/hydra_test_util.h"

namespace polyspan {
namespace {

struct SumsInput {
  torch::Tensor log_decay, added, initial;
  torch::Tensor sums() const { return decayed_sums(log_decay, added, initial); }
  torch::Tensor by_token() const { return decayed_sums_by_token(log_decay, added, initial); }
};

// Channels that forget at once, within a few tokens, slowly and hardly at all.
SumsInput random_sums(int64_t n_seqs, int64_t n_tokens, torch::TensorOptions options = float64()) {
  torch::manual_seed(11);
  const torch::Tensor rate = torch::tensor({20.0, 1.0, 1e-2, 1e-5}, float64());
  return {(-torch::rand({n_seqs, n_tokens, 4}, float64()) * rate).to(options),
          torch::randn({n_seqs, n_tokens, 4}, float64()).to(options), torch::randn({n_seqs, 4}, float64()).to(options)};
}

TEST(DecayedSums, EqualTheRecurrenceAtEveryTail) {
  const torch::NoGradGuard no_grad;
  for (const int64_t n_tokens : {1, 2, 15, 16, 17, 255, 256, 257, 300}) {
    const SumsInput in = random_sums(2, n_tokens);
    EXPECT_LT(distance(in.sums(), in.by_token()), 1e-12) << n_tokens << " tokens";
  }
}

TEST(DecayedSums, HoldOverLongSequencesInFloat32) {
  const torch::NoGradGuard no_grad;
  const SumsInput in = random_sums(1, 65536);
  const torch::Tensor oracle = in.by_token(),
                      sums = decayed_sums(in.log_decay.to(torch::kFloat32), in.added.to(torch::kFloat32),
                                          in.initial.to(torch::kFloat32));
  for (int64_t channel = 0; channel < 4; ++channel)
    EXPECT_LT(distance(sums.select(2, channel), oracle.select(2, channel)), 2e-5) << "channel " << channel;
}

TEST(DecayedSums, AreCausalToTheBitAcrossGroups) {
  const torch::NoGradGuard no_grad;
  const SumsInput in = random_sums(1, 600, float32());  // 38 groups, 3 groups of those
  const torch::Tensor before = in.sums();
  for (const int64_t t : {0, 1, 15, 16, 255, 256, 511, 512, 599}) {
    const SumsInput changed{in.log_decay.clone(), in.added.clone(), in.initial};
    changed.log_decay[0][t].sub_(0.3), changed.added[0][t].add_(1.0);
    const torch::Tensor after = changed.sums();
    EXPECT_TRUE(same_bits(after.slice(1, 0, t), before.slice(1, 0, t))) << "token " << t;
    EXPECT_FALSE(same_bits(after.slice(1, t, t + 1), before.slice(1, t, t + 1))) << "token " << t;
  }
}

TEST(DecayedSums, GradientsMatchFiniteDifferences) {
  const SumsInput in = random_sums(2, 37);
  const torch::Tensor weight = torch::randn({2, 37, 4}, float64());
  for (const torch::Tensor* tensor : {&in.log_decay, &in.added, &in.initial})
    torch::Tensor(*tensor).set_requires_grad(true);
  const auto loss = [&] { return (in.sums() * weight).sum(); };
  for (const auto& [name, tensor] :
       {std::pair{"log_decay", in.log_decay}, std::pair{"added", in.added}, std::pair{"initial", in.initial}})
    expect_gradient(name, loss, tensor, 20);
}

// The equations of the header, a token and a channel at a time.
TEST(DiagonalSsm, IsThePapersEquation) {
  const torch::NoGradGuard no_grad;
  const int64_t d = 16, n_tokens = 21;
  HydraModel model(tiny_diagonal_config(), 1, float64());
  stir(model.parameters(), 0.2);
  const BlockParameters w(model.parameters(), 0);
  torch::manual_seed(6);
  const torch::Tensor x = torch::randn({2, n_tokens, d}, float64());
  const torch::Tensor lambda = w["ssm_lambda_log"].exp(), W = w["ssm_in.weight"], W_skip = w["ssm_skip.weight"];
  torch::Tensor s = torch::zeros({2, d}, float64());
  std::vector<torch::Tensor> y;
  for (int64_t t = 0; t < n_tokens; ++t) {
    const torch::Tensor in = torch::matmul(x.select(1, t), W.t());
    const auto row = [&](int64_t i) { return in.slice(1, i * d, (i + 1) * d); };
    y.push_back(row(2) * s + torch::matmul(x.select(1, t), W_skip.t()));
    s = torch::exp(-torch::log1p(row(0).exp()) * lambda) * s + row(1) * row(3);
  }
  EXPECT_LT(distance(diagonal_ssm(w, x), torch::stack(y, 1)), 1e-12);
  SsmState state;
  diagonal_ssm(w, x, &state);
  EXPECT_LT(distance(state.scan, s), 1e-12);
}

TEST(DiagonalSsm, StatePassedAcrossCallsIsOneLongCall) {
  const torch::NoGradGuard no_grad;
  const HydraConfig c = tiny_diagonal_config();
  HydraModel model(c, 1, float64());
  stir(model.parameters(), 0.2);
  const BlockParameters w(model.parameters(), 0);
  torch::manual_seed(6);
  const torch::Tensor x = torch::randn({2, 21, c.d_model}, float64()), whole = ssm(c, w, x);
  for (const int64_t cut : {1, 4, 16, 20}) {
    SsmState state;
    const torch::Tensor first = ssm(c, w, x.slice(1, 0, cut), &state), second = ssm(c, w, x.slice(1, cut), &state);
    EXPECT_LT(distance(torch::cat({first, second}, 1), whole), 1e-12) << "cut at " << cut;
  }
}

}  // namespace
}  // namespace polyspan
