#include "hydra/workspace_kernels.h"

#include "hydra/kernel_util.cuh"

namespace polyspan::hydra {
namespace {

// A chunk is three products of four slots with matrices, one after another, and a sequence's chunks wait for each other: what
// counts is the time of a chunk. All threads share a product (a float4 of columns and a part of the rows each), and where they
// fit into shared memory the matrices of the next chunk are copied there meanwhile. Else they are read from the L2 cache.
constexpr int kSlots = 4, kThreads = 512, kMostTokens = 64;
constexpr int kPartials = kThreads * 4 * kSlots;  // floats: what the threads leave of a product
constexpr int64_t kMostShared = 227 * 1024;

// Where a block works: kSlots slots of a sequence.
struct Walk {
  int64_t seq, first_slot;
  int len, d;
  __device__ explicit Walk(const WorkspaceSizes& s)
      : seq(blockIdx.y),
        first_slot(int64_t{blockIdx.x} * kSlots),
        len(static_cast<int>(s.chunk_len)),
        d(static_cast<int>(s.d_slot)) {}
  __device__ int64_t chunk(const WorkspaceSizes& s, int64_t i) const { return seq * s.n_chunks + i; }
  // Of the block's first slot in [n_seqs, n_chunks, n_slots, n].
  __device__ int64_t at(const WorkspaceSizes& s, int64_t i, int64_t n) const {
    return (chunk(s, i) * s.n_slots + first_slot) * n;
  }
};

// A product [kSlots, n_inner] x [n_inner, n_columns] by the threads from `first` on: each takes four columns and
// `per_slice` rows, and leaves its sums as partials [n_slices, kSlots, n_columns].
struct Sliced {
  int n_columns, n_inner, first, n_slices, per_slice;
  __device__ Sliced(int columns, int inner, int first_thread, int n_threads)
      : n_columns(columns), n_inner(inner), first(first_thread) {
    const int most = n_threads / (columns / 4);
    per_slice = most <= 1 ? inner : (inner / 4 + most - 1) / most * 4;
    n_slices = (inner + per_slice - 1) / per_slice;
  }
  __device__ int n_items() const { return n_columns / 4 * n_slices; }
  __device__ int n_partials() const { return n_slices * kSlots * n_columns; }
  // left [kSlots, left_stride]; matrix [n_inner, n_columns].
  __device__ void multiply(const float* left, int left_stride, const float* matrix, float* partials) const {
    for (int item = static_cast<int>(threadIdx.x) - first; item >= 0 && item < n_items(); item += kThreads) {
      const int slice = item / (n_columns / 4), column = item % (n_columns / 4) * 4;
      const int begin = slice * per_slice, end = begin + per_slice < n_inner ? begin + per_slice : n_inner;
      float4 sums[kSlots] = {};
#pragma unroll 2
      for (int i = begin; i < end; i += 4) {
        float4 m[4];
#pragma unroll
        for (int j = 0; j < 4; ++j)
          m[j] = *reinterpret_cast<const float4*>(matrix + int64_t{i + j} * n_columns + column);
#pragma unroll
        for (int slot = 0; slot < kSlots; ++slot) {
          const float4 of = *reinterpret_cast<const float4*>(left + slot * left_stride + i);
          const float factors[4] = {of.x, of.y, of.z, of.w};
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            sums[slot].x += factors[j] * m[j].x;
            sums[slot].y += factors[j] * m[j].y;
            sums[slot].z += factors[j] * m[j].z;
            sums[slot].w += factors[j] * m[j].w;
          }
        }
      }
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot)
        *reinterpret_cast<float4*>(partials + (slice * kSlots + slot) * n_columns + column) = sums[slot];
    }
  }
  __device__ float sum(const float* partials, int slot, int column) const {
    float sum = 0;
    for (int slice = 0; slice < n_slices; ++slice) sum += partials[(slice * kSlots + slot) * n_columns + column];
    return sum;
  }
};

// Threads for the first of two products at a time, so that both take as long.
__device__ inline int share_of_threads(int columns, int work, int of_work) {
  const int n = kThreads * work / (work + of_work) / (columns / 4) * (columns / 4);
  return n > columns / 4 ? n : columns / 4;
}

