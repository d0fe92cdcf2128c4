// One block: kRows queries of one head. Each of four warps owns 32 rows: two tiles of 16, so that a fragment of keys or
// values, loaded once from shared memory, serves both. Queries stay in shared memory, scores and sums in registers.
// Shared memory at head_dim 128: queries 32 KB, two stages of keys and values 64 KB: two blocks a multiprocessor. Rows of
// a tile are swizzled in chunks of 16 bytes, so that ldmatrix meets no bank twice. Bound by the matrix instructions.
#include "core/error.h"
#include "cuda/mma.cuh"
#include "cuda/prefill_attention.cuh"

namespace polyspan::cuda {
namespace {

constexpr int kWarps = 4, kThreads = 32 * kWarps, kRowTiles = 2, kRows = 16 * kRowTiles * kWarps, kKeys = 64;

constexpr int64_t shared_bytes(int dim) { return int64_t{2} * dim * (kRows + 4 * kKeys); }

__device__ inline void load_matrix(uint32_t (&r)[4], uint32_t at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at));
}
__device__ inline void load_matrix_transposed(uint32_t (&r)[4], uint32_t at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at));
}

// Byte offset of 16-byte chunk `chunk` of row `row` in a tile of rows of kDim 2-byte values.
template <int kDim>
__device__ inline uint32_t swizzled(int row, int chunk) {
  return static_cast<uint32_t>(row * kDim * 2 + (chunk ^ (row & 7)) * 16);
}

