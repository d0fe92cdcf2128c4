// eval/speed.h: prefill and decode speed of a model under a plan: what `polyspan bench` prints.
#pragma once

#include <cstdint>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "engine/engine.h"

namespace polyspan {

struct SpeedRow {
  std::string test;         // "prefill" or "decode"
  int64_t n_tokens = 0;     // of one repeat
  int64_t depth = 0;        // tokens in the cache before
  double tokens_per_s = 0;  // median of the repeats
  int64_t kv_bytes = 0;
  std::vector<double> repeats = {};
  // Decode only: what a step must read, every weight and the kept keys and values, and the rate that makes of it.
  std::optional<int64_t> bytes_per_token = {};
  std::optional<double> gb_per_s = {};
};

// Times random tokens; the same seed gives the same ones. `engine` and `plan` must outlive it.
class SpeedMeter {
 public:
  SpeedMeter(Engine& engine, const SpanPlan& plan, KvType type, uint64_t seed);
  // Prompts of n tokens, each from an empty cache. REQUIRES: n, n_reps >= 1.
  SpeedRow prefill(int64_t n, int64_t n_reps);
  // n_reps times n_tokens decode steps as greedy generation does them (forward, logits, the most likely token), after `depth`
  // tokens. The cache is planned for decode_length().
  SpeedRow decode(int64_t depth, int64_t n_tokens, int64_t n_reps) {
    return decode_in_turn({depth}, n_tokens, n_reps).front();
  }
  // The same at several depths, a repeat of each in turn, so that what disturbs the machine disturbs all: a row each. Holds all
  // their caches at once.
  std::vector<SpeedRow> decode_in_turn(const std::vector<int64_t>& depths, int64_t n_tokens, int64_t n_reps);
  static int64_t decode_length(int64_t depth, int64_t n_tokens, int64_t n_reps) {
    return depth + 1 + n_tokens * n_reps;
  }

 private:
  void feed(Sequence& sequence, int64_t n);
  Engine& engine_;
  const SpanPlan& plan_;
  KvType type_;
  std::mt19937_64 random_;
  std::vector<float> logits_;
};

}  // namespace polyspan