// Copies that arrive by themselves. A group is what was copied between two calls of end_of_copies.
__device__ inline void copy(float* to, const float* from, int n) {
  for (int i = threadIdx.x * 4; i < n; i += kThreads * 4) {
#ifdef __CUDA_ARCH__
    const auto at = static_cast<unsigned>(__cvta_generic_to_shared(to + i));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(from + i) : "memory");
#else
    *reinterpret_cast<float4*>(to + i) = *reinterpret_cast<const float4*>(from + i);
#endif
  }
}
__device__ inline void end_of_copies() {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Of this thread; a barrier makes them all threads'.
__device__ inline void wait_for_all_groups_but_the_last() {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.wait_group 1;" ::: "memory");
#endif
}
// Brings n floats into the L2 cache: this block its share of them.
__device__ inline void prefetch(const float* from, int n, unsigned block, unsigned n_blocks) {
  for (int i = static_cast<int>((threadIdx.x * n_blocks + block) * 32); i < n;
       i += static_cast<int>(kThreads * n_blocks * 32)) {
#ifdef __CUDA_ARCH__
    asm volatile("prefetch.global.L2 [%0];" ::"l"(from + i));
#endif
  }
}

// The matrices of a walk: one that stays, two that change with the chunk, `staged` in shared memory or where they are.
struct Matrices {
  const float *fixed, *first, *second;  // of the chunk at hand
  float *to_first, *to_second;
  const float *all_first, *all_second;
  int n_first, n_second;
  bool staged;
  __device__ Matrices(const float* fixed_, int n_fixed, const float* first_, int n_first_, const float* second_,
                      int n_second_, float* shared, bool staged_)
      : fixed(fixed_),
        first(nullptr),
        second(nullptr),
        to_first(shared + n_fixed),
        to_second(to_first + n_first_),
        all_first(first_),
        all_second(second_),
        n_first(n_first_),
        n_second(n_second_),
        staged(staged_) {
    if (!staged) return;
    copy(shared, fixed, n_fixed);
    fixed = shared, first = to_first, second = to_second;
  }
  // To be called in this order, before a chunk's first product and after it, and so with the second; `chunk` is the one to come.
  // (Behind the last chunk: any that is there.)
  __device__ void next_first(int64_t chunk) {
    if (staged) copy(to_first, all_first + chunk * n_first, n_first), end_of_copies();
  }
  __device__ void next_second(int64_t chunk) {
    if (staged) copy(to_second, all_second + chunk * n_second, n_second), end_of_copies();
  }
  __device__ void begin(int64_t chunk, int64_t later) {
    if (!staged) first = all_first + chunk * n_first, second = all_second + chunk * n_second;
    prefetch(all_first + later * n_first, n_first, blockIdx.x, gridDim.x);
    prefetch(all_second + later * n_second, n_second, blockIdx.x, gridDim.x);
  }
};

// Shared: kSlots * (2 d_slot + chunk_len) floats, kPartials, and the matrices if staged.
__global__ void __launch_bounds__(kThreads)
    workspace_kernel(WorkspaceSizes s, WorkspaceInput in, WorkspaceTrace trace, float* last, bool staged) {
  extern __shared__ __align__(16) float workspace_shared[];
  const Walk w(s);
  float* slots = workspace_shared;            // [kSlots, d]
  float* of_gate = slots + kSlots * w.d;      // [kSlots, d]: the slots' share of the gate
  float* attention = of_gate + kSlots * w.d;  // [kSlots, len]
  float* partials = attention + kSlots * w.len;
  const int n_logit_threads = share_of_threads(w.len, w.len, w.d);
  const Sliced logits(w.len, w.d, 0, n_logit_threads), gate(w.d, w.d, n_logit_threads, kThreads - n_logit_threads),
      values(2 * w.d, w.len, 0, kThreads);
  float* of_gate_partials = partials + logits.n_partials();
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t first_chunk = w.chunk(s, 0), last_chunk = w.chunk(s, s.n_chunks - 1);
  Matrices m(in.gate, w.d * w.d, in.keys_t, w.d * w.len, in.values, w.len * 2 * w.d, partials + kPartials, staged);
  m.next_first(first_chunk);
  m.next_second(first_chunk);
  for (int i = threadIdx.x; i < kSlots * w.d; i += kThreads) slots[i] = in.init[w.first_slot * w.d + i];
  wait_for_all_groups_but_the_last();
  __syncthreads();
  for (int64_t chunk = 0; chunk < s.n_chunks; ++chunk) {
    const int64_t here = first_chunk + chunk, next = here < last_chunk ? here + 1 : here;
    m.begin(here, next < last_chunk ? next + 1 : next);
    for (int i = threadIdx.x; i < kSlots * w.d; i += kThreads) trace.before[w.at(s, chunk, w.d) + i] = slots[i];
    logits.multiply(slots, w.d, m.first, partials);
    gate.multiply(slots, w.d, m.fixed, of_gate_partials);
    __syncthreads();  // their partials
    m.next_first(next);
    if (warp < kSlots) {  // a warp a slot, two tokens a lane
      const float a = lane < w.len ? logits.sum(partials, warp, lane) : -INFINITY,
                  b = lane + 32 < w.len ? logits.sum(partials, warp, lane + 32) : -INFINITY;
      float most = fmaxf(a, b);
      for (int lanes = 16; lanes > 0; lanes /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, lanes));
      const float x = __expf(a - most), y = __expf(b - most), sum = warp_sum(x + y);
      float *of = attention + warp * w.len, *to = trace.attention + w.at(s, chunk, w.len) + warp * w.len;
      if (lane < w.len) to[lane] = of[lane] = x / sum;
      if (lane + 32 < w.len) to[lane + 32] = of[lane + 32] = y / sum;
    } else {
      for (int i = threadIdx.x - kSlots * 32; i < kSlots * w.d; i += kThreads - kSlots * 32)
        of_gate[i] = gate.sum(of_gate_partials, i / w.d, i % w.d);
    }
    wait_for_all_groups_but_the_last();
    __syncthreads();  // attention, the values
    values.multiply(attention, w.len, m.second, partials);
    __syncthreads();  // its partials
    m.next_second(next);
    for (int i = threadIdx.x; i < kSlots * w.d; i += kThreads) {
      const int slot = i / w.d, column = i % w.d;
      const float found = values.sum(partials, slot, column),
                  z = sigmoid(values.sum(partials, slot, w.d + column) + of_gate[i]);
      trace.found[w.at(s, chunk, w.d) + i] = found;
      trace.gates[w.at(s, chunk, w.d) + i] = z;
      slots[i] += z * (found - slots[i]);
    }
    wait_for_all_groups_but_the_last();
    __syncthreads();  // the slots behind the chunk, the next keys
  }
  for (int i = threadIdx.x; i < kSlots * w.d; i += kThreads)
    last[(w.seq * s.n_slots + w.first_slot) * w.d + i] = slots[i];
}

