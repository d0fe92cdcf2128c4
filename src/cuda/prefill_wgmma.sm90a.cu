// Prefill attention with Hopper's matrix instructions (FlashAttention-3, arXiv 2407.08608, without its copy engine:
// rings wrap and their addresses are in GPU memory, which a tensor map would need the host for).
//
// One block: kRows queries of one head, three warpgroups. One loads tiles of 128 keys and of their values with cp.async
// into kStages stages of shared memory; two multiply, 64 rows each: the scores of a tile are issued before the weights
// of the one before are multiplied with its values, and the two take turns at issuing, so that one's softmax meets the
// other's products. Scores, weights and sums stay in registers (64, 32 and 64 a thread at head_dim 128).
//
// Shared memory at head_dim 128: queries 32 KB, three stages of keys and values 192 KB: one block a multiprocessor.
// A pair of tiles is 8.4 MFLOP of products (2,048 cycles), 16,384 exponentials (1,024 cycles, beside them) and 64 KB to
// load, mostly from L2 (32 bytes a cycle). Bound by the matrix instructions, where the two warpgroups overlap.
//
// What lost (H100, f16, 32 heads of 128, 8,192 tokens dense; this is 617 TFLOP/s): blocks that stay and take their work
// from a counter, the loader running ahead, 600; each warpgroup's softmax held beside its own products, 598; tiles
// announced by the copies themselves, 1% less; no turns, 2%; two stages, 1%; leaving out the correction of sums where
// no row has a new largest score, 3%.
#include <algorithm>

#include "core/error.h"
#include "cuda/mma.cuh"
#include "cuda/prefill_attention.cuh"
#include "cuda/wgmma.cuh"

