#include "hydra/precision.h"

#include <ATen/autocast_mode.h>

namespace polyspan {
namespace {

// LibTorch 2.4 names the device; the versions before have a function for each.
#if TORCH_VERSION_MAJOR > 2 || (TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 4)
void set_on(torch::DeviceType device, bool on) {
  if (on) at::autocast::set_autocast_dtype(device, torch::kBFloat16);
  at::autocast::set_autocast_enabled(device, on);
}
bool is_on(torch::DeviceType device) { return at::autocast::is_autocast_enabled(device); }
#else
void set_on(torch::DeviceType device, bool on) {
  if (device == torch::kCPU) {
    if (on) at::autocast::set_autocast_cpu_dtype(torch::kBFloat16);
    at::autocast::set_cpu_enabled(on);
  } else {
    if (on) at::autocast::set_autocast_gpu_dtype(torch::kBFloat16);
    at::autocast::set_enabled(on);
  }
}
bool is_on(torch::DeviceType device) {
  return device == torch::kCPU ? at::autocast::is_cpu_enabled() : at::autocast::is_enabled();
}
#endif

}  // namespace

Bf16Products::Bf16Products(torch::DeviceType device, bool on) : device_(device), before_(is_on(device)) {
  if (on != before_) set_on(device, on);
}

Bf16Products::~Bf16Products() {
  if (before_ == is_on(device_)) return;
  set_on(device_, before_);
  if (!before_) at::autocast::clear_cache();  // of weights in bf16, which the optimiser is about to change
}

bool Bf16Products::are_on(torch::DeviceType device) { return is_on(device); }

torch::Tensor not_bf16(const torch::Tensor& x) {
  return x.scalar_type() == torch::kBFloat16 ? x.to(torch::kFloat32) : x;
}

}  // namespace polyspan
