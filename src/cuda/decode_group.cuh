// cuda/decode_group.cuh: decode attention where up to 8 query heads share a KV head, with the matrix instructions; and of
// every q8 and f8 cache.
//
// A warp takes 16 keys at a time: scores [16 keys x 8 heads] = K Q^T, sums [16 dimensions x 8 heads] += V^T W^T. The
// operands come straight from memory into registers, 16 bytes a lane: the order of a dot product's terms is free, so that
// a lane's 16 bytes of a key serve as its elements of several steps; and the order of an output's rows is free, so that a
// lane's 16 bytes of a value do. Only pairs of keys have to be interleaved for V^T. Keys and values of the next tile are
// asked for as soon as this tile's are used. Queries and weights are split in two terms each (f16 + f16), which keeps the
// result at f32's accuracy where K and V are exact; the matrix instructions have room for that.
// f8 and q8: the bytes are exact in f16. q8: a key's scale multiplies its scores, a value's its weights, in units of a power
// of two that follows the largest scale seen, so that f16 holds them.
#pragma once

#include "cuda/decode_attention.cuh"
#include "cuda/mma.cuh"

namespace polyspan::cuda {

// Bytes 2 * pair and 2 * pair + 1 of a word of the cache as f16.
template <KvType kType>
__device__ inline uint32_t bytes_to_halves(uint32_t word, int pair) {
  if constexpr (kType == KvType::kF8) {
    return f8_to_halves(word >> 16 * pair);
  } else {  // int8 + 128 as the last bits of 0x64xx, which is 1024 + xx
    const uint32_t bits = __byte_perm(word ^ 0x80808080u, 0x64646464u, pair == 0 ? 0x4140 : 0x4342);
    const __half2 value =
        __hsub2(*reinterpret_cast<const __half2*>(&bits), __half2half2(__ushort_as_half(0x6480)));  // 1152
    return *reinterpret_cast<const uint32_t*>(&value);
  }
}

// What a lane reads of a value's row at once.
template <int kBytes>
struct ValueVec;
template <>
struct ValueVec<16> {
  using type = uint4;
};
template <>
struct ValueVec<8> {
  using type = uint2;
};

template <KvType kType, int kDim, int kWarps>
__global__ void __launch_bounds__(32 * kWarps, (kType == KvType::kQ8 || kType == KvType::kF8 ? 8 : 12) / kWarps)
    decode_group_kernel(const DecodeAttentionArgs args) {
  using Stored = typename KvElement<kType>::type;
  using T = std::conditional_t<kType == KvType::kBF16, __nv_bfloat16, __half>;  // of the products
  constexpr bool kBytes = sizeof(Stored) == 1, kScaled = kType == KvType::kQ8;
  constexpr int kRowBytes = kDim * static_cast<int>(sizeof(Stored));
  constexpr int kBlocks = 256 / kRowBytes;   // 16 keys each; a tile
  constexpr int kKeyLoads = kRowBytes / 64;  // of a lane for a key: 4 lanes share it
  constexpr int kKeySteps =
      4 / static_cast<int>(sizeof(Stored));  // steps of 16 dimensions that a lane's 16 bytes serve
  constexpr int kValueBytes = kRowBytes >= 128 ? 16 : 8,
                kValueLoads = kRowBytes / (8 * kValueBytes);  // 8 lanes share it
  constexpr int kValueWords = kValueBytes / 4, kSteps = kDim / 16;
  using ValueLoad = typename ValueVec<kValueBytes>::type;
  extern __shared__ __align__(16) unsigned char memory[];
  auto& merge = *reinterpret_cast<DecodeMerge<kGroupHeads, kDim, kWarps>*>(memory);

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
  const int n_rep = static_cast<int>(args.n_heads / args.n_kv_heads), first_rep = blockIdx.y * kGroupHeads,
            n_heads = min(kGroupHeads, n_rep - first_rep);
  const float scale = 1.4426950408889634f * rsqrtf(static_cast<float>(kDim));  // scores in powers of two

  let_next_kernel_start();
  prefetch_pieces<Stored, kDim>(args);
  const int piece_begin = args.block_begin[blockIdx.x], piece_end = args.block_begin[blockIdx.x + 1];
  for (int piece_index = piece_begin; piece_index < piece_end; ++piece_index) {
    const DecodePiece piece = args.pieces[piece_index];
    const KvHeadView head = args.heads[piece.sequence * args.n_kv_heads + piece.kv_head];
    const PieceSlots slots(piece, head, args.positions[piece.sequence]);
    const int64_t first_head = piece.sequence * args.n_heads + piece.kv_head * n_rep + first_rep;
    const Stored* const keys = keys_of<Stored>(head);
    const Stored* const values = values_of<Stored>(head, kDim);
    const float* const key_scales = key_scales_of(head, kDim);
    const float* const value_scales = value_scales_of(head, kDim);

    if (piece_index == piece_begin) wait_for_earlier_kernels();

    uint4 k_raw[kBlocks][2][kKeyLoads];        // keys g and g + 8
    ValueLoad v_raw[kBlocks][4][kValueLoads];  // keys 2c, 2c + 1, 2c + 8, 2c + 9
    float k_scale[kScaled ? kBlocks : 1][2], v_scale[kScaled ? kBlocks : 1][2];
    const auto slot_of = [&](int tile, int block, int row) {
      return slots.first + (tile * kBlocks + block) * 16 + row;
    };
    const auto load_keys = [&](int tile) {
#pragma unroll
      for (int block = 0; block < kBlocks; ++block)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int64_t slot = slots.readable(slot_of(tile, block, g + 8 * i));
          const uint4* const row = reinterpret_cast<const uint4*>(keys + slot * kDim);
#pragma unroll
          for (int load = 0; load < kKeyLoads; ++load) k_raw[block][i][load] = __ldcs(row + load * 4 + c);
          if constexpr (kScaled) {
            k_scale[block][i] = __ldcs(key_scales + slot);
            v_scale[block][i] = __ldcs(value_scales + slot);
          }
        }
    };
    const auto load_values = [&](int tile) {
#pragma unroll
      for (int block = 0; block < kBlocks; ++block)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int64_t slot = slots.readable(slot_of(tile, block, 2 * c + i % 2 + i / 2 * 8));
          const ValueLoad* const row = reinterpret_cast<const ValueLoad*>(values + slot * kDim);
#pragma unroll
          for (int load = 0; load < kValueLoads; ++load) v_raw[block][i][load] = __ldcs(row + load * 8 + g);
        }
    };