namespace polyspan::cuda {
namespace {

constexpr int kGroupThreads = 128, kMultipliers = 2, kThreads = kGroupThreads * (kMultipliers + 1);
constexpr int kGroupRows = 64, kRows = kGroupRows * kMultipliers, kKeys = 128, kStages = 3;
constexpr int kLoaderRegisters = 40, kMultiplierRegisters = 232;  // together what the block begins with, 168 a thread
constexpr int kTurnBarrier = 1, kQueryBarrier = kTurnBarrier + kMultipliers;  // named barriers, one each a multiplier
constexpr int64_t kSectionBytes = int64_t{32} << 20;  // of keys and values that blocks read at a time; L2 has 50 MB

constexpr int tile_bytes(int dim, int rows) { return 2 * dim * rows; }
constexpr int kBarrierBytes = 4 * kStages * 8;
constexpr int shared_bytes(int dim) {
  return tile_bytes(dim, kRows) + 2 * kStages * tile_bytes(dim, kKeys) + kBarrierBytes + 1024;  // 1024 to align it
}

constexpr int kNoPosition = -(1 << 30);

// Which keys the columns of a tile are: the first n_sink columns sink positions from first_sink on, the others
// positions start + column, where those are not negative.
struct KeyTile {
  int start, n_sink, first_sink;
};

// The tiles of a block, from its own queries' backward, then those of the sink.
struct TileList {
  int first_query, n_window, n_tiles, n_sink;
  bool sink_apart;      // the sink is not part of the window's positions
  bool sink_in_window;  // it takes columns of the last window tile that no query sees
  __device__ TileList(int query, int span, int sink) : first_query(query), n_sink(sink) {
    const int oldest = max(0, query - span + 1);
    sink_apart = oldest > n_sink && n_sink > 0;
    const int from = oldest > n_sink ? oldest : 0;
    n_window = 1 + (first_query - from + kKeys - 1) / kKeys;
    const int unseen = from - (first_query - (n_window - 1) * kKeys);
    sink_in_window = sink_apart && unseen >= n_sink;
    n_tiles = n_window + (sink_apart && !sink_in_window ? (n_sink + kKeys - 1) / kKeys : 0);
  }
  __device__ KeyTile operator[](int tile) const {
    if (tile < n_window) return {first_query - tile * kKeys, sink_in_window && tile == n_window - 1 ? n_sink : 0, 0};
    const int first = (tile - n_window) * kKeys;
    return {kNoPosition, min(kKeys, n_sink - first), first};
  }
};

// Loads tiles of one KV head; a thread one 16-byte chunk of every kStep-th row.
template <typename T, int kDim>
struct TileLoader {
  static constexpr int kChunks = kDim / 8, kStep = kGroupThreads / kChunks, kRowBytes = kDim * 2;
  const KvHeadView ring;
  int first_position, last_query, row, chunk;
  uint32_t offset;  // of this thread's first chunk in a tile; the others are multiples of 8 rows behind it
  __device__ TileLoader(const KvHeadView& view, int first, int last, int thread)
      : ring(view), first_position(first), last_query(last), row(thread / kChunks), chunk(thread % kChunks) {
    offset = panel_offset(kKeys, row, chunk);
  }
  // Byte offset of a position's row in the ring, -1 where it does not hold the position.
  __device__ int64_t ring_row(int position) const {
    if (position < ring.n_sink) return int64_t{position} * kRowBytes;
    if (position < first_position - ring.ring_slots) return -1;
    return int64_t{ring.sink_slots + (position - ring.n_sink) % ring.ring_slots} * kRowBytes;
  }
  // `ring_rows`, `chunk_rows`: keys or values.
  __device__ void load(const KeyTile& tile, const std::byte* ring_rows, const std::byte* chunk_rows,
                       uint32_t to) const {
    const std::byte* from = nullptr;  // of the tile's rows, where they lie together
    if (tile.n_sink == 0) {
      if (tile.start >= first_position) {
        if (tile.start + kKeys - 1 <= last_query) from = chunk_rows + int64_t{tile.start - first_position} * kRowBytes;
      } else if (tile.start >= ring.n_sink && tile.start >= first_position - ring.ring_slots) {
        const int slot = (tile.start - ring.n_sink) % ring.ring_slots;
        if (slot + kKeys <= ring.ring_slots) from = ring_rows + int64_t{ring.sink_slots + slot} * kRowBytes;
      }
    }
    if (from != nullptr) {
      from += row * kRowBytes + chunk * 16;
#pragma unroll
      for (int i = 0; i < kKeys / kStep; ++i)
        copy_async(to + offset + i * kStep * kPanelRowBytes, from + i * kStep * kRowBytes, true);
      return;
    }
#pragma unroll 1
    for (int i = 0; i < kKeys / kStep; ++i) {
      const int column = row + i * kStep;
      const int position = column < tile.n_sink ? tile.first_sink + column : tile.start + column;
      int64_t at = -1;
      const bool in_chunk = position >= first_position;
      if (position >= 0 && position <= last_query)
        at = in_chunk ? int64_t{position - first_position} * kRowBytes : ring_row(position);
      copy_async(to + offset + i * kStep * kPanelRowBytes,
                 (in_chunk ? chunk_rows : ring_rows) + max(at, int64_t{0}) + chunk * 16, at >= 0);
    }
  }
};

// 64 rows of queries: f32 in memory, T in shared memory; rows past the end are zeros.
template <typename T, int kDim>
__device__ inline void load_queries(const PrefillAttentionArgs& args, int first_row, int head, uint32_t to, int to_row,
                                    int thread) {
  constexpr int kChunks = kDim / 8, kN = kGroupRows * kChunks / kGroupThreads;
  float4 raw[kN][2];
#pragma unroll
  for (int i = 0; i < kN; ++i) {
    const int at = thread + i * kGroupThreads, row = first_row + at / kChunks;
    raw[i][0] = raw[i][1] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (row >= args.n_tokens) continue;
    const float4* const from =
        reinterpret_cast<const float4*>(args.q + (row * args.n_heads + head) * kDim + at % kChunks * 8);
    raw[i][0] = from[0];
    raw[i][1] = from[1];
  }
#pragma unroll
  for (int i = 0; i < kN; ++i) {
    const int at = thread + i * kGroupThreads;
    const float4 a = raw[i][0], b = raw[i][1];
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};\n" ::"r"(
                     to + panel_offset(kRows, to_row + at / kChunks, at % kChunks)),
                 "r"(pack<T>(a.x, a.y)), "r"(pack<T>(a.z, a.w)), "r"(pack<T>(b.x, b.y)), "r"(pack<T>(b.z, b.w))
                 : "memory");
  }
}

// Four lanes hold a row's columns 8 n + 2 lane, + 1; 2-byte types go out as 16 bytes a lane.
template <int kDim>
__device__ inline void store_row(ActivationType type, void* out, int64_t at, int lane, const float (&sums)[kDim / 2],
                                 int half, float factor) {
  const auto value = [&](int n, int i) { return sums[4 * n + 2 * half + i] * factor; };
  if (type == ActivationType::kF32) {
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n)
      if (at >= 0) store_pair(type, out, at + n * 8 + lane * 2, value(n, 0), value(n, 1));
    return;
  }
