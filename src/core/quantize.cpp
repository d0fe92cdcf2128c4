#include "core/quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/error.h"

namespace polyspan {
namespace {

constexpr int64_t kBlock = 32;

void put_f16(float value, std::byte* out) {
  const uint16_t bits = f32_to_f16(value);
  std::memcpy(out, &bits, 2);
}

void quantize_q8_0(const float* x, std::byte* out) {
  float largest = 0;
  for (int64_t i = 0; i < kBlock; ++i) largest = std::max(largest, std::abs(x[i]));
  const float scale = largest / 127.0f, inverse = scale > 0 ? 1.0f / scale : 0.0f;
  put_f16(scale, out);
  for (int64_t i = 0; i < kBlock; ++i)
    out[2 + i] = static_cast<std::byte>(static_cast<int8_t>(std::lround(x[i] * inverse)));
}

void quantize_q4_0(const float* x, std::byte* out) {
  float largest = 0;
  for (int64_t i = 0; i < kBlock; ++i)
    if (std::abs(x[i]) > std::abs(largest)) largest = x[i];
  const float scale = largest / -8.0f, inverse = scale != 0 ? 1.0f / scale : 0.0f;
  put_f16(scale, out);
  const auto code = [&](int64_t i) { return std::min(15, static_cast<int>(x[i] * inverse + 8.5f)); };
  for (int64_t i = 0; i < kBlock / 2; ++i) out[2 + i] = static_cast<std::byte>(code(i) | code(i + kBlock / 2) << 4);
}

}  // namespace

bool can_quantize(DType type) {
  return type == DType::kF32 || type == DType::kF16 || type == DType::kBF16 || type == DType::kQ8_0 ||
         type == DType::kQ4_0;
}

void quantize_row(DType type, const float* values, int64_t n_values, std::byte* out) {
  POLYSPAN_CHECK(can_quantize(type) && n_values % dtype_info(type).block_len == 0);
  switch (type) {
    case DType::kF32: std::memcpy(out, values, static_cast<size_t>(4 * n_values)); break;
    case DType::kF16:
    case DType::kBF16:
      for (int64_t i = 0; i < n_values; ++i) {
        const uint16_t bits = type == DType::kF16 ? f32_to_f16(values[i]) : f32_to_bf16(values[i]);
        std::memcpy(out + 2 * i, &bits, 2);
      }
      break;
    default:
      for (int64_t i = 0; i < n_values; i += kBlock, out += dtype_info(type).block_bytes)
        type == DType::kQ8_0 ? quantize_q8_0(values + i, out) : quantize_q4_0(values + i, out);
  }
}

}  // namespace polyspan
