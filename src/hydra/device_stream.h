// hydra/device_stream.h: the stream on which LibTorch computes at the moment, for kernels of our own (compiled in with
// POLYSPAN_HYDRA_KERNELS).
#pragma once

#include <cstdint>

#include "hydra/torch.h"

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

// Where the kernels read and write. REQUIRES: the tensor is contiguous, and of that type.
inline float* floats_of(const torch::Tensor& t) { return static_cast<float*>(t.data_ptr()); }
inline uint16_t* bf16_of(const torch::Tensor& t) { return static_cast<uint16_t*>(t.data_ptr()); }
inline bool is_bf16(const torch::Tensor& t) { return t.scalar_type() == torch::kBFloat16; }
inline bool is_f32(const torch::Tensor& t) { return t.scalar_type() == torch::kFloat32; }

}  // namespace polyspan
