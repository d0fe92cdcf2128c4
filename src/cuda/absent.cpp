// cuda/absent.cpp: the interface of cuda/device.h in a build without the CUDA component.
#include "core/error.h"
#include "cuda/device.h"

namespace polyspan {

bool has_cuda_component() { return false; }
int n_cuda_devices() { return 0; }
bool has_usable_gpu() { return false; }
std::string cuda_model_problem(const ModelConfig&) { return "this build has no CUDA component"; }

std::unique_ptr<Model> load_cuda_model(std::unique_ptr<GgufFile>, int, Progress&) {
  throw Error::unsupported("this build has no CUDA component; build with -DPOLYSPAN_CUDA=ON, or use --device cpu");
}

}  // namespace polyspan
