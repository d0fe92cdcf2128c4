#include <algorithm>

#include "core/error.h"
#include "cuda/decode_attention.h"

namespace polyspan::cuda {
namespace {

// Of a block: below that, combining pieces costs more than reading their slots.
constexpr int64_t kLeastSlots = 64;
// A second piece costs a block 3 to 4 us on an H100 (its first keys are waited for once more): up to so many slots a block more than
// blocks that go unused.
constexpr int64_t kMostWholeSlots = 4096;

// The least share, a multiple of the alignment, at which every head can be cut into whole shares for n_blocks; 0: above `most`.
int64_t whole_share(std::span<const int32_t> n_slots, int64_t least, int64_t most, int32_t n_blocks) {
  for (int64_t share = least; share <= most; share += kDecodePieceAlignment) {
    int64_t n_pieces = 0;
    for (const int32_t n : n_slots) n_pieces += (n + share - 1) / share;
    if (n_pieces <= n_blocks) return share;
  }
  return 0;
}

}  // namespace

DecodeWork cut_decode_work(std::span<const int32_t> n_slots, int64_t n_kv_heads, int32_t n_blocks) {
  POLYSPAN_CHECK(n_blocks >= 1 && n_kv_heads >= 1);
  int64_t total = 0;
  for (const int32_t n : n_slots) total += round_up_to(n, kDecodePieceAlignment);
  const int64_t share =
      std::max<int64_t>(kLeastSlots, round_up_to((total + n_blocks - 1) / n_blocks, kDecodePieceAlignment));
  const int64_t whole = share <= kMostWholeSlots ? whole_share(n_slots, share, share * 21 / 20, n_blocks) : 0;
  DecodeWork work;
  work.block_begin.push_back(0);
  int64_t room = share;  // of the block
  const auto end_block = [&] {
    work.block_begin.push_back(static_cast<int32_t>(work.pieces.size()));
    room = share;
  };
  for (size_t head = 0; head < n_slots.size(); ++head) {
    const int32_t first_piece = static_cast<int32_t>(work.pieces.size());
    // Pieces of one size where they are blocks of their own, else what is left of the block.
    const int64_t n_whole = whole == 0 ? 0 : (n_slots[head] + whole - 1) / whole;
    for (int32_t at = 0, index = 0; at < n_slots[head]; ++index) {
      const int64_t left = n_slots[head] - at;
      const int64_t size = whole == 0 ? room : round_up_to((left - 1) / (n_whole - index) + 1, kDecodePieceAlignment);
      const int32_t n = static_cast<int32_t>(std::min(size, left));
      work.pieces.push_back({static_cast<int32_t>(static_cast<int64_t>(head) / n_kv_heads),
                             static_cast<int32_t>(static_cast<int64_t>(head) % n_kv_heads), at, n, first_piece, 0});
      at += n;
      room -= round_up_to(n, kDecodePieceAlignment);
      if (whole != 0 || room == 0) end_block();
    }
    const int32_t end = static_cast<int32_t>(work.pieces.size());
    for (int32_t i = first_piece; i < end; ++i) work.pieces[static_cast<size_t>(i)].n_pieces = end - first_piece;
  }
  if (whole == 0 && room != share) end_block();
  POLYSPAN_CHECK(static_cast<int32_t>(work.block_begin.size()) <= n_blocks + 1);
  work.block_begin.resize(static_cast<size_t>(n_blocks) + 1, static_cast<int32_t>(work.pieces.size()));
  return work;
}

}  // namespace polyspan::cuda
