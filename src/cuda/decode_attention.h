// cuda/decode_attention.h: span attention of one new token of each sequence (MoA, arXiv 2406.14909), all heads of a layer
// in one launch.
//
// The kept slots of all (sequence, KV head) are laid end to end and cut into equal parts, one a thread block (the
// "stream-K" cut of arXiv 2301.03598): heads of unequal spans balance by themselves, and one long head fills the GPU. A
// head that lies in several blocks is combined by the block that finishes last, in the order of its pieces: results do not
// depend on the run. Slots need no order: softmax has none; what a query head may see of its KV head's slots follows
// from their positions.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cuda/kv_view.h"
#include "cuda/runtime.h"

namespace polyspan::cuda {

// A part of one KV head's slots, for one block.
struct DecodePiece {
  int32_t sequence, kv_head;
  int32_t first_slot, n_slots;
  int32_t first_piece, n_pieces;  // of this (sequence, KV head); their partial results are combined
};

// The work of one layer.
struct DecodeWork {
  std::vector<int32_t> block_begin;  // [n_blocks + 1]: block b takes pieces [block_begin[b], block_begin[b + 1])
  std::vector<DecodePiece> pieces;
};
inline constexpr int32_t kDecodePieceAlignment = 16;  // slots
// `n_slots` [n_sequences * n_kv_heads] slots to read of each head (the first ones).
DecodeWork cut_decode_work(std::span<const int32_t> n_slots, int64_t n_kv_heads, int32_t n_blocks);
// At most so many pieces come out.
inline int64_t most_decode_pieces(int64_t n_heads_total, int64_t n_blocks) { return n_heads_total + n_blocks; }

enum class ActivationType : int32_t { kF32, kF16, kBF16 };

// The blocks of a launch: several of 4 warps a multiprocessor, or one of all its warps, whose pieces are fewer and larger.
enum class DecodeWidth : int32_t { kBest, kNarrow, kWide };

struct DecodeAttentionArgs {
  KvType type = KvType::kF16;
  int64_t n_sequences = 0, n_heads = 0, n_kv_heads = 0, head_dim = 0;
  const float* q = nullptr;            // [n_sequences, n_heads, head_dim] after RoPE; not scaled
  const KvHeadView* heads = nullptr;   // [n_sequences, n_kv_heads]; the new key and value are in
  const int32_t* spans = nullptr;      // [n_sequences, n_heads]: keys that a query head sees, its own included
  const int32_t* positions = nullptr;  // [n_sequences], of the query
  const int32_t* block_begin = nullptr;
  const DecodePiece* pieces = nullptr;
  int32_t n_blocks = 0;
  DecodeWidth width = DecodeWidth::kBest;
  float* partials = nullptr;    // [n_pieces, partial_floats()]
  int32_t* counters = nullptr;  // [n_sequences * n_kv_heads], zero before and after
  ActivationType out_type = ActivationType::kF32;
  void* out = nullptr;  // [n_sequences, n_heads, head_dim]
};

inline int64_t decode_partial_floats(int64_t n_heads, int64_t n_kv_heads, int64_t head_dim) {
  return n_heads / n_kv_heads * (head_dim + 4);  // sums, largest score, total weight; rows aligned to 16 bytes
}
// What it supports, stated once: "" or why not.
const char* decode_attention_problem(int64_t n_heads, int64_t n_kv_heads, int64_t head_dim);
// What kBest is for so many sequences.
DecodeWidth decode_attention_width(KvType type, int64_t n_sequences, int64_t n_heads, int64_t n_kv_heads);
// Blocks that fill the GPU once, for n_blocks of a DecodeWork. Narrow blocks are more; kBest stands for them.
int32_t decode_attention_blocks(KvType type, int64_t n_heads, int64_t n_kv_heads, int64_t head_dim, DecodeWidth width);
// `heads`, `spans`, `positions` and the lists may be read before the kernel before this one in the stream has ended
// (cuda/overlap.cuh): it does not write them.
void decode_attention(const DecodeAttentionArgs& args, const Stream& stream);

}  // namespace polyspan::cuda
