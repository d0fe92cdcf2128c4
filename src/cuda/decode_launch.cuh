// cuda/decode_launch.cuh: which decode kernel serves a shape; instantiated for one cache type in each
// decode_attention_TYPE.cu.
#pragma once

#include "cuda/decode_group.cuh"
#include "cuda/decode_single.cuh"

namespace polyspan::cuda {

// visit(kernel, warps of a block, bytes of shared memory).
template <KvType kType, typename Visit>
void visit_decode_kernel(int64_t head_dim, int64_t n_rep, bool wide, Visit visit) {
  POLYSPAN_CHECK(head_dim == 64 || head_dim == 128);
  const auto visit_dim = [&]<int kDim>() {
    if constexpr (sizeof(typename KvElement<kType>::type) == 2)
      if (n_rep == 1) {
        if (wide) return visit(decode_single_kernel<kType, kDim, 16>, 16, sizeof(DecodeMerge<1, kDim, 16>));
        return visit(decode_single_kernel<kType, kDim, 4>, 4, sizeof(DecodeMerge<1, kDim, 4>));
      }
    constexpr int kWide = sizeof(typename KvElement<kType>::type) == 1 ? 8 : 12;
    if (wide)
      return visit(decode_group_kernel<kType, kDim, kWide>, kWide, sizeof(DecodeMerge<kGroupHeads, kDim, kWide>));
    visit(decode_group_kernel<kType, kDim, 4>, 4, sizeof(DecodeMerge<kGroupHeads, kDim, 4>));
  };
  if (head_dim == 64) return visit_dim.template operator()<64>();
  visit_dim.template operator()<128>();
}

template <KvType kType>
void launch_decode_attention(const DecodeAttentionArgs& args, bool wide, StreamHandle stream);
template <KvType kType>
int decode_occupancy(int64_t head_dim, int64_t n_rep, bool wide);

template <typename Kernel>
void allow_shared_memory(Kernel kernel, size_t bytes) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        "asking for shared memory");
}

#define POLYSPAN_DECODE_ATTENTION(TYPE)                                                                 \
  template <>                                                                                           \
  void launch_decode_attention<TYPE>(const DecodeAttentionArgs& args, bool wide, StreamHandle stream) { \
    const int64_t n_rep = args.n_heads / args.n_kv_heads;                                               \
    const dim3 grid(static_cast<unsigned>(args.n_blocks),                                               \
                    static_cast<unsigned>((n_rep + kGroupHeads - 1) / kGroupHeads));                    \
    visit_decode_kernel<TYPE>(args.head_dim, n_rep, wide, [&](auto kernel, int warps, size_t bytes) {   \
      allow_shared_memory(kernel, bytes);                                                               \
      launch_overlapping(kernel, grid, 32 * warps, bytes, stream, args);                                \
    });                                                                                                 \
  }                                                                                                     \
  template <>                                                                                           \
  int decode_occupancy<TYPE>(int64_t head_dim, int64_t n_rep, bool wide) {                              \
    int blocks = 0;                                                                                     \
    visit_decode_kernel<TYPE>(head_dim, n_rep, wide, [&](auto kernel, int warps, size_t bytes) {        \
      allow_shared_memory(kernel, bytes);                                                               \
      check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, 32 * warps, bytes),          \
            "asking for the occupancy");                                                                \
    });                                                                                                 \
    return blocks;                                                                                      \
  }

}  // namespace polyspan::cuda