#pragma unroll
  for (int n = 0; n < kDim / 8; n += 4) {
    uint32_t words[4];  // this lane's of columns 8 n to 8 n + 31; then those of columns 8 (n + lane)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float low = value(n + i, 0), high = value(n + i, 1);
      if (type == ActivationType::kBF16) {
        words[i] = pack<__nv_bfloat16>(low, high);
      } else {
        const __half2 pair(from_float<__half>(low), from_float<__half>(high));
        words[i] = *reinterpret_cast<const uint32_t*>(&pair);
      }
    }
#pragma unroll
    for (int bit = 1; bit <= 2; bit *= 2)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (i & bit) continue;
        const bool upper = (lane & bit) != 0;
        const uint32_t other = __shfl_xor_sync(0xffffffffu, upper ? words[i] : words[i + bit], bit);
        (upper ? words[i] : words[i + bit]) = other;
      }
    if (at >= 0)
      *reinterpret_cast<uint4*>(static_cast<uint16_t*>(out) + at + (n + lane) * 8) =
          make_uint4(words[0], words[1], words[2], words[3]);
  }
}

// Scores of the keys that a row does not see become -infinity. `row`: of this thread, the other is 8 below.
__device__ inline void mask(float (&scores)[kKeys / 2], const KeyTile& tile, const TileList& tiles, int span, int row,
                            int column) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    // Columns seen: [window_begin, newest] and [sink_begin, sink_end).
    const int newest = tiles.first_query + row + 8 * half - tile.start;
    const int window_begin = max(-tile.start, newest - span + 1);
    const int sink_begin = tile.n_sink > 0 ? 0 : -tile.start;
    const int sink_end = tile.n_sink > 0    ? tile.n_sink
                         : tiles.sink_apart ? 0
                                            : min(tiles.n_sink - tile.start, newest + 1);
#pragma unroll
    for (int i = 0; i < kKeys / 4; ++i) {
      const int at = column + i / 2 * 8 + i % 2;
      const bool seen = (at >= window_begin && at <= newest) || (at >= sink_begin && at < sink_end);
      float& score = scores[i / 2 * 4 + 2 * half + i % 2];
      if (!seen) score = -INFINITY;
    }
  }
}

// Scores become weights 2^(scale (score - largest)); `total` is of this thread's columns. Sums so far are to be
// multiplied with `correction`. Every row sees its own key, which is in the first tile: largest is finite.
template <bool kFirst>
__device__ inline void softmax(float (&scores)[kKeys / 2], float scale, float (&largest)[2], float (&total)[2],
                               float (&correction)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float most = kFirst ? -INFINITY : largest[half];
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n)
      most = fmaxf(most, fmaxf(scores[4 * n + 2 * half], scores[4 * n + 2 * half + 1]));
    most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
    most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
    const float base = most * scale;
    correction[half] = kFirst ? 0.0f : fast_exp2(largest[half] * scale - base);
    largest[half] = most;
    float low = 0.0f, high = 0.0f;
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
      float& a = scores[4 * n + 2 * half];
      float& b = scores[4 * n + 2 * half + 1];
      a = fast_exp2(a * scale - base);
      b = fast_exp2(b * scale - base);
      low += a;
      high += b;
    }
    total[half] = kFirst ? low + high : total[half] * correction[half] + (low + high);
  }
}

