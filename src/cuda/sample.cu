// One block a row; the row is read from L2 once for a greedy token, twice for a top_k of at most 256, else up to 28 times.
//
// Small top_k: the k-th largest of the threads' largest logits is a lower bound of the k-th largest of all. What is not below
// it, little more than k logits as a rule, is sorted in shared memory, and one thread goes through it as the CPU does.
// Everything else, equal logits by the thousand too: the place in the order at which a running sum (of candidates or of weights)
// reaches a target is found by cutting the range of keys into 16 parts, adding up each, and going on in one of them. A thread has
// its own sums, and they are added in a fixed order.
// Shared memory: 129 KB. Bound by latency. On an H100 a top_k of 40 takes 0.02 to 0.05 ms more than a greedy token, a top_p alone
// 0.2 ms at 32,000 logits and 0.8 ms at 128,256: it computes most weights three times, in double, on one multiprocessor.
#include "core/error.h"
#include "cuda/number.cuh"
#include "cuda/sample.h"

namespace polyspan::cuda {
namespace {

constexpr int kThreads = 1024, kWarps = kThreads / 32;
constexpr int kMostSorted = 2048, kParts = 16;

struct Shared {
  union {
    double sums[kParts][kThreads];  // of a thread
    struct {
      uint64_t entries[kMostSorted];
      double weights[kMostOrderedCandidates];
    } sorted;
  };
  double totals[kParts];
  uint64_t best[kWarps];
  int counts[kWarps];
  int n_sorted, token;
};

// Larger logits have larger keys; 0 and -0 have the same; 0 is a NaN's.
__device__ inline uint32_t key_of(float logit) {
  if (logit != logit) return 0;
  const uint32_t bits = __float_as_uint(logit + 0.0f);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ inline double logit_of(uint32_t key) {
  return static_cast<double>(__uint_as_float((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key));
}
// What comes earlier in the order is larger.
__device__ inline uint64_t entry_of(uint32_t key, int id) {
  return uint64_t{key} << 32 | (0xffffffffu - static_cast<uint32_t>(id));
}
__device__ inline uint32_t key_in(uint64_t entry) { return static_cast<uint32_t>(entry >> 32); }
__device__ inline int id_in(uint64_t entry) { return static_cast<int>(0xffffffffu - static_cast<uint32_t>(entry)); }

struct Row {
  const float* logits;
  int n;
  double largest, temperature;
  __device__ double weight(uint32_t key) const { return exp((logit_of(key) - largest) / temperature); }
};

// Descending, `n` a power of two. Bitonic.
__device__ void sort(uint64_t* entries, int n) {
  for (int size = 2; size <= n; size *= 2)
    for (int stride = size / 2; stride > 0; stride /= 2) {
      __syncthreads();
      for (int i = threadIdx.x; i < n / 2; i += kThreads) {
        const int low = i / stride * 2 * stride + i % stride, high = low + stride;
        const uint64_t a = entries[low], b = entries[high];
        if ((a < b) == ((low & size) == 0)) {
          entries[low] = b;
          entries[high] = a;
        }
      }
    }
  __syncthreads();
}

// Adds sums[part] of all threads into totals[part]. A barrier before and behind.
__device__ void add_up(int n_parts, Shared& shared) {
  __syncthreads();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (warp < n_parts) {
    double sum = 0.0;
    for (int i = lane; i < kThreads; i += 32) sum += shared.sums[warp][i];
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    if (lane == 0) shared.totals[warp] = sum;
  }
  __syncthreads();
}

// The sum of measure(key) over the row.
template <typename Measure>
__device__ double total_of(const Row& row, Measure measure, Shared& shared) {
  double sum = 0.0;
  for (int i = threadIdx.x; i < row.n; i += kThreads) {
    const uint32_t key = key_of(row.logits[i]);
    if (key != 0) sum += measure(key);
  }
  __syncthreads();  // the last totals have been read
  shared.sums[0][threadIdx.x] = sum;
  add_up(1, shared);
  return shared.totals[0];
}

// A place in the order: the candidates of this key come behind a sum of `before`, and have `sum` together.
struct Place {
  uint32_t key;
  double before, sum;
};

// Where the running sum of measure(key), largest keys first, reaches `target` (passes it, unless `inclusive`); the last
// candidate whose measure is not 0 where it does not. REQUIRES: some measure up to key `highest` is not 0.
template <typename Measure>
__device__ Place find_place(const Row& row, uint32_t highest, Measure measure, double target, bool inclusive,
                            Shared& shared) {
  uint32_t low = 1, high = highest;
  Place place{0, 0.0, 0.0};
  for (bool last = false; !last;) {
    const int bits = 32 - __clz(static_cast<int>(high - low)),
              shift = bits > 4 ? bits - 4 : 0;  // parts of 2^shift keys
    last = shift == 0;
    __syncthreads();  // the last totals have been read
    for (int part = 0; part < kParts; ++part) shared.sums[part][threadIdx.x] = 0.0;
    for (int i = threadIdx.x; i < row.n; i += kThreads) {
      const uint32_t key = key_of(row.logits[i]);
      if (key >= low && key <= high) shared.sums[(key - low) >> shift][threadIdx.x] += measure(key);
    }
    add_up(kParts, shared);
    double running = place.before;
    uint32_t chosen = 0;
    for (int part = kParts - 1; part >= 0; --part) {
      const double sum = shared.totals[part];
      if (!(sum > 0.0)) continue;
      chosen = static_cast<uint32_t>(part);
      place.before = running;
      place.sum = sum;
      running += sum;
      if (inclusive ? running >= target : running > target) break;
    }
    low += chosen << shift;
    high = low + min(high - low, (1u << shift) - 1);
    place.key = low;
  }
  return place;
}

// The index-th candidate of this key, in order of ids.
__device__ int nth_of_key(const Row& row, uint32_t key, int index, Shared& shared) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int seen = 0;
  for (int base = 0; base < row.n; base += kThreads) {
    const int i = base + static_cast<int>(threadIdx.x);
    const bool is = i < row.n && key_of(row.logits[i]) == key;
    const int n = __syncthreads_count(is);
    if (seen + n <= index) {
      seen += n;
      continue;
    }
    const unsigned others = __ballot_sync(0xffffffffu, is);
    if (lane == 0) shared.counts[warp] = __popc(others);
    __syncthreads();
    int rank = seen + __popc(others & ((1u << lane) - 1));
    for (int w = 0; w < warp; ++w) rank += shared.counts[w];
    if (is && rank == index) shared.token = i;
    break;
  }
  __syncthreads();
  return shared.token;
}

// -1: too many candidates for the shared memory. `best`: of this thread.
__device__ int choose_among_few(const Row& row, const TokenRule& rule, uint64_t best, Shared& shared) {
  __syncthreads();
  shared.sorted.entries[threadIdx.x] = best;
  if (threadIdx.x == 0) shared.n_sorted = 0;
  sort(shared.sorted.entries, kThreads);
  const uint32_t least = max(1u, key_in(shared.sorted.entries[rule.top_k - 1]));
  __syncthreads();  // read by all before entries are written
  for (int i = threadIdx.x; i < row.n; i += kThreads) {
    const uint32_t key = key_of(row.logits[i]);
    if (key < least) continue;
    const int at = atomicAdd(&shared.n_sorted, 1);
    if (at < kMostSorted) shared.sorted.entries[at] = entry_of(key, i);
  }
  __syncthreads();
  const int n = shared.n_sorted;
  if (n > kMostSorted) return -1;
  int padded = 2;
  while (padded < n) padded *= 2;
  for (int i = n + static_cast<int>(threadIdx.x); i < padded; i += kThreads) shared.sorted.entries[i] = 0;
  sort(shared.sorted.entries, padded);
  const int k = min(rule.top_k, n);
  for (int i = threadIdx.x; i < k; i += kThreads)
    shared.sorted.weights[i] = row.weight(key_in(shared.sorted.entries[i]));
  __syncthreads();
  if (threadIdx.x == 0) {
    const double* const weights = shared.sorted.weights;
    double total = 0.0, kept_weight = 0.0;
    for (int i = 0; i < k; ++i) total += weights[i];
    int kept = 0;
    while (kept < k && weights[kept] >= static_cast<double>(rule.min_p) &&
           (kept == 0 || kept_weight < static_cast<double>(rule.top_p) * total))
      kept_weight += weights[kept++];
    double at = rule.uniform * kept_weight;
    int i = 0;
    for (; i + 1 < kept && at >= weights[i]; ++i) at -= weights[i];
    shared.token = id_in(shared.sorted.entries[i]);
  }
  __syncthreads();
  return shared.token;
}

__device__ int choose_among_all(const Row& row, const TokenRule& rule, uint32_t highest, Shared& shared) {
  const auto weight = [&](uint32_t key) { return row.weight(key); };
  // Kept: the keys above cut_key and the first `n_equal` candidates of it (0: all of them).
  uint32_t cut_key = 1;
  double n_equal = 0.0, before = 0.0, total;
  bool is_cut = false;
  if (rule.top_k > 0) {
    const Place place = find_place(
        row, highest, [](uint32_t) { return 1.0; }, rule.top_k, true, shared);
    is_cut = true;
    cut_key = place.key;
    n_equal = fmin(rule.top_k - place.before, place.sum);
    before = total_of(
        row, [&](uint32_t key) { return key > cut_key ? row.weight(key) : 0.0; }, shared);
    total = before + n_equal * row.weight(cut_key);
  } else {
    total = total_of(row, weight, shared);
  }
  if (rule.top_p < 1.0f) {
    const double target = static_cast<double>(rule.top_p) * total;
    const Place place = find_place(row, highest, weight, target, true, shared);
    const double equal = row.weight(place.key), n = round(place.sum / equal);
    const double kept = fmin(fmax(ceil((target - place.before) / equal), 1.0), n);
    if (!is_cut || place.key > cut_key || (place.key == cut_key && kept < n_equal)) {
      is_cut = true;
      cut_key = place.key;
      n_equal = kept;
      before = place.before;
    }
  }
  const auto kept_weight_of = [&](uint32_t key) {
    const double w = key < cut_key ? 0.0 : row.weight(key);
    return w < static_cast<double>(rule.min_p) ? 0.0 : w;
  };
  double kept_weight;
  if (is_cut && row.weight(cut_key) >= static_cast<double>(rule.min_p)) {
    kept_weight = before + n_equal * row.weight(cut_key);
  } else {
    kept_weight = total_of(row, kept_weight_of, shared);
  }
  const Place place = find_place(row, highest, kept_weight_of, rule.uniform * kept_weight, false, shared);
  const double equal = row.weight(place.key);
  double index = fmax(0.0, floor((rule.uniform * kept_weight - place.before) / equal));
  index = fmin(index, (is_cut && place.key == cut_key ? n_equal : round(place.sum / equal)) - 1.0);
  return nth_of_key(row, place.key, static_cast<int>(index), shared);
}

__global__ void __launch_bounds__(kThreads, 1)
    choose_tokens_kernel(const float* logits, int n, const TokenRule* rules, int32_t* tokens, int32_t* positions) {
  extern __shared__ __align__(16) unsigned char memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const TokenRule rule = rules[blockIdx.x];
  Row row{logits + int64_t{blockIdx.x} * n, n, 0.0, static_cast<double>(rule.temperature)};

  uint64_t best = 0;
  for (int i = threadIdx.x; i < n; i += kThreads) {
    const uint32_t key = key_of(row.logits[i]);
    if (key != 0) best = max(best, entry_of(key, i));
  }
  uint64_t first = best;
  for (int offset = 16; offset > 0; offset /= 2) first = max(first, __shfl_xor_sync(0xffffffffu, first, offset));
  if (threadIdx.x % 32 == 0) shared.best[threadIdx.x / 32] = first;
  __syncthreads();
  for (int warp = 0; warp < kWarps; ++warp) first = max(first, shared.best[warp]);

  int token = first == 0 ? 0 : id_in(first);
  row.largest = logit_of(key_in(first));
  if (rule.temperature != 0.0f && first != 0 && isfinite(row.largest)) {
    const bool few = rule.top_k > 0 && rule.top_k <= kMostOrderedCandidates;
    token = few ? choose_among_few(row, rule, best, shared) : -1;
    if (token < 0) token = choose_among_all(row, rule, key_in(first), shared);
  }
  if (threadIdx.x != 0) return;
  tokens[blockIdx.x] = token;
  if (positions != nullptr) positions[blockIdx.x] += 1;
}

}  // namespace

void choose_tokens(const float* logits, int64_t n_rows, int64_t vocab_size, const TokenRule* rules, int32_t* tokens,
                   int32_t* positions, const Stream& stream) {
  POLYSPAN_CHECK(n_rows >= 1 && vocab_size >= 1 && vocab_size < 0x7fffffff - kThreads);
  constexpr int kBytes = static_cast<int>(sizeof(Shared));
  check(cudaFuncSetAttribute(choose_tokens_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
        "asking for shared memory");
  choose_tokens_kernel<<<static_cast<unsigned>(n_rows), kThreads, kBytes, stream.get()>>>(
      logits, static_cast<int>(vocab_size), rules, tokens, positions);
  check_launch("choose_tokens");
}

}  // namespace polyspan::cuda
