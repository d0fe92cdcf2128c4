// cuda/decode_attention.cuh: what the two decode kernels share: where keys are, and how pieces become a result.
#pragma once

#include "core/error.h"
#include "cuda/decode_attention.h"
#include "cuda/number.cuh"
#include "cuda/overlap.cuh"

namespace polyspan::cuda {

inline constexpr int kGroupHeads = 8;       // query heads of a KV head that one block computes
inline constexpr int kUnseen = 0x7fffffff;  // the distance of a key that no head sees

// Four values at a multiple of four.
__device__ inline void store_activations(ActivationType type, void* out, int64_t at, const float4& v) {
  const auto store = [&]<typename T>(T* to) {
    struct alignas(4 * sizeof(T)) Four {
      T value[4];
    } four = {{from_float<T>(v.x), from_float<T>(v.y), from_float<T>(v.z), from_float<T>(v.w)}};
    *reinterpret_cast<Four*>(to + at) = four;
  };
  if (type == ActivationType::kF32) store(static_cast<float*>(out));
  if (type == ActivationType::kF16) store(static_cast<__half*>(out));
  if (type == ActivationType::kBF16) store(static_cast<__nv_bfloat16*>(out));
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

// Before a block waits for the kernel before it: the first keys and values of its first pieces come to L2, as many bytes as the
// end of that kernel leaves time for (14 and 20 MB in all gain 1% at 268 MB and lose 5% at 17 MB). What that kernel writes (the
// newest slots) may come too early; loads that follow see it all the same.
template <typename Stored, int kDim>
__device__ void prefetch_pieces(const DecodeAttentionArgs& args) {
  constexpr int kMostPieces = 2, kRowBytes = kDim * static_cast<int>(sizeof(Stored)), kBytes = 8 << 20;
  const int index = args.block_begin[blockIdx.x] + static_cast<int>(threadIdx.x) / 2;
  if (threadIdx.x >= 2 * kMostPieces || blockIdx.y != 0 || index >= args.block_begin[blockIdx.x + 1]) return;
  const DecodePiece piece = args.pieces[index];
  const KvHeadView head = args.heads[piece.sequence * args.n_kv_heads + piece.kv_head];
  const Stored* const from = threadIdx.x % 2 == 0 ? keys_of<Stored>(head) : values_of<Stored>(head, kDim);
  const int n_slots = min(piece.n_slots, kBytes / static_cast<int>(gridDim.x) / 2 / kRowBytes);
  if (n_slots > 0) prefetch_to_l2(from + int64_t{piece.first_slot} * kDim, static_cast<uint32_t>(n_slots * kRowBytes));
}

// Shared memory of a block. With `total` and the weighted `sums` goes the score that they are relative to (the largest).
template <int kHeads, int kDim, int kWarps>
struct DecodeMerge {
  float sums[kWarps][kHeads][kDim + 4];  // padded: rows of 16 bytes, in other banks
  float2 of_sums[kWarps][kHeads];        // largest score, total weight
  float factors[kWarps][kHeads];
  float2 of_all[kHeads];
  float4 parts[32 * kWarps];
  float2 of_parts[32 * kWarps];
  bool is_last;
};

// Merges the warps of a block, which have written `sums` and `of_sums`; combines all pieces of the head where this is the last of
// them. All threads of the block call it. A task is four channels of a head.
template <int kHeads, int kDim, int kWarps>
__device__ void finish_piece(const DecodeAttentionArgs& args, const DecodePiece& piece, int piece_index,
                             DecodeMerge<kHeads, kDim, kWarps>& merge) {
  constexpr int kThreads = 32 * kWarps, kQuads = kDim / 4;
  const int n_rep = static_cast<int>(args.n_heads / args.n_kv_heads), first_rep = blockIdx.y * kGroupHeads;
  const int n_heads = min(kHeads, n_rep - first_rep), n_tasks = n_heads * kQuads;
  const int64_t first_out = (piece.sequence * args.n_heads + piece.kv_head * n_rep + first_rep) * kDim;
  const int64_t head_stride = kDim + 4, piece_stride = n_rep * head_stride;  // of partials; decode_partial_floats
  const auto store = [&](int task, const float4& sum, float total) {
    const float inverse = 1.0f / total;
    store_activations(args.out_type, args.out, first_out + task * 4,
                      make_float4(sum.x * inverse, sum.y * inverse, sum.z * inverse, sum.w * inverse));
  };
  const auto scale_sum = [](float4& sum, float factor) {
    sum = make_float4(sum.x * factor, sum.y * factor, sum.z * factor, sum.w * factor);
  };
  const auto add_sum = [](float4& sum, const float4& other, float factor) {
    sum = make_float4(sum.x + factor * other.x, sum.y + factor * other.y, sum.z + factor * other.z,
                      sum.w + factor * other.w);
  };
  // What all warps have together of a head, and what a warp's sums count for in it.
  const auto of_all_warps = [&](int head) {
    float most = -INFINITY, total = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) most = fmaxf(most, merge.of_sums[w][head].x);
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float2 of_warp = merge.of_sums[w][head];
      total += of_warp.x == -INFINITY ? 0.0f : fast_exp2(of_warp.x - most) * of_warp.y;
    }
    return make_float2(most, total);
  };
  const auto factor_of = [&](int warp, int head, float most) {
    return most == -INFINITY ? 0.0f : fast_exp2(merge.of_sums[warp][head].x - most);
  };
  __syncthreads();
  if constexpr (kHeads > 1) {  // once for all tasks of a head
    for (int i = threadIdx.x; i < kWarps * n_heads; i += kThreads) {
      const int warp = i / n_heads, head = i % n_heads;
      const float2 of_all = of_all_warps(head);
      merge.factors[warp][head] = factor_of(warp, head, of_all.x);
      if (warp == 0) merge.of_all[head] = of_all;
    }
    __syncthreads();
  }
  for (int task = threadIdx.x; task < n_tasks; task += kThreads) {
    const int head = task / kQuads, quad = task % kQuads;
    const float2 of_all = kHeads > 1 ? merge.of_all[head] : of_all_warps(head);
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
    for (int w = 0; w < kWarps; ++w)
      add_sum(sum, *reinterpret_cast<const float4*>(&merge.sums[w][head][4 * quad]),
              kHeads > 1 ? merge.factors[w][head] : factor_of(w, head, of_all.x));
    if (piece.n_pieces == 1) {
      store(task, sum, of_all.y);
    } else {
      float* const partial = args.partials + piece_index * piece_stride + (first_rep + head) * head_stride;
      reinterpret_cast<float4*>(partial)[quad] = sum;
      if (quad == 0) *reinterpret_cast<float2*>(partial + kDim) = of_all;
    }
  }
  if (piece.n_pieces == 1) return;

