// One block a row; the row is read from L2 once for a greedy token, twice for a top_k of at most 256, else 6 times as a rule.
//
// Small top_k: the k-th largest of the threads' largest logits is a lower bound of the k-th largest of all. What is not below
// it, little more than k logits as a rule, is sorted in shared memory, and one thread goes through it as the CPU does.
// Everything else: the place in the order at which a running sum of weights reaches a target. A sample of the row gives the borders
// of 16 parts of about the same weight, and each part's weight is added up. The part in which a target lies is cut again while it has
// too many keys for shared memory (as a rule the last, once); then its keys are listed there and cut into 8 parts of their range again
// and again, down to one key. A thread has its own sums, and they are added in a fixed order.
// Shared memory: 129 KB. Bound by latency and by exp in double on one multiprocessor. On an H100 a row of 32,000 logits takes 11 us
// greedy, 38 us with a top_k of 40, 0.11 ms with a top_p of 0.95 alone; one of 128,256 logits 20 us, 54 us, 0.28 ms.
#include "core/error.h"
#include "cuda/number.cuh"
#include "cuda/sample.h"

namespace polyspan::cuda {
namespace {

constexpr int kThreads = 1024, kWarps = kThreads / 32;
constexpr int kMostSorted = 2048;
constexpr int kParts = 16;                                        // of the row, by a sample
constexpr int kKeyParts = 8;                                      // of a range of keys
constexpr int kMostListed = 2 * (kParts - kKeyParts) * kThreads;  // keys in place of sums
constexpr int kLoads = 2;                                         // of a thread at once, four logits each

// Part p has the keys from begin[p] to below begin[p - 1], and their weights together.
struct Parts {
  uint32_t begin[kParts];
  double weights[kParts];
};

struct Shared {
  union {
    double sums[kParts][kThreads];  // of a thread
    struct {
      double sums[kKeyParts][kThreads];
      uint32_t keys[kMostListed];
    } list;
    struct {
      uint64_t entries[kMostSorted];
      double weights[kMostOrderedCandidates];
    } sorted;
    struct {
      uint64_t entries[kThreads];
      double running[kThreads];
    } sample;
  };
  double totals[kParts];  // of the last add_up
  Parts of_row, of_part;
  double warp_sums[kWarps];
  uint32_t least;
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
  const float* logits;  // aligned to 16 bytes where n % 4 == 0
  int n;
  double largest, inverse_temperature;
  __device__ double weight(uint32_t key) const { return exp((logit_of(key) - largest) * inverse_temperature); }
  // visit(key, id) of this thread's logits, without NaN, in order of ids.
  template <typename Visit>
  __device__ void each(Visit visit) const {
    const bool is_aligned = n % 4 == 0;
    for (int base = 4 * static_cast<int>(threadIdx.x); base < n; base += 4 * kLoads * kThreads) {
      float loaded[kLoads][4];
#pragma unroll
      for (int load = 0; load < kLoads; ++load) {
        const int at = base + 4 * load * kThreads;
        if (is_aligned && at < n) {
          const float4 v = *reinterpret_cast<const float4*>(logits + at);
          loaded[load][0] = v.x, loaded[load][1] = v.y, loaded[load][2] = v.z, loaded[load][3] = v.w;
        } else {
#pragma unroll
          for (int i = 0; i < 4; ++i) loaded[load][i] = at + i < n ? logits[at + i] : NAN;
        }
      }
#pragma unroll
      for (int load = 0; load < kLoads; ++load)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (const uint32_t key = key_of(loaded[load][i]); key != 0) visit(key, base + 4 * load * kThreads + i);
    }
  }
};
// Keys in shared memory.
struct List {
  const uint32_t* keys;
  int n;
  template <typename Visit>
  __device__ void each(Visit visit) const {
    for (int i = static_cast<int>(threadIdx.x); i < n; i += kThreads) visit(keys[i], i);
  }
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

template <typename T>
struct Running {
  T up_to_here, all;
};
// The sum of `value` over the threads up to this one, this one included, and over all. Other threads may still read `of_warps` when it
// returns.
template <typename T>
__device__ Running<T> running_sum(T value, T (&of_warps)[kWarps]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int offset = 1; offset < 32; offset *= 2) {
    const T other = __shfl_up_sync(0xffffffffu, value, offset);
    if (lane >= offset) value += other;
  }
  __syncthreads();  // the last of_warps have been read
  if (lane == 31) of_warps[warp] = value;
  __syncthreads();
  T all = 0;
  for (int w = 0; w < kWarps; ++w) {
    if (w == warp) value += all;
    all += of_warps[w];
  }
  return {value, all};
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
  row.each([&](uint32_t key, int) { sum += measure(key); });
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

// Where the running sum of measure(key), largest keys first, reaches `target` (passes it, unless `inclusive`), of the keys from
// `low` to `high`; the last candidate whose measure is not 0 where it does not. `before`: of the keys above `high`.
// REQUIRES: some measure of such a key is not 0.
template <typename Keys, typename Measure>
__device__ Place find_key(const Keys& keys, uint32_t low, uint32_t high, double before, Measure measure, double target,
                          bool inclusive, Shared& shared) {
  constexpr int kBits = 3;
  static_assert(kKeyParts == 1 << kBits);
  Place place{0, before, 0.0};
  for (bool last = false; !last;) {
    const int bits = 32 - __clz(static_cast<int>(high - low)),
              shift = bits > kBits ? bits - kBits : 0;  // parts of 2^shift keys
    last = shift == 0;
    __syncthreads();  // the last totals have been read, the keys written
    for (int part = 0; part < kKeyParts; ++part) shared.sums[part][threadIdx.x] = 0.0;
    keys.each([&](uint32_t key, int) {
      if (key >= low && key <= high) shared.sums[(key - low) >> shift][threadIdx.x] += measure(key);
    });
    add_up(kKeyParts, shared);
    double running = place.before;
    uint32_t chosen = 0;
    for (int part = kKeyParts - 1; part >= 0; --part) {
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

// Cuts the row's keys from `low` to `high` into parts of about the same weight, by every n / kThreads-th logit, and adds up their
// weights; returns the sum.
__device__ double weigh_parts(const Row& row, uint32_t low, uint32_t high, Parts& parts, Shared& shared) {
  uint32_t key = key_of(row.logits[int64_t{threadIdx.x} * row.n / kThreads]);
  if (key < low || key > high) key = 0;
  __syncthreads();  // what lies there has been read
  shared.sample.entries[threadIdx.x] = entry_of(key, static_cast<int>(threadIdx.x));
  if (threadIdx.x < kParts) parts.begin[threadIdx.x] = low;
  sort(shared.sample.entries, kThreads);
  key = key_in(shared.sample.entries[threadIdx.x]);
  const auto [running, all] = running_sum(key == 0 ? 0.0 : row.weight(key), shared.warp_sums);
  shared.sample.running[threadIdx.x] = running;
  __syncthreads();
  if (all > 0.0) {  // this sample is a border wherever the running sum passes a multiple of all / kParts
    const double before = threadIdx.x == 0 ? 0.0 : shared.sample.running[threadIdx.x - 1];
    const int first = static_cast<int>(before / all * kParts), end = static_cast<int>(running / all * kParts);
    for (int part = first; part < min(end, kParts - 1); ++part) atomicMax(&parts.begin[part], key);
  }
  __syncthreads();
  for (int part = 0; part < kParts; ++part) shared.sums[part][threadIdx.x] = 0.0;
  row.each([&](uint32_t at, int) {
    if (at < low || at > high) return;
    int part = 0;
#pragma unroll
    for (int step = kParts / 2; step > 0; step /= 2)
      if (at < parts.begin[part + step - 1]) part += step;
    shared.sums[part][threadIdx.x] += row.weight(at);
  });
  add_up(kParts, shared);
  double total = 0.0;
  for (int part = 0; part < kParts; ++part) total += shared.totals[part];
  if (threadIdx.x < kParts) parts.weights[threadIdx.x] = shared.totals[threadIdx.x];
  __syncthreads();
  return total;
}

// Keys from `low` to `high`; those above have a weight of `before`.
struct Range {
  uint32_t low, high;
  double before;
};

// The part of `range` in which the running sum of weights reaches (passes, unless `inclusive`) `target`; the last that has a weight
// where it does not.
__device__ Range find_part(const Range& range, const Parts& parts, double target, bool inclusive) {
  Range found = range;
  double running = range.before;
  for (int part = 0; part < kParts; ++part) {
    const uint32_t high = part == 0 ? range.high : parts.begin[part - 1] - 1;
    if (high < range.low) break;
    if (!(parts.weights[part] > 0.0)) continue;
    found = {max(range.low, parts.begin[part]), high, running};
    running += parts.weights[part];
    if (inclusive ? running >= target : running > target) break;
  }
  return found;
}

// How many keys of the row are in the range; `first`: how many of them threads before this one have.
__device__ int count_keys(const Row& row, const Range& range, int& first, Shared& shared) {
  int n = 0;
  row.each([&](uint32_t key, int) { n += key >= range.low && key <= range.high; });
  const auto [up_to_here, all] = running_sum(n, shared.counts);
  first = up_to_here - n;
  return all;
}

// Where the running sum of weights reaches (or passes) `target`, of keys from `lowest` on; otherwise as find_key.
// REQUIRES: weigh_parts of the row into shared.of_row; `lowest` is 1 or a key of the row.
__device__ Place find_weight(const Row& row, uint32_t lowest, uint32_t highest, double target, bool inclusive,
                             Shared& shared) {
  const auto weight = [&](uint32_t key) { return row.weight(key); };
  Range range = find_part({lowest, highest, 0.0}, shared.of_row, target, inclusive);
  int first = 0, n_listed = count_keys(row, range, first, shared);
  while (n_listed > kMostListed && range.low < range.high) {  // as a rule the last part: many keys of little weight
    weigh_parts(row, range.low, range.high, shared.of_part, shared);
    const Range part = find_part(range, shared.of_part, target, inclusive);
    if (part.low == range.low && part.high == range.high) break;
    range = part;
    n_listed = count_keys(row, range, first, shared);
  }
  if (n_listed > kMostListed || range.low == range.high)
    return find_key(row, range.low, range.high, range.before, weight, target, inclusive, shared);
  __syncthreads();  // sums have been read
  row.each([&](uint32_t key, int) {
    if (key >= range.low && key <= range.high) shared.list.keys[first++] = key;
  });
  return find_key(List{shared.list.keys, n_listed}, range.low, range.high, range.before, weight, target, inclusive,
                  shared);
}

// The index-th candidate of this key (the last, where there are fewer), in order of ids. A warp has neighbouring ids.
__device__ int nth_of_key(const Row& row, uint32_t key, int index, Shared& shared) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int share = (row.n + kThreads - 1) / kThreads * 32, begin = warp * share, end = min(row.n, begin + share);
  const auto each_ballot = [&](auto visit) {  // visit(first id, which of the 32 ids from there are of this key)
    constexpr int kAtOnce = 8;
    for (int base = begin; base < end; base += kAtOnce * 32) {
      float loaded[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const int i = base + j * 32 + lane;
        loaded[j] = i < end ? row.logits[i] : NAN;
      }
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) visit(base + j * 32, __ballot_sync(0xffffffffu, key_of(loaded[j]) == key));
    }
  };
  int n = 0;
  each_ballot([&](int, unsigned ids) { n += __popc(ids); });
  __syncthreads();  // counts have been read
  if (lane == 0) shared.counts[warp] = n;
  __syncthreads();
  int before = 0, all = 0;
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) before += shared.counts[w];
    all += shared.counts[w];
  }
  index = min(index, all - 1);
  if (index >= before && index < before + n)
    each_ballot([&](int first, unsigned ids) {
      if (index >= before && index < before + __popc(ids) && (ids >> lane & 1u) != 0 &&
          before + __popc(ids & ((1u << lane) - 1)) == index)
        shared.token = first + lane;
      before += __popc(ids);
    });
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
  row.each([&](uint32_t key, int id) {
    if (key < least) return;
    const int at = atomicAdd(&shared.n_sorted, 1);
    if (at < kMostSorted) shared.sorted.entries[at] = entry_of(key, id);
  });
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
  // Kept: the keys above cut_key and the first `n_equal` candidates of it (0: all of them). `before`: the weight of the former.
  uint32_t cut_key = 1;
  double n_equal = 0.0, before = 0.0;
  bool is_cut = false;
  if (rule.top_k > 0) {
    const Place place = find_key(
        row, 1, highest, 0.0, [](uint32_t) { return 1.0; }, rule.top_k, true, shared);
    is_cut = true;
    cut_key = place.key;
    n_equal = fmin(rule.top_k - place.before, place.sum);
    before = total_of(
        row, [&](uint32_t key) { return key > cut_key ? row.weight(key) : 0.0; }, shared);
  }
  const double all = weigh_parts(row, 1, highest, shared.of_row, shared),
               total = is_cut ? before + n_equal * row.weight(cut_key) : all;
  if (rule.top_p < 1.0f) {
    const double target = static_cast<double>(rule.top_p) * total;
    const Place place = find_weight(row, 1, highest, target, true, shared);
    const double equal = row.weight(place.key), n = round(place.sum / equal);
    const double kept = fmin(fmax(ceil((target - place.before) / equal), 1.0), n);
    if (!is_cut || place.key > cut_key || (place.key == cut_key && kept < n_equal)) {
      is_cut = true;
      cut_key = place.key;
      n_equal = kept;
      before = place.before;
    }
  }
  const auto has_weight = [&](uint32_t key) { return row.weight(key) >= static_cast<double>(rule.min_p); };
  uint32_t lowest = cut_key;
  double kept_weight;
  if (is_cut && has_weight(cut_key)) {
    kept_weight = before + n_equal * row.weight(cut_key);
  } else {  // min_p cuts
    uint32_t least = highest;
    kept_weight = total_of(
        row,
        [&](uint32_t key) {
          if (key < cut_key || !has_weight(key)) return 0.0;
          least = min(least, key);
          return row.weight(key);
        },
        shared);
    if (threadIdx.x == 0) shared.least = highest;
    __syncthreads();
    atomicMin(&shared.least, least);
    __syncthreads();
    lowest = shared.least;
  }
  const Place place = find_weight(row, lowest, highest, rule.uniform * kept_weight, false, shared);
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
  Row row{logits + int64_t{blockIdx.x} * n, n, 0.0, 1.0 / static_cast<double>(rule.temperature)};

  uint64_t best = 0;
  row.each([&](uint32_t key, int id) { best = max(best, entry_of(key, id)); });
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