// The same walk from the last chunk to the first with the gradient of the slots. What products over many slots or chunks need
// (the gradients of keys, values and weights) is written for them. Shared: kSlots * (4 d_slot + chunk_len) floats, then as above.
__global__ void __launch_bounds__(kThreads)
    workspace_backward_kernel(WorkspaceSizes s, WorkspaceTrace trace, WorkspaceGradients g, bool staged) {
  extern __shared__ __align__(16) float workspace_shared[];
  const Walk w(s);
  float* d_slots = workspace_shared;         // [kSlots, d]
  float* d_found = d_slots + kSlots * w.d;   // [kSlots, 2 d]
  float* back = d_found + kSlots * 2 * w.d;  // [kSlots, d]: through the gate
  float* d_logits = back + kSlots * w.d;     // [kSlots, len]
  float* partials = d_logits + kSlots * w.len;
  const int n_value_threads = share_of_threads(w.len, 2 * w.len, w.d);
  const Sliced values(w.len, 2 * w.d, 0, n_value_threads), gate(w.d, w.d, n_value_threads, kThreads - n_value_threads),
      keys(w.d, w.len, 0, kThreads);
  float* of_gate_partials = partials + values.n_partials();
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t first_chunk = w.chunk(s, 0), last_chunk = w.chunk(s, s.n_chunks - 1);
  Matrices m(g.gate_t, w.d * w.d, g.values_t, 2 * w.d * w.len, g.keys, w.len * w.d, partials + kPartials, staged);
  m.next_first(last_chunk);
  m.next_second(last_chunk);
  for (int i = threadIdx.x; i < kSlots * w.d; i += kThreads)
    d_slots[i] = g.d_last[(w.seq * s.n_slots + w.first_slot) * w.d + i];
  wait_for_all_groups_but_the_last();
  __syncthreads();
  for (int64_t chunk = s.n_chunks - 1; chunk >= 0; --chunk) {
    const int64_t here = first_chunk + chunk, next = here > first_chunk ? here - 1 : here;
    m.begin(here, next > first_chunk ? next - 1 : next);
    const int64_t ahead = w.at(s, next - first_chunk, 1);
    for (int i = 0; i < 4; ++i) {  // what the next chunk begins with
      const float* const all[4] = {trace.gates, trace.found, trace.before, g.d_before};
      prefetch(all[i] + ahead * w.d, kSlots * w.d, 0, 1);
    }
    for (int i = threadIdx.x; i < kSlots * w.d; i += kThreads) {
      const int slot = i / w.d, column = i % w.d;
      const int64_t at = w.at(s, chunk, w.d) + i;
      const float z = trace.gates[at], u = trace.found[at], d_slot = d_slots[i];
      const float d_gate = d_slot * (u - trace.before[at]) * z * (1 - z);
      d_found[slot * 2 * w.d + column] = d_slot * z;
      d_found[slot * 2 * w.d + w.d + column] = d_gate;
      g.d_found[w.at(s, chunk, 2 * w.d) + slot * 2 * w.d + column] = d_slot * z;
      g.d_found[w.at(s, chunk, 2 * w.d) + slot * 2 * w.d + w.d + column] = d_gate;
      d_slots[i] = d_slot * (1 - z) + g.d_before[at];
    }
    __syncthreads();  // d_found
    values.multiply(d_found, 2 * w.d, m.first, partials);
    gate.multiply(d_found + w.d, 2 * w.d, m.fixed, of_gate_partials);
    __syncthreads();  // their partials
    m.next_first(next);
    if (warp < kSlots) {
      const float* p = trace.attention + w.at(s, chunk, w.len) + warp * w.len;
      const float p_a = lane < w.len ? p[lane] : 0, p_b = lane + 32 < w.len ? p[lane + 32] : 0;
      const float a = lane < w.len ? values.sum(partials, warp, lane) : 0,
                  b = lane + 32 < w.len ? values.sum(partials, warp, lane + 32) : 0;
      const float sum = warp_sum(a * p_a + b * p_b);
      float *of = d_logits + warp * w.len, *to = g.d_logits + w.at(s, chunk, w.len) + warp * w.len;
      if (lane < w.len) to[lane] = of[lane] = p_a * (a - sum);
      if (lane + 32 < w.len) to[lane + 32] = of[lane + 32] = p_b * (b - sum);
    } else {
      for (int i = threadIdx.x - kSlots * 32; i < kSlots * w.d; i += kThreads - kSlots * 32)
        back[i] = gate.sum(of_gate_partials, i / w.d, i % w.d);
    }
    wait_for_all_groups_but_the_last();
    __syncthreads();  // d_logits, the keys
    keys.multiply(d_logits, w.len, m.second, partials);
    __syncthreads();  // its partials
    m.next_second(next);
    for (int i = threadIdx.x; i < kSlots * w.d; i += kThreads)
      d_slots[i] += back[i] + keys.sum(partials, i / w.d, i % w.d);
    wait_for_all_groups_but_the_last();
    __syncthreads();  // the gradient of the slots in front, the next values
  }
  for (int i = threadIdx.x; i < kSlots * w.d; i += kThreads)
    g.d_init[(w.seq * s.n_slots + w.first_slot) * w.d + i] = d_slots[i];
}

