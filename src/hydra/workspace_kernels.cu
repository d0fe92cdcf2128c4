#include "hydra/workspace_kernels.h"

#include "hydra/kernel_util.cuh"

namespace polyspan::hydra {
namespace {

constexpr int kSlots = 4, kThreads = 256, kMostTokens = 64;

// Where a block works: kSlots slots of a sequence.
struct Walk {
  int64_t seq, first_slot;
  int len, d, rank;
  __device__ explicit Walk(const WorkspaceSizes& s)
      : seq(blockIdx.y),
        first_slot(int64_t{blockIdx.x} * kSlots),
        len(static_cast<int>(s.chunk_len)),
        d(static_cast<int>(s.d_slot)),
        rank(static_cast<int>(s.rank)) {}
  __device__ int64_t chunk(const WorkspaceSizes& s, int64_t i) const { return seq * s.n_chunks + i; }
  // Of the block's first slot in [n_seqs, n_chunks, n_slots, n].
  __device__ int64_t at(const WorkspaceSizes& s, int64_t i, int64_t n) const {
    return (chunk(s, i) * s.n_slots + first_slot) * n;
  }
};

// sums[slot] = rows of a [kSlots, n] matrix in shared memory times the column at `from` of a [n, stride] matrix.
__device__ inline void multiply(const float* left, int n, const float* from, int64_t stride, float (&sums)[kSlots]) {
#pragma unroll 8
  for (int i = 0; i < n; ++i) {
    const float value = from[i * stride];
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) sums[slot] += left[slot * n + i] * value;
  }
}

// Bound by latency: four short products one after another, about 4 us a chunk with 128 numbers a slot. Columns are read from
// the L1 and L2 caches. Shared: kSlots * (2 d_slot + rank + chunk_len) floats.
__global__ void __launch_bounds__(kThreads)
    workspace_kernel(WorkspaceSizes s, WorkspaceInput in, WorkspaceTrace trace, float* last) {
  extern __shared__ float workspace_shared[];
  const Walk w(s);
  float* slots = workspace_shared;               // [kSlots, d]
  float* of_gate = slots + kSlots * w.d;         // [kSlots, d]: the slots' share of the gate
  float* queries = of_gate + kSlots * w.d;       // [kSlots, rank]
  float* attention = queries + kSlots * w.rank;  // [kSlots, len]
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  for (int i = threadIdx.x; i < kSlots * w.d; i += kThreads) slots[i] = in.init[w.first_slot * w.d + i];
  __syncthreads();
  for (int64_t chunk = 0; chunk < s.n_chunks; ++chunk) {
    const float* keys = in.keys + w.chunk(s, chunk) * w.rank * w.len;
    const float* values = in.values + w.chunk(s, chunk) * w.len * 2 * w.d;
    for (int i = threadIdx.x; i < kSlots * w.d; i += kThreads) trace.before[w.at(s, chunk, w.d) + i] = slots[i];
    for (int column = threadIdx.x; column < w.rank + w.d; column += kThreads) {
      float sums[kSlots] = {};
      multiply(slots, w.d, in.of_slots + column, w.rank + w.d, sums);
      for (int slot = 0; slot < kSlots; ++slot) {
        if (column < w.rank)
          trace.queries[w.at(s, chunk, w.rank) + slot * w.rank + column] = queries[slot * w.rank + column] = sums[slot];
        else
          of_gate[slot * w.d + column - w.rank] = sums[slot];
      }
    }
    __syncthreads();  // queries
    for (int i = threadIdx.x; i < kSlots * w.len; i += kThreads) {
      const int slot = i / w.len, token = i % w.len;
      float sum = 0;
#pragma unroll 8
      for (int r = 0; r < w.rank; ++r) sum += queries[slot * w.rank + r] * keys[r * w.len + token];
      attention[i] = sum;
    }
    __syncthreads();      // logits
    if (warp < kSlots) {  // a warp a slot, two tokens a lane
      float* of = attention + warp * w.len;
      const float a = lane < w.len ? of[lane] : -INFINITY, b = lane + 32 < w.len ? of[lane + 32] : -INFINITY;
      float most = fmaxf(a, b);
      for (int lanes = 16; lanes > 0; lanes /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, lanes));
      const float x = __expf(a - most), y = __expf(b - most), sum = warp_sum(x + y);
      float* to = trace.attention + w.at(s, chunk, w.len) + warp * w.len;
      if (lane < w.len) to[lane] = of[lane] = x / sum;
      if (lane + 32 < w.len) to[lane + 32] = of[lane + 32] = y / sum;
    }
    __syncthreads();  // attention
    for (int column = threadIdx.x; column < w.d; column += kThreads) {
      float found[kSlots] = {}, gate[kSlots] = {};
      multiply(attention, w.len, values + column, 2 * w.d, found);
      multiply(attention, w.len, values + w.d + column, 2 * w.d, gate);
      for (int slot = 0; slot < kSlots; ++slot) {
        const int i = slot * w.d + column;
        const float z = sigmoid(gate[slot] + of_gate[i]);
        trace.found[w.at(s, chunk, w.d) + i] = found[slot];
        trace.gates[w.at(s, chunk, w.d) + i] = z;
        slots[i] += z * (found[slot] - slots[i]);
      }
    }
    __syncthreads();  // the slots behind the chunk
  }
  for (int i = threadIdx.x; i < kSlots * w.d; i += kThreads)
    last[(w.seq * s.n_slots + w.first_slot) * w.d + i] = slots[i];
}

