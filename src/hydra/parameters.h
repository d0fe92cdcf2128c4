// hydra/parameters.h: the trained tensors of a model, by name, as model/hydra_config.h lists them.
#pragma once

#include "hydra/torch.h"

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "model/hydra_config.h"

namespace polyspan {

class Parameters {
 public:
  // Values follow from the seed and the names alone: the same on every device and with every version of LibTorch.
  Parameters(std::vector<TensorSpec> specs, uint64_t seed, const torch::TensorOptions& options);

  const std::vector<TensorSpec>& specs() const { return specs_; }
  // In the order of specs(). REQUIRES of operator[]: the name is one of the list.
  const std::vector<torch::Tensor>& tensors() const { return tensors_; }
  const torch::Tensor& operator[](const std::string& name) const;
  // No gradient is computed for the parts that a stage freezes.
  void set_trained(HydraPart part, bool trained);

 private:
  std::vector<TensorSpec> specs_;
  std::vector<torch::Tensor> tensors_;
  std::map<std::string, size_t> index_;
};

// The tensors of one block: block["ssm_in.weight"].
class BlockParameters {
 public:
  BlockParameters(const Parameters& all, int64_t layer) : all_(all), prefix_("blk." + std::to_string(layer) + ".") {}
  const torch::Tensor& operator[](const char* name) const { return all_[prefix_ + name]; }

 private:
  const Parameters& all_;
  std::string prefix_;
};

// x / rms(x) * weight over the last axis.
torch::Tensor rms_norm(const torch::Tensor& x, const torch::Tensor& weight, double eps);
// A model's last step: the norm, and the logits from the embeddings.
torch::Tensor output_logits(const Parameters& parameters, const torch::Tensor& x, double eps);

}  // namespace polyspan
