// cuda/load.cpp: the interface of cuda/device.h in a build with the CUDA component.
#include <cuda_runtime_api.h>

#include "core/error.h"
#include "cuda/device.h"
#include "cuda/transformer.h"

namespace polyspan {

bool has_cuda_component() { return true; }

int n_cuda_devices() {
  int n = 0;
  const cudaError_t error = cudaGetDeviceCount(&n);
  cudaGetLastError();
  return error == cudaSuccess ? n : 0;
}

bool has_usable_gpu() {
  int major = 0;
  return n_cuda_devices() > 0 && cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0) == cudaSuccess &&
         major >= cuda::kLeastMajor;
}

std::string cuda_model_problem(const ModelConfig& config) {
  if (config.architecture != "llama" && config.architecture != "qwen2")
    return "found architecture " + config.architecture + "; llama and qwen2 run there";
  const std::string problem = cuda::decode_attention_problem(config.n_heads, config.n_kv_heads, config.head_dim);
  if (!problem.empty())
    return "found " + std::to_string(config.n_heads) + " query and " + std::to_string(config.n_kv_heads) +
           " KV heads of " + std::to_string(config.head_dim) + " dimensions; " + problem;
  if (config.d_model % 8 != 0 || config.d_ff % 8 != 0)
    return "found layers of " + std::to_string(config.d_model) + " and " + std::to_string(config.d_ff) +
           " channels; multiples of 8 are needed";
  return "";
}

std::unique_ptr<Model> load_cuda_model(std::unique_ptr<GgufFile> file, int device_index, Progress& progress) {
  cuda::select_device(device_index);  // before the file is looked at: without a GPU nothing else matters
  ModelConfig config = read_config(*file);
  return cuda::CudaTransformer::load(std::move(file), std::move(config), device_index, progress);
}

}  // namespace polyspan