template <KvType kType, int kDim>
__global__ void __launch_bounds__(kThreads, 1)
    prefill_wgmma_kernel(const PrefillAttentionArgs args, int n_row_blocks, int section_heads) {
  using T = typename KvElement<kType>::type;
  constexpr int kTileBytes = tile_bytes(kDim, kKeys);
  extern __shared__ unsigned char shared[];
  const uint32_t q_tile = (shared_address(shared) + 1023) & ~1023u;
  const uint32_t key_tiles = q_tile + tile_bytes(kDim, kRows), value_tiles = key_tiles + kStages * kTileBytes;
  const uint32_t keys_full = value_tiles + kStages * kTileBytes, keys_empty = keys_full + kStages * 8;
  const uint32_t values_full = keys_empty + kStages * 8, values_empty = values_full + kStages * 8;

  // The longest blocks of a section's heads first, then the next section.
  const int n_heads = static_cast<int>(args.n_heads), block = static_cast<int>(blockIdx.x);
  const int section = block / (section_heads * n_row_blocks) * section_heads;
  const int in_section = block - section * n_row_blocks, width = min(section_heads, n_heads - section);
  const int head = section + in_section % width, block_row = (n_row_blocks - 1 - in_section / width) * kRows;

  const int n_rep = static_cast<int>(args.n_heads / args.n_kv_heads);
  const int n_tokens = static_cast<int>(args.n_tokens), first_position = static_cast<int>(args.first_position);
  const int span = args.spans[head];
  const int first_query = first_position + block_row;
  const TileList tiles(first_query, span, args.heads[head / n_rep].n_sink);
  const int n_tiles = tiles.n_tiles;

  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      make_barrier(keys_full + stage * 8, kGroupThreads / 32);
      make_barrier(values_full + stage * 8, kGroupThreads / 32);
      make_barrier(keys_empty + stage * 8, kMultipliers * kGroupThreads / 32);
      make_barrier(values_empty + stage * 8, kMultipliers * kGroupThreads / 32);
    }
  }
  __syncthreads();  // the barriers are made

  const int group = static_cast<int>(threadIdx.x) / kGroupThreads,
            thread = static_cast<int>(threadIdx.x) % kGroupThreads;
  if (group == kMultipliers) {
    give_registers_back<kLoaderRegisters>();
    const KvHeadView ring = args.heads[head / n_rep], chunk = args.chunk[head / n_rep];
    const TileLoader<T, kDim> loader(ring, first_position, min(first_position + n_tokens, first_query + kRows) - 1,
                                     thread);
    const auto bytes = [](const T* at) { return reinterpret_cast<const std::byte*>(at); };
    const std::byte* const ring_keys = bytes(keys_of<T>(ring));
    const std::byte* const ring_values = bytes(values_of<T>(ring, kDim));
    const std::byte* const chunk_keys = bytes(keys_of<T>(chunk));
    const std::byte* const chunk_values = bytes(values_of<T>(chunk, kDim));
    uint32_t loading = 0;  // the barrier of the copies before the newest
    const auto announce = [&] {
      publish_to_products();
      __syncwarp();
      if (thread % 32 == 0) arrive(loading);
    };
    // A tile is announced after the copies of the next were issued: two are on the way.
    const auto load = [&](int tile, const std::byte* ring_rows, const std::byte* chunk_rows, uint32_t stages,
                          uint32_t full, uint32_t empty) {
      const int stage = tile % kStages;
      wait_phase(empty + stage * 8, (tile / kStages + 1) % 2);
      loader.load(tiles[tile], ring_rows, chunk_rows, stages + stage * kTileBytes);
      commit_copies();
      if (loading != 0) {
        wait_copies<1>();
        announce();
      }
      loading = full + stage * 8;
    };
    for (int tile = 0; tile <= n_tiles; ++tile) {
      if (tile < n_tiles) load(tile, ring_keys, chunk_keys, key_tiles, keys_full, keys_empty);
      if (tile > 0) load(tile - 1, ring_values, chunk_values, value_tiles, values_full, values_empty);
    }
    wait_copies<0>();
    announce();
  } else {
    take_registers<kMultiplierRegisters>();
    const int lane = thread % 32, group_row = group * kGroupRows;
    load_queries<T, kDim>(args, block_row + group_row, head, q_tile, group_row, thread);
    publish_to_products();
    wait_named(kQueryBarrier + group, kGroupThreads);  // this warpgroup's queries are there

    float scores[kKeys / 2], sums[kDim / 2], largest[2], total[2], correction[2];
    uint32_t weights[kKeys / 16][4];
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) scores[i] = 0.0f;
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) sums[i] = 0.0f;
    const float scale = 1.4426950408889634f * rsqrtf(static_cast<float>(kDim));
    const int row = group_row + thread / 32 * 16 + lane / 4, column = lane % 4 * 2;

    const auto issue_scores = [&](int tile) {
      const int stage = tile % kStages;
      wait_phase(keys_full + stage * 8, tile / kStages % 2);
      begin_products();
#pragma unroll
      for (int step = 0; step < kDim / 16; ++step) {
        const int panel = step / 4, at = step % 4 * 32;
        multiply_scores<T>(scores, panel_operand(q_tile + (panel * kRows + group_row) * kPanelRowBytes + at, 16),
                           panel_operand(key_tiles + stage * kTileBytes + panel * kKeys * kPanelRowBytes + at, 16),
                           step > 0);
      }
      commit_products();
    };
    const auto issue_sums = [&](int tile) {
      const int stage = tile % kStages;
      wait_phase(values_full + stage * 8, tile / kStages % 2);
      begin_products();
#pragma unroll
      for (int step = 0; step < kKeys / 16; ++step)
        multiply_values<T>(
            sums, weights[step],
            panel_operand(value_tiles + stage * kTileBytes + step * 16 * kPanelRowBytes, kKeys * kPanelRowBytes));
      commit_products();
    };
    const auto release = [&](uint32_t barriers, int tile) {
      if (lane == 0) arrive(barriers + tile % kStages * 8);
    };
    const auto mask_tile = [&](int index) {
      const KeyTile tile = tiles[index];
      const int first = first_query + group_row, last = first + kGroupRows - 1, end = tile.start + kKeys - 1;
      const bool all_seen = tile.n_sink == 0 && tile.start >= 0 && end <= first &&
                            (last - tile.start < span || (!tiles.sink_apart && end < tiles.n_sink));
      if (!all_seen) mask(scores, tile, tiles, span, row, column);
    };
    const auto pack_weights = [&] {  // the layout of the scores is operand A's
#pragma unroll
      for (int step = 0; step < kKeys / 16; ++step)
#pragma unroll
        for (int i = 0; i < 4; ++i) weights[step][i] = pack<T>(scores[8 * step + 2 * i], scores[8 * step + 2 * i + 1]);
    };

    if (group == 1) arrive_named(kTurnBarrier, 2 * kGroupThreads);  // the first turn is the first's
    issue_scores(0);
    wait_products<0>(scores);
    release(keys_empty, 0);
    mask_tile(0);
    softmax<true>(scores, scale, largest, total, correction);
    pack_weights();
    for (int tile = 1; tile < n_tiles; ++tile) {
      wait_named(kTurnBarrier + group, 2 * kGroupThreads);
      issue_scores(tile);
      issue_sums(tile - 1);
      arrive_named(kTurnBarrier + 1 - group, 2 * kGroupThreads);
      wait_products<1>(scores);
      release(keys_empty, tile);
      mask_tile(tile);
      softmax<false>(scores, scale, largest, total, correction);
      wait_products<0>(sums);
      release(values_empty, tile - 1);
#pragma unroll
      for (int i = 0; i < kDim / 2; ++i) sums[i] *= correction[i / 2 % 2];
      pack_weights();
    }
    if (group == 0) wait_named(kTurnBarrier, 2 * kGroupThreads);  // the last arrival of the other
    issue_sums(n_tiles - 1);
    wait_products<0>(sums);