template <KvType kType, int kDim>
__global__ void __launch_bounds__(kThreads, 2) prefill_attention_kernel(const PrefillAttentionArgs args) {
  using Stored = typename KvElement<kType>::type;
  using T = std::conditional_t<kType == KvType::kBF16, __nv_bfloat16, __half>;  // of the products
  constexpr int kChunks = kDim / 8, kTileBytes = kKeys * kDim * 2;
  extern __shared__ __align__(128) unsigned char shared[];
  const uint32_t q_tile = shared_address(shared), kv_tiles = q_tile + kRows * kDim * 2;
  const auto key_tile = [&](int stage) { return kv_tiles + static_cast<uint32_t>(stage * 2 * kTileBytes); };
  const auto value_tile = [&](int stage) { return key_tile(stage) + kTileBytes; };

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int n_tokens = static_cast<int>(args.n_tokens), first_position = static_cast<int>(args.first_position);
  const int block_row = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kRows;  // the longest work first
  const int head_index = blockIdx.y, n_rep = static_cast<int>(args.n_heads / args.n_kv_heads);
  const KvHeadView ring = args.heads[head_index / n_rep], chunk_view = args.chunk[head_index / n_rep];
  const int span = args.spans[head_index], n_sink = ring.n_sink;
  const int first_query = first_position + block_row,
            last_query = min(first_position + n_tokens, first_query + kRows) - 1;

  // Queries: f32 in memory, T in shared memory; rows past the end are zeros.
  for (int i = threadIdx.x; i < kRows * kChunks; i += kThreads) {
    const int row = i / kChunks, column = i % kChunks;
    uint4 packed = make_uint4(0, 0, 0, 0);
    if (block_row + row < n_tokens) {
      const float4* const from = reinterpret_cast<const float4*>(
          args.q + (int64_t{block_row + row} * args.n_heads + head_index) * kDim + column * 8);
      const float4 a = from[0], b = from[1];
      packed = make_uint4(pack<T>(a.x, a.y), pack<T>(a.z, a.w), pack<T>(b.x, b.y), pack<T>(b.z, b.w));
    }
    *reinterpret_cast<uint4*>(shared + swizzled<kDim>(row, column)) = packed;
  }

  // Tiles of keys: those of the sink, then from the oldest key that the first query sees on.
  const int oldest = max(0, first_query - span + 1);
  const int n_sink_tiles = n_sink > 0 ? (min(n_sink, last_query + 1) + kKeys - 1) / kKeys : 0;
  const int first_tile = max(oldest / kKeys, n_sink_tiles), last_tile = last_query / kKeys;
  const int n_tiles = n_sink_tiles + max(0, last_tile - first_tile + 1);
  const auto tile_position = [&](int tile) {
    return (tile < n_sink_tiles ? tile : first_tile + tile - n_sink_tiles) * kKeys;
  };

  // A thread loads one chunk of several rows of each tile.
  const int chunk = threadIdx.x % kChunks;
  const Stored* const ring_keys = keys_of<Stored>(ring);
  const Stored* const ring_values = values_of<Stored>(ring, kDim);
  const Stored* const chunk_keys = keys_of<Stored>(chunk_view);
  const Stored* const chunk_values = values_of<Stored>(chunk_view, kDim);
  const auto load_tile = [&](int tile, int stage) {
    const int tile_start = tile_position(tile);
    // The ring's slot of the tile's first position; negative inside the sink, whose slots are not taken from it.
    const int ring_start =
        tile_start >= n_sink && ring.ring_slots > 0 ? (tile_start - n_sink) % ring.ring_slots : tile_start - n_sink;
#pragma unroll 4
    for (int row = threadIdx.x / kChunks; row < kKeys; row += kThreads / kChunks) {
      const int position = tile_start + row;
      const bool in_chunk = position >= first_position;
      int slot = position - first_position;
      bool valid = position <= last_query;
      if (!in_chunk) {
        slot = position;
        if (position >= n_sink) {
          valid = position >= first_position - ring.ring_slots;
          int offset = ring_start + row;
          if (offset >= ring.ring_slots) offset -= ring.ring_slots;
          if (valid && offset >= ring.ring_slots) offset %= ring.ring_slots;
          slot = ring.sink_slots + offset;
        }
      }
      if (!valid) slot = 0;
      const uint32_t offset = swizzled<kDim>(row, chunk);
      const Stored* const k = (in_chunk ? chunk_keys : ring_keys) + int64_t{slot} * kDim + chunk * 8;
      const Stored* const v = (in_chunk ? chunk_values : ring_values) + int64_t{slot} * kDim + chunk * 8;
      if constexpr (sizeof(Stored) == 2) {
        copy_async(key_tile(stage) + offset, k, valid);
        copy_async(value_tile(stage) + offset, v, valid);
      } else {
        uint2 k_raw = make_uint2(0, 0), v_raw = make_uint2(0, 0);
        if (valid) {
          k_raw = *reinterpret_cast<const uint2*>(k);
          v_raw = *reinterpret_cast<const uint2*>(v);
        }
        float k_scale = 0.0f, v_scale = 0.0f;
        if constexpr (kType == KvType::kQ8) {
          const float* const scales = in_chunk ? key_scales_of(chunk_view, kDim) : key_scales_of(ring, kDim);
          k_scale = valid ? scales[slot] : 0.0f;
          v_scale = valid ? scales[(in_chunk ? chunk_view.capacity : ring.capacity) + slot] : 0.0f;
        }
        const auto decode = [](uint32_t word, float factor, uint32_t& low, uint32_t& high) {
          if constexpr (kType == KvType::kF8) {
            low = f8_to_halves(word);
            high = f8_to_halves(word >> 16);
          } else {
            const auto value = [&](int byte) {
              return factor * static_cast<float>(static_cast<int8_t>(word >> 8 * byte));
            };
            low = pack<T>(value(0), value(1));
            high = pack<T>(value(2), value(3));
          }
        };
        uint4 k_out, v_out;
        decode(k_raw.x, k_scale, k_out.x, k_out.y);
        decode(k_raw.y, k_scale, k_out.z, k_out.w);
        decode(v_raw.x, v_scale, v_out.x, v_out.y);
        decode(v_raw.y, v_scale, v_out.z, v_out.w);
        unsigned char* const to = shared + (key_tile(stage) - q_tile) + offset;
        *reinterpret_cast<uint4*>(to) = k_out;
        *reinterpret_cast<uint4*>(to + kTileBytes) = v_out;
      }
    }
    commit_copies();
  };

  float sums[kRowTiles][kDim / 8][4], largest[kRowTiles][2], total[kRowTiles][2];
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
    largest[m][0] = largest[m][1] = -INFINITY;
    total[m][0] = total[m][1] = 0.0f;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[m][n][i] = 0.0f;
  }
  const float scale = 1.4426950408889634f * rsqrtf(static_cast<float>(kDim));
  const int warp_row = warp * 16 * kRowTiles;
  // Lane's row and chunk in the 16 x 16 matrices that ldmatrix loads: as operand A and V (rows 0-15, two chunks), and as K.
  const int a_row = lane % 16, a_chunk = lane / 16, k_row = lane % 8 + lane / 16 * 8, k_chunk = lane / 8 % 2;

  load_tile(0, 0);
  for (int tile = 0; tile < n_tiles; ++tile) {
    const int stage = tile % 2;
    if (tile + 1 < n_tiles) {
      load_tile(tile + 1, 1 - stage);
      wait_copies<1>();
    } else {
      wait_copies<0>();
    }
    __syncthreads();  // the tile is there, for all threads

    float scores[kRowTiles][kKeys / 8][4];
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) scores[m][n][i] = 0.0f;
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      uint32_t a[kRowTiles][4];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m)
        load_matrix(a[m], q_tile + swizzled<kDim>(warp_row + m * 16 + a_row, 2 * step + a_chunk));
