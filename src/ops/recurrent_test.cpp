// The kernels of state-space layers against plain loops in double, on every level that this machine has.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "ops/isa.h"
#include "ops/kernels.h"

namespace polyspan {
namespace {

std::vector<float> random_floats(int64_t n, uint32_t seed, float low = -1, float high = 1) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(low, high);
  std::vector<float> values(static_cast<size_t>(n));
  for (float& value : values) value = uniform(random);
  return values;
}

// One step of the recurrence in double: state [d_state, head_dim] = decay * state + dt * x * B; what channel p of y has of it.
double step_in_double(std::vector<double>& state, int64_t head_dim, int64_t d_state, int64_t t, int64_t p,
                      const std::vector<float>& x, const std::vector<float>& B, const std::vector<float>& C,
                      const std::vector<float>& decay, const std::vector<float>& dt) {
  const auto at = [](const std::vector<float>& values, int64_t i) {
    return static_cast<double>(values[static_cast<size_t>(i)]);
  };
  double sum = 0;
  for (int64_t i = 0; i < d_state; ++i) {
    double& value = state[static_cast<size_t>(i * head_dim + p)];
    value = value * at(decay, t) + at(dt, t) * at(x, t * head_dim + p) * at(B, t * d_state + i);
    sum += value * at(C, t * d_state + i);
  }
  return sum;
}

class RecurrentKernels : public testing::Test {
 protected:
  ~RecurrentKernels() override { select_isa(before_); }
  IsaLevel before_ = current_isa();
};

TEST_F(RecurrentKernels, ScanEqualsTheRecurrence) {
  for (const IsaLevel level : supported_isa_levels()) {
    select_isa(level);
    for (const int64_t head_dim : {1, 15, 16, 17, 64}) {
      for (const int64_t d_state : {1, 7, 8, 9, 64}) {
        SCOPED_TRACE(std::string(isa_name(level)) + " head " + std::to_string(head_dim) + " state " +
                     std::to_string(d_state));
        const int64_t n = 5;
        const std::vector<float> x = random_floats(n * head_dim, 1), B = random_floats(n * d_state, 2),
                                 C = random_floats(n * d_state, 3);
        const std::vector<float> decay = random_floats(n, 4, 0, 1), dt = random_floats(n, 5, 0, 1),
                                 start = random_floats(d_state * head_dim, 6);
        std::vector<float> y(static_cast<size_t>(n * head_dim), NAN), state = start;
        kernels().scan_head({n, head_dim, d_state, x.data(), head_dim, B.data(), C.data(), d_state, decay.data(),
                             dt.data(), 1, 0.5f, y.data(), head_dim, state.data()});
        std::vector<double> s(start.begin(), start.end());
        for (int64_t t = 0; t < n; ++t) {
          for (int64_t p = 0; p < head_dim; ++p) {
            const double sum = 0.5 * static_cast<double>(x[static_cast<size_t>(t * head_dim + p)]) +
                               step_in_double(s, head_dim, d_state, t, p, x, B, C, decay, dt);
            EXPECT_NEAR(y[static_cast<size_t>(t * head_dim + p)], sum, 2e-5);
          }
        }
        for (size_t i = 0; i < s.size(); ++i) EXPECT_NEAR(state[i], s[i], 1e-5);
      }
    }
  }
}

// 65,536 tokens that are remembered for a hundred thousand, for a hundred and not at all: near the recurrence in double, and
// the same to the bit in calls of a chunk each.
TEST_F(RecurrentKernels, ScanHoldsOverLongSequences) {
  const int64_t n = 65536, head_dim = 16, d_state = 4;
  const std::vector<float> x = random_floats(n * head_dim, 1), B = random_floats(n * d_state, 2),
                           C = random_floats(n * d_state, 3), dt = random_floats(n, 5, 0, 1);
  for (const IsaLevel level : supported_isa_levels()) {
    select_isa(level);
    for (const float memory : {1e-5f, 1e-2f, 1.0f}) {
      SCOPED_TRACE(std::string(isa_name(level)) + ", decay " + std::to_string(memory));
      std::vector<float> decay;
      for (const float step : dt) decay.push_back(std::exp(-memory * step));
      const auto scan = [&](int64_t len, std::vector<float>& y) {
        std::vector<float> state(static_cast<size_t>(d_state * head_dim));
        for (int64_t t = 0; t < n; t += len)
          kernels().scan_head({std::min(len, n - t), head_dim, d_state, x.data() + t * head_dim, head_dim,
                               B.data() + t * d_state, C.data() + t * d_state, d_state, decay.data() + t, dt.data() + t,
                               1, 0.0f, y.data() + t * head_dim, head_dim, state.data()});
      };
      std::vector<float> whole(static_cast<size_t>(n * head_dim), NAN), chunks = whole;
      scan(n, whole);
      scan(100, chunks);
      EXPECT_TRUE(whole == chunks);
      double worst = 0, largest = 0;
      std::vector<double> s(static_cast<size_t>(d_state * head_dim));
      for (int64_t t = 0; t < n; ++t)
        for (int64_t p = 0; p < head_dim; ++p) {
          const double sum = step_in_double(s, head_dim, d_state, t, p, x, B, C, decay, dt);
          worst = std::max(worst, std::abs(static_cast<double>(whole[static_cast<size_t>(t * head_dim + p)]) - sum));
          largest = std::max(largest, std::abs(sum));
        }
      EXPECT_LT(worst, 1e-4 * largest);
    }
  }
}

TEST_F(RecurrentKernels, AttentionOverTwoRunsEqualsOneSoftmax) {
  for (const IsaLevel level : supported_isa_levels()) {
    select_isa(level);
    for (const int64_t dim : {8, 16, 20}) {
      for (const int64_t n_far : {0, 1, 16, 21}) {
        SCOPED_TRACE(std::string(isa_name(level)) + " dim " + std::to_string(dim) + " far " + std::to_string(n_far));
        const int64_t n_near = 19, value_dim = dim + 3;
        const std::vector<float> q = random_floats(dim, 1), keys = random_floats((n_near + n_far) * dim, 2),
                                 values = random_floats((n_near + n_far) * value_dim, 3);
        std::vector<float> bias = random_floats(n_far + 1, 4);
        for (size_t i = 1; i < bias.size(); i += 3) bias[i] = -INFINITY;
        const AttendRun runs[] = {{keys.data(), values.data(), nullptr, n_near},
                                  {keys.data() + n_near * dim, values.data() + n_near * value_dim, bias.data(), n_far}};
        std::vector<float> out(static_cast<size_t>(value_dim), NAN), scratch(64, NAN);
        kernels().attend_row({dim, value_dim, q.data(), runs, n_far > 0 ? 2 : 1, out.data(), scratch.data()});
        std::vector<double> expected(static_cast<size_t>(value_dim));
        double total = 0;
        for (int64_t key = 0; key < n_near + n_far; ++key) {
          double score = key < n_near ? 0.0 : static_cast<double>(bias[static_cast<size_t>(key - n_near)]);
          for (int64_t i = 0; i < dim; ++i)
            score += static_cast<double>(q[static_cast<size_t>(i)]) *
                     static_cast<double>(keys[static_cast<size_t>(key * dim + i)]);
          total += std::exp(score);
          for (int64_t i = 0; i < value_dim; ++i)
            expected[static_cast<size_t>(i)] +=
                std::exp(score) * static_cast<double>(values[static_cast<size_t>(key * value_dim + i)]);
        }
        for (size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(out[i], expected[i] / total, 1e-5);
      }
    }
  }
}

TEST_F(RecurrentKernels, ConvolutionAndScaledAddition) {
  for (const IsaLevel level : supported_isa_levels()) {
    select_isa(level);
    for (const int64_t n : {1, 16, 35}) {
      const std::vector<float> x = random_floats(4 * n, 1, -60, 60), weight = random_floats(4 * n, 2),
                               bias = random_floats(n, 3);
      const float* const rows[] = {x.data(), x.data() + n, x.data() + 2 * n, x.data() + 3 * n};
      std::vector<float> out(static_cast<size_t>(n), NAN), sum = bias;
      kernels().conv_silu_row({n, 4, rows, weight.data(), bias.data(), out.data()});
      kernels().add_scaled_row(x.data(), 0.25f, n, sum.data());
      for (int64_t i = 0; i < n; ++i) {
        double value = static_cast<double>(bias[static_cast<size_t>(i)]);
        for (int64_t k = 0; k < 4; ++k)
          value += static_cast<double>(weight[static_cast<size_t>(k * n + i)]) * static_cast<double>(rows[k][i]);
        EXPECT_NEAR(out[static_cast<size_t>(i)], value / (1 + std::exp(-value)), 3e-5 * (1 + std::abs(value)));
        EXPECT_FLOAT_EQ(sum[static_cast<size_t>(i)], bias[static_cast<size_t>(i)] + 0.25f * x[static_cast<size_t>(i)]);
      }
    }
  }
}

}  // namespace
}  // namespace polyspan
