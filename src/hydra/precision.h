// hydra/precision.h: where products of matrices are computed in bf16 (LibTorch's autocast) and where they are not.
//
// Parameters, optimiser, residual stream, scan, router and slots are float32 always. A custom backward runs after the scope
// of its forward has ended and opens its own.
#pragma once

#include "hydra/torch.h"

namespace polyspan {

// While it lives, matrix products on `device` are computed in bf16 (on) or in the type of their operands (off).
class Bf16Products {
 public:
  Bf16Products(torch::DeviceType device, bool on);
  ~Bf16Products();
  Bf16Products(const Bf16Products&) = delete;
  Bf16Products& operator=(const Bf16Products&) = delete;
  static bool are_on(torch::DeviceType device);

 private:
  torch::DeviceType device_;
  bool before_;
};

// bf16 as float32; every other type as it is.
torch::Tensor not_bf16(const torch::Tensor& x);

}  // namespace polyspan
