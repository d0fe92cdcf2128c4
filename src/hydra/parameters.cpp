#include "hydra/parameters.h"

#include <ATen/Parallel.h>

#include <cmath>

#include "core/error.h"
#include "core/fnv1a.h"
#include "eval/random_source.h"
#include "hydra/precision.h"

namespace polyspan {
namespace {

std::vector<float> initial_values(const TensorSpec& spec, uint64_t seed) {
  RandomSource random{seed, fnv1a(spec.name)};
  std::vector<float> values(static_cast<size_t>(spec.n_values()));
  for (size_t i = 0; i < values.size(); ++i) {
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
    }
    values[i] = static_cast<float>(value);
  }
  return values;
}

}  // namespace

Parameters::Parameters(std::vector<TensorSpec> specs, uint64_t seed, const torch::TensorOptions& options)
    : specs_(std::move(specs)) {
  tensors_.resize(specs_.size());
  at::parallel_for(0, std::ssize(specs_), 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const size_t at = static_cast<size_t>(i);
      std::vector<float> values = initial_values(specs_[at], seed);
      const torch::Tensor host = torch::from_blob(values.data(), specs_[at].shape, torch::kFloat32);
      tensors_[at] = torch::empty(specs_[at].shape, options).copy_(host);
    }
  });
  for (size_t i = 0; i < specs_.size(); ++i) {
    tensors_[i].set_requires_grad(true);
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
  return wide * torch::rsqrt(wide.square().mean(-1, /*keepdim=*/true) + eps) * weight;
}

}  // namespace polyspan
