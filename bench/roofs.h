// bench/roofs.h: the ceilings of this machine at the selected instruction level, which every op benchmark is compared
// with: reading memory, reading the L1 cache, f32 multiply-adds and 8-bit dot products from registers.
// Measured when first asked for, best of some tries: a roof is what the machine can do when nothing disturbs it.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#include "core/huge_buffer.h"
#include "core/thread_team.h"
#include "ops/isa.h"

namespace polyspan::bench {

struct Roofs {
  double memory_gb_per_s = 0;  // all threads together, as the rest
  double l1_gb_per_s = 0;
  double fma_gflops = 0;  // a multiply-add is two operations
  double dot_gops = 0;    // likewise, 8 bits x 8 bits; 0 where the level has no such instruction
};

inline constexpr int kChains = 12;  // independent sums: two units of latency 4, and some to spare

// Each returns something of its result, so that no work can be left out. n: steps of kChains instructions, or bytes.
struct RoofLoops {
  uint64_t (*read)(const std::byte* data, int64_t n_bytes);  // n_bytes % 512 == 0
  float (*fma)(int64_t n);
  int32_t (*dot)(int64_t n);
  int fma_lanes;  // floats an instruction
  int dot_lanes;  // bytes an instruction
};

inline uint64_t read_plain(const std::byte* data, int64_t n_bytes) {
  uint64_t sums[8] = {};
  for (int64_t i = 0; i < n_bytes; i += 64)
    for (int64_t j = 0; j < 8; ++j) {
      uint64_t word;
      std::memcpy(&word, data + i + 8 * j, 8);
      sums[j] += word;
    }
  uint64_t total = 0;
  for (const uint64_t sum : sums) total += sum;
  return total;
}
inline float fma_plain(int64_t n) {
  float sums[kChains] = {};
  for (int64_t i = 0; i < n; ++i)
    for (float& sum : sums) sum = sum * 0.999f + 1.0f;
  float total = 0;
  for (const float sum : sums) total += sum;
  return total;
}

#if defined(__x86_64__)
#define POLYSPAN_AVX2 __attribute__((target("avx2,fma")))
#define POLYSPAN_AVX512 __attribute__((target("avx512f,avx512bw,avx512vnni")))

POLYSPAN_AVX2 inline uint64_t read_avx2(const std::byte* data, int64_t n_bytes) {
  __m256i sums[8];
  for (__m256i& sum : sums) sum = _mm256_setzero_si256();
  for (int64_t i = 0; i < n_bytes; i += 256) {
    for (int64_t j = 0; j < 4; ++j) _mm_prefetch(reinterpret_cast<const char*>(data + i + 4096 + 64 * j), _MM_HINT_T0);
    for (int64_t j = 0; j < 8; ++j)
      sums[j] = _mm256_add_epi64(sums[j], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data + i + 32 * j)));
  }
  uint64_t total = 0, lanes[4];
  for (const __m256i& sum : sums) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), sum);
    for (const uint64_t lane : lanes) total += lane;
  }
  return total;
}
POLYSPAN_AVX2 inline float fma_avx2(int64_t n) {
  const __m256 a = _mm256_set1_ps(0.999f), b = _mm256_set1_ps(1.0f);
  __m256 sums[kChains];
  for (__m256& sum : sums) sum = _mm256_setzero_ps();
  for (int64_t i = 0; i < n; ++i)
    for (__m256& sum : sums) sum = _mm256_fmadd_ps(sum, a, b);
  float total = 0, lanes[8];
  for (const __m256& sum : sums) {
    _mm256_storeu_ps(lanes, sum);
    total += lanes[0];
  }
  return total;
}
// The three instructions that AVX2 needs for a dot product of bytes.
POLYSPAN_AVX2 inline int32_t dot_avx2(int64_t n) {
  const __m256i one = _mm256_set1_epi16(1);
  __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(5);
  __m256i sums[kChains];
  for (__m256i& sum : sums) sum = _mm256_setzero_si256();
  for (int64_t i = 0; i < n; ++i)
    for (__m256i& sum : sums) {
      asm volatile("" : "+x"(a), "+x"(b));  // the products must not be taken out of the loop
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), one));
    }
  int32_t total = 0, lanes[8];
  for (const __m256i& sum : sums) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), sum);
    total ^= lanes[0];
  }
  return total;
}
POLYSPAN_AVX512 inline uint64_t read_avx512(const std::byte* data, int64_t n_bytes) {
  __m512i sums[8];
  for (__m512i& sum : sums) sum = _mm512_setzero_si512();
  for (int64_t i = 0; i < n_bytes; i += 512)
    for (int64_t j = 0; j < 8; ++j) {
      _mm_prefetch(reinterpret_cast<const char*>(data + i + 4096 + 64 * j), _MM_HINT_T0);
      sums[j] = _mm512_add_epi64(sums[j], _mm512_loadu_si512(data + i + 64 * j));
    }
  uint64_t total = 0, lanes[8];
  for (const __m512i& sum : sums) {
    _mm512_storeu_si512(lanes, sum);
    for (const uint64_t lane : lanes) total += lane;
  }
  return total;
}
POLYSPAN_AVX512 inline float fma_avx512(int64_t n) {
  const __m512 a = _mm512_set1_ps(0.999f), b = _mm512_set1_ps(1.0f);
  __m512 sums[kChains];
  for (__m512& sum : sums) sum = _mm512_setzero_ps();
  for (int64_t i = 0; i < n; ++i)
    for (__m512& sum : sums) sum = _mm512_fmadd_ps(sum, a, b);
  float total = 0, lanes[16];
  for (const __m512& sum : sums) {
    _mm512_storeu_ps(lanes, sum);
    total += lanes[0];
  }
  return total;
}
POLYSPAN_AVX512 inline int32_t dot_avx512(int64_t n) {
  const __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(5);
  __m512i sums[kChains];
  for (__m512i& sum : sums) sum = _mm512_setzero_si512();
  for (int64_t i = 0; i < n; ++i)
    for (__m512i& sum : sums) sum = _mm512_dpbusd_epi32(sum, a, b);
  int32_t total = 0, lanes[16];
  for (const __m512i& sum : sums) {
    _mm512_storeu_si512(lanes, sum);
    total ^= lanes[0];
  }
  return total;
}
#undef POLYSPAN_AVX2
#undef POLYSPAN_AVX512
#endif