    float largest[2] = {-INFINITY, -INFINITY}, total[2] = {}, sums[kSteps][4] = {};
    float unit = 0.0f;  // q8: a power of two, at least the largest scale of a value so far
    const int n_tiles = (piece.n_slots + 16 * kBlocks - 1) / (16 * kBlocks);
    if (warp < n_tiles) {
      load_keys(warp);
      load_values(warp);
    }

    // Operand b of the scores, head g: the dimensions of a step are those that the lanes' keys have there.
    uint32_t q[kSteps][2], q_rest[kSteps][2];
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      constexpr int kPerLane = 4 * kKeySteps;  // values in 16 bytes
      const int dim = (step / kKeySteps * 4 + c) * kPerLane + step % kKeySteps * 4;
      float4 value = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      if (g < n_heads) value = *reinterpret_cast<const float4*>(args.q + (first_head + g) * kDim + dim);
      pack_in_two<T>(value.x * scale, value.y * scale, q[step][0], q_rest[step][0]);
      pack_in_two<T>(value.z * scale, value.w * scale, q[step][1], q_rest[step][1]);
    }
    int span[2];  // of heads 2c and 2c + 1, whose scores this lane has
#pragma unroll
    for (int i = 0; i < 2; ++i) span[i] = 2 * c + i < n_heads ? args.spans[first_head + 2 * c + i] : 0;
    for (int tile = warp; tile < n_tiles; tile += kWarps) {
      float scores[kBlocks][4];
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
        for (int i = 0; i < 4; ++i) scores[block][i] = 0.0f;
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
          const uint4 &low = k_raw[block][0][step / kKeySteps], &high = k_raw[block][1][step / kKeySteps];
          uint32_t a[4];
          if constexpr (kBytes) {
            const auto word = [](const uint4& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; };
            const uint32_t first = word(low, step % 4), second = word(high, step % 4);
            a[0] = bytes_to_halves<kType>(first, 0);
            a[1] = bytes_to_halves<kType>(second, 0);
            a[2] = bytes_to_halves<kType>(first, 1);
            a[3] = bytes_to_halves<kType>(second, 1);
          } else {
            a[0] = step % 2 == 0 ? low.x : low.z;
            a[1] = step % 2 == 0 ? high.x : high.z;
            a[2] = step % 2 == 0 ? low.y : low.w;
            a[3] = step % 2 == 0 ? high.y : high.w;
          }
          multiply_add<T>(scores[block], a, q[step][0], q[step][1]);
          multiply_add<T>(scores[block], a, q_rest[step][0], q_rest[step][1]);
        }
        if constexpr (kScaled) {
#pragma unroll
          for (int i = 0; i < 4; ++i) scores[block][i] *= k_scale[block][i / 2];
        }
      }
      float scale_of_value[kScaled ? kBlocks : 1][2];
      float most_scale = 0.0f;
      if constexpr (kScaled) {
#pragma unroll
        for (int block = 0; block < kBlocks; ++block)
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            scale_of_value[block][i] = v_scale[block][i];
            most_scale = fmaxf(most_scale, v_scale[block][i]);
          }
      }
      if (tile + kWarps < n_tiles) load_keys(tile + kWarps);

      float base[2], correction[2];
#pragma unroll
      for (int block = 0; block < kBlocks; ++block)
