// ops/packed_layout.h: how weights lie in memory for the matrix kernels, and what an activation block is.
//
// A matrix [d_out, d_in] is cut into tiles of 16 rows. Quantised rows are cut into blocks of 32 columns; the 16 rows of
// a tile are interleaved: four neighbouring columns of one row fill a 32-bit lane, 16 rows fill 64 bytes ("a quad"), and
// a block is eight quads. So one dot-product instruction multiplies four columns of 16 rows by four broadcast
// activations. The bits of the codes lie in planes:
//   4-bit plane, 4 x 64 bytes: byte vector i holds quad i in its low and quad i + 4 in its high nibbles
//   2-bit plane, 2 x 64 bytes: byte vector h holds quads 4h .. 4h + 3, from the low bits up
//   1-bit plane, 1 x 64 bytes: bit j belongs to quad j
//   8-bit plane, 8 x 64 bytes: byte vector j is quad j
// A superblock is one block (simple formats) or eight (K-quants):
//   simple:  codes, f16 scale [16 rows], f16 minimum [16 rows] where the format has one
//   K-quant: f16 d [16], f16 dmin [16] where it has one, 8-bit scales [groups][16], 8-bit minimums [groups][16]
//            (Q2_K: one byte, scale low and minimum high nibble, as in the file), then the codes of its eight blocks
// Value of a code: scale * (code - kZero) or, with a minimum, scale * code + minimum (a K-quant's minimum is -dmin * m).
// The bytes equal the file's, but for K-quants whose 6-bit scales take 8 bits here (Q4_K, Q5_K + 2.8%, Q3_K + 3.6%).
// Float matrices (F32, F16, BF16): tile [d_in][16 rows] in the file's type.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace polyspan {

inline constexpr int64_t kTileRows = 16;
inline constexpr int64_t kBlockCols = 32;

template <DType kType>
struct PackedTraits;

template <int kPlane8, int kPlane4, int kPlane2, int kPlane1, int kZeroCode, bool kMin, int64_t kGroup, bool kK>
struct PackedTraitsBase {
  static constexpr bool kHas8 = kPlane8 != 0, kHas4 = kPlane4 != 0, kHas2 = kPlane2 != 0, kHas1 = kPlane1 != 0;
  static constexpr int kZero = kZeroCode;        // subtracted from a code
  static constexpr bool kHasMin = kMin;          // never together with kZero
  static constexpr int64_t kGroupCols = kGroup;  // columns that share a scale: 16 or 32
  static constexpr bool kKQuant = kK;
  static constexpr int64_t kSuperCols = kK ? 256 : 32;
  static constexpr int64_t kBlocks = kSuperCols / kBlockCols;
  static constexpr int64_t kGroups = kSuperCols / kGroup;
  static constexpr int64_t kCodeBytes = 512 * kHas8 + 256 * kHas4 + 128 * kHas2 + 64 * kHas1;  // of a block
};
template <>
struct PackedTraits<DType::kQ4_0> : PackedTraitsBase<0, 1, 0, 0, 8, false, 32, false> {};
template <>
struct PackedTraits<DType::kQ4_1> : PackedTraitsBase<0, 1, 0, 0, 0, true, 32, false> {};
template <>
struct PackedTraits<DType::kQ5_0> : PackedTraitsBase<0, 1, 0, 1, 16, false, 32, false> {};
template <>
struct PackedTraits<DType::kQ5_1> : PackedTraitsBase<0, 1, 0, 1, 0, true, 32, false> {};
template <>
struct PackedTraits<DType::kQ8_0> : PackedTraitsBase<1, 0, 0, 0, 128, false, 32, false> {};
template <>
struct PackedTraits<DType::kQ2_K> : PackedTraitsBase<0, 0, 1, 0, 0, true, 16, true> {};
template <>
struct PackedTraits<DType::kQ3_K> : PackedTraitsBase<0, 0, 1, 1, 4, false, 16, true> {};
template <>
struct PackedTraits<DType::kQ4_K> : PackedTraitsBase<0, 1, 0, 0, 0, true, 32, true> {};
template <>
struct PackedTraits<DType::kQ5_K> : PackedTraitsBase<0, 1, 0, 1, 0, true, 32, true> {};
template <>
struct PackedTraits<DType::kQ6_K> : PackedTraitsBase<0, 1, 1, 0, 32, false, 16, true> {};

// Byte offsets inside a superblock.
template <DType kType>
struct PackedOffsets {
  using Traits = PackedTraits<kType>;
  static constexpr bool kNibbleScales = kType == DType::kQ2_K;
  static constexpr int64_t kGroupBytes = Traits::kGroups * kTileRows;
  // simple
  static constexpr int64_t kSimpleScale = Traits::kCodeBytes, kSimpleMin = kSimpleScale + 32;
  // K-quants
  static constexpr int64_t kD = 0, kDMin = 32, kScales = Traits::kHasMin ? 64 : 32;
  static constexpr int64_t kMins = kScales + kGroupBytes;
  static constexpr int64_t kKCodes = kMins + (Traits::kHasMin && !kNibbleScales ? kGroupBytes : 0);

  static constexpr int64_t kCodes = Traits::kKQuant ? kKCodes : 0;
  static constexpr int64_t kSuperBytes =
      Traits::kKQuant ? kKCodes + Traits::kBlocks * Traits::kCodeBytes : kSimpleMin + (Traits::kHasMin ? 32 : 0);
};

// 32 activations of one token, quantised to 8 bits: value = scale * code. One cache line. The sums serve formats with a
// zero code (integers) or a minimum (times scale); [0] and [1] are those of columns 0-15 and 16-31.
struct ActBlock {
  int8_t codes[32];
  float scale;
  float scaled_sum;
  float scaled_sum_half[2];
  int32_t sum;
  int32_t sum_half[2];
  int32_t unused;
};
static_assert(sizeof(ActBlock) == 64);

}  // namespace polyspan
