// cuda/overlap.cuh: a kernel's start under the end of the one before it (programmatic dependent launch, compute capability
// 9.0; elsewhere kernels follow one another as usual and nothing here does anything).
//
// A kernel launched by launch_overlapping may start as soon as every block of the kernel before it in the stream has called
// let_next_kernel_start (or ended). Until it has called wait_for_earlier_kernels it reads only what no kernel of the stream that
// may still run writes, and writes nothing.
#pragma once

#include <cuda_runtime_api.h>

#include <type_traits>

#include "cuda/runtime.h"

namespace polyspan::cuda {

__device__ inline void let_next_kernel_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
__device__ inline void wait_for_earlier_kernels() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// From memory to L2, by no thread's load. `from` and `bytes` are multiples of 16.
__device__ inline void prefetch_to_l2(const void* from, uint32_t bytes) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
#endif
}

template <typename... Parameters>
void launch_overlapping(void (*kernel)(Parameters...), dim3 grid, dim3 threads, size_t shared_bytes,
                        StreamHandle stream, std::type_identity_t<Parameters>... arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = threads;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = compute_capability() >= 90 ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, arguments...), "launching a kernel");
}

}  // namespace polyspan::cuda