#pragma unroll
        for (int row = 0; row < 2; ++row) {
          const int back = slots.distance(slot_of(tile, block, g + 8 * row));
#pragma unroll
          for (int i = 0; i < 2; ++i)
            if (back >= span[i]) scores[block][2 * row + i] = -INFINITY;
        }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float most = largest[i];
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) most = fmaxf(most, fmaxf(scores[block][i], scores[block][2 + i]));
#pragma unroll
        for (int offset = 4; offset < 32; offset *= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, offset));
        base[i] = most == -INFINITY ? 0.0f : most;
        correction[i] = fast_exp2(largest[i] - base[i]);
        largest[i] = most;
        total[i] *= correction[i];
      }
      float inverse_unit = 1.0f;
      if constexpr (kScaled) {
#pragma unroll
        for (int offset = 4; offset < 32; offset *= 2)
          most_scale = fmaxf(most_scale, __shfl_xor_sync(0xffffffffu, most_scale, offset));
        // The power of two above; exponents stay normal. Scales of 0 and up to 2^126.
        const float next =
            fmaxf(unit, __uint_as_float(min((__float_as_uint(most_scale) & 0x7f800000u) + 0x00800000u, 0x7f000000u)));
        inverse_unit = 1.0f / next;
        const float shrink = unit * inverse_unit;
#pragma unroll
        for (int i = 0; i < 2; ++i) correction[i] *= shrink;
        unit = next;
      }
#pragma unroll
      for (int step = 0; step < kSteps; ++step)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[step][i] *= correction[i % 2];

#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        uint32_t b[2], b_rest[2];
#pragma unroll
        for (int row = 0; row < 2; ++row) {
          float weight[2];
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            weight[i] = fast_exp2(scores[block][2 * row + i] - base[i]);
            total[i] += weight[i];  // of this lane's keys; lanes are added at the end
            if constexpr (kScaled) weight[i] *= scale_of_value[block][row] * inverse_unit;
          }
          uint32_t rounded, rest;
          pack_in_two<T>(weight[0], weight[1], rounded, rest);
          b[row] = transpose(rounded);  // from keys by heads to heads by keys
          b_rest[row] = transpose(rest);
        }
#pragma unroll
        for (int load = 0; load < kValueLoads; ++load)
#pragma unroll
          for (int word = 0; word < kValueWords; ++word) {
            const auto at = [&](int key) {
              const ValueLoad& v = v_raw[block][key][load];
              if constexpr (kValueWords == 2) {
                return word == 0 ? v.x : v.y;
              } else {
                return word == 0 ? v.x : word == 1 ? v.y : word == 2 ? v.z : v.w;
              }
            };
            if constexpr (kBytes) {  // four dimensions a word: two tiles of outputs
#pragma unroll
              for (int half = 0; half < 2; ++half) {
                const uint32_t near = __byte_perm(at(0), at(1), half == 0 ? 0x5140 : 0x7362),
                               far = __byte_perm(at(2), at(3), half == 0 ? 0x5140 : 0x7362);
                const uint32_t a[4] = {bytes_to_halves<kType>(near, 0), bytes_to_halves<kType>(near, 1),
                                       bytes_to_halves<kType>(far, 0), bytes_to_halves<kType>(far, 1)};
                float(&out)[4] = sums[(load * kValueWords + word) * 2 + half];
                multiply_add<T>(out, a, b[0], b[1]);
                multiply_add<T>(out, a, b_rest[0], b_rest[1]);
              }
            } else {
              const uint32_t a[4] = {__byte_perm(at(0), at(1), 0x5410), __byte_perm(at(0), at(1), 0x7632),
                                     __byte_perm(at(2), at(3), 0x5410), __byte_perm(at(2), at(3), 0x7632)};
              float(&out)[4] = sums[load * kValueWords + word];
              multiply_add<T>(out, a, b[0], b[1]);
              multiply_add<T>(out, a, b_rest[0], b_rest[1]);
            }
          }
      }
      if (tile + kWarps < n_tiles) load_values(tile + kWarps);
    }

#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int offset = 4; offset < 32; offset *= 2) total[i] += __shfl_xor_sync(0xffffffffu, total[i], offset);
    __syncthreads();  // the last piece's merge has been read
    // Row g or g + 8 of a step of outputs: of each load of values the lane has kPerLoad * 2 neighbouring dimensions.
    constexpr int kPerLoad = kSteps / kValueLoads;
#pragma unroll
    for (int load = 0; load < kValueLoads; ++load)
#pragma unroll
      for (int i = 0; i < 2; ++i)  // heads 2c, 2c + 1
#pragma unroll
        for (int at = 0; at < kPerLoad; at += 2) {
          const float(&first)[4] = sums[load * kPerLoad + at];
          const float(&second)[4] = sums[load * kPerLoad + at + 1];
          const float factor = kScaled ? unit : 1.0f;
          *reinterpret_cast<float4*>(&merge.sums[warp][2 * c + i][(load * 8 + g) * 2 * kPerLoad + 2 * at]) =
              make_float4(first[i] * factor, first[2 + i] * factor, second[i] * factor, second[2 + i] * factor);
        }
    if (g == 0) {
#pragma unroll
      for (int i = 0; i < 2; ++i) merge.of_sums[warp][2 * c + i] = make_float2(largest[i], total[i]);
    }
    finish_piece(args, piece, piece_index, merge);
  }
}

}  // namespace polyspan::cuda