inline RoofLoops roof_loops(IsaLevel level) {
#if defined(__x86_64__)
  if (level >= IsaLevel::kAvx512) return {read_avx512, fma_avx512, dot_avx512, 16, 64};
  if (level == IsaLevel::kAvx2) return {read_avx2, fma_avx2, dot_avx2, 8, 32};
#endif
  static_cast<void>(level);
  return {read_plain, fma_plain, nullptr, 1, 0};
}

inline Roofs measure_roofs(IsaLevel level, int n_threads) {
  constexpr int64_t kMemoryBytes = 256 << 20, kL1Bytes = 16 << 10, kSteps = 4'000'000;
  const RoofLoops loops = roof_loops(level);
  ThreadTeam team(n_threads);
  const HugeBuffer memory(kMemoryBytes, "measuring the roof");
  std::memset(memory.data(), 1, kMemoryBytes);
  std::vector<std::array<uint64_t, 8>> sinks(static_cast<size_t>(n_threads));  // a cache line each
  const auto best_seconds = [&](const std::function<uint64_t(int thread)>& body) {
    double best = 1e30;
    for (int i = 0; i < 7; ++i) {
      const auto start = std::chrono::steady_clock::now();
      team.each(team.size(), [&](int64_t thread, int) {
        // Kept: a store that another thread could see.
        reinterpret_cast<volatile uint64_t&>(sinks[static_cast<size_t>(thread)][0]) = body(thread);
      });
      best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    return best;
  };
  Roofs roofs;
  const int64_t part = kMemoryBytes / n_threads / 512 * 512;
  roofs.memory_gb_per_s = 1e-9 * static_cast<double>(part * n_threads) / best_seconds([&](int thread) {
                            return loops.read(memory.data() + thread * part, part - 4096);
                          });
  constexpr int64_t kL1Repeats = 10000;
  roofs.l1_gb_per_s = 1e-9 * static_cast<double>(kL1Bytes * kL1Repeats * n_threads) / best_seconds([&](int thread) {
                        uint64_t sum = 0;
                        for (int64_t i = 0; i < kL1Repeats; ++i) {
                          const std::byte* data = memory.data() + thread * part;
                          asm volatile("" : "+r"(data));  // read it again, and not once for all
                          sum += loops.read(data, kL1Bytes);
                        }
                        return sum;
                      });
  const double steps = static_cast<double>(kSteps) * kChains * n_threads * 1e-9;
  roofs.fma_gflops =
      2 * steps * loops.fma_lanes / best_seconds([&](int) { return static_cast<uint64_t>(loops.fma(kSteps)); });
  if (loops.dot != nullptr)
    roofs.dot_gops =
        2 * steps * loops.dot_lanes / best_seconds([&](int) { return static_cast<uint64_t>(loops.dot(kSteps)); });
  return roofs;
}

// For 1 or 2 threads (or any other number), of the level that is selected when it is first asked for.
inline const Roofs& roofs(int n_threads) {
  static std::vector<std::pair<int, Roofs>> known;
  known.reserve(16);
  for (const auto& [n, found] : known)
    if (n == n_threads) return found;
  return known.emplace_back(n_threads, measure_roofs(current_isa(), n_threads)).second;
}

}  // namespace polyspan::bench
