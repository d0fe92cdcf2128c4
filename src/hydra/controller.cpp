#include "hydra/controller.h"

namespace polyspan {

torch::Tensor chunk_summary(const torch::Tensor& x, int64_t chunk_len) {
  const torch::Tensor chunks = x.view({x.size(0), x.size(1) / chunk_len, chunk_len, x.size(2)});
  const torch::Tensor means = chunks.mean(2), none = torch::zeros_like(means.slice(1, 0, 1));
  return torch::cat({torch::cat({none, means.slice(1, 0, means.size(1) - 1)}, 1), chunks.select(2, 0)}, -1);
}

torch::Tensor path_multipliers(const BlockParameters& w, const torch::Tensor& summary) {
  const torch::Tensor hidden = torch::silu(torch::linear(summary, w["controller_down.weight"]));
  return 2 * torch::sigmoid(torch::linear(hidden, w["controller_up.weight"]) + w["controller_up.bias"]);
}

}  // namespace polyspan