// The same walk from the last chunk to the first with the gradient of the slots. What products over many slots or chunks need
// (the gradients of keys, values and weights) is written for them.
__global__ void __launch_bounds__(kThreads)
    workspace_backward_kernel(WorkspaceSizes s, WorkspaceInput in, const float* of_slots_t, WorkspaceTrace trace,
                              WorkspaceGradients g) {
  extern __shared__ float workspace_shared[];
  const Walk w(s);
  float* d_slots = workspace_shared;                 // [kSlots, d]
  float* d_found = d_slots + kSlots * w.d;           // [kSlots, 2 d]
  float* back = d_found + kSlots * 2 * w.d;          // [kSlots, rank + d]: of the queries and of the gate
  float* d_logits = back + kSlots * (w.rank + w.d);  // [kSlots, len]
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  for (int i = threadIdx.x; i < kSlots * w.d; i += kThreads)
    d_slots[i] = g.d_last[(w.seq * s.n_slots + w.first_slot) * w.d + i];
  __syncthreads();
  for (int64_t chunk = s.n_chunks - 1; chunk >= 0; --chunk) {
    const float* keys = in.keys + w.chunk(s, chunk) * w.rank * w.len;
    const float* values = in.values + w.chunk(s, chunk) * w.len * 2 * w.d;
    const float* attention = trace.attention + w.at(s, chunk, w.len);
    for (int i = threadIdx.x; i < kSlots * w.d; i += kThreads) {
      const int slot = i / w.d, column = i % w.d;
      const int64_t at = w.at(s, chunk, w.d) + i;
      const float z = trace.gates[at], u = trace.found[at], d_slot = d_slots[i];
      const float d_gate = d_slot * (u - trace.before[at]) * z * (1 - z);
      d_found[slot * 2 * w.d + column] = d_slot * z;
      d_found[slot * 2 * w.d + w.d + column] = back[slot * (w.rank + w.d) + w.rank + column] = d_gate;
      g.d_found[w.at(s, chunk, 2 * w.d) + slot * 2 * w.d + column] = d_slot * z;
      g.d_found[w.at(s, chunk, 2 * w.d) + slot * 2 * w.d + w.d + column] = d_gate;
      d_slots[i] = d_slot * (1 - z) + g.d_before[at];
    }
    __syncthreads();                                                 // d_found
    for (int token = warp; token < w.len; token += kThreads / 32) {  // a warp a token: its values are a row
      float sums[kSlots] = {};
      for (int i = lane; i < 2 * w.d; i += 32) {
        const float value = values[int64_t{token} * 2 * w.d + i];
        for (int slot = 0; slot < kSlots; ++slot) sums[slot] += d_found[slot * 2 * w.d + i] * value;
      }
      for (int slot = 0; slot < kSlots; ++slot) {
        const float sum = warp_sum(sums[slot]);
        if (lane == 0) d_logits[slot * w.len + token] = sum;
      }
    }
    __syncthreads();  // the gradient of the attention
    if (warp < kSlots) {
      float* of = d_logits + warp * w.len;
      const float* p = attention + warp * w.len;
      float sum = 0;
      for (int token = lane; token < w.len; token += 32) sum += of[token] * p[token];
      sum = warp_sum(sum);
      for (int token = lane; token < w.len; token += 32)
        g.d_logits[w.at(s, chunk, w.len) + warp * w.len + token] = of[token] = p[token] * (of[token] - sum);
    }
    __syncthreads();                                      // d_logits
    for (int r = warp; r < w.rank; r += kThreads / 32) {  // a warp a number of the query: its keys are a row
      float sums[kSlots] = {};
      for (int token = lane; token < w.len; token += 32)
        for (int slot = 0; slot < kSlots; ++slot)
          sums[slot] += d_logits[slot * w.len + token] * keys[r * w.len + token];
      for (int slot = 0; slot < kSlots; ++slot) {
        const float sum = warp_sum(sums[slot]);
        if (lane == 0) g.d_queries[w.at(s, chunk, w.rank) + slot * w.rank + r] = back[slot * (w.rank + w.d) + r] = sum;
      }
    }
    __syncthreads();  // back
    for (int column = threadIdx.x; column < w.d; column += kThreads) {
      float sums[kSlots] = {};
      multiply(back, w.rank + w.d, of_slots_t + column, w.d, sums);
      for (int slot = 0; slot < kSlots; ++slot) d_slots[slot * w.d + column] += sums[slot];
    }
    __syncthreads();  // the gradient of the slots in front
  }
  for (int i = threadIdx.x; i < kSlots * w.d; i += kThreads)
    g.d_init[(w.seq * s.n_slots + w.first_slot) * w.d + i] = d_slots[i];
}