#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float all = total[half];
      all += __shfl_xor_sync(0xffffffffu, all, 1);
      all += __shfl_xor_sync(0xffffffffu, all, 2);
      const int64_t token = block_row + row + 8 * half, at = (token * args.n_heads + head) * kDim;
      store_row<kDim>(args.out_type, args.out, token < n_tokens ? at : -1, lane % 4, sums, half, 1.0f / all);
    }
  }
}

template <KvType kType, int kDim>
void launch(const PrefillAttentionArgs& args, const Stream& stream) {
  const auto kernel = prefill_wgmma_kernel<kType, kDim>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes(kDim)),
        "asking for shared memory");
  const int64_t n_row_blocks = (args.n_tokens + kRows - 1) / kRows, n_rep = args.n_heads / args.n_kv_heads;
  const int64_t head_bytes = int64_t{4} * kDim * (args.first_position + args.n_tokens);
  const int64_t section_heads = std::min(args.n_heads, std::max<int64_t>(1, kSectionBytes / head_bytes) * n_rep);
  kernel<<<static_cast<unsigned>(n_row_blocks * args.n_heads), kThreads, shared_bytes(kDim), stream.get()>>>(
      args, static_cast<int>(n_row_blocks), static_cast<int>(section_heads));
}

template <KvType kType>
void launch(const PrefillAttentionArgs& args, const Stream& stream) {
  if (args.head_dim == 64) return launch<kType, 64>(args, stream);
  launch<kType, 128>(args, stream);
}

}  // namespace

bool prefill_attention_wgmma_supports(const PrefillAttentionArgs& args) {
  if ((args.type != KvType::kF16 && args.type != KvType::kBF16) || (args.head_dim != 64 && args.head_dim != 128))
    return false;
  return compute_capability() == 90;  // code for 9.0a runs on 9.0 alone
}

void prefill_attention_wgmma(const PrefillAttentionArgs& args, const Stream& stream) {
  POLYSPAN_CHECK(args.n_tokens >= 1 && args.n_heads % args.n_kv_heads == 0);
  POLYSPAN_CHECK(prefill_attention_wgmma_supports(args));
  if (args.type == KvType::kF16) launch<KvType::kF16>(args, stream);
  if (args.type == KvType::kBF16) launch<KvType::kBF16>(args, stream);
  check_launch("prefill_attention_wgmma");
}

}  // namespace polyspan::cuda
