// ops/rope.h: rotary position embedding (RoPE, arXiv 2104.09864).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ops/context.h"

namespace polyspan {

enum class RopePairing {
  kInterleaved,  // (2i, 2i + 1): the order of "llama" GGUF files
  kHalves,       // (i, i + n / 2): the order of GPT-NeoX and of "qwen2" GGUF files
};

struct RopeConfig {
  int64_t n_dims = 0;  // rotated dimensions of a head (even); the rest passes through
  double base = 10000.0;
  double linear_scale = 1.0;  // positions are divided by it (linear RoPE scaling)
  RopePairing pairing = RopePairing::kInterleaved;
  std::vector<float> frequency_factors;  // [n_dims / 2] or empty: frequencies are divided by them (Llama 3.1 and later)
};

// Radians that pair i turns by from one position to the next: [n_dims / 2].
std::vector<double> rope_frequencies(const RopeConfig& config);

// Cosines and sines of some positions: each [n_positions, n_dims / 2], computed in double.
class RopeTable {
 public:
  void compute(const RopeConfig& config, std::span<const int64_t> positions);
  const float* cos(int64_t row) const { return cos_.data() + row * n_pairs_; }
  const float* sin(int64_t row) const { return sin_.data() + row * n_pairs_; }

 private:
  int64_t n_pairs_ = 0;
  std::vector<float> cos_, sin_;
};

// Rotates x [n_tokens, n_heads, head_dim] (token t at x + t * stride) in place; row t of the table belongs to token t.
// Every value is multiplied by `scale` (queries: 1 / sqrt(head_dim)).
void apply_rope(const RopeConfig& config, const RopeTable& table, float* x, int64_t n_tokens, int64_t stride,
                int64_t n_heads, int64_t head_dim, float scale, OpContext& context);

}  // namespace polyspan
