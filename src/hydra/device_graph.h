// hydra/device_graph.h: what a GPU was told to compute, told again with one call (a CUDA graph): one launch instead of hundreds.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "hydra/torch.h"

namespace polyspan {

class DeviceGraph {
 public:
  // Records what `work` tells the device without computing it. `work` may not wait for the device, and what it reads and
  // writes beside tensors of its own must stay where it is. REQUIRES: is_for(device).
  DeviceGraph(const torch::Device& device, const std::function<void()>& work);
  ~DeviceGraph();
  DeviceGraph(const DeviceGraph&) = delete;
  DeviceGraph& operator=(const DeviceGraph&) = delete;
  void replay() const;
  int64_t n_launches() const;                       // kernels and copies that a replay has the device do
  static bool is_for(const torch::Device& device);  // built with POLYSPAN_HYDRA_KERNELS

 private:
  struct Graph;
  std::unique_ptr<Graph> graph_;
};

}  // namespace polyspan
