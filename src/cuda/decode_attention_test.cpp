#include "cuda/decode_attention.h"

#include "cuda/cuda_test_util.h"

namespace polyspan::cuda {
namespace {
using namespace testing_util;

// Every slot is in one piece, pieces are in order, blocks differ by at most one alignment.
TEST(DecodeWork, CoversEverySlotOnce) {
  Random random(1);
  for (int64_t n_heads : {1, 2, 7, 64})
    for (int32_t n_blocks : {1, 3, 132, 528}) {
      std::vector<int32_t> n_slots;
      for (int64_t i = 0; i < n_heads; ++i)
        n_slots.push_back(static_cast<int32_t>(1 + random.below(i % 3 == 0 ? 40 : 9000)));
      const DecodeWork work = cut_decode_work(n_slots, 1, n_blocks);
      ASSERT_EQ(work.block_begin.size(), static_cast<size_t>(n_blocks) + 1);
      EXPECT_EQ(work.block_begin.front(), 0);
      EXPECT_EQ(work.block_begin.back(), std::ssize(work.pieces));
      EXPECT_LE(std::ssize(work.pieces), most_decode_pieces(n_heads, n_blocks));
      std::vector<int32_t> next(n_slots.size(), 0);
      for (size_t i = 0; i < work.pieces.size(); ++i) {
        const DecodePiece& piece = work.pieces[i];
        const size_t head = static_cast<size_t>(piece.sequence);
        EXPECT_EQ(piece.first_slot, next[head]);
        EXPECT_EQ(piece.first_slot % kDecodePieceAlignment, 0);
        EXPECT_GE(piece.n_slots, 1);
        next[head] += piece.n_slots;
        EXPECT_GE(static_cast<int32_t>(i), piece.first_piece);
        EXPECT_LT(static_cast<int32_t>(i), piece.first_piece + piece.n_pieces);
        EXPECT_EQ(work.pieces[static_cast<size_t>(piece.first_piece)].first_slot, 0);
      }
      EXPECT_EQ(next, n_slots);
      for (size_t block = 0; block + 1 < work.block_begin.size(); ++block)
        EXPECT_LE(work.block_begin[block], work.block_begin[block + 1]);
    }
}

// Heads of like lengths get pieces that are blocks of their own, as long as that leaves few blocks idle and blocks are short.
TEST(DecodeWork, GivesBlocksWholePieces) {
  struct Case {
    int64_t n_heads;
    int32_t n_slots, n_blocks;
    int64_t most_pieces;  // of a block
  };
  for (const Case& c : {Case{8, 16384, 132, 1},
                        {32, 4096, 132, 1},
                        {32, 4096, 528, 1},
                        {128, 4096, 132, 1},
                        {4, 1000, 132, 1},
                        {128, 16384, 132, 2},
                        {100, 4096, 132, 2},
                        {33, 5000, 32, 2}}) {
    const DecodeWork work =
        cut_decode_work(std::vector<int32_t>(static_cast<size_t>(c.n_heads), c.n_slots), 1, c.n_blocks);
    int64_t most_pieces = 0, most_slots = 0;
    for (size_t block = 0; block + 1 < work.block_begin.size(); ++block) {
      most_pieces = std::max<int64_t>(most_pieces, work.block_begin[block + 1] - work.block_begin[block]);
      int64_t slots = 0;
      for (int32_t i = work.block_begin[block]; i < work.block_begin[block + 1]; ++i)
        slots += work.pieces[static_cast<size_t>(i)].n_slots;
      most_slots = std::max(most_slots, slots);
    }
    EXPECT_EQ(most_pieces, c.most_pieces) << c.n_heads << " heads of " << c.n_slots << " in " << c.n_blocks;
    const double even = static_cast<double>(c.n_heads * c.n_slots) / c.n_blocks;
    EXPECT_LE(static_cast<double>(most_slots), std::max(64.0, 1.05 * (even + kDecodePieceAlignment)));
  }
}

struct Shape {
  int64_t n_heads, n_kv_heads, head_dim;
};

// Sequences of unlike lengths, heads of unlike spans, empty slots full of NaN.
void check_decode(KvType type, const Shape& shape, int64_t n_sink, int32_t n_blocks, uint64_t seed, double bound,
                  DecodeWidth width) {
  SCOPED_TRACE(testing::Message() << kv_type_text(type) << " heads " << shape.n_heads << "/" << shape.n_kv_heads
                                  << " of " << shape.head_dim << ", sink " << n_sink << ", blocks " << n_blocks
                                  << (width == DecodeWidth::kWide ? " wide" : " narrow") << ", seed " << seed);
  Random random(seed);
  const Stream stream;
  const int64_t d = shape.head_dim, q_dim = shape.n_heads * d;
  std::vector<HostStorage> storages;
  std::vector<SlotLayout> layouts;
  std::vector<int32_t> spans, positions, n_slots;
  std::vector<float> q, expected;
  int64_t n_sequences = 0;
  for (const int64_t n : {int64_t{1}, int64_t{17}, int64_t{64}, int64_t{65}, 300 + random.below(1200)}) {
    const TestSequence s =
        random_sequence(type, shape.n_heads, shape.n_kv_heads, d, n, n + random.below(200), n_sink, random, storages);
    layouts.insert(layouts.end(), s.layouts.begin(), s.layouts.end());
    for (const AttentionSpan& span : s.spans) spans.push_back(static_cast<int32_t>(span.span));
    positions.push_back(static_cast<int32_t>(n - 1));
    for (const SlotLayout& layout : s.layouts)
      n_slots.push_back(n <= layout.n_sink
                            ? static_cast<int32_t>(n)
                            : layout.sink_slots + std::min(layout.ring_slots, static_cast<int32_t>(n) - layout.n_sink));
    const std::vector<float> query = random.vector(q_dim, 2.0f);
    q.insert(q.end(), query.begin(), query.end());
    expected.resize(expected.size() + static_cast<size_t>(q_dim));
    span_attention_reference(
        {shape.n_heads, shape.n_kv_heads, d, 1, n - 1, query.data(), s.k.data(), s.v.data(), s.spans.data()},
        expected.data() + n_sequences * q_dim);
    ++n_sequences;
  }
  const DeviceStorages device(storages, layouts, stream);
  const DecodeWork work = cut_decode_work(n_slots, shape.n_kv_heads, n_blocks);
  const DeviceBuffer q_device = to_device(std::span<const float>(q), "a test", stream),
                     spans_device = to_device(std::span<const int32_t>(spans), "a test", stream);
  const DeviceBuffer positions_device = to_device(std::span<const int32_t>(positions), "a test", stream);
  const DeviceBuffer begin = to_device(std::span<const int32_t>(work.block_begin), "a test", stream),
                     pieces = to_device(std::span<const DecodePiece>(work.pieces), "a test", stream);
  PoisonedDevice partials(std::ssize(work.pieces) * decode_partial_floats(shape.n_heads, shape.n_kv_heads, d), stream);
  DeviceBuffer counters(n_sequences * shape.n_heads * 4, "a test");
  fill_bytes(counters.data(), 0, counters.size_bytes(), stream);
  const auto attend = [&](float* out) {
    decode_attention({.type = type,
                      .n_sequences = n_sequences,
                      .n_heads = shape.n_heads,
                      .n_kv_heads = shape.n_kv_heads,
                      .head_dim = d,
                      .q = q_device.as<float>(),
                      .heads = device.views.as<KvHeadView>(),
                      .spans = spans_device.as<int32_t>(),
                      .positions = positions_device.as<int32_t>(),
                      .block_begin = begin.as<int32_t>(),
                      .pieces = pieces.as<DecodePiece>(),
                      .n_blocks = n_blocks,
                      .width = width,
                      .partials = partials.data(),
                      .counters = counters.as<int32_t>(),
                      .out_type = ActivationType::kF32,
                      .out = out},
                     stream);
  };
  // The second and the third follow the first without a wait, with its partials and counters: the same to the bit.
  PoisonedDevice outs[] = {{n_sequences * q_dim, stream}, {n_sequences * q_dim, stream}, {n_sequences * q_dim, stream}};
  for (PoisonedDevice& out : outs) attend(out.data());
  const std::vector<float> first = outs[0].values();
  EXPECT_LT(error_norm(first, expected), bound);
  for (PoisonedDevice& out : outs) {
    const std::vector<float> actual = out.values();
    EXPECT_EQ(std::memcmp(actual.data(), first.data(), actual.size() * 4), 0) << "not repeatable";
  }
  partials.values();
}

TEST(DecodeAttention, MatchesReference) {
  POLYSPAN_NEEDS_GPU();
  uint64_t seed = 100;
  for (const KvType type : kCudaKvTypes)
    for (const Shape& shape : {Shape{4, 4, 128}, Shape{8, 2, 128}, Shape{6, 3, 64}, Shape{3, 3, 64}, Shape{14, 2, 64},
                               Shape{10, 1, 128}, Shape{6, 2, 128}})
      for (const int64_t n_sink : {0, 4, 64})
        for (const int32_t n_blocks : {1, 5, 132})
          for (const DecodeWidth width : {DecodeWidth::kNarrow, DecodeWidth::kWide})
            check_decode(type, shape, n_sink, n_blocks, ++seed, 2e-5, width);
}

TEST(DecodeAttention, FillsTheGpu) {
  POLYSPAN_NEEDS_GPU();
  for (const KvType type : kCudaKvTypes)
    for (const Shape& shape : {Shape{32, 32, 128}, Shape{32, 8, 128}, Shape{14, 2, 64}})
      EXPECT_GE(decode_attention_blocks(type, shape.n_heads, shape.n_kv_heads, shape.head_dim, DecodeWidth::kBest),
                2 * select_device(0).n_multiprocessors)
          << kv_type_text(type);
}

}  // namespace
}  // namespace polyspan::cuda
