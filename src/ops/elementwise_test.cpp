// The row operations at every length around the vector of 16, against plain loops in double.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "ops/kernels.h"
#include "ops/test_util.h"

namespace polyspan {
namespace {
using namespace testing_util;

std::vector<int64_t> lengths() {
  std::vector<int64_t> all;
  for (int64_t n = 1; n <= 33; ++n) all.push_back(n);
  for (const int64_t n : {63, 64, 65, 576, 1000}) all.push_back(n);
  return all;
}

double wide(float x) { return static_cast<double>(x); }

constexpr float kEps = 1e-5f;

TEST(Elementwise, Rmsnorm) {
  for (const int64_t n : lengths())
    for (const float scale : {1e-12f, 1.0f, 1e12f}) {
      SCOPED_TRACE(testing::Message() << "n " << n << " scale " << scale);
      Random random(static_cast<uint64_t>(n));
      const std::vector<float> x = random.vector(n, scale), weight = random.vector(n);
      double squares = 0;
      for (const float value : x) squares += wide(value) * wide(value);
      const double inverse = 1 / std::sqrt(squares / static_cast<double>(n) + wide(kEps));
      std::vector<double> expected;
      for (size_t i = 0; i < x.size(); ++i) expected.push_back(wide(x[i]) * inverse * wide(weight[i]));
      for_each_isa([&] {
        Poisoned out(n);
        kernels().rmsnorm_row(x.data(), weight.data(), n, kEps, out.data());
        // n / 16 squares a lane, a sum across lanes, a root and three products: below 16 half ulps in all.
        const auto tolerance = [&](size_t i) { return 16 * 0x1p-24 * std::abs(expected[i]); };
        ASSERT_NO_FATAL_FAILURE(expect_close(out.values(), expected, tolerance));
        std::vector<float> in_place = x;
        kernels().rmsnorm_row(in_place.data(), weight.data(), n, kEps, in_place.data());
        ASSERT_NO_FATAL_FAILURE(expect_same_bits(in_place, out.values()));
      });
      if (HasFatalFailure()) return;
    }
}

TEST(Elementwise, SwigluAndAdd) {
  for (const int64_t n : lengths()) {
    SCOPED_TRACE(testing::Message() << "n " << n);
    Random random(static_cast<uint64_t>(n));
    const std::vector<float> gate = random.vector(n, 20.0f), up = random.vector(n);
    std::vector<double> product, sum;
    for (size_t i = 0; i < gate.size(); ++i) {
      product.push_back(wide(gate[i]) / (1 + std::exp(-wide(gate[i]))) * wide(up[i]));
      sum.push_back(wide(gate[i]) + wide(up[i]));
    }
    for_each_isa([&] {
      Poisoned out(n);
      kernels().swiglu_row(gate.data(), up.data(), n, out.data());
      ASSERT_NO_FATAL_FAILURE(
          expect_close(out.values(), product, [&](size_t i) { return 0x1p-21 * std::abs(product[i]); }));
      std::vector<float> in_place = gate;
      kernels().swiglu_row(in_place.data(), up.data(), n, in_place.data());
      ASSERT_NO_FATAL_FAILURE(expect_same_bits(in_place, out.values()));

      Poisoned total(n);
      std::copy(gate.begin(), gate.end(), total.data());
      kernels().add_row(up.data(), n, total.data());
      ASSERT_NO_FATAL_FAILURE(expect_close(total.values(), sum, [&](size_t i) { return 0x1p-24 * std::abs(sum[i]); }));
    });
    if (HasFatalFailure()) return;
  }
}

TEST(Elementwise, RowsOfF16) {
  for (const int64_t n : lengths()) {
    SCOPED_TRACE(testing::Message() << "n " << n);
    Random random(static_cast<uint64_t>(n));
    std::vector<float> x = random.vector(n, 300.0f);
    const float special[] = {0.0f, -0.0f, 1e-7f, 65504.0f, -65519.0f, 1e30f, -std::numeric_limits<float>::infinity()};
    for (size_t i = 0; i < std::min(x.size(), std::size(special)); ++i) x[x.size() - 1 - i] = special[i];
    std::vector<uint16_t> expected;
    std::vector<float> back;
    for (const float value : x) {
      expected.push_back(f32_to_f16(std::clamp(value, -65504.0f, 65504.0f)));
      back.push_back(f16_to_f32(expected.back()));
    }
    for_each_isa([&] {
      std::vector<uint16_t> halves(x.size() + 1, 0x7777);  // one behind, which stays
      kernels().to_f16_row(x.data(), n, halves.data());
      EXPECT_EQ(halves.back(), 0x7777);
      halves.pop_back();
      ASSERT_EQ(halves, expected);
      Poisoned floats(n);
      kernels().from_f16_row(halves.data(), n, floats.data());
      ASSERT_NO_FATAL_FAILURE(expect_same_bits(floats.values(), back));
    });
    if (HasFatalFailure()) return;
  }
}

// Gradients against central differences of the definitions in double.
TEST(Elementwise, GradientsAreFiniteDifferences) {
  constexpr double kStep = 1e-5;
  for (const int64_t n : {1, 2, 15, 16, 17, 33, 70}) {
    SCOPED_TRACE(testing::Message() << "n " << n);
    Random random(static_cast<uint64_t>(n) + 5);
    const std::vector<float> x = random.vector(n, 3.0f), w = random.vector(n, 2.0f), d_y = random.vector(n);
    const auto at = [](const std::vector<float>& values, int64_t i) { return wide(values[static_cast<size_t>(i)]); };
    const auto norm_loss = [&](int64_t moved, double by) {
      double squares = 0, loss = 0;
      for (int64_t i = 0; i < n; ++i) squares += std::pow(at(x, i) + (i == moved ? by : 0), 2);
      const double scale = 1 / std::sqrt(squares / static_cast<double>(n) + wide(kEps));
      for (int64_t i = 0; i < n; ++i) loss += (at(x, i) + (i == moved ? by : 0)) * scale * at(w, i) * at(d_y, i);
      return loss;
    };
    const auto silu = [](double g) { return g / (1 + std::exp(-g)); };
    std::vector<double> d_x, d_gate, d_up;
    for (int64_t i = 0; i < n; ++i) {
      d_x.push_back((norm_loss(i, kStep) - norm_loss(i, -kStep)) / (2 * kStep) + 7);  // added to 7
      d_gate.push_back((silu(at(x, i) + kStep) - silu(at(x, i) - kStep)) / (2 * kStep) * at(w, i) * at(d_y, i));
      d_up.push_back(silu(at(x, i)) * at(d_y, i));
    }
    for_each_isa([&] {
      Poisoned actual_x(n), actual_gate(n), actual_up(n);
      std::fill_n(actual_x.data(), n, 7.0f);
      kernels().rmsnorm_gradient_row(x.data(), w.data(), d_y.data(), n, kEps, actual_x.data());
      kernels().swiglu_gradient_row(x.data(), w.data(), d_y.data(), n, actual_gate.data(), actual_up.data());
      ASSERT_NO_FATAL_FAILURE(expect_close(actual_x.values(), d_x, [](size_t) { return 3e-5; }));
      ASSERT_NO_FATAL_FAILURE(expect_close(actual_gate.values(), d_gate, [](size_t) { return 1e-5; }));
      ASSERT_NO_FATAL_FAILURE(expect_close(actual_up.values(), d_up, [](size_t) { return 1e-5; }));
    });
    if (HasFatalFailure()) return;
  }
}

// silu goes to zero far on the left and to x far on the right, without an overflow on the way.
TEST(Elementwise, SwigluFarOut) {
  for (const float x : {-1e4f, -200.0f, -100.0f, -89.0f, -88.0f, -87.0f, 0.0f, 87.0f, 88.0f, 89.0f, 1e4f, 1e30f}) {
    for_each_isa([&] {
      SCOPED_TRACE(testing::Message() << "x " << x);
      const float one = 1.0f;
      float out = NAN;
      kernels().swiglu_row(&x, &one, 1, &out);
      EXPECT_NEAR(wide(out), x < 0 ? wide(x) * std::exp(wide(x)) : wide(x),
                  1e-33 + 1e-6 * std::abs(x < 0 ? 0.0 : wide(x)));
    });
  }
}

TEST(Elementwise, MaxValueAtEveryPlace) {
  for (const int64_t n : lengths())
    for (int64_t place = 0; place<n; place += n> 40 ? 7 : 1) {
      SCOPED_TRACE(testing::Message() << "n " << n << " place " << place);
      std::vector<float> x(static_cast<size_t>(n), -5.0f);
      x[static_cast<size_t>(place)] = -3.0f;
      for_each_isa([&] { ASSERT_EQ(kernels().max_value(x.data(), n), -3.0f); });
      if (HasFatalFailure()) return;
    }
}

TEST(Elementwise, SumExp) {
  std::vector<int64_t> all = lengths();
  for (const int64_t n : {1023, 1024, 1025, 49152}) all.push_back(n);
  for (const int64_t n : all) {
    SCOPED_TRACE(testing::Message() << "n " << n);
    Random random(static_cast<uint64_t>(n));
    const std::vector<float> x = random.vector(n, 30.0f);
    const float largest = *std::max_element(x.begin(), x.end());
    double expected = 0;
    for (const float value : x) expected += std::exp(wide(value) - wide(largest));
    for_each_isa([&] {
      EXPECT_EQ(kernels().max_value(x.data(), n), largest);
      // Up to 64 floats a lane before the sums go on in double; x - max is rounded: 30 * 2^-24 at most.
      EXPECT_NEAR(kernels().sum_exp(x.data(), n, largest), expected, 2e-6 * expected);
    });
  }
}

// e^x through sum_exp of one value: within 3 ulps over the whole range, 0 below it.
TEST(Elementwise, ExpIsAccurate) {
  for_each_isa([&] {
    double worst = 0;
    float worst_x = 0;
    for (float x = -86.9f; x <= 87.9f; x += 0.0137f) {
      const double actual = kernels().sum_exp(&x, 1, 0.0f), expected = std::exp(wide(x));
      if (std::abs(actual / expected - 1) > worst) worst = std::abs(actual / expected - 1), worst_x = x;
    }
    EXPECT_LT(worst, 3 * 0x1p-23) << "at " << worst_x;
    for (const float x : {0.0f, -0.0f}) EXPECT_EQ(kernels().sum_exp(&x, 1, 0.0f), 1.0);
    for (const float x : {-87.1f, -88.0f, -100.0f, -1e10f, -INFINITY})
      EXPECT_EQ(kernels().sum_exp(&x, 1, 0.0f), 0.0) << x;
  });
}

}  // namespace
}  // namespace polyspan
