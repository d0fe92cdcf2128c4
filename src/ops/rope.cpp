#include "ops/rope.h"

#include <cmath>

#include "core/error.h"
#include "ops/kernels.h"

namespace polyspan {

std::vector<double> rope_frequencies(const RopeConfig& config) {
  const int64_t n_pairs = config.n_dims / 2;
  POLYSPAN_CHECK(config.frequency_factors.empty() || std::ssize(config.frequency_factors) == n_pairs);
  std::vector<double> frequencies;
  for (int64_t pair = 0; pair < n_pairs; ++pair) {
    double frequency = std::pow(config.base, -2.0 * static_cast<double>(pair) / static_cast<double>(config.n_dims));
    if (!config.frequency_factors.empty())
      frequency /= static_cast<double>(config.frequency_factors[static_cast<size_t>(pair)]);
    frequencies.push_back(frequency / config.linear_scale);
  }
  return frequencies;
}

void RopeTable::compute(const RopeConfig& config, std::span<const int64_t> positions) {
  n_pairs_ = config.n_dims / 2;
  cos_.resize(positions.size() * static_cast<size_t>(n_pairs_));
  sin_.resize(cos_.size());
  const std::vector<double> frequencies = rope_frequencies(config);
  for (size_t pair = 0; pair < frequencies.size(); ++pair)
    for (size_t row = 0; row < positions.size(); ++row) {
      const double angle = static_cast<double>(positions[row]) * frequencies[pair];
      const size_t at = row * frequencies.size() + pair;
      cos_[at] = static_cast<float>(std::cos(angle));
      sin_[at] = static_cast<float>(std::sin(angle));
    }
}

void apply_rope(const RopeConfig& config, const RopeTable& table, float* x, int64_t n_tokens, int64_t stride,
                int64_t n_heads, int64_t head_dim, float scale, OpContext& context) {
  POLYSPAN_CHECK(config.n_dims <= head_dim && config.n_dims % 2 == 0);
  context.team().split(n_tokens, [&](int64_t begin, int64_t end, int) {
    for (int64_t token = begin; token < end; ++token)
      kernels().rope_row({x + token * stride, n_heads, head_dim, config.n_dims / 2, table.cos(token), table.sin(token),
                          config.pairing == RopePairing::kInterleaved, scale});
  });
}

}  // namespace polyspan
