// cuda/decode_single.cuh: decode attention where each KV head has one query head (multi-head attention), f16 and bf16.
//
// A warp reads kKeysPerLoad keys at once, 16 bytes a lane, and has kLoads such reads of keys and of values in flight: the
// keys of the next tile are asked for as soon as this tile's scores are known, its values as soon as the weights are
// used. Every group of lanes keeps its own running softmax (arXiv 1805.02867); groups, warps and pieces are merged at
// the end. Bound by reading the cache: 97 to 102% of copy bandwidth on an H100 from 1 GB on.
#pragma once

#include "cuda/decode_attention.cuh"

namespace polyspan::cuda {

template <KvType kType, int kDim, int kWarps>
__global__ void __launch_bounds__(32 * kWarps, 16 / kWarps) decode_single_kernel(const DecodeAttentionArgs args) {
  using T = typename KvElement<kType>::type;
  constexpr int kVec = 16 / sizeof(T), kLanes = kDim / kVec, kKeysPerLoad = 32 / kLanes;
  constexpr int kLoads = 8, kTile = kLoads * kKeysPerLoad;
  extern __shared__ __align__(16) unsigned char memory[];
  auto& merge = *reinterpret_cast<DecodeMerge<1, kDim, kWarps>*>(memory);

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / kLanes, sub = lane % kLanes;
  const float scale = 1.4426950408889634f * rsqrtf(static_cast<float>(kDim));  // scores in powers of two

  let_next_kernel_start();
  prefetch_pieces<T, kDim>(args);
  const int piece_begin = args.block_begin[blockIdx.x], piece_end = args.block_begin[blockIdx.x + 1];
  for (int piece_index = piece_begin; piece_index < piece_end; ++piece_index) {
    const DecodePiece piece = args.pieces[piece_index];
    const int64_t head_index = piece.sequence * args.n_heads + piece.kv_head;
    const KvHeadView head = args.heads[head_index];
    const PieceSlots slots(piece, head, args.positions[piece.sequence]);
    const T* const keys = keys_of<T>(head);
    const T* const values = values_of<T>(head, kDim);
    const int span = args.spans[head_index];
    if (piece_index == piece_begin) wait_for_earlier_kernels();
    const auto slot_of = [&](int tile, int load) {
      return slots.first + (tile * kLoads + load) * kKeysPerLoad + group;
    };
    uint4 k_raw[kLoads], v_raw[kLoads];
    const auto load_tile = [&](const T* from, int tile, uint4(&raw)[kLoads]) {
#pragma unroll
      for (int load = 0; load < kLoads; ++load)
        raw[load] = __ldcs(reinterpret_cast<const uint4*>(from + slots.readable(slot_of(tile, load)) * kDim) + sub);
    };

    float largest = -INFINITY, total = 0.0f, sum[kVec] = {};
    const int n_tiles = (piece.n_slots + kTile - 1) / kTile;
    if (warp < n_tiles) {
      load_tile(keys, warp, k_raw);
      load_tile(values, warp, v_raw);
    }
    float q[kVec];
#pragma unroll
    for (int i = 0; i < kVec; ++i) q[i] = args.q[head_index * kDim + sub * kVec + i] * scale;
    for (int tile = warp; tile < n_tiles; tile += kWarps) {
      float weight[kLoads];
#pragma unroll
      for (int load = 0; load < kLoads; ++load) {
        float k[kVec];
        Vec16<T>::unpack(k_raw[load], k);
        weight[load] = 0.0f;
#pragma unroll
        for (int i = 0; i < kVec; ++i) weight[load] += k[i] * q[i];
      }
      if (tile + kWarps < n_tiles) load_tile(keys, tile + kWarps, k_raw);
      const float before = largest;
#pragma unroll
      for (int load = 0; load < kLoads; ++load) {
#pragma unroll
        for (int offset = kLanes / 2; offset > 0; offset /= 2)
          weight[load] += __shfl_xor_sync(0xffffffffu, weight[load], offset);
        if (slots.distance(slot_of(tile, load)) >= span) weight[load] = -INFINITY;
        largest = fmaxf(largest, weight[load]);
      }
      const float base = largest == -INFINITY ? 0.0f : largest, correction = fast_exp2(before - base);
      total *= correction;
#pragma unroll
      for (int i = 0; i < kVec; ++i) sum[i] *= correction;
#pragma unroll
      for (int load = 0; load < kLoads; ++load) {
        weight[load] = fast_exp2(weight[load] - base);
        total += weight[load];
        float v[kVec];
        Vec16<T>::unpack(v_raw[load], v);
#pragma unroll
        for (int i = 0; i < kVec; ++i) sum[i] += weight[load] * v[i];
      }
      if (tile + kWarps < n_tiles) load_tile(values, tile + kWarps, v_raw);
    }

    float all = largest;
#pragma unroll
    for (int offset = kLanes; offset < 32; offset *= 2) all = fmaxf(all, __shfl_xor_sync(0xffffffffu, all, offset));
    const float share = all == -INFINITY ? 0.0f : fast_exp2(largest - all);
    total *= share;
#pragma unroll
    for (int i = 0; i < kVec; ++i) sum[i] *= share;
#pragma unroll
    for (int offset = kLanes; offset < 32; offset *= 2) {
      total += __shfl_xor_sync(0xffffffffu, total, offset);
#pragma unroll
      for (int i = 0; i < kVec; ++i) sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], offset);
    }
    __syncthreads();  // the last piece's merge has been read
    if (group == 0) {
#pragma unroll
      for (int i = 0; i < kVec; i += 4)
        *reinterpret_cast<float4*>(&merge.sums[warp][0][sub * kVec + i]) =
            make_float4(sum[i], sum[i + 1], sum[i + 2], sum[i + 3]);
      if (sub == 0) merge.of_sums[warp][0] = make_float2(all, total);
    }
    finish_piece(args, piece, piece_index, merge);
  }
}

}  // namespace polyspan::cuda
