// ops/matmul.isa.cpp: matrix kernels over packed tiles (layout: ops/packed_layout.h), one set a level.
//
// One token: the tile is read once from memory and decoded in registers (bound by memory bandwidth). Several tokens: the
// tile's codes are unpacked once into L1/L2 scratch, then up to six tokens share each load of a weight. Both do the same
// integer sums and the same float operations in the same order, so a token's result does not depend, to the bit, on how
// many tokens are computed at once.
#include "ops/isa_tables.h"
#include "ops/kernels.h"
#include "ops/simd.h"

namespace polyspan::POLYSPAN_ISA {
namespace {

// Tokens that share a load of a weight, times two tiles: 6 fill 24 of the 32 registers of AVX-512. The other levels keep
// fewer, also because every count is compiled on its own (with ASan 35 s for 6, 11 s for 2).
#if defined(POLYSPAN_ISA_AVX512) && !defined(POLYSPAN_SANITIZED)
constexpr int kMaxTokens = 6;
#else
constexpr int kMaxTokens = 2;
#endif
constexpr int64_t kPrefetchBytes = 2560;  // 8 blocks of Q4_1: 8 of 4..16 was best on Zen 5

// The eight quads of a block, codes as unsigned bytes.
template <DType kType>
POLYSPAN_INLINE void unpack_block(const uint8_t* codes, U8x64 (&w)[8]) {
  using Traits = PackedTraits<kType>;
  if constexpr (Traits::kHas8) {
    for (int j = 0; j < 8; ++j) w[j] = load_bytes(codes + 64 * j);
    return;
  }
  const uint8_t* plane = codes;
  constexpr int kLowBits = Traits::kHas4 ? 4 : 0;
  if constexpr (Traits::kHas4) {
    const U8x64 nibble = broadcast_byte(15);
    for (int i = 0; i < 4; ++i) {
      const U8x64 pair = load_bytes(plane + 64 * i);
      w[i] = pair & nibble;
      w[i + 4] = shift_right<4>(pair) & nibble;
    }
    plane += 256;
  }
  if constexpr (Traits::kHas2) {
    const U8x64 two_bits = broadcast_byte(3 << kLowBits);
    for (int h = 0; h < 2; ++h) {
      const U8x64 four = load_bytes(plane + 64 * h);
      U8x64 part[4];
      if constexpr (kLowBits == 4) {
        part[0] = shift_left<4>(four) & two_bits;
        part[1] = shift_left<2>(four) & two_bits;
        part[2] = four & two_bits;
        part[3] = shift_right<2>(four) & two_bits;
        for (int j = 0; j < 4; ++j) w[4 * h + j] = w[4 * h + j] | part[j];
      } else {
        w[4 * h] = four & two_bits;
        w[4 * h + 1] = shift_right<2>(four) & two_bits;
        w[4 * h + 2] = shift_right<4>(four) & two_bits;
        w[4 * h + 3] = shift_right<6>(four) & two_bits;
      }
    }
    plane += 128;
  }
  if constexpr (Traits::kHas1) {
    constexpr int kShift = Traits::kHas4 ? 4 : 2;
    const U8x64 eight = load_bytes(plane);
    const U8x64 bit = broadcast_byte(1 << kShift);
    if constexpr (kShift == 4) {
      w[0] = w[0] | (shift_left<4>(eight) & bit);
      w[1] = w[1] | (shift_left<3>(eight) & bit);
      w[2] = w[2] | (shift_left<2>(eight) & bit);
      w[3] = w[3] | (shift_left<1>(eight) & bit);
      w[4] = w[4] | (eight & bit);
      w[5] = w[5] | (shift_right<1>(eight) & bit);
      w[6] = w[6] | (shift_right<2>(eight) & bit);
      w[7] = w[7] | (shift_right<3>(eight) & bit);
    } else {
      w[0] = w[0] | (shift_left<2>(eight) & bit);
      w[1] = w[1] | (shift_left<1>(eight) & bit);
      w[2] = w[2] | (eight & bit);
      w[3] = w[3] | (shift_right<1>(eight) & bit);
      w[4] = w[4] | (shift_right<2>(eight) & bit);
      w[5] = w[5] | (shift_right<3>(eight) & bit);
      w[6] = w[6] | (shift_right<4>(eight) & bit);
      w[7] = w[7] | (shift_right<5>(eight) & bit);
    }
  }
}

// Scales and minimums of the groups of one superblock, group by group.
template <DType kType>
struct SuperScales {
  using Traits = PackedTraits<kType>;
  using Offsets = PackedOffsets<kType>;
  const uint8_t* super;
  F32x16 d, dmin;

