// cuda/decode_launch.cuh: which decode kernel serves a shape; instantiated for one cache type in each
// decode_attention_TYPE.cu.
#pragma once

#include "cuda/decode_group.cuh"
#include "cuda/decode_single.cuh"

namespace polyspan::cuda {

template <KvType kType, typename Visit>
void visit_decode_kernel(int64_t head_dim, int64_t n_rep, Visit visit) {
  POLYSPAN_CHECK(head_dim == 64 || head_dim == 128);
  if constexpr (kType != KvType::kQ8) {
    if (n_rep == 1 && head_dim == 64) return visit(decode_single_kernel<kType, 64>);
    if (n_rep == 1) return visit(decode_single_kernel<kType, 128>);
  }
  if (head_dim == 64) return visit(decode_group_kernel<kType, 64>);
  visit(decode_group_kernel<kType, 128>);
}

template <KvType kType>
void launch_decode_attention(const DecodeAttentionArgs& args, StreamHandle stream);
template <KvType kType>
int decode_occupancy(int64_t head_dim, int64_t n_rep);

#define POLYSPAN_DECODE_ATTENTION(TYPE)                                                                 \
  template <>                                                                                           \
  void launch_decode_attention<TYPE>(const DecodeAttentionArgs& args, StreamHandle stream) {            \
    const int64_t n_rep = args.n_heads / args.n_kv_heads;                                               \
    const dim3 grid(static_cast<unsigned>(args.n_blocks),                                               \
                    static_cast<unsigned>((n_rep + kGroupHeads - 1) / kGroupHeads));                    \
    visit_decode_kernel<TYPE>(args.head_dim, n_rep,                                                     \
                              [&](auto kernel) { kernel<<<grid, kDecodeThreads, 0, stream>>>(args); }); \
  }                                                                                                     \
  template <>                                                                                           \
  int decode_occupancy<TYPE>(int64_t head_dim, int64_t n_rep) {                                         \
    int blocks = 0;                                                                                     \
    visit_decode_kernel<TYPE>(head_dim, n_rep, [&](auto kernel) {                                       \
      check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kDecodeThreads, 0),          \
            "asking for the occupancy");                                                                \
    });                                                                                                 \
    return blocks;                                                                                      \
  }

}  // namespace polyspan::cuda