struct Launch {
  dim3 grid;
  bool staged;
  int64_t bytes;
  template <typename Kernel>
  Launch(Kernel kernel, const WorkspaceSizes& s, int64_t floats_a_slot)
      : grid(static_cast<unsigned>(s.n_slots / kSlots), static_cast<unsigned>(s.n_seqs)) {
    const int64_t own = 4 * (kSlots * floats_a_slot + kPartials),
                  all = own + 4 * s.d_slot * (s.d_slot + 3 * s.chunk_len);
    staged = all <= kMostShared;
    bytes = staged ? all : own;
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  }
};

}  // namespace

bool WorkspaceSizes::supported() const {
  return n_slots % kSlots == 0 && chunk_len % 4 == 0 && chunk_len <= kMostTokens && n_seqs < 65536 && d_slot % 4 == 0 &&
         d_slot <= 1024;
}

void workspace_forward(const WorkspaceSizes& s, const WorkspaceInput& in, const WorkspaceTrace& trace, float* last,
                       Stream stream) {
  const Launch launch(workspace_kernel, s, 2 * s.d_slot + s.chunk_len);
  workspace_kernel<<<launch.grid, kThreads, launch.bytes, static_cast<cudaStream_t>(stream)>>>(s, in, trace, last,
                                                                                               launch.staged);
}

void workspace_backward(const WorkspaceSizes& s, const WorkspaceTrace& trace, const WorkspaceGradients& g,
                        Stream stream) {
  const Launch launch(workspace_backward_kernel, s, 4 * s.d_slot + s.chunk_len);
  workspace_backward_kernel<<<launch.grid, kThreads, launch.bytes, static_cast<cudaStream_t>(stream)>>>(s, trace, g,
                                                                                                        launch.staged);
}

}  // namespace polyspan::hydra