#pragma unroll
      for (int n = 0; n < kKeys / 16; ++n) {
        uint32_t b[4];
        load_matrix(b, key_tile(stage) + swizzled<kDim>(n * 16 + k_row, 2 * step + k_chunk));
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          multiply_add<T>(scores[m][2 * n], a[m], b[0], b[1]);
          multiply_add<T>(scores[m][2 * n + 1], a[m], b[2], b[3]);
        }
      }
    }

    const int tile_start = tile_position(tile), tile_end = tile_start + kKeys - 1;
    const bool all_seen = tile_end <= first_query && (tile_end < n_sink || last_query - tile_start < span);
    if (!all_seen) {
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int key = tile_start + n * 8 + lane % 4 * 2 + i % 2,
                      query = first_query + warp_row + m * 16 + lane / 4 + i / 2 * 8;
            if (key > query || (key >= n_sink && query - key >= span)) scores[m][n][i] = -INFINITY;
          }
    }
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {  // rows lane / 4 and lane / 4 + 8
        float most = largest[m][half];
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n)
          most = fmaxf(most, fmaxf(scores[m][n][2 * half], scores[m][n][2 * half + 1]));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
        const float base = most == -INFINITY ? 0.0f : most * scale;
        const float correction = fast_exp2(largest[m][half] * scale - base);
        largest[m][half] = most;
        float row_total = 0.0f;
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            float& score = scores[m][n][2 * half + i];
            score = fast_exp2(score * scale - base);
            row_total += score;
          }
        total[m][half] = total[m][half] * correction + row_total;  // of this lane's columns; lanes are added at the end
#pragma unroll
        for (int n = 0; n < kDim / 8; ++n) {
          sums[m][n][2 * half] *= correction;
          sums[m][n][2 * half + 1] *= correction;
        }
      }
#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step) {
      uint32_t a[kRowTiles][4];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {  // the accumulator's layout is operand A's
        const auto& low = scores[m][2 * step];
        const auto& high = scores[m][2 * step + 1];
        a[m][0] = pack<T>(low[0], low[1]);
        a[m][1] = pack<T>(low[2], low[3]);
        a[m][2] = pack<T>(high[0], high[1]);
        a[m][3] = pack<T>(high[2], high[3]);
      }
#pragma unroll
      for (int n = 0; n < kDim / 16; ++n) {
        uint32_t b[4];
        load_matrix_transposed(b, value_tile(stage) + swizzled<kDim>(step * 16 + a_row, 2 * n + a_chunk));
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          multiply_add<T>(sums[m][2 * n], a[m], b[0], b[1]);
          multiply_add<T>(sums[m][2 * n + 1], a[m], b[2], b[3]);
        }
      }
    }
    __syncthreads();  // the stage may be overwritten
  }

#pragma unroll
  for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float all = total[m][half];
      all += __shfl_xor_sync(0xffffffffu, all, 1);
      all += __shfl_xor_sync(0xffffffffu, all, 2);
      const int row = block_row + warp_row + m * 16 + lane / 4 + half * 8;
      if (row >= n_tokens) continue;
      const float inverse = 1.0f / all;
      const int64_t at = (int64_t{row} * args.n_heads + head_index) * kDim + lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n)
        store_pair(args.out_type, args.out, at + n * 8, sums[m][n][2 * half] * inverse,
                   sums[m][n][2 * half + 1] * inverse);
    }
}

template <KvType kType, int kDim>
void launch(const PrefillAttentionArgs& args, const Stream& stream) {
  const auto kernel = prefill_attention_kernel<kType, kDim>;
  const int bytes = static_cast<int>(shared_bytes(kDim));
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "asking for shared memory");
  const dim3 grid(static_cast<unsigned>((args.n_tokens + kRows - 1) / kRows), static_cast<unsigned>(args.n_heads));
  kernel<<<grid, kThreads, static_cast<size_t>(bytes), stream.get()>>>(args);
}

template <KvType kType>
void launch(const PrefillAttentionArgs& args, const Stream& stream) {
  if (args.head_dim == 64) return launch<kType, 64>(args, stream);
  POLYSPAN_CHECK(args.head_dim == 128);
  launch<kType, 128>(args, stream);
}

}  // namespace

void prefill_attention_mma(const PrefillAttentionArgs& args, const Stream& stream) {
  POLYSPAN_CHECK(args.n_tokens >= 1 && args.n_heads % args.n_kv_heads == 0);
  if (args.type == KvType::kF16) launch<KvType::kF16>(args, stream);
  if (args.type == KvType::kBF16) launch<KvType::kBF16>(args, stream);
  if (args.type == KvType::kQ8) launch<KvType::kQ8>(args, stream);
  if (args.type == KvType::kF8) launch<KvType::kF8>(args, stream);
  check_launch("prefill_attention_mma");
}

void prefill_attention(const PrefillAttentionArgs& args, const Stream& stream) {
  if (prefill_attention_wgmma_supports(args)) return prefill_attention_wgmma(args, stream);
  prefill_attention_mma(args, stream);
}

}  // namespace polyspan::cuda
