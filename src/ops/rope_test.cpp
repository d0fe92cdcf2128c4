#include "ops/rope.h"

#include <gtest/gtest.h>

#include "ops/test_util.h"

namespace polyspan {
namespace {
using namespace testing_util;

// The rotation of one head in double, from the paper: pair i turns by position * base^(-2 i / n_dims) / factor / scale.
std::vector<double> rotate(const RopeConfig& config, const float* x, int64_t head_dim, int64_t position, double scale) {
  std::vector<double> out(x, x + head_dim);
  const int64_t n_pairs = config.n_dims / 2;
  for (int64_t pair = 0; pair < n_pairs; ++pair) {
    double angle = static_cast<double>(position) / config.linear_scale *
                   std::pow(config.base, -2.0 * static_cast<double>(pair) / static_cast<double>(config.n_dims));
    if (!config.frequency_factors.empty())
      angle /= static_cast<double>(config.frequency_factors[static_cast<size_t>(pair)]);
    const bool interleaved = config.pairing == RopePairing::kInterleaved;
    const size_t first = static_cast<size_t>(interleaved ? 2 * pair : pair);
    const size_t second = static_cast<size_t>(interleaved ? 2 * pair + 1 : pair + n_pairs);
    const double a = static_cast<double>(x[first]), b = static_cast<double>(x[second]);
    out[first] = a * std::cos(angle) - b * std::sin(angle);
    out[second] = a * std::sin(angle) + b * std::cos(angle);
  }
  for (double& value : out) value *= scale;
  return out;
}

struct RopeCase {
  int64_t head_dim, n_dims, n_heads;
  double base, linear_scale;
  bool factors;
};

TEST(Rope, MatchesDouble) {
  const RopeCase cases[] = {
      {2, 2, 1, 1e4, 1, false},   {16, 16, 3, 1e4, 1, false}, {20, 20, 2, 1e4, 1, false}, {64, 64, 9, 1e5, 1, false},
      {64, 32, 2, 1e4, 1, false}, {80, 20, 3, 1e4, 4, false}, {64, 64, 3, 5e5, 1, true},  {128, 128, 2, 1e6, 2.5, true},
      {65, 2, 2, 1e4, 1, false},  {34, 30, 2, 1e4, 1, true},
  };
  for (const RopeCase& c : cases)
    for (const RopePairing pairing : {RopePairing::kInterleaved, RopePairing::kHalves})
      for (const float scale : {1.0f, 0.125f}) {
        SCOPED_TRACE(testing::Message() << "head_dim " << c.head_dim << " n_dims " << c.n_dims << " n_heads "
                                        << c.n_heads << " base " << c.base << " linear_scale " << c.linear_scale
                                        << " factors " << c.factors << " halves " << (pairing == RopePairing::kHalves)
                                        << " scale " << scale);
        Random random(static_cast<uint64_t>(c.head_dim));
        RopeConfig config{c.n_dims, c.base, c.linear_scale, pairing, {}};
        if (c.factors)
          for (int64_t i = 0; i < c.n_dims / 2; ++i)
            config.frequency_factors.push_back(1.0f + 31.0f * std::abs(random.unit()));
        const std::vector<int64_t> positions = {0, 1, 2, 63, 4095, 1'000'000};
        const int64_t n_tokens = std::ssize(positions), stride = c.n_heads * c.head_dim + 3;
        const std::vector<float> x = random.vector(n_tokens * stride);
        RopeTable table;
        table.compute(config, positions);
        for_each_isa([&] {
          for (const int n_threads : {1, 2}) {
            OpContext context(n_threads);
            std::vector<float> actual = x;
            apply_rope(config, table, actual.data(), n_tokens, stride, c.n_heads, c.head_dim, scale, context);
            for (int64_t token = 0; token < n_tokens; ++token) {
              for (int64_t head = 0; head < c.n_heads; ++head) {
                const int64_t at = token * stride + head * c.head_dim;
                const std::vector<double> expected =
                    rotate(config, x.data() + at, c.head_dim, positions[static_cast<size_t>(token)],
                           static_cast<double>(scale));
                // Cosine and sine are rounded once, then two products and a sum of values up to 1: 4 half ulps of 1.
                ASSERT_NO_FATAL_FAILURE(
                    expect_close(std::span(actual).subspan(static_cast<size_t>(at), static_cast<size_t>(c.head_dim)),
                                 expected, [&](size_t) { return 4 * 0x1p-24 * static_cast<double>(scale) * 1.5; }));
              }
              for (int64_t i = c.n_heads * c.head_dim; i < stride; ++i)
                ASSERT_EQ(actual[static_cast<size_t>(token * stride + i)], x[static_cast<size_t>(token * stride + i)])
                    << "between tokens";
            }
          }
        });
        if (HasFatalFailure()) return;
      }
}

}  // namespace
}  // namespace polyspan
