// io/random_blocks.cpp: random weights in every block format. Layouts: core/dequantize.cpp.
//
// The quantised values are uniform random bits. A uniform integer of n bits has the deviation sqrt((4^n - 1) / 12);
// where the format has no minimum its mean is half a step below zero, which scales of random sign even out.
#include <bit>
#include <cmath>
#include <cstring>

#include "core/error.h"
#include "core/quantize.h"
#include "io/random_model.h"

namespace polyspan {
namespace {

using Byte = uint8_t;

// SplitMix64 (Steele, Lea, Flood 2014): 64 random bits from a counter.
class RandomBits {
 public:
  explicit RandomBits(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }
  // Uniform in [-1, 1).
  float next_unit() { return static_cast<float>(static_cast<int64_t>(next()) >> 40) * 0x1p-23f; }
  void fill(Byte* out, size_t n_bytes) {
    for (; n_bytes > 0;) {
      const uint64_t bits = next();
      const size_t n = n_bytes < 8 ? n_bytes : 8;
      std::memcpy(out, &bits, n);
      out += n;
      n_bytes -= n;
    }
  }

 private:
  uint64_t state_;
};

float uniform_deviation(int n_bits) { return std::sqrt((std::exp2(2.0f * static_cast<float>(n_bits)) - 1) / 12); }

// Blocks differ in scale, as they do in real files.
float block_scale(RandomBits& random, float mean) { return mean * (1 + 0.25f * random.next_unit()); }
float with_random_sign(RandomBits& random, float value) { return random.next() >> 63 ? -value : value; }

void store_f16(Byte* out, float value) {
  const uint16_t bits = f32_to_f16(value);
  std::memcpy(out, &bits, sizeof bits);
}

// Q4_K and Q5_K: eight scales of 32 to 63 in 12 bytes, each minimum equal to its scale: min = dmin * scale then centres
// the values.
void store_scales_as_minima(RandomBits& random, Byte* packed) {
  int scales[8];
  for (int& scale : scales) scale = 32 + static_cast<int>(random.next() >> 59);
  for (int i = 0; i < 4; ++i) {
    const int upper = scales[i + 4] >> 4;
    packed[i] = packed[i + 4] = static_cast<Byte>(scales[i] | upper << 6);
    packed[i + 8] = static_cast<Byte>((scales[i + 4] & 0xf) | (scales[i + 4] & 0xf) << 4);
  }
}
constexpr float kMeanScale = 47.5f;  // of the above

// One block, whose bytes are random already: only the scales are left to set.
void set_scales(DType type, float deviation, RandomBits& random, Byte* block) {
  switch (type) {
    case DType::kQ4_0:
      return store_f16(block, with_random_sign(random, block_scale(random, deviation / uniform_deviation(4))));
    case DType::kQ5_0:
      return store_f16(block, with_random_sign(random, block_scale(random, deviation / uniform_deviation(5))));
    case DType::kQ8_0:
      return store_f16(block, with_random_sign(random, block_scale(random, deviation / uniform_deviation(8))));
    case DType::kQ4_1:
    case DType::kQ5_1: {
      const int n_bits = type == DType::kQ4_1 ? 4 : 5;
      const float d = block_scale(random, deviation / uniform_deviation(n_bits));
      store_f16(block, d);
      return store_f16(block + 2, -d * (std::exp2(static_cast<float>(n_bits)) - 1) / 2);
    }
    case DType::kQ2_K: {
      for (int i = 0; i < 16; ++i) {  // scales of 8 to 15, each minimum equal to its scale
        const int scale = 8 | block[i] >> 5;
        block[i] = static_cast<Byte>(scale | scale << 4);
      }
      const float d = block_scale(random, deviation / (uniform_deviation(2) * 11.5f));
      store_f16(block + 80, d);
      return store_f16(block + 82, d * 1.5f);
    }
    case DType::kQ3_K:  // scales of -32 to 31
      return store_f16(block + 108, block_scale(random, deviation / (uniform_deviation(3) * uniform_deviation(6))));
    case DType::kQ4_K:
    case DType::kQ5_K: {
      const int n_bits = type == DType::kQ4_K ? 4 : 5;
      store_scales_as_minima(random, block + 4);
      const float d = block_scale(random, deviation / (uniform_deviation(n_bits) * kMeanScale));
      store_f16(block, d);
      return store_f16(block + 2, d * (std::exp2(static_cast<float>(n_bits)) - 1) / 2);
    }
    case DType::kQ6_K:  // scales of -128 to 127
      return store_f16(block + 208, block_scale(random, deviation / (uniform_deviation(6) * uniform_deviation(8))));
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16: break;  // no blocks
  }
  POLYSPAN_CHECK(false, "no block format");
}

}  // namespace

void fill_random_blocks(DType type, float deviation, uint64_t seed, std::span<std::byte> out) {
  const DTypeInfo& info = dtype_info(type);
  const size_t block_bytes = static_cast<size_t>(info.block_bytes);
  POLYSPAN_CHECK(out.size() % block_bytes == 0, std::to_string(out.size()));
  RandomBits random(seed);
  Byte* const bytes = reinterpret_cast<Byte*>(out.data());
  if (info.block_len == 1) {
    const float limit = deviation * std::sqrt(3.0f);  // a uniform value in [-1, 1] has the deviation 1 / sqrt(3)
    for (size_t at = 0; at < out.size(); at += block_bytes) {
      const float value = limit * random.next_unit();
      quantize_row(type, &value, 1, out.data() + at);
    }
    return;
  }
  for (size_t at = 0; at < out.size(); at += block_bytes) {
    random.fill(bytes + at, block_bytes);
    set_scales(type, deviation, random, bytes + at);
  }
}

}  // namespace polyspan
