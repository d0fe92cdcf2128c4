#include <algorithm>

#include "core/error.h"
#include "cuda/decode_attention.h"

namespace polyspan::cuda {
namespace {

// Of a block: below that, combining pieces costs more than reading their slots.
constexpr int64_t kLeastSlots = 64;

}  // namespace

DecodeWork cut_decode_work(std::span<const int32_t> n_slots, int64_t n_kv_heads, int32_t n_blocks) {
  POLYSPAN_CHECK(n_blocks >= 1 && n_kv_heads >= 1);
  int64_t total = 0;
  for (const int32_t n : n_slots) total += round_up_to(n, kDecodePieceAlignment);
  const int64_t share =
      std::max<int64_t>(kLeastSlots, round_up_to((total + n_blocks - 1) / n_blocks, kDecodePieceAlignment));
  DecodeWork work;
  work.block_begin.push_back(0);
  int64_t room = share;
  for (size_t head = 0; head < n_slots.size(); ++head) {
    const int32_t first_piece = static_cast<int32_t>(work.pieces.size());
    for (int32_t at = 0; at < n_slots[head];) {
      const int32_t n = static_cast<int32_t>(std::min<int64_t>(room, n_slots[head] - at));
      work.pieces.push_back({static_cast<int32_t>(static_cast<int64_t>(head) / n_kv_heads),
                             static_cast<int32_t>(static_cast<int64_t>(head) % n_kv_heads), at, n, first_piece, 0});
      at += n;
      room -= round_up_to(n, kDecodePieceAlignment);
      if (room == 0) {
        work.block_begin.push_back(static_cast<int32_t>(work.pieces.size()));
        room = share;
      }
    }
    const int32_t end = static_cast<int32_t>(work.pieces.size());
    for (int32_t i = first_piece; i < end; ++i) work.pieces[static_cast<size_t>(i)].n_pieces = end - first_piece;
  }
  if (room != share) work.block_begin.push_back(static_cast<int32_t>(work.pieces.size()));
  POLYSPAN_CHECK(static_cast<int32_t>(work.block_begin.size()) <= n_blocks + 1);
  work.block_begin.resize(static_cast<size_t>(n_blocks) + 1, static_cast<int32_t>(work.pieces.size()));
  return work;
}

}  // namespace polyspan::cuda
