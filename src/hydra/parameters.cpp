#include "hydra/parameters.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "core/fnv1a.h"
#include "core/thread_team.h"
#include "eval/random_source.h"
#include "hydra/fused_block.h"
#include "hydra/precision.h"

namespace polyspan {
namespace {

constexpr int64_t kInitBlock = 1 << 20;  // values that come of one random stream: the blocks are made in parallel

void initial_values(const TensorSpec& spec, uint64_t seed, int64_t block, float* values) {
  const int64_t begin = block * kInitBlock, end = std::min(begin + kInitBlock, spec.n_values());
  RandomSource random = block == 0 ? RandomSource{seed, fnv1a(spec.name)}
                                   : RandomSource{seed, fnv1a(spec.name), static_cast<uint64_t>(block)};
  for (int64_t i = begin; i < end; ++i) {
    double value = spec.scale;
    switch (spec.init) {
      case TensorInit::kConstant: break;
      case TensorInit::kNormal:  // Box-Muller; 1 - unit() is in (0, 1]
        value = spec.scale * std::sqrt(-2.0 * std::log(1.0 - random.unit())) * std::cos(2.0 * M_PI * random.unit());
        break;
      case TensorInit::kPathScales: value = i == 0 ? 0.8 : i == 1 ? 0.2 : 0.5; break;
      case TensorInit::kLogUniform: value = std::log(1.0 + 15.0 * random.unit()); break;
      case TensorInit::kTimeStep: {
        const double dt = std::exp(std::log(1e-3) + random.unit() * std::log(100.0));
        value = dt + std::log(-std::expm1(-dt));  // the inverse of softplus
        break;
      }
      case TensorInit::kLogRate: value = std::log(0.01) * random.unit(); break;
    }
    values[i] = static_cast<float>(value);
  }
}

}  // namespace

Parameters::Parameters(std::vector<TensorSpec> specs, uint64_t seed, const torch::TensorOptions& options)
    : specs_(std::move(specs)) {
  std::vector<torch::Tensor> host;
  std::vector<std::pair<size_t, int64_t>> blocks;  // (tensor, block of it)
  for (size_t i = 0; i < specs_.size(); ++i) {
    host.push_back(torch::empty(specs_[i].shape, torch::kFloat32));
    for (int64_t block = 0; block * kInitBlock < specs_[i].n_values(); ++block) blocks.emplace_back(i, block);
  }
  ThreadTeam team(at::get_num_threads());
  team.each(std::ssize(blocks), [&](int64_t at, int) {
    const auto [i, block] = blocks[static_cast<size_t>(at)];
    initial_values(specs_[i], seed, block, host[i].data_ptr<float>());
  });
  for (size_t i = 0; i < specs_.size(); ++i) {
    tensors_.push_back(host[i].to(options, /*non_blocking=*/false, /*copy=*/true).set_requires_grad(true));
    host[i] = torch::Tensor();
    index_[specs_[i].name] = i;
  }
}

const torch::Tensor& Parameters::operator[](const std::string& name) const {
  const auto found = index_.find(name);
  POLYSPAN_CHECK(found != index_.end(), name);
  return tensors_[found->second];
}

void Parameters::set_trained(HydraPart part, bool trained) {
  for (size_t i = 0; i < specs_.size(); ++i)
    if (specs_[i].part == part) tensors_[i].set_requires_grad(trained);
}

torch::Tensor rms_norm(const torch::Tensor& x, const torch::Tensor& weight, double eps) {
  const torch::Tensor wide = not_bf16(x);
  if (fused_norm_takes(wide, weight)) return fused_norm(wide, weight, eps);
  return wide * torch::rsqrt(wide.square().mean(-1, /*keepdim=*/true) + eps) * weight;
}

torch::Tensor output_logits(const Parameters& parameters, const torch::Tensor& x, double eps) {
  return torch::linear(rms_norm(x, parameters["output_norm.weight"], eps), parameters["token_embd.weight"]);
}

}  // namespace polyspan
