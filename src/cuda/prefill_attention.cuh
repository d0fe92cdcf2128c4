// cuda/prefill_attention.cuh: what the kernels of prefill attention share: asynchronous copies and the output's rows.
#pragma once

#include "cuda/number.cuh"
#include "cuda/prefill_attention.h"

namespace polyspan::cuda {

__device__ inline uint32_t shared_address(const void* at) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(at));
}

// 16 bytes, or zeros where `valid` is false (nothing is read then).
__device__ inline void copy_async(uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from), "r"(valid ? 16 : 0));
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;\n"); }
template <int kPending>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending));
}

__device__ inline void store_pair(ActivationType type, void* out, int64_t at, float low, float high) {
  if (type == ActivationType::kF32) *reinterpret_cast<float2*>(static_cast<float*>(out) + at) = make_float2(low, high);
  if (type == ActivationType::kF16) {
    *reinterpret_cast<__half2*>(static_cast<__half*>(out) + at) =
        __half2(from_float<__half>(low), from_float<__half>(high));
  }
  if (type == ActivationType::kBF16)
    *reinterpret_cast<__nv_bfloat162*>(static_cast<__nv_bfloat16*>(out) + at) = __floats2bfloat162_rn(low, high);
}

}  // namespace polyspan::cuda