dim3 grid_of(const WorkspaceSizes& s) {
  return dim3(static_cast<unsigned>(s.n_slots / kSlots), static_cast<unsigned>(s.n_seqs));
}

}  // namespace

bool WorkspaceSizes::supported() const {
  return n_slots % kSlots == 0 && chunk_len <= kMostTokens && n_seqs < 65536 && d_slot <= 1024 && rank <= 1024;
}

void workspace_forward(const WorkspaceSizes& s, const WorkspaceInput& in, const WorkspaceTrace& trace, float* last,
                       Stream stream) {
  const size_t bytes = static_cast<size_t>(kSlots * (2 * s.d_slot + s.rank + s.chunk_len)) * sizeof(float);
  cudaFuncSetAttribute(workspace_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  workspace_kernel<<<grid_of(s), kThreads, bytes, static_cast<cudaStream_t>(stream)>>>(s, in, trace, last);
}

void workspace_backward(const WorkspaceSizes& s, const WorkspaceInput& in, const float* of_slots_t,
                        const WorkspaceTrace& trace, const WorkspaceGradients& g, Stream stream) {
  const size_t bytes = static_cast<size_t>(kSlots * (4 * s.d_slot + s.rank + s.chunk_len)) * sizeof(float);
  cudaFuncSetAttribute(workspace_backward_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  workspace_backward_kernel<<<grid_of(s), kThreads, bytes, static_cast<cudaStream_t>(stream)>>>(s, in, of_slots_t,
                                                                                                trace, g);
}

}  // namespace polyspan::hydra