  int32_t* const counter = args.counters + (piece.sequence * args.n_kv_heads + piece.kv_head) * gridDim.y + blockIdx.y;
  __syncthreads();  // the partial result is written, by all threads: the fence of one is theirs too
  if (threadIdx.x == 0) {
    __threadfence();
    merge.is_last = atomicAdd(counter, 1) == piece.n_pieces - 1;
    __threadfence();
  }
  __syncthreads();
  if (!merge.is_last) return;
  // Where there are fewer tasks than threads, several threads share the pieces of a task: loads in flight, not bytes, decide how
  // long this takes. Scores come with the sums, so that memory is waited for once.
  const float* const partials = args.partials + piece.first_piece * piece_stride + first_rep * head_stride;
  constexpr int kAtOnce = kHeads == 1 ? 4 : 8;  // registers
  const int n_shares = max(1, kThreads / n_tasks), share = threadIdx.x / n_tasks;
  for (int task = n_shares > 1 ? threadIdx.x % n_tasks : threadIdx.x; task < n_tasks && share < n_shares;
       task += kThreads) {
    const float* const row = partials + task / kQuads * head_stride;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    float all = -INFINITY, total = 0.0f;
    for (int first = share; first < piece.n_pieces; first += n_shares * kAtOnce) {
      float4 value[kAtOnce];
      float2 of_value[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const int i = first + j * n_shares;
        value[j] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        of_value[j] = make_float2(-INFINITY, 0.0f);
        if (i >= piece.n_pieces) continue;
        const float* const at = row + i * piece_stride;
        value[j] = __ldcg(reinterpret_cast<const float4*>(at) + task % kQuads);
        of_value[j] = __ldcg(reinterpret_cast<const float2*>(at + kDim));
      }
      float most = all;
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) most = fmaxf(most, of_value[j].x);
      const float base = most == -INFINITY ? 0.0f : most, correction = fast_exp2(all - base);
      all = most;
      total *= correction;
      scale_sum(sum, correction);
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const float weight = fast_exp2(of_value[j].x - base);
        total += weight * of_value[j].y;
        add_sum(sum, value[j], weight);
      }
    }
    if (n_shares == 1) {
      store(task, sum, total);
    } else {
      merge.parts[threadIdx.x] = sum;
      merge.of_parts[threadIdx.x] = make_float2(all, total);
    }
  }
  if (n_shares > 1) {
    __syncthreads();
    if (threadIdx.x < n_tasks) {
      float all = -INFINITY, total = 0.0f;
      float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      for (int s = 0; s < n_shares; ++s) all = fmaxf(all, merge.of_parts[s * n_tasks + threadIdx.x].x);
      for (int s = 0; s < n_shares; ++s) {
        const float2 of_part = merge.of_parts[s * n_tasks + threadIdx.x];
        const float weight = fast_exp2(of_part.x - all);  // some head sees some key: `all` is finite
        total += weight * of_part.y;
        add_sum(sum, merge.parts[s * n_tasks + threadIdx.x], weight);
      }
      store(threadIdx.x, sum, total);
    }
  }
  if (threadIdx.x == 0) *counter = 0;
}

}  // namespace polyspan::cuda
