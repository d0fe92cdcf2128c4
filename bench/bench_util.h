// bench/bench_util.h: what the op benchmarks share: thread counts, random data, and the counters that set a result
// against its roof.
#pragma once

#include <benchmark/benchmark.h>

#include <chrono>
#include <string>

#include "core/dtype.h"
#include "io/random_model.h"
#include "roofs.h"

namespace polyspan::bench {

inline constexpr int kThreadCounts[] = {1, 2};

// More than the last cache of any machine we know: inputs that a model would stream from memory are cycled through
// copies of this size, else a benchmark would show the cache.
inline constexpr int64_t kStreamBytes = 192 << 20;

// Started just before a benchmark's loop. Google Benchmark's own rates would print a share as "0.8/s".
class Stopwatch {
 public:
  // "share" is what was reached of `roof`; both in the unit that `name` says. `per_iteration` in units of 1e9.
  void set_counters(benchmark::State& state, const std::string& name, double per_iteration, double roof) const {
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    const double rate = per_iteration * static_cast<double>(state.iterations()) / seconds;
    state.counters[name] = rate;
    if (roof <= 0) return;
    state.counters["share"] = rate / roof;
    state.counters["roof"] = roof;
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

// Uniform floats with a deviation of 1.
inline std::vector<float> random_floats(int64_t n, uint64_t seed) {
  std::vector<float> values(static_cast<size_t>(n));
  fill_random_blocks(DType::kF32, 1.0f, seed, std::as_writable_bytes(std::span(values)));
  return values;
}

template <typename Body>
void add_benchmark(const std::string& name, Body body) {
  benchmark::RegisterBenchmark(name.c_str(), body)->UseRealTime()->MinTime(0.2);
}

}  // namespace polyspan::bench
