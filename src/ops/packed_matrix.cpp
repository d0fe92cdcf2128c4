#include "ops/packed_matrix.h"

#include <cstring>

#include "core/error.h"
#include "ops/packed_layout.h"

namespace polyspan {
namespace {

// The codes and scales of one row's superblock, taken apart.
struct DecodedSuper {
  uint8_t codes[256];
  uint16_t d, dmin;    // f16 bits; dmin: the minimum itself in simple formats
  uint8_t scales[16];  // K-quants: 8-bit scales a group (Q2_K: both nibbles)
  uint8_t mins[16];
};

uint16_t load_u16(const uint8_t* p) {
  uint16_t value;
  std::memcpy(&value, p, 2);
  return value;
}

// Scales and minimums of Q4_K and Q5_K: eight pairs of 6 bits in 12 bytes.
void decode_k_scales(const uint8_t* packed, uint8_t* scales, uint8_t* mins) {
  for (int j = 0; j < 4; ++j) {
    scales[j] = packed[j] & 63;
    mins[j] = packed[j + 4] & 63;
    scales[j + 4] = static_cast<uint8_t>((packed[j + 8] & 15) | ((packed[j] >> 6) << 4));
    mins[j + 4] = static_cast<uint8_t>((packed[j + 8] >> 4) | ((packed[j + 4] >> 6) << 4));
  }
}

// Sixteen bytes of nibbles: columns 0-15 low, 16-31 high.
void decode_nibbles32(const uint8_t* packed, uint8_t* codes) {
  for (int j = 0; j < 16; ++j) {
    codes[j] = packed[j] & 15;
    codes[j + 16] = packed[j] >> 4;
  }
}
void decode_fifth_bits(const uint8_t* bits, uint8_t* codes) {
  uint32_t fifth;
  std::memcpy(&fifth, bits, 4);
  for (int j = 0; j < 32; ++j) codes[j] = static_cast<uint8_t>(codes[j] | (((fifth >> j) & 1u) << 4));
}

// One superblock of one row from the file's layout (ggml's block structs, read byte by byte).
template <DType kType>
void decode_super(const uint8_t* block, DecodedSuper& out) {
  if constexpr (kType == DType::kQ4_0) {
    out.d = load_u16(block);
    decode_nibbles32(block + 2, out.codes);
  } else if constexpr (kType == DType::kQ4_1) {
    out.d = load_u16(block);
    out.dmin = load_u16(block + 2);
    decode_nibbles32(block + 4, out.codes);
  } else if constexpr (kType == DType::kQ5_0) {
    out.d = load_u16(block);
    decode_nibbles32(block + 6, out.codes);
    decode_fifth_bits(block + 2, out.codes);
  } else if constexpr (kType == DType::kQ5_1) {
    out.d = load_u16(block);
    out.dmin = load_u16(block + 2);
    decode_nibbles32(block + 8, out.codes);
    decode_fifth_bits(block + 4, out.codes);
  } else if constexpr (kType == DType::kQ8_0) {
    out.d = load_u16(block);
    for (int j = 0; j < 32; ++j) out.codes[j] = block[2 + j] ^ 0x80;
  } else if constexpr (kType == DType::kQ2_K) {  // scales[16], codes[64], d, dmin
    std::memcpy(out.scales, block, 16);
    out.d = load_u16(block + 80);
    out.dmin = load_u16(block + 82);
    for (int half = 0; half < 2; ++half)
      for (int shift = 0; shift < 4; ++shift)
        for (int j = 0; j < 32; ++j)
          out.codes[128 * half + 32 * shift + j] = (block[16 + 32 * half + j] >> (2 * shift)) & 3;
  } else if constexpr (kType == DType::kQ3_K) {  // high bits[32], codes[64], scales[12], d
    out.d = load_u16(block + 108);
    const uint8_t* packed = block + 96;
    for (int j = 0; j < 16; ++j) {
      const int low = j < 8 ? packed[j] & 15 : packed[j - 8] >> 4;
      const int high = (packed[8 + j % 4] >> (2 * (j / 4))) & 3;
      out.scales[j] = static_cast<uint8_t>((low | (high << 4)) - 32);
    }
    for (int half = 0; half < 2; ++half)
      for (int shift = 0; shift < 4; ++shift)
        for (int j = 0; j < 32; ++j)
          out.codes[128 * half + 32 * shift + j] = static_cast<uint8_t>(
              ((block[32 + 32 * half + j] >> (2 * shift)) & 3) | (((block[j] >> (4 * half + shift)) & 1) << 2));
  } else if constexpr (kType == DType::kQ4_K) {  // d, dmin, scales[12], codes[128]
    out.d = load_u16(block);
    out.dmin = load_u16(block + 2);
    decode_k_scales(block + 4, out.scales, out.mins);
    for (int chunk = 0; chunk < 4; ++chunk)
      for (int j = 0; j < 32; ++j) {
        out.codes[64 * chunk + j] = block[16 + 32 * chunk + j] & 15;
        out.codes[64 * chunk + 32 + j] = block[16 + 32 * chunk + j] >> 4;
      }
  } else if constexpr (kType == DType::kQ5_K) {  // d, dmin, scales[12], fifth bits[32], codes[128]
    out.d = load_u16(block);
    out.dmin = load_u16(block + 2);
    decode_k_scales(block + 4, out.scales, out.mins);
    const uint8_t *fifth = block + 16, *low = block + 48;
    for (int chunk = 0; chunk < 4; ++chunk)
      for (int j = 0; j < 32; ++j) {
        out.codes[64 * chunk + j] =
            static_cast<uint8_t>((low[32 * chunk + j] & 15) | (((fifth[j] >> (2 * chunk)) & 1) << 4));
        out.codes[64 * chunk + 32 + j] =
            static_cast<uint8_t>((low[32 * chunk + j] >> 4) | (((fifth[j] >> (2 * chunk + 1)) & 1) << 4));
      }
  } else if constexpr (kType == DType::kQ6_K) {  // low nibbles[128], high pairs[64], scales[16], d
    const uint8_t *low = block, *high = block + 128;
    std::memcpy(out.scales, block + 192, 16);
    out.d = load_u16(block + 208);
    for (int half = 0; half < 2; ++half, low += 64, high += 32)
      for (int j = 0; j < 32; ++j) {
        uint8_t* codes = out.codes + 128 * half + j;
        codes[0] = static_cast<uint8_t>((low[j] & 15) | ((high[j] & 3) << 4));
        codes[32] = static_cast<uint8_t>((low[j + 32] & 15) | (((high[j] >> 2) & 3) << 4));
        codes[64] = static_cast<uint8_t>((low[j] >> 4) | (((high[j] >> 4) & 3) << 4));
        codes[96] = static_cast<uint8_t>((low[j + 32] >> 4) | ((high[j] >> 6) << 4));
      }
  }
}

uint32_t load_quad(const uint8_t* codes, int quad) {
  uint32_t value;
  std::memcpy(&value, codes + 4 * quad, 4);
  return value;
}
void store_quad(uint8_t* plane, int64_t row, uint32_t value) { std::memcpy(plane + 4 * row, &value, 4); }

// The planes of one block of one row (32 codes) into the block's bytes.
template <DType kType>
void pack_codes(const uint8_t* codes, int64_t row, uint8_t* out) {
  using Traits = PackedTraits<kType>;
  if constexpr (Traits::kHas8) {
    for (int j = 0; j < 8; ++j) store_quad(out + 64 * j, row, load_quad(codes, j));
    return;
  }
  constexpr int kLowBits = Traits::kHas4 ? 4 : 0;
  if constexpr (Traits::kHas4) {
    for (int i = 0; i < 4; ++i)
      store_quad(out + 64 * i, row,
                 (load_quad(codes, i) & 0x0f0f0f0fu) | ((load_quad(codes, i + 4) & 0x0f0f0f0fu) << 4));
    out += 256;
  }
  if constexpr (Traits::kHas2) {
    for (int h = 0; h < 2; ++h) {
      uint32_t four = 0;
      for (int j = 0; j < 4; ++j) four |= ((load_quad(codes, 4 * h + j) >> kLowBits) & 0x03030303u) << (2 * j);
      store_quad(out + 64 * h, row, four);
    }
    out += 128;
  }
  if constexpr (Traits::kHas1) {
    constexpr int kShift = Traits::kHas4 ? 4 : 2;
    uint32_t eight = 0;
    for (int j = 0; j < 8; ++j) eight |= ((load_quad(codes, j) >> kShift) & 0x01010101u) << j;
    store_quad(out, row, eight);
  }
}

template <DType kType>
void pack_quantized_tile(const std::byte* rows, int64_t n_rows, int64_t d_in, uint8_t* tile) {
  using Traits = PackedTraits<kType>;
  using Offsets = PackedOffsets<kType>;
  const int64_t n_super = d_in / Traits::kSuperCols;
  const int64_t file_row_bytes = row_bytes(kType, d_in), file_super_bytes = file_row_bytes / n_super;
  if (n_rows < kTileRows) std::memset(tile, 0, static_cast<size_t>(n_super * Offsets::kSuperBytes));
  for (int64_t s = 0; s < n_super; ++s) {
    uint8_t* super = tile + s * Offsets::kSuperBytes;
    for (int64_t row = 0; row < n_rows; ++row) {
      DecodedSuper decoded;
      decode_super<kType>(reinterpret_cast<const uint8_t*>(rows) + row * file_row_bytes + s * file_super_bytes,
                          decoded);
      for (int64_t b = 0; b < Traits::kBlocks; ++b)
        pack_codes<kType>(decoded.codes + 32 * b, row, super + Offsets::kCodes + b * Traits::kCodeBytes);
      if constexpr (Traits::kKQuant) {
        std::memcpy(super + Offsets::kD + 2 * row, &decoded.d, 2);
        if constexpr (Traits::kHasMin) std::memcpy(super + Offsets::kDMin + 2 * row, &decoded.dmin, 2);
        for (int64_t g = 0; g < Traits::kGroups; ++g) {
          super[Offsets::kScales + g * kTileRows + row] = decoded.scales[g];
          if constexpr (Traits::kHasMin && !Offsets::kNibbleScales)
            super[Offsets::kMins + g * kTileRows + row] = decoded.mins[g];
        }
      } else {
        std::memcpy(super + Offsets::kSimpleScale + 2 * row, &decoded.d, 2);
        if constexpr (Traits::kHasMin) std::memcpy(super + Offsets::kSimpleMin + 2 * row, &decoded.dmin, 2);
      }
    }
  }
}

template <DType kType>
void unpack_quantized_row(const uint8_t* tile, int64_t row, int64_t d_in, float* out) {
  using Traits = PackedTraits<kType>;
  using Offsets = PackedOffsets<kType>;
  for (int64_t s = 0; s < d_in / Traits::kSuperCols; ++s) {
    const uint8_t* super = tile + s * Offsets::kSuperBytes;
    for (int64_t col = 0; col < Traits::kSuperCols; ++col) {
      const uint8_t* block = super + Offsets::kCodes + col / 32 * Traits::kCodeBytes;
      const int64_t quad = col % 32 / 4, byte = 4 * row + col % 4;
      int code = 0;
      if constexpr (Traits::kHas8) code = block[64 * quad + byte];
      if constexpr (Traits::kHas4) code = (block[64 * (quad % 4) + byte] >> (quad < 4 ? 0 : 4)) & 15;
      constexpr int64_t kPlane2 = Traits::kHas4 ? 256 : 0, kPlane1 = kPlane2 + (Traits::kHas2 ? 128 : 0);
      if constexpr (Traits::kHas2)
        code |= ((block[kPlane2 + 64 * (quad / 4) + byte] >> (2 * (quad % 4))) & 3) << (Traits::kHas4 ? 4 : 0);
      if constexpr (Traits::kHas1) code |= ((block[kPlane1 + byte] >> quad) & 1) << (Traits::kHas4 ? 4 : 2);
      const int64_t group = col / Traits::kGroupCols;
      float scale, min = 0;
      if constexpr (!Traits::kKQuant) {
        scale = f16_to_f32(load_u16(super + Offsets::kSimpleScale + 2 * row));
        if constexpr (Traits::kHasMin) min = f16_to_f32(load_u16(super + Offsets::kSimpleMin + 2 * row));
      } else {
        scale = f16_to_f32(load_u16(super + Offsets::kD + 2 * row));
        const uint8_t raw = super[Offsets::kScales + group * kTileRows + row];
        if constexpr (Traits::kHasMin) {
          const float dmin = f16_to_f32(load_u16(super + Offsets::kDMin + 2 * row));
          if constexpr (Offsets::kNibbleScales) {
            scale *= static_cast<float>(raw & 15);
            min = -dmin * static_cast<float>(raw >> 4);
          } else {
            scale *= static_cast<float>(raw);
            min = -dmin * static_cast<float>(super[Offsets::kMins + group * kTileRows + row]);
          }
        } else {
          scale *= static_cast<float>(static_cast<int8_t>(raw));
        }
      }
      *out++ = scale * static_cast<float>(code - Traits::kZero) + min;
    }
  }
}

// Float tiles: [d_in][16 rows], elements of `bytes` each.
void pack_float_tile(const std::byte* rows, int64_t n_rows, int64_t d_in, int64_t bytes, std::byte* tile) {
  if (n_rows < kTileRows) std::memset(tile, 0, static_cast<size_t>(d_in * kTileRows * bytes));
  for (int64_t row = 0; row < n_rows; ++row)
    for (int64_t col = 0; col < d_in; ++col)
      std::memcpy(tile + (col * kTileRows + row) * bytes, rows + (row * d_in + col) * bytes,
                  static_cast<size_t>(bytes));
}

// Calls body.operator()<kType>() for a quantised type.
template <typename Body>
auto for_quantized_type(DType type, Body body) {
  switch (type) {
    case DType::kQ4_0: return body.template operator()<DType::kQ4_0>();
    case DType::kQ4_1: return body.template operator()<DType::kQ4_1>();
    case DType::kQ5_0: return body.template operator()<DType::kQ5_0>();
    case DType::kQ5_1: return body.template operator()<DType::kQ5_1>();
    case DType::kQ8_0: return body.template operator()<DType::kQ8_0>();
    case DType::kQ2_K: return body.template operator()<DType::kQ2_K>();
    case DType::kQ3_K: return body.template operator()<DType::kQ3_K>();
    case DType::kQ4_K: return body.template operator()<DType::kQ4_K>();
    case DType::kQ5_K: return body.template operator()<DType::kQ5_K>();
    case DType::kQ6_K: return body.template operator()<DType::kQ6_K>();
    default: break;
  }
  POLYSPAN_CHECK(false, "not a quantised type");
  return body.template operator()<DType::kQ8_0>();
}

int64_t float_bytes(DType type) { return type == DType::kF32 ? 4 : 2; }
bool is_float(DType type) { return type == DType::kF32 || type == DType::kF16 || type == DType::kBF16; }

int64_t packed_tile_bytes(DType type, int64_t d_in) {
  if (is_float(type)) return d_in * kTileRows * float_bytes(type);
  return for_quantized_type(type, [&]<DType kType>() {
    POLYSPAN_CHECK(d_in % PackedTraits<kType>::kSuperCols == 0);
    return d_in / PackedTraits<kType>::kSuperCols * PackedOffsets<kType>::kSuperBytes;
  });
}

}  // namespace

int64_t PackedMatrix::tile_bytes() const { return packed_tile_bytes(type, d_in); }
bool PackedMatrix::is_quantized() const { return !is_float(type); }

PackedMatrix first_rows(const PackedMatrix& matrix, int64_t n) {
  POLYSPAN_CHECK(n % 16 == 0 && n <= matrix.d_out);
  return {matrix.type, n, matrix.d_in, matrix.data};
}

PackedMatrix rows_from(const PackedMatrix& matrix, int64_t n) {
  POLYSPAN_CHECK(n % 16 == 0 && n <= matrix.d_out);
  return {matrix.type, matrix.d_out - n, matrix.d_in, matrix.tile(n / 16)};
}

int64_t packed_bytes(DType type, int64_t d_out, int64_t d_in) {
  return (d_out + kTileRows - 1) / kTileRows * packed_tile_bytes(type, d_in);
}

void pack_tiles(DType type, const std::byte* rows, int64_t d_out, int64_t d_in, int64_t first_tile, int64_t last_tile,
                std::byte* out) {
  const int64_t file_row_bytes = row_bytes(type, d_in), tile_bytes = packed_tile_bytes(type, d_in);
  for (int64_t tile = first_tile; tile < last_tile; ++tile) {
    const int64_t first_row = tile * kTileRows;
    const int64_t n_rows = first_row + kTileRows <= d_out ? kTileRows : d_out - first_row;
    const std::byte* source = rows + first_row * file_row_bytes;
    if (is_float(type)) {
      pack_float_tile(source, n_rows, d_in, float_bytes(type), out + tile * tile_bytes);
    } else {
      for_quantized_type(type, [&]<DType kType>() {
        pack_quantized_tile<kType>(source, n_rows, d_in, reinterpret_cast<uint8_t*>(out + tile * tile_bytes));
      });
    }
  }
}

void unpack_row(const PackedMatrix& matrix, int64_t row, float* out) {
  POLYSPAN_CHECK(row >= 0 && row < matrix.d_out);
  const std::byte* tile = matrix.tile(row / kTileRows);
  if (is_float(matrix.type)) {
    const int64_t bytes = float_bytes(matrix.type);
    for (int64_t col = 0; col < matrix.d_in; ++col)
      dequantize_row(matrix.type, tile + (col * kTileRows + row % kTileRows) * bytes, 1, out + col);
    return;
  }
  for_quantized_type(matrix.type, [&]<DType kType>() {
    unpack_quantized_row<kType>(reinterpret_cast<const uint8_t*>(tile), row % kTileRows, matrix.d_in, out);
  });
}

}  // namespace polyspan
