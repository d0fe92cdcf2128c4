// cuda/decode_attention.cuh: what the two decode kernels share: where keys are, and how pieces become a result.
#pragma once

#include "core/error.h"
#include "cuda/decode_attention.h"
#include "cuda/number.cuh"

namespace polyspan::cuda {

inline constexpr int kDecodeWarps = 4, kDecodeThreads = 32 * kDecodeWarps;
inline constexpr int kGroupHeads = 8;       // query heads of a KV head that one block computes
inline constexpr int kUnseen = 0x7fffffff;  // the distance of a key that no head sees

__device__ inline void store_activation(ActivationType type, void* out, int64_t at, float value) {
  if (type == ActivationType::kF32) static_cast<float*>(out)[at] = value;
  if (type == ActivationType::kF16) static_cast<__half*>(out)[at] = from_float<__half>(value);
  if (type == ActivationType::kBF16) static_cast<__nv_bfloat16*>(out)[at] = from_float<__nv_bfloat16>(value);
}

// The slots of a piece as a query at `position` sees them.
struct PieceSlots {
  int first, end, sink_slots, ring_slots, n_sink, position, newest, ring_newest;
  __device__ PieceSlots(const DecodePiece& piece, const KvHeadView& head, int query_position)
      : first(piece.first_slot),
        end(piece.first_slot + piece.n_slots),
        sink_slots(head.sink_slots),
        ring_slots(head.ring_slots),
        n_sink(head.n_sink),
        position(query_position),
        newest(query_position - head.n_sink),
        ring_newest(newest >= 0 && head.ring_slots > 0 ? newest % head.ring_slots : 0) {}
  // How far back the key in a slot is; 0 for the sink, which every head sees; kUnseen where there is no key.
  __device__ int distance(int slot) const {
    if (slot >= end) return kUnseen;
    if (slot < sink_slots) return slot < n_sink && slot <= position ? 0 : kUnseen;
    int back = ring_newest - (slot - sink_slots);
    if (back < 0) back += ring_slots;
    return back <= newest ? back : kUnseen;
  }
  // An empty slot may hold anything, NaN too, which a weight of 0 does not hide: slot 0, always written, is read instead.
  __device__ int64_t readable(int slot) const { return distance(slot) == kUnseen ? 0 : slot; }
};

// Shared memory of a block: for each warp and head the weighted sum of values, then the largest score and the total weight.
template <int kHeads, int kDim>
struct DecodeMerge {
  float warps[kDecodeWarps][kHeads][kDim + 2];
  float4 parts[kDecodeThreads];
  float totals[kHeads];
  bool is_last;
};

// Merges the warps of a block, which have written `merge`; combines all pieces of the head where this is the last of them.
// All threads of the block call it.
template <int kHeads, int kDim>
__device__ void finish_piece(const DecodeAttentionArgs& args, const DecodePiece& piece, int piece_index,
                             DecodeMerge<kHeads, kDim>& merge) {
  const int n_rep = static_cast<int>(args.n_heads / args.n_kv_heads), first_rep = blockIdx.y * kGroupHeads;
  const int n_heads = min(kHeads, n_rep - first_rep), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t first_out = (piece.sequence * args.n_heads + piece.kv_head * n_rep + first_rep) * kDim;
  const int64_t head_stride = kDim + 4, piece_stride = n_rep * head_stride;  // of partials; decode_partial_floats
  __syncthreads();
  for (int i = threadIdx.x; i < n_heads * kDim; i += kDecodeThreads) {
    const int head = i / kDim, channel = i % kDim;
    float all = -INFINITY, value = 0.0f, total = 0.0f;
#pragma unroll
    for (int w = 0; w < kDecodeWarps; ++w) all = fmaxf(all, merge.warps[w][head][kDim]);
#pragma unroll
    for (int w = 0; w < kDecodeWarps; ++w) {
      const float share = all == -INFINITY ? 0.0f : fast_exp2(merge.warps[w][head][kDim] - all);
      value += share * merge.warps[w][head][channel];
      total += share * merge.warps[w][head][kDim + 1];
    }
    if (piece.n_pieces == 1) {
      store_activation(args.out_type, args.out, first_out + i, value / total);
    } else {
      float* const partial = args.partials + piece_index * piece_stride + (first_rep + head) * head_stride;
      partial[channel] = value;
      if (channel == 0) {
        partial[kDim] = all;
        partial[kDim + 1] = total;
      }
    }
  }
  if (piece.n_pieces == 1) return;

  int32_t* const counter = args.counters + (piece.sequence * args.n_kv_heads + piece.kv_head) * gridDim.y + blockIdx.y;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) merge.is_last = atomicAdd(counter, 1) == piece.n_pieces - 1;
  __syncthreads();
  if (!merge.is_last) return;
  __threadfence();
  float* const partials = args.partials + piece.first_piece * piece_stride + first_rep * head_stride;
  for (int head = warp; head < n_heads; head += kDecodeWarps) {  // largest scores become shares of the whole
    float* const row = partials + head * head_stride + kDim;
    constexpr int kAtOnce = 4;  // loads of a lane in flight
    float all = -INFINITY, total = 0.0f;
    for (int first = lane; first < piece.n_pieces; first += 32 * kAtOnce) {
      float most[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j)
        most[j] = first + 32 * j < piece.n_pieces ? __ldcg(row + (first + 32 * j) * piece_stride) : -INFINITY;
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) all = fmaxf(all, most[j]);
    }
    all = warp_max(all);
    for (int first = lane; first < piece.n_pieces; first += 32 * kAtOnce) {
      float2 pair[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j)
        if (first + 32 * j < piece.n_pieces)
          pair[j] = __ldcg(reinterpret_cast<const float2*>(row + (first + 32 * j) * piece_stride));
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j)
        if (first + 32 * j < piece.n_pieces) {
          const float share = fast_exp2(pair[j].x - all);
          total += share * pair[j].y;
          __stcg(row + (first + 32 * j) * piece_stride, share);
        }
    }
    total = warp_sum(total);
    if (lane == 0) merge.totals[head] = total;
  }
  __syncthreads();
  // Four channels a thread. Where there are fewer such tasks than threads, several threads share the pieces of a task:
  // loads in flight, not bytes, decide how long this takes.
  constexpr int kQuads = kDim / 4;
  const int n_tasks = n_heads * kQuads, n_shares = max(1, kDecodeThreads / n_tasks), share = threadIdx.x / n_tasks;
  const auto store = [&](int task, const float4& all) {
    const float inverse = 1.0f / merge.totals[task / kQuads];
    const int64_t at = first_out + task * 4;
    store_activation(args.out_type, args.out, at, all.x * inverse);
    store_activation(args.out_type, args.out, at + 1, all.y * inverse);
    store_activation(args.out_type, args.out, at + 2, all.z * inverse);
    store_activation(args.out_type, args.out, at + 3, all.w * inverse);
  };
  for (int task = n_shares > 1 ? threadIdx.x % n_tasks : threadIdx.x; task < n_tasks && share < n_shares;
       task += kDecodeThreads) {
    const int head = task / kQuads, quad = task % kQuads;
    const float* const row = partials + head * head_stride;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    constexpr int kAtOnce = kHeads == 1 ? 8 : 16;
    for (int first = share; first < piece.n_pieces; first += n_shares * kAtOnce) {
      float4 value[kAtOnce];
      float weight[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const int i = first + j * n_shares;
        const bool is_piece = i < piece.n_pieces;
        const float* const at = row + (is_piece ? i : first) * piece_stride;
        value[j] = __ldcg(reinterpret_cast<const float4*>(at) + quad);
        weight[j] = __ldcg(at + kDim);
        if (!is_piece) weight[j] = 0.0f;
      }
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        sum.x += weight[j] * value[j].x;
        sum.y += weight[j] * value[j].y;
        sum.z += weight[j] * value[j].z;
        sum.w += weight[j] * value[j].w;
      }
    }
    if (n_shares == 1) {
      store(task, sum);
    } else {
      merge.parts[threadIdx.x] = sum;
    }
  }
  if (n_shares > 1) {
    __syncthreads();
    if (threadIdx.x < n_tasks) {
      float4 all = merge.parts[threadIdx.x];
      for (int s = 1; s < n_shares; ++s) {
        const float4& other = merge.parts[s * n_tasks + threadIdx.x];
        all = make_float4(all.x + other.x, all.y + other.y, all.z + other.z, all.w + other.w);
      }
      store(threadIdx.x, all);
    }
  }
  if (threadIdx.x == 0) *counter = 0;
}

}  // namespace polyspan::cuda
