#include "hydra/device_graph.h"

#include "core/error.h"

#ifdef POLYSPAN_HAS_HYDRA_KERNELS
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>
#endif

namespace polyspan {

#ifdef POLYSPAN_HAS_HYDRA_KERNELS
struct DeviceGraph::Graph {
  at::cuda::CUDAGraph recorded{/*keep_graph=*/true};
  size_t n_launches = 0;
};

DeviceGraph::DeviceGraph(const torch::Device& device, const std::function<void()>& work)
    : graph_(std::make_unique<Graph>()) {
  c10::cuda::device_synchronize();
  // The default stream cannot be recorded.
  const c10::cuda::CUDAStreamGuard guard(c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device.index()));
  graph_->recorded.capture_begin();
  work();
  graph_->recorded.capture_end();
  POLYSPAN_CHECK(cudaGraphGetNodes(graph_->recorded.raw_cuda_graph(), nullptr, &graph_->n_launches) == cudaSuccess);
}
void DeviceGraph::replay() const { graph_->recorded.replay(); }
int64_t DeviceGraph::n_launches() const { return static_cast<int64_t>(graph_->n_launches); }
bool DeviceGraph::is_for(const torch::Device& device) { return device.is_cuda(); }
#else
struct DeviceGraph::Graph {};

DeviceGraph::DeviceGraph(const torch::Device&, const std::function<void()>&) { POLYSPAN_CHECK(false); }
void DeviceGraph::replay() const { POLYSPAN_CHECK(false); }
int64_t DeviceGraph::n_launches() const { POLYSPAN_CHECK(false); }
bool DeviceGraph::is_for(const torch::Device&) { return false; }
#endif

DeviceGraph::~DeviceGraph() = default;

}  // namespace polyspan
