#include "core/dtype.h"

#include <array>
#include <bit>
#include <cstdio>
#include <string>

#include "core/error.h"

namespace polyspan {
namespace {

// Block sizes are part of the GGUF format (ggml/docs/gguf.md and the ggml block definitions).
constexpr std::array<DTypeInfo, 13> kDTypes = {{
    {DType::kF32, "F32", 1, 4},
    {DType::kF16, "F16", 1, 2},
    {DType::kQ4_0, "Q4_0", 32, 18},
    {DType::kQ4_1, "Q4_1", 32, 20},
    {DType::kQ5_0, "Q5_0", 32, 22},
    {DType::kQ5_1, "Q5_1", 32, 24},
    {DType::kQ8_0, "Q8_0", 32, 34},
    {DType::kQ2_K, "Q2_K", 256, 84},
    {DType::kQ3_K, "Q3_K", 256, 110},
    {DType::kQ4_K, "Q4_K", 256, 144},
    {DType::kQ5_K, "Q5_K", 256, 176},
    {DType::kQ6_K, "Q6_K", 256, 210},
    {DType::kBF16, "BF16", 1, 2},
}};

// Every type id that GGUF files have had; ids taken out of the format keep their name, for messages.
constexpr std::array<std::string_view, 40> kGgufTypeNames = {
    "F32",    "F16",      "Q4_0",     "Q4_1",     "Q4_2",  "Q4_3",  "Q5_0",       "Q5_1",       "Q8_0",       "Q8_1",
    "Q2_K",   "Q3_K",     "Q4_K",     "Q5_K",     "Q6_K",  "Q8_K",  "IQ2_XXS",    "IQ2_XS",     "IQ3_XXS",    "IQ1_S",
    "IQ4_NL", "IQ3_S",    "IQ2_S",    "IQ4_XS",   "I8",    "I16",   "I32",        "I64",        "F64",        "IQ1_M",
    "BF16",   "Q4_0_4_4", "Q4_0_4_8", "Q4_0_8_8", "TQ1_0", "TQ2_0", "IQ4_NL_4_4", "IQ4_NL_4_8", "IQ4_NL_8_8", "MXFP4"};

}  // namespace

std::optional<DTypeInfo> find_dtype(uint32_t gguf_type_id) {
  for (const DTypeInfo& info : kDTypes)
    if (static_cast<uint32_t>(info.type) == gguf_type_id) return info;
  return std::nullopt;
}

std::optional<DTypeInfo> find_dtype(std::string_view name) {
  for (const DTypeInfo& info : kDTypes)
    if (info.name == name) return info;
  return std::nullopt;
}

std::span<const DTypeInfo> all_dtypes() { return kDTypes; }

std::string dtype_names() {
  std::string out;
  for (const DTypeInfo& info : kDTypes) out.append(out.empty() ? "" : ", ").append(info.name);
  return out;
}

const DTypeInfo& dtype_info(DType type) {
  for (const DTypeInfo& info : kDTypes)
    if (info.type == type) return info;
  POLYSPAN_CHECK(false, "no such DType: " + std::to_string(static_cast<uint32_t>(type)));
  return kDTypes[0];
}

std::string_view gguf_type_name(uint32_t gguf_type_id) {
  if (gguf_type_id < kGgufTypeNames.size()) return kGgufTypeNames[gguf_type_id];
  thread_local char text[24];
  const int length = std::snprintf(text, sizeof text, "type %u", static_cast<unsigned>(gguf_type_id));
  return {text, static_cast<size_t>(length)};
}

int64_t row_bytes(DType type, int64_t n_values) {
  const DTypeInfo& info = dtype_info(type);
  POLYSPAN_DCHECK(n_values % info.block_len == 0);
  return n_values / info.block_len * info.block_bytes;
}

// f16: 1 sign, 5 exponent (bias 15), 10 fraction bits. f32: 1, 8 (bias 127), 23.
float f16_to_f32(uint16_t bits) {
  const uint32_t sign = uint32_t{bits & 0x8000u} << 16;
  const uint32_t exponent = (bits >> 10) & 0x1f;
  const uint32_t fraction = bits & 0x3ff;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000u | fraction << 13);  // infinity, NaN
  if (exponent == 0) {  // zero and denormals: fraction * 2^-24, exact in f32
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
  }
  return std::bit_cast<float>(sign | (exponent + 127 - 15) << 23 | fraction << 13);
}

uint16_t f32_to_f16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half = 0;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u | (magnitude >> 13 & 0x3ffu);  // NaN: quiet, the payload's upper bits kept
  } else if (magnitude >= 0x477ff000u) {
    half = 0x7c00u;                       // 65520 and up round to infinity
  } else if (magnitude >= 0x38800000u) {  // 2^-14 and up: normal
    half = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  } else if (magnitude > 0x33000000u) {  // above 2^-25, half the least denormal, which itself rounds to zero
    const uint32_t mantissa = (magnitude & 0x7fffffu) | 0x800000u;
    const uint32_t shift = 126 - (magnitude >> 23);  // 14 to 24: to units of 2^-24
    half = (mantissa + (1u << (shift - 1)) - 1 + (mantissa >> shift & 1u)) >> shift;
  }
  return static_cast<uint16_t>(sign | half);
}

float bf16_to_f32(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

uint16_t f32_to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);  // NaN stays NaN, quiet
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

}  // namespace polyspan
