// hydra/device_stream.h: the stream on which LibTorch computes at the moment, for kernels of our own; they are compiled in with
// POLYSPAN_HYDRA_KERNELS (off by default: not verified on a GPU yet).
#pragma once

#include <torch/torch.h>

namespace polyspan {

class DeviceStream {
 public:
  // Makes the device current for the kernels. REQUIRES: is_for(device).
  explicit DeviceStream(const torch::Device& device);
  void* handle() const { return handle_; }  // a cudaStream_t
  // Whether the kernels are there and run on it.
  static bool is_for(const torch::Device& device);

 private:
  void* handle_;
};

}  // namespace polyspan
