// bench/cuda/cuda_bench.h: what the parts of polyspan-cuda-bench share.
#pragma once

#include <algorithm>
#include <cstdio>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cuda/runtime.h"

namespace polyspan::bench {

using Json = nlohmann::ordered_json;

struct Ceilings {
  double copy_bytes_per_s = 0;  // read plus written
  double bf16_flops = 0;        // of a large product
};

inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Median milliseconds of `work` over some runs after two that are not counted.
inline double time_ms(const cuda::Stream& stream, int runs, const std::function<void()>& work) {
  cuda::Timer timer;
  for (int i = 0; i < 2; ++i) work();
  std::vector<double> times;
  for (int i = 0; i < runs; ++i) times.push_back(timer.milliseconds(stream, work));
  return median(times);
}

Json measure_decode_attention(const Ceilings& ceilings);
Json measure_prefill_attention(const Ceilings& ceilings);
Json measure_products(const Ceilings& ceilings, const std::vector<int64_t>& n_tokens);
struct ModelChoice {
  std::string plans;                  // a folder with the published plans, or empty
  bool quick = false;                 // two models at 8,192 tokens
  std::string model = {};             // one, or empty
  int64_t length = 0;                 // one, or 0
  std::vector<int64_t> batches = {};  // these too, of every plan
  std::string file = {};              // a GGUF model in place of random f16 ones: dense, by batch
};
Json measure_models(const Ceilings& ceilings, const ModelChoice& choice);

}  // namespace polyspan::bench
