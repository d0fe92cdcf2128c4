// core/dequantize.cpp: decodes the block formats of GGUF files, value by value. Layouts: ggml's block definitions.
//
// A block of the 32-value formats has one scale d (x = d * (q - bias), or d * q + m). A block of the K formats has 256
// values in sub-blocks of 16 or 32, each with a small integer scale (and minimum) of its own under the block's d (and
// dmin). `value` below is the index inside a block.
#include <cstring>

#include "core/dtype.h"
#include "core/error.h"

namespace polyspan {
namespace {

using Byte = uint8_t;

uint16_t load_u16(const Byte* src) { return static_cast<uint16_t>(src[0] | src[1] << 8); }
uint32_t load_u32(const Byte* src) { return load_u16(src) | uint32_t{load_u16(src + 2)} << 16; }
float load_f16(const Byte* src) { return f16_to_f32(load_u16(src)); }
float scaled(float scale, int q) { return scale * static_cast<float>(q); }

// Byte `value % 16` holds value and value + 16 in its lower and upper half.
int nibble_of_32(const Byte* qs, int value) { return qs[value % 16] >> (value / 16 * 4) & 0xf; }

void decode_q4_0(const Byte* block, float* out) {  // d, qs[16]
  const float d = load_f16(block);
  for (int value = 0; value < 32; ++value) out[value] = scaled(d, nibble_of_32(block + 2, value) - 8);
}

void decode_q4_1(const Byte* block, float* out) {  // d, m, qs[16]
  const float d = load_f16(block), m = load_f16(block + 2);
  for (int value = 0; value < 32; ++value) out[value] = scaled(d, nibble_of_32(block + 4, value)) + m;
}

// The fifth bit of `value` is bit `value` of fifth_bits.
int five_bits_of_32(const Byte* qs, uint32_t fifth_bits, int value) {
  return nibble_of_32(qs, value) | static_cast<int>(fifth_bits >> value & 1u) << 4;
}

void decode_q5_0(const Byte* block, float* out) {  // d, fifth bits (u32), qs[16]
  const float d = load_f16(block);
  const uint32_t fifth_bits = load_u32(block + 2);
  for (int value = 0; value < 32; ++value) out[value] = scaled(d, five_bits_of_32(block + 6, fifth_bits, value) - 16);
}

void decode_q5_1(const Byte* block, float* out) {  // d, m, fifth bits (u32), qs[16]
  const float d = load_f16(block), m = load_f16(block + 2);
  const uint32_t fifth_bits = load_u32(block + 4);
  for (int value = 0; value < 32; ++value) out[value] = scaled(d, five_bits_of_32(block + 8, fifth_bits, value)) + m;
}

void decode_q8_0(const Byte* block, float* out) {  // d, int8 qs[32]
  const float d = load_f16(block);
  for (int value = 0; value < 32; ++value) out[value] = scaled(d, static_cast<int8_t>(block[2 + value]));
}

// Q2_K and Q3_K: 128 values share 32 bytes; each group of 32 has two bits of every byte.
int two_bits(const Byte* qs, int value) { return qs[value / 128 * 32 + value % 32] >> (value % 128 / 32 * 2) & 3; }

void decode_q2_k(const Byte* block, float* out) {  // scales[16] (scale | min << 4), qs[64], d, dmin
  const Byte *scales = block, *qs = block + 16;
  const float d = load_f16(block + 80), dmin = load_f16(block + 82);
  for (int value = 0; value < 256; ++value) {
    const int scale_and_min = scales[value / 16];
    out[value] = scaled(scaled(d, scale_and_min & 0xf), two_bits(qs, value)) - scaled(dmin, scale_and_min >> 4);
  }
}

// The 16 6-bit scales of a Q3_K block: the lower four bits in bytes 0-7, two scales a byte; the upper two in bytes
// 8-11.
int q3_k_scale(const Byte* scales, int sub_block) {
  const int lower = scales[sub_block % 8] >> (sub_block / 8 * 4) & 0xf;
  const int upper = scales[8 + sub_block % 4] >> (sub_block / 4 * 2) & 3;
  return (lower | upper << 4) - 32;
}

void decode_q3_k(const Byte* block, float* out) {  // third bits[32], qs[64], scales[12], d
  const Byte *third_bits = block, *qs = block + 32, *scales = block + 96;
  const float d = load_f16(block + 108);
  for (int value = 0; value < 256; ++value) {
    const int third_bit = third_bits[value % 32] >> (value / 32) & 1;
    out[value] = scaled(scaled(d, q3_k_scale(scales, value / 16)), (two_bits(qs, value) | third_bit << 2) - 4);
  }
}

// The eight 6-bit scales and minima of a Q4_K or Q5_K block in 12 bytes: those of sub-blocks 0-3 in the lower six bits
// of bytes 0-3 and 4-7, those of 4-7 in the halves of bytes 8-11, with their upper two bits atop bytes 0-7.
struct ScaleMin {
  int scale, min;
};
ScaleMin scale_min(const Byte* packed, int sub_block) {
  if (sub_block < 4) return {packed[sub_block] & 63, packed[sub_block + 4] & 63};
  return {(packed[sub_block + 4] & 0xf) | packed[sub_block - 4] >> 6 << 4,
          packed[sub_block + 4] >> 4 | packed[sub_block] >> 6 << 4};
}

// Q4_K and Q5_K: 64 values share 32 bytes, the first 32 in the lower halves.
int nibble_of_256(const Byte* qs, int value) { return qs[value / 64 * 32 + value % 32] >> (value % 64 / 32 * 4) & 0xf; }

void decode_q4_k(const Byte* block, float* out) {  // d, dmin, scales and minima[12], qs[128]
  const float d = load_f16(block), dmin = load_f16(block + 2);
  for (int sub_block = 0; sub_block < 8; ++sub_block) {
    const ScaleMin packed = scale_min(block + 4, sub_block);
    const float scale = scaled(d, packed.scale), min = scaled(dmin, packed.min);
    for (int value = sub_block * 32; value < sub_block * 32 + 32; ++value)
      out[value] = scaled(scale, nibble_of_256(block + 16, value)) - min;
  }
}

void decode_q5_k(const Byte* block, float* out) {  // d, dmin, scales and minima[12], fifth bits[32], qs[128]
  const float d = load_f16(block), dmin = load_f16(block + 2);
  for (int sub_block = 0; sub_block < 8; ++sub_block) {
    const ScaleMin packed = scale_min(block + 4, sub_block);
    const float scale = scaled(d, packed.scale), min = scaled(dmin, packed.min);
    for (int value = sub_block * 32; value < sub_block * 32 + 32; ++value) {
      const int fifth_bit = block[16 + value % 32] >> sub_block & 1;
      out[value] = scaled(scale, nibble_of_256(block + 48, value) | fifth_bit << 4) - min;
    }
  }
}

void decode_q6_k(const Byte* block, float* out) {  // lower four bits[128], upper two[64], int8 scales[16], d
  const Byte *lower = block, *upper = block + 128, *scales = block + 192;
  const float d = load_f16(block + 208);
  for (int value = 0; value < 256; ++value) {
    const int half = value / 128, quarter = value % 128 / 32, column = value % 32;
    const int low = lower[half * 64 + quarter % 2 * 32 + column] >> (quarter / 2 * 4) & 0xf;
    const int high = upper[half * 32 + column] >> (quarter * 2) & 3;
    out[value] = scaled(scaled(d, static_cast<int8_t>(scales[value / 16])), (low | high << 4) - 32);
  }
}

void decode_f32(const Byte* block, float* out) { std::memcpy(out, block, sizeof(float)); }
void decode_f16(const Byte* block, float* out) { *out = load_f16(block); }
void decode_bf16(const Byte* block, float* out) { *out = bf16_to_f32(load_u16(block)); }

using Decoder = void (*)(const Byte* block, float* out);

Decoder decoder_of(DType type) {
  switch (type) {
    case DType::kF32: return decode_f32;
    case DType::kF16: return decode_f16;
    case DType::kBF16: return decode_bf16;
    case DType::kQ4_0: return decode_q4_0;
    case DType::kQ4_1: return decode_q4_1;
    case DType::kQ5_0: return decode_q5_0;
    case DType::kQ5_1: return decode_q5_1;
    case DType::kQ8_0: return decode_q8_0;
    case DType::kQ2_K: return decode_q2_k;
    case DType::kQ3_K: return decode_q3_k;
    case DType::kQ4_K: return decode_q4_k;
    case DType::kQ5_K: return decode_q5_k;
    case DType::kQ6_K: return decode_q6_k;
  }
  POLYSPAN_CHECK(false, "no such DType");
  return nullptr;
}

}  // namespace

void dequantize_row(DType type, const void* src, int64_t n_values, float* out) {
  const DTypeInfo& info = dtype_info(type);
  POLYSPAN_CHECK(n_values % info.block_len == 0, std::to_string(n_values));
  const Decoder decode = decoder_of(type);
  const Byte* block = static_cast<const Byte*>(src);
  for (int64_t first = 0; first < n_values; first += info.block_len, block += info.block_bytes)
    decode(block, out + first);
}

}  // namespace polyspan
