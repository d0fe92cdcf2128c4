#include "core/quantize.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

namespace polyspan {
namespace {

// Largest error of a block, as a share of its largest value: half a step of the code, and the rounding of the scale.
TEST(Quantize, ComesBackWithinHalfAStep) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (const auto& [type, most] :
       {std::pair{DType::kF32, 0.0f}, std::pair{DType::kF16, 1e-3f}, std::pair{DType::kBF16, 4e-3f},
        std::pair{DType::kQ8_0, 0.006f}, std::pair{DType::kQ4_0, 0.13f}}) {
    for (const float scale : {0.0f, 1e-6f, 1.0f, 300.0f}) {
      if (type == DType::kF16 && scale < 1e-3f) continue;  // denormal halves
      std::vector<float> values(96), back(96, NAN);
      float largest = 0;
      for (float& value : values) value = scale * normal(random), largest = std::max(largest, std::abs(value));
      std::vector<std::byte> bytes(static_cast<size_t>(row_bytes(type, 96)));
      quantize_row(type, values.data(), 96, bytes.data());
      dequantize_row(type, bytes.data(), 96, back.data());
      const float allowed = (scale < 1e-3f ? 1.0f : most) * largest;  // tiny scales are denormal halves
      for (size_t i = 0; i < 96; ++i)
        EXPECT_LE(std::abs(values[i] - back[i]), allowed) << dtype_name(type) << " " << scale << " " << i;
    }
  }
}

}  // namespace
}  // namespace polyspan