  POLYSPAN_INLINE explicit SuperScales(const uint8_t* s) : super(s) {
    if constexpr (Traits::kKQuant) {
      d = load_f16(reinterpret_cast<const uint16_t*>(s + Offsets::kD));
      if constexpr (Traits::kHasMin)
        dmin = broadcast(0.0f) - load_f16(reinterpret_cast<const uint16_t*>(s + Offsets::kDMin));
    }
  }
  POLYSPAN_INLINE F32x16 scale(int64_t group) const {
    if constexpr (!Traits::kKQuant) {
      return load_f16(reinterpret_cast<const uint16_t*>(super + Offsets::kSimpleScale));
    } else {
      const uint8_t* scales = super + Offsets::kScales + group * kTileRows;
      if constexpr (Offsets::kNibbleScales) {
        uint8_t low[16];
        for (int i = 0; i < 16; ++i) low[i] = scales[i] & 15;
        return d * load_u8(low);
      } else if constexpr (Traits::kHasMin) {
        return d * load_u8(scales);
      } else {
        return d * load_i8(reinterpret_cast<const int8_t*>(scales));
      }
    }
  }
  POLYSPAN_INLINE F32x16 min(int64_t group) const {
    if constexpr (!Traits::kKQuant) {
      return load_f16(reinterpret_cast<const uint16_t*>(super + Offsets::kSimpleMin));
    } else if constexpr (Offsets::kNibbleScales) {
      const uint8_t* scales = super + Offsets::kScales + group * kTileRows;
      uint8_t high[16];
      for (int i = 0; i < 16; ++i) high[i] = scales[i] >> 4;
      return dmin * load_u8(high);
    } else {
      return dmin * load_u8(super + Offsets::kMins + group * kTileRows);
    }
  }
};

// acc += (scale * (code sums)) * activation scale, + minimum * activation sum: the one place that fixes the order.
template <bool kHasMin>
POLYSPAN_INLINE F32x16 add_group(F32x16 acc, I32x16 sum, F32x16 scale, F32x16 min, float x_scale, float x_scaled_sum) {
  acc = fma(to_f32(sum) * scale, broadcast(x_scale), acc);
  if constexpr (kHasMin) acc = fma(min, broadcast(x_scaled_sum), acc);
  return acc;
}

// One token, one tile, straight from the packed bytes.
template <DType kType>
F32x16 tile_times_token(const uint8_t* tile, const ActBlock* x, int64_t d_in) {
  using Traits = PackedTraits<kType>;
  using Offsets = PackedOffsets<kType>;
  F32x16 acc = zero_f32();
  const int64_t n_super = d_in / Traits::kSuperCols;
  for (int64_t s = 0; s < n_super; ++s) {
    const uint8_t* super = tile + s * Offsets::kSuperBytes;
    for (int64_t line = 0; line < Offsets::kSuperBytes; line += 64) prefetch(super + kPrefetchBytes + line);
    const SuperScales<kType> scales(super);
    for (int64_t b = 0; b < Traits::kBlocks; ++b, ++x) {
      U8x64 w[8];
      unpack_block<kType>(super + Offsets::kCodes + b * Traits::kCodeBytes, w);
      if constexpr (Traits::kGroupCols == 32) {
        I32x16 sum = broadcast_i32(Traits::kZero == 0 ? 0 : -Traits::kZero * x->sum);
        for (int j = 0; j < 8; ++j) sum = dot4<Traits::kHas8>(sum, w[j], broadcast_quad(x->codes + 4 * j));
        acc = add_group<Traits::kHasMin>(acc, sum, scales.scale(b), Traits::kHasMin ? scales.min(b) : acc, x->scale,
                                         x->scaled_sum);
      } else {
        for (int half = 0; half < 2; ++half) {
          I32x16 sum = broadcast_i32(Traits::kZero == 0 ? 0 : -Traits::kZero * x->sum_half[half]);
          for (int j = 4 * half; j < 4 * half + 4; ++j)
            sum = dot4<Traits::kHas8>(sum, w[j], broadcast_quad(x->codes + 4 * j));
          const int64_t group = 2 * b + half;
          acc = add_group<Traits::kHasMin>(acc, sum, scales.scale(group), Traits::kHasMin ? scales.min(group) : acc,
                                           x->scale, x->scaled_sum_half[half]);
        }
      }
    }
  }
  return acc;
}

// A tile whose codes are bytes and whose scales are floats.
struct UnpackedTile {
  uint8_t* codes;  // [d_in / 4][64]
  float* scales;   // [d_in / group][16]
  float* mins;     // likewise, where the format has them
};

UnpackedTile scratch_tile(std::byte* scratch, int64_t d_in) {
  UnpackedTile tile;
  tile.codes = reinterpret_cast<uint8_t*>(scratch);
  tile.scales = reinterpret_cast<float*>(scratch + 16 * d_in);
  tile.mins = tile.scales + d_in;  // [d_in / 16][16] at most
  return tile;
}
constexpr int64_t unpacked_tile_bytes(int64_t d_in) { return 16 * d_in + 2 * 4 * d_in; }

template <DType kType>
void unpack_tile(const uint8_t* tile, int64_t d_in, const UnpackedTile& out) {
  using Traits = PackedTraits<kType>;
  using Offsets = PackedOffsets<kType>;
  const int64_t n_super = d_in / Traits::kSuperCols;
  for (int64_t s = 0; s < n_super; ++s) {
    const uint8_t* super = tile + s * Offsets::kSuperBytes;
    for (int64_t line = 0; line < Offsets::kSuperBytes; line += 64) prefetch(super + kPrefetchBytes + line);
    const SuperScales<kType> scales(super);
    for (int64_t b = 0; b < Traits::kBlocks; ++b) {
      U8x64 w[8];
      unpack_block<kType>(super + Offsets::kCodes + b * Traits::kCodeBytes, w);
      uint8_t* codes = out.codes + (s * Traits::kBlocks + b) * 512;
      for (int j = 0; j < 8; ++j) store_bytes(codes + 64 * j, w[j]);
    }
    for (int64_t g = 0; g < Traits::kGroups; ++g) {
      store(out.scales + (s * Traits::kGroups + g) * 16, scales.scale(g));
      if constexpr (Traits::kHasMin) store(out.mins + (s * Traits::kGroups + g) * 16, scales.min(g));
    }
  }
}

// kTokens tokens x two tiles from unpacked codes. x: first token's blocks, x_stride blocks from token to token; zero: the
// format's zero code.
template <int64_t kGroupCols, bool kHasMin, bool kWide, int kTiles, int kTokens>
POLYSPAN_INLINE void multiply_unpacked(const UnpackedTile* tiles, int32_t zero, const ActBlock* x, int64_t x_stride,
                                       int64_t d_in, F32x16 (&acc)[kTiles][kTokens]) {
  for (int r = 0; r < kTiles; ++r)
    for (int t = 0; t < kTokens; ++t) acc[r][t] = zero_f32();
  constexpr int kParts = kGroupCols == 32 ? 1 : 2;
  constexpr int kQuads = 8 / kParts;
  const int64_t n_blocks = d_in / kBlockCols;
  for (int64_t b = 0; b < n_blocks; ++b) {
    for (int part = 0; part < kParts; ++part) {
      I32x16 sum[kTiles][kTokens];
      for (int t = 0; t < kTokens; ++t) {
        const ActBlock& block = x[t * x_stride + b];
        const int32_t start = kHasMin ? 0 : -zero * (kParts == 1 ? block.sum : block.sum_half[part]);
        for (int r = 0; r < kTiles; ++r) sum[r][t] = broadcast_i32(start);
      }
      for (int j = 0; j < kQuads; ++j) {
        const int64_t quad = part * kQuads + j;
        U8x64 w[kTiles];
        for (int r = 0; r < kTiles; ++r) w[r] = load_bytes(tiles[r].codes + (b * 8 + quad) * 64);
        for (int t = 0; t < kTokens; ++t) {
          const U8x64 a = broadcast_quad(x[t * x_stride + b].codes + 4 * quad);
          for (int r = 0; r < kTiles; ++r) sum[r][t] = dot4<kWide>(sum[r][t], w[r], a);
        }
      }
      const int64_t group = b * kParts + part;
      for (int r = 0; r < kTiles; ++r) {
        const F32x16 scale = load(tiles[r].scales + group * 16);
        const F32x16 min = kHasMin ? load(tiles[r].mins + group * 16) : scale;
        for (int t = 0; t < kTokens; ++t) {
          const ActBlock& block = x[t * x_stride + b];
          acc[r][t] = add_group<kHasMin>(acc[r][t], sum[r][t], scale, min, block.scale,
                                         kParts == 1 ? block.scaled_sum : block.scaled_sum_half[part]);
        }
      }
    }
  }
}

template <DType kType>
POLYSPAN_INLINE F32x16 load_weights(const std::byte* p) {
  if constexpr (kType == DType::kF32) return load(reinterpret_cast<const float*>(p));
  if constexpr (kType == DType::kF16) return load_f16(reinterpret_cast<const uint16_t*>(p));
  if constexpr (kType == DType::kBF16) return load_bf16(reinterpret_cast<const uint16_t*>(p));
}

// Float tiles: [d_in][16].
template <DType kType, int kTiles, int kTokens>
POLYSPAN_INLINE void multiply_float(const std::byte* const* tiles, const float* x, int64_t d_in,
                                    F32x16 (&acc)[kTiles][kTokens]) {
  constexpr int64_t kColBytes = kTileRows * (kType == DType::kF32 ? 4 : 2);
  for (int r = 0; r < kTiles; ++r)
    for (int t = 0; t < kTokens; ++t) acc[r][t] = zero_f32();
  for (int64_t col = 0; col < d_in; ++col) {
    F32x16 w[kTiles];
    for (int r = 0; r < kTiles; ++r) {
      w[r] = load_weights<kType>(tiles[r] + col * kColBytes);
      prefetch(tiles[r] + col * kColBytes + 1024);
    }
    for (int t = 0; t < kTokens; ++t) {
      const F32x16 a = broadcast(x[t * d_in + col]);
      for (int r = 0; r < kTiles; ++r) acc[r][t] = fma(w[r], a, acc[r][t]);
    }
  }
}

POLYSPAN_INLINE void finish(const MatmulTilesArgs& args, int64_t token, int r, F32x16 value) {
  const int64_t n_rows = args.n_rows[r];
  if (args.bias[r] != nullptr) value = value + load_first(args.bias[r], n_rows);
  float* out = args.out[r] + token * args.out_stride[r];
  if (args.epilogue == Epilogue::kAdd) value = value + load_first(out, n_rows);
  store_first(out, value, n_rows);
}

template <int kTiles, int kTokens>
POLYSPAN_INLINE void finish_all(const MatmulTilesArgs& args, int64_t token, F32x16 (&acc)[kTiles][kTokens]) {
  if constexpr (kTiles == 2) {
    if (args.epilogue == Epilogue::kSwiglu) {
      for (int t = 0; t < kTokens; ++t) {
        const F32x16 gate = acc[0][t];
        const F32x16 value = gate * sigmoid(gate) * acc[1][t];
        store_first(args.out[0] + (token + t) * args.out_stride[0], value, args.n_rows[0]);
      }
      return;
    }
  }
  for (int r = 0; r < kTiles; ++r)
    for (int t = 0; t < kTokens; ++t) finish(args, token + t, r, acc[r][t]);
}

// Calls body.operator()<tokens>(first_token) over all tokens, kMaxTokens at a time.
template <typename Body>
POLYSPAN_INLINE void for_token_groups(int64_t n_tokens, Body body) {
  int64_t token = 0;
  for (; token + kMaxTokens <= n_tokens; token += kMaxTokens) body.template operator()<kMaxTokens>(token);
  const int64_t rest = n_tokens - token;
  if (rest == 1) body.template operator()<1>(token);
  if constexpr (kMaxTokens == 6) {
    if (rest == 2) body.template operator()<2>(token);
    if (rest == 3) body.template operator()<3>(token);
    if (rest == 4) body.template operator()<4>(token);
    if (rest == 5) body.template operator()<5>(token);
  }
}

// All tokens x two unpacked tiles. A single tile is computed twice: rare, and half the code to compile.
template <int64_t kGroupCols, bool kHasMin, bool kWide>
void multiply_all_tokens(const MatmulTilesArgs& args, const UnpackedTile (&tiles)[2], int32_t zero) {
  const int64_t x_stride = args.d_in / kBlockCols;
  for_token_groups(args.n_tokens, [&]<int kTokens>(int64_t token) POLYSPAN_LAMBDA_INLINE {
    F32x16 acc[2][kTokens];
    multiply_unpacked<kGroupCols, kHasMin, kWide, 2, kTokens>(tiles, zero, args.x_blocks + token * x_stride, x_stride,
                                                              args.d_in, acc);
    if (args.n_tiles == 2) {
      finish_all<2, kTokens>(args, token, acc);
    } else {
      for (int t = 0; t < kTokens; ++t) finish(args, token + t, 0, acc[0][t]);
    }
  });
}

template <DType kType>
void matmul_quantized(const MatmulTilesArgs& args) {
  using Traits = PackedTraits<kType>;
  if (args.n_tokens == 1) {
    F32x16 acc[2][1];
    for (int64_t r = 0; r < args.n_tiles; ++r)
      acc[r][0] = tile_times_token<kType>(reinterpret_cast<const uint8_t*>(args.tiles[r]), args.x_blocks, args.d_in);
    if (args.n_tiles == 2) {
      finish_all<2, 1>(args, 0, acc);
    } else {
      finish(args, 0, 0, acc[0][0]);
    }
    return;
  }
  UnpackedTile tiles[2];
  for (int64_t r = 0; r < args.n_tiles; ++r) {
    tiles[r] = scratch_tile(args.scratch + r * unpacked_tile_bytes(args.d_in), args.d_in);
    unpack_tile<kType>(reinterpret_cast<const uint8_t*>(args.tiles[r]), args.d_in, tiles[r]);
  }
  if (args.n_tiles == 1) tiles[1] = tiles[0];
  multiply_all_tokens<Traits::kGroupCols, Traits::kHasMin, Traits::kHas8>(args, tiles, Traits::kZero);
}

template <DType kType, int kTiles>
void matmul_float_tokens(const MatmulTilesArgs& args) {
  for_token_groups(args.n_tokens, [&]<int kTokens>(int64_t token) POLYSPAN_LAMBDA_INLINE {
    F32x16 acc[kTiles][kTokens];
    multiply_float<kType, kTiles, kTokens>(args.tiles, args.x + token * args.d_in, args.d_in, acc);
    finish_all<kTiles, kTokens>(args, token, acc);
  });
}

template <DType kType>
void matmul_float(const MatmulTilesArgs& args) {
  if (args.n_tiles == 2) {
    matmul_float_tokens<kType, 2>(args);
  } else {
    matmul_float_tokens<kType, 1>(args);
  }
}

}  // namespace

void matmul_tiles(const MatmulTilesArgs& args) {
  switch (args.type) {
    case DType::kF32: return matmul_float<DType::kF32>(args);
    case DType::kF16: return matmul_float<DType::kF16>(args);
    case DType::kBF16: return matmul_float<DType::kBF16>(args);
    case DType::kQ4_0: return matmul_quantized<DType::kQ4_0>(args);
    case DType::kQ4_1: return matmul_quantized<DType::kQ4_1>(args);
    case DType::kQ5_0: return matmul_quantized<DType::kQ5_0>(args);
    case DType::kQ5_1: return matmul_quantized<DType::kQ5_1>(args);
    case DType::kQ8_0: return matmul_quantized<DType::kQ8_0>(args);
    case DType::kQ2_K: return matmul_quantized<DType::kQ2_K>(args);
    case DType::kQ3_K: return matmul_quantized<DType::kQ3_K>(args);
    case DType::kQ4_K: return matmul_quantized<DType::kQ4_K>(args);
    case DType::kQ5_K: return matmul_quantized<DType::kQ5_K>(args);
    case DType::kQ6_K: return matmul_quantized<DType::kQ6_K>(args);
  }
}

// Scale = max |x| / 127 of each 32; codes rounded to nearest even.
void quantize_activations(const float* x, int64_t n, ActBlock* out) {
  for (int64_t b = 0; b < n / kBlockCols; ++b, x += kBlockCols, ++out) {
    const F32x16 a0 = load(x), a1 = load(x + 16);
    const float largest = reduce_max(max(abs(a0), abs(a1)));
    const float inverse = largest > kLeastScaled ? 127.0f / largest : 0.0f;
    const F32x16 c0 = round(a0 * broadcast(inverse)), c1 = round(a1 * broadcast(inverse));
    store_i8(out->codes, c0);
    store_i8(out->codes + 16, c1);
    // Sums of at most 16 integers up to 127: exact in float.
    const float sum0 = reduce_add(c0), sum1 = reduce_add(c1);
    out->scale = largest / 127.0f;
    out->scaled_sum = out->scale * (sum0 + sum1);
    out->scaled_sum_half[0] = out->scale * sum0;
    out->scaled_sum_half[1] = out->scale * sum1;
    out->sum_half[0] = static_cast<int32_t>(sum0);
    out->sum_half[1] = static_cast<int32_t>(sum1);
    out->sum = out->sum_half[0] + out->sum_half[1];
    out->unused = 0;
  }
}

}  // namespace polyspan::POLYSPAN_ISA
