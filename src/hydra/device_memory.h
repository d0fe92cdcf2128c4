// hydra/device_memory.h: what LibTorch's allocator holds on a GPU.
#pragma once

#include "hydra/torch.h"

namespace polyspan {

// Most bytes that tensors took at once since the start or the last reset; 0 on the CPU and before LibTorch 2.9, which
// cannot be asked without the headers of CUDA.
int64_t peak_device_bytes(const torch::Device& device);
// Gives what is held for later back to the device.
void empty_device_cache(const torch::Device& device);
void reset_peak_device_bytes(const torch::Device& device);

}  // namespace polyspan
