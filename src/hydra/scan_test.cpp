#include "hydra/scan.h"

#include "hydra/hydra_test_util.h"

namespace polyspan {
namespace {

// Heads that forget at once, slowly and hardly at all.
ScanInput random_scan(int64_t n_seqs, int64_t n_tokens, torch::TensorOptions options, double dt_scale = 0.1) {
  torch::manual_seed(11);
  const torch::TensorOptions wide = float64();
  const ScanInput in{torch::randn({n_seqs, n_tokens, 3, 4}, wide), torch::rand({n_seqs, n_tokens, 3}, wide) * dt_scale,
                     torch::tensor({-16.0, -1.0, -1e-4}, wide),    torch::randn({n_seqs, n_tokens, 5}, wide),
                     torch::randn({n_seqs, n_tokens, 5}, wide),    torch::randn({n_seqs, 3, 4, 5}, wide)};
  return {in.x.to(options), in.dt.to(options), in.A.to(options),
          in.B.to(options), in.C.to(options),  in.state.to(options)};
}

double relative_error(const torch::Tensor& a, const torch::Tensor& oracle) {
  return ((a.to(torch::kFloat64) - oracle).abs().max() / oracle.abs().max()).item<double>();
}

TEST(ChunkedScan, EqualsTheRecurrenceAtEveryTail) {
  const torch::NoGradGuard no_grad;
  for (const int64_t n_tokens : {1, 3, 15, 16, 17, 64, 65, 130}) {
    for (const int64_t chunk_len : {1, 4, 16, 64}) {
      SCOPED_TRACE(std::to_string(n_tokens) + " tokens in chunks of " + std::to_string(chunk_len));
      const ScanInput in = random_scan(2, n_tokens, float64(), 2.0);
      const ScanOutput chunked = chunked_scan(in, chunk_len), oracle = recurrent_scan(in);
      EXPECT_LT(relative_error(chunked.y, oracle.y), 1e-12);
      EXPECT_LT(relative_error(chunked.state, oracle.state), 1e-12);
    }
  }
}

// 65,536 tokens: a head of decay 1e-5 a step keeps the first of them, one of decay 0.2 a step forgets within a chunk.
TEST(ChunkedScan, HoldsOverLongSequencesInFloat32) {
  const torch::NoGradGuard no_grad;
  const int64_t n_tokens = 65536;
  const ScanInput in = random_scan(1, n_tokens, float64());
  const ScanOutput oracle = recurrent_scan(in);
  const ScanInput narrow{in.x.to(torch::kFloat32), in.dt.to(torch::kFloat32), in.A.to(torch::kFloat32),
                         in.B.to(torch::kFloat32), in.C.to(torch::kFloat32),  in.state.to(torch::kFloat32)};
  const ScanOutput chunked = chunked_scan(narrow, 64);
  for (int64_t head = 0; head < 3; ++head)
    EXPECT_LT(relative_error(chunked.y.select(2, head), oracle.y.select(2, head)), 2e-5) << "head " << head;
  EXPECT_LT(relative_error(chunked.state, oracle.state), 2e-5);
}

TEST(ChunkedScan, StatePassedAcrossCallsIsOneLongCall) {
  const torch::NoGradGuard no_grad;
  const ScanInput in = random_scan(2, 50, float64());
  const ScanOutput whole = chunked_scan(in, 16);
  for (const int64_t cut : {1, 15, 16, 17, 49}) {
    const auto part = [&](int64_t from, int64_t to, const torch::Tensor& state) {
      return chunked_scan({in.x.slice(1, from, to), in.dt.slice(1, from, to), in.A, in.B.slice(1, from, to),
                           in.C.slice(1, from, to), state},
                          16);
    };
    const ScanOutput first = part(0, cut, in.state), second = part(cut, 50, first.state);
    EXPECT_LT(relative_error(torch::cat({first.y, second.y}, 1), whole.y), 1e-12) << "cut at " << cut;
    EXPECT_LT(relative_error(second.state, whole.state), 1e-12) << "cut at " << cut;
  }
}

// Chunks pass their states in groups of groups; no group sees a later one.
TEST(ChunkedScan, IsCausalToTheBitAcrossGroupsOfChunks) {
  const torch::NoGradGuard no_grad;
  const int64_t n_tokens = 1200;
  const ScanInput in = random_scan(1, n_tokens, float32());
  const torch::Tensor before = chunked_scan(in, 4).y;  // 300 chunks: 19 groups, 2 groups of those
  for (const int64_t t : {0, 1, 63, 64, 500, 1023, 1024, 1199}) {
    ScanInput changed = in;
    changed.x = in.x.clone(), changed.dt = in.dt.clone();
    changed.x[0][t].add_(1.0), changed.dt[0][t].add_(0.3);
    const torch::Tensor after = chunked_scan(changed, 4).y;
    EXPECT_TRUE(same_bits(after.slice(1, 0, t), before.slice(1, 0, t))) << "token " << t;
    EXPECT_FALSE(same_bits(after.slice(1, t, t + 1), before.slice(1, t, t + 1))) << "token " << t;
  }
}

TEST(ChunkedScan, GradientsMatchFiniteDifferences) {
  const ScanInput in = random_scan(2, 11, float64(), 1.0);
  torch::manual_seed(5);
  const torch::Tensor weight_y = torch::randn_like(in.x), weight_state = torch::randn_like(in.state);
  for (const torch::Tensor* tensor : {&in.x, &in.dt, &in.A, &in.B, &in.C, &in.state})
    torch::Tensor(*tensor).set_requires_grad(true);
  const auto loss = [&] {
    const ScanOutput out = chunked_scan(in, 4);
    return (out.y * weight_y).sum() + (out.state * weight_state).sum();
  };
  for (const auto& [name, tensor] : {std::pair{"x", in.x}, std::pair{"dt", in.dt}, std::pair{"A", in.A},
                                     std::pair{"B", in.B}, std::pair{"C", in.C}, std::pair{"state", in.state}})
    expect_gradient(name, loss, tensor);
}

TEST(ChunkedScan, RecomputedGradientsAreThoseOfTheRecord) {
  const ScanInput in = random_scan(1, 40, float64());
  std::vector<torch::Tensor> grads[2];
  for (const bool recorded : {false, true}) {
    for (const torch::Tensor* tensor : {&in.x, &in.dt, &in.A, &in.B, &in.C}) {
      torch::Tensor(*tensor).set_requires_grad(true);
      tensor->mutable_grad() = torch::Tensor();
    }
    const ScanOutput out = recorded ? chunked_scan_recorded(in, 16) : chunked_scan(in, 16);
    out.y.square().sum().backward();
    for (const torch::Tensor* tensor : {&in.x, &in.dt, &in.A, &in.B, &in.C})
      grads[recorded].push_back(tensor->grad().clone());
  }
  for (size_t i = 0; i < grads[0].size(); ++i)
    EXPECT_TRUE(torch::allclose(grads[0][i], grads[1][i], 1e-12, 1e-12)) << i;
}

}  // namespace
}  // namespace polyspan
