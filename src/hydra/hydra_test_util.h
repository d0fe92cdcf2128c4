// hydra/hydra_test_util.h: small models, and gradients against finite differences.
#pragma once

#include <gtest/gtest.h>
#include "hydra/torch.h"

#include <functional>

#include "hydra/hydra_model.h"

namespace polyspan {

// Every part is there, in few numbers: chunks of 4, a window of 8, 3 global tokens.
inline HydraConfig tiny_config() {
  HydraConfig c;
  c.d_model = 16, c.n_layers = 2, c.vocab_size = 260, c.chunk_len = 4, c.controller_rank = 4;
  c.d_inner = 32, c.ssm_head_dim = 16, c.d_state = 8, c.d_conv = 4;
  c.attention_every = 2, c.n_heads = 4, c.n_kv_heads = 2, c.head_dim = 8, c.window = 8, c.n_global = 3;
  c.moe_every = 2, c.n_experts = 4, c.n_active_experts = 2, c.d_expert = 24;
  c.n_slots = 3, c.d_slot = 8, c.slot_rank = 8;
  c.pkm_layers = {1}, c.n_sub_keys = 8, c.pkm_heads = 2, c.pkm_top = 3, c.d_pkm_query = 8, c.d_value = 8;
  return c;
}

// Sizes that the kernels for GPUs take.
inline HydraConfig config_for_kernels() {
  HydraConfig c = tiny_config();
  c.d_model = 64, c.chunk_len = 16, c.d_inner = 128, c.ssm_head_dim = 32, c.d_state = 64;
  c.n_heads = 4, c.n_kv_heads = 2, c.head_dim = 16, c.window = 32, c.n_global = 16;
  c.d_expert = 32, c.n_slots = 4, c.d_slot = 16, c.slot_rank = 16;
  return c;
}

inline HydraConfig tiny_diagonal_config() {
  HydraConfig c = tiny_config();
  c.ssm_kind = SsmKind::kDiagonal;
  return c;
}

inline torch::TensorOptions float64() { return torch::TensorOptions().dtype(torch::kFloat64); }
inline torch::TensorOptions float32() { return torch::TensorOptions().dtype(torch::kFloat32); }

// Moves every parameter off its first value, so that no gradient is zero by construction.
inline void stir(Parameters& parameters, double amount) {
  const torch::NoGradGuard no_grad;
  torch::manual_seed(7);
  for (const torch::Tensor& tensor : parameters.tensors())
    torch::Tensor(tensor).add_(torch::randn_like(tensor) * amount);
}

// The gradient of f() by `tensor` (double, requires_grad) against central differences at up to `n_entries` entries.
inline void expect_gradient(const std::string& name, const std::function<torch::Tensor()>& f,
                            const torch::Tensor& tensor, int64_t n_entries = 6, double tolerance = 1e-6) {
  tensor.mutable_grad() = torch::Tensor();
  f().backward();
  ASSERT_TRUE(tensor.grad().defined()) << name;
  const torch::Tensor grad = tensor.grad().is_sparse() ? tensor.grad().to_dense() : tensor.grad().clone();
  const torch::Tensor flat = grad.reshape({-1});
  // The entries of largest gradient, and some others.
  const torch::Tensor order = flat.abs().argsort(0, /*descending=*/true);
  const torch::NoGradGuard no_grad;
  torch::Tensor values = torch::Tensor(tensor).view({-1});
  for (int64_t i = 0; i < std::min(n_entries, flat.numel()); ++i) {
    const int64_t at = order[i % 2 == 0 ? i : flat.numel() - i].item<int64_t>();
    const double before = values[at].item<double>(), step = 1e-5;
    const auto value_at = [&](double x) {
      values.index_put_({at}, x);
      return f().item<double>();
    };
    const double slope = (value_at(before + step) - value_at(before - step)) / (2 * step),
                 found = flat[at].item<double>();
    values.index_put_({at}, before);
    EXPECT_NEAR(found, slope, tolerance * (1 + std::abs(slope))) << name << ", entry " << at;
  }
}

// |a - b| / |b|
inline double distance(const torch::Tensor& a, const torch::Tensor& b) {
  const torch::Tensor x = a.to(torch::kFloat64), y = b.to(torch::kFloat64);
  return ((x - y).norm() / (y.norm() + 1e-12)).item<double>();
}

inline bool same_bits(const torch::Tensor& a, const torch::Tensor& b) { return torch::equal(a, b); }

inline torch::Tensor random_tokens(int64_t n_seqs, int64_t n_tokens, int64_t vocab_size, uint64_t seed = 3) {
  torch::manual_seed(seed);
  return torch::randint(vocab_size, {n_seqs, n_tokens}, torch::kInt64);
}

}  // namespace polyspan
