#include "hydra/choice_kernels.h"

#include "hydra/kernel_util.cuh"

namespace polyspan::hydra {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32, kBins = 256;

// Larger scores have larger keys; 0 and -0 have the same; what is no number comes last.
__device__ inline uint32_t key_of(float score) {
  if (score != score) return 0;
  const uint32_t bits = __float_as_uint(score + 0.0f);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

// A block a chunk of a sequence. The n_global-th best key is found byte by byte, from counts of the keys that agree so far;
// then the tokens are gone through in order. Each chunk reads all candidates five times, from the L2 cache: 65,536 tokens
// are 0.7 GB. Shared: 1.1 KB.
__global__ void global_sets_kernel(const float* scores, int64_t n_tokens, int64_t chunk_len, int64_t n_late,
                                   int64_t n_global, int64_t* sets) {
  __shared__ int counts[kBins], warps[kWarps][2];
  __shared__ uint32_t prefix;
  __shared__ int wanted;
  const int64_t chunk = blockIdx.x, n_chunks = gridDim.x, seq = blockIdx.y;
  const float* from = scores + seq * n_tokens;
  int64_t* to = sets + (seq * n_chunks + chunk) * n_global;
  const int64_t n = chunk < n_late ? 0 : (chunk - n_late + 1) * chunk_len;
  if (n <= n_global) {
    for (int64_t i = threadIdx.x; i < n_global; i += kThreads) to[i] = i < n ? i : -1;
    return;
  }
  if (threadIdx.x == 0) prefix = 0, wanted = static_cast<int>(n_global);
  for (int shift = 24; shift >= 0; shift -= 8) {
    counts[threadIdx.x] = 0;
    __syncthreads();
    const uint32_t mask = shift == 24 ? 0 : ~0u << (shift + 8), found = prefix;
    for (int64_t i = threadIdx.x; i < n; i += kThreads)
      if (const uint32_t key = key_of(from[i]); (key & mask) == found) atomicAdd(&counts[key >> shift & 255], 1);
    __syncthreads();
    if (threadIdx.x == 0) {  // the byte in which the last one wanted lies
      int left = wanted, bin = kBins - 1;
      while (counts[bin] < left) left -= counts[bin--];
      wanted = left;
      prefix = found | static_cast<uint32_t>(bin) << shift;
    }
    __syncthreads();
  }
  // All larger keys, and of the equal ones the first `wanted`.
  const uint32_t last = prefix;
  const int n_equal = wanted, warp = threadIdx.x / 32;
  const uint32_t below = (1u << threadIdx.x % 32) - 1;
  int taken = 0, equal_before = 0;
  for (int64_t base = 0; base < n; base += kThreads) {
    const int64_t i = base + threadIdx.x;
    const uint32_t key = i < n ? key_of(from[i]) : 0;
    const uint32_t larger = __ballot_sync(0xffffffffu, i < n && key > last);
    const uint32_t equal = __ballot_sync(0xffffffffu, i < n && key == last);
    if (threadIdx.x % 32 == 0) warps[warp][0] = __popc(larger), warps[warp][1] = __popc(equal);
    __syncthreads();
    int larger_before = 0, equals = equal_before, all_larger = 0, all_equal = 0;
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) larger_before += warps[w][0], equals += warps[w][1];
      all_larger += warps[w][0], all_equal += warps[w][1];
    }
    larger_before += __popc(larger & below);
    equals += __popc(equal & below);  // equal keys in front of this one
    const int equals_taken = (equals < n_equal ? equals : n_equal) - (equal_before < n_equal ? equal_before : n_equal);
    if (i < n && (key > last || (key == last && equals < n_equal))) to[taken + larger_before + equals_taken] = i;
    const int equal_after = equal_before + all_equal;
    taken += all_larger + (equal_after < n_equal ? equal_after : n_equal) -
             (equal_before < n_equal ? equal_before : n_equal);
    equal_before = equal_after;
    __syncthreads();  // the counts are read before the next ones are written
  }
}

struct Best {
  float value;
  int index;
};
__device__ inline bool better(const Best& a, const Best& b) {
  return a.value > b.value || (a.value == b.value && a.index < b.index);
}
__device__ inline Best warp_best(Best x) {
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    const Best other = {__shfl_xor_sync(0xffffffffu, x.value, lanes), __shfl_xor_sync(0xffffffffu, x.index, lanes)};
    if (better(other, x)) x = other;
  }
  return x;
}

// A warp a row. The best of each half one after another: what comes behind the last one taken; then of their sums likewise.
__global__ void best_pairs_kernel(const float* scores, int64_t n, int n_keys, int top, int64_t* indices) {
  __shared__ Best halves[kWarps][2][32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t row = int64_t{blockIdx.x} * kWarps + warp;
  if (row >= n) return;
  constexpr Best kNone = {-INFINITY, 0x7fffffff};
  for (int half = 0; half < 2; ++half) {
    const float* from = scores + (row * 2 + half) * n_keys;
    Best last = {INFINITY, -1};
    for (int rank = 0; rank < top; ++rank) {
      Best best = kNone;
      for (int key = lane; key < n_keys; key += 32)
        if (const Best here = {from[key], key}; better(last, here) && better(here, best)) best = here;
      last = warp_best(best);
      if (lane == 0) halves[warp][half][rank] = last;
    }
  }
  __syncwarp();
  Best last = {INFINITY, -1};
  for (int rank = 0; rank < top; ++rank) {
    Best best = kNone;
    for (int pair = lane; pair < top * top; pair += 32)
      if (const Best here = {halves[warp][0][pair / top].value + halves[warp][1][pair % top].value, pair};
          better(last, here) && better(here, best))
        best = here;
    last = warp_best(best);
    if (lane == 0)  // no number anywhere: any key will do, the loss will stop the run
      indices[row * top + rank] = last.index >= top * top
                                      ? rank
                                      : int64_t{halves[warp][0][last.index / top].index % n_keys} * n_keys +
                                            halves[warp][1][last.index % top].index % n_keys;
  }
}

}  // namespace

void global_sets(const float* scores, int64_t n_seqs, int64_t n_tokens, int64_t chunk_len, int64_t window,
                 int64_t n_global, int64_t* sets, Stream stream) {
  const dim3 grid(static_cast<unsigned>(n_tokens / chunk_len), static_cast<unsigned>(n_seqs));
  global_sets_kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(scores, n_tokens, chunk_len,
                                                                               window / chunk_len, n_global, sets);
}

void best_pairs(const float* scores, int64_t n, int64_t n_keys, int64_t top, int64_t* indices, Stream stream) {
  best_pairs_kernel<<<static_cast<unsigned>((n + kWarps - 1) / kWarps), kThreads, 0,
                      static_cast<cudaStream_t>(stream)>>>(scores, n, static_cast<int>(n_keys), static_cast<int>(top),
                                                           indices);
}

}  // namespace polyspan::hydra
