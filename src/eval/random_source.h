// eval/random_source.h: seeded choices that are the same with every standard library (its distributions are not).
#pragma once

#include <cstdint>
#include <initializer_list>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "core/error.h"

namespace polyspan {

class RandomSource {
 public:
  // Different lists of numbers give unrelated streams.
  explicit RandomSource(std::initializer_list<uint64_t> seeds) : random_(mix(seeds)) {}

  // Uniform in [0, n), but for a bias of n / 2^64. REQUIRES: n >= 1.
  int64_t below(int64_t n) {
    POLYSPAN_CHECK(n >= 1, "below needs at least one choice");
    return static_cast<int64_t>(random_() % static_cast<uint64_t>(n));
  }
  int64_t between(int64_t first, int64_t last) { return first + below(last - first + 1); }
  double unit() { return static_cast<double>(random_() >> 11) * 0x1.0p-53; }  // [0, 1)

  template <typename T>
  const T& pick(std::span<const T> choices) {
    return choices[static_cast<size_t>(below(std::ssize(choices)))];
  }
  template <typename T>
  void shuffle(std::vector<T>& values) {
    for (int64_t i = std::ssize(values) - 1; i > 0; --i)
      std::swap(values[static_cast<size_t>(i)], values[static_cast<size_t>(below(i + 1))]);
  }

 private:
  // splitmix64's finalizer over each number in turn (Steele, Lea, Flood: Fast splittable pseudorandom number generators).
  static uint64_t mix(std::initializer_list<uint64_t> seeds) {
    uint64_t state = 0;
    for (uint64_t seed : seeds) {
      state += seed + 0x9e3779b97f4a7c15u;
      state = (state ^ (state >> 30)) * 0xbf58476d1ce4e5b9u;
      state = (state ^ (state >> 27)) * 0x94d049bb133111ebu;
      state ^= state >> 31;
    }
    return state;
  }
  std::mt19937_64 random_;
};

}  // namespace polyspan
