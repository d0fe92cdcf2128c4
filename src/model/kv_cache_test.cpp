#include "model/kv_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "core/error.h"
#include "ops/kv_test_util.h"

namespace polyspan {
namespace {
using namespace testing_util;

ModelConfig small_config() {
  ModelConfig config;
  config.n_layers = 2, config.n_heads = 6, config.n_kv_heads = 2, config.head_dim = 20;
  return config;
}

// Every layer's KV heads with spans of their own; every query head sees what its KV head keeps, or less.
SpanPlan plan_of_spans(const ModelConfig& config, std::vector<int64_t> query_spans, int64_t n_sink) {
  std::vector<std::vector<SpanRule>> rules(static_cast<size_t>(config.n_layers));
  size_t next = 0;
  for (auto& row : rules)
    for (int64_t head = 0; head < config.n_heads; ++head)
      row.push_back({static_cast<double>(query_spans[next++ % query_spans.size()]), 0.0});
  return SpanPlan::from_rules(config.head_shape(), rules, /*per_query_head=*/true, n_sink);
}

TEST(KvLayout, SlotsFollowThePlan) {
  const ModelConfig config = small_config();
  for (const KvType type : kKvTypes)
    for (const int64_t n_sink : {0, 1, 4, 16, 64, 1000})
      for (const int64_t length : {1, 3, 63, 64, 65, 200, 1000}) {
        SCOPED_TRACE(testing::Message() << kv_type_text(type) << " n_sink " << n_sink << " length " << length);
        const SpanPlan plan = plan_of_spans(config, {64, 65, 100, 300, 5000}, n_sink);
        const SpanTable table = plan.spans(length);
        const KvLayout layout(config, plan, length, type);
        ASSERT_EQ(std::ssize(layout.heads), config.n_layers * config.n_kv_heads);
        ASSERT_EQ(std::ssize(layout.spans), config.n_layers * config.n_heads);
        int64_t end = 0;
        for (int64_t layer = 0; layer < config.n_layers; ++layer)
          for (int64_t kv_head = 0; kv_head < config.n_kv_heads; ++kv_head) {
            const KvHeadLayout& head = layout.head(layer, kv_head);
            const int64_t span = table.kv_head_spans[static_cast<size_t>(layer)][static_cast<size_t>(kv_head)];
            EXPECT_EQ(head.n_sink, std::min(n_sink, length));
            // Enough, and less than a tile more than needed, of each part.
            const int64_t ring = std::min(span, length - head.n_sink);
            EXPECT_TRUE(head.ring_slots >= ring && head.ring_slots < ring + 16 && head.ring_slots % 16 == 0)
                << head.ring_slots;
            EXPECT_TRUE(head.sink_slots >= head.n_sink && head.sink_slots < head.n_sink + 16 &&
                        head.sink_slots % 16 == 0);
            EXPECT_EQ(head.offset % 64, 0);
            EXPECT_GE(head.offset, end) << "heads overlap";
            end = head.offset + kv_storage_bytes(type, kv_head_dim_padded(config.head_dim), head.capacity());
            for (int64_t r = 0; r < 3; ++r) {
              const AttentionSpan& seen = layout.head_spans(layer, kv_head)[r];
              EXPECT_EQ(seen.span,
                        table.query_head_spans[static_cast<size_t>(layer)][static_cast<size_t>(3 * kv_head + r)]);
              EXPECT_EQ(seen.n_sink_tokens, n_sink);
            }
            // The positions that must be kept at any moment are in different slots.
            for (int64_t last = 0; last < length; last += 13) {
              std::set<int64_t> slots;
              int64_t n_kept = 0;
              for (int64_t position = 0; position <= last; ++position) {
                if (position >= n_sink && position <= last - span) continue;
                slots.insert(head.slot(position));
                ++n_kept;
              }
              ASSERT_EQ(std::ssize(slots), n_kept) << "two positions in one slot, last " << last;
              ASSERT_TRUE(*slots.begin() >= 0 && *slots.rbegin() < head.capacity()) << "last " << last;
            }
          }
        EXPECT_GE(layout.bytes, end);
        EXPECT_LT(layout.bytes, end + 64);
      }
}

// A uniform plan costs its density of the dense cache, within the rounding of sink and ring to 16 slots.
TEST(KvLayout, BytesFollowTheDensity) {
  ModelConfig config = small_config();
  config.head_dim = 64;
  for (const KvType type : kKvTypes)
    for (const int64_t length : {512, 1000, 4096})
      for (const double density : {0.25, 0.5, 0.75, 1.0}) {
        SCOPED_TRACE(testing::Message() << kv_type_text(type) << " length " << length << " density " << density);
        const KvLayout dense(config, SpanPlan::dense(config.head_shape()), length, type);
        const KvLayout sparse(config, SpanPlan::uniform(config.head_shape(), density), length, type);
        const int64_t slot_bytes = kv_storage_bytes(type, 64, 16) / 16;
        EXPECT_EQ(slot_bytes, type == KvType::kQ8 ? 136 : 256);
        const int64_t rounding = 4 * 32 * slot_bytes;  // four KV heads, two parts each
        EXPECT_NEAR(static_cast<double>(sparse.bytes), density * static_cast<double>(dense.bytes),
                    static_cast<double>(rounding));
        EXPECT_NEAR(static_cast<double>(dense.bytes), static_cast<double>(4 * length * slot_bytes),
                    static_cast<double>(rounding));
      }
}

TEST(KvLayout, SlidingWindowBoundsEverySpan) {
  ModelConfig config = small_config();
  config.sliding_window = 100;
  const KvLayout own(config, config.default_plan(), 1000, KvType::kF16);
  for (const AttentionSpan& span : own.spans) EXPECT_TRUE(span.span == 100 && span.n_sink_tokens == 0);
  for (const KvHeadLayout& head : own.heads) EXPECT_TRUE(head.ring_slots == 112 && head.sink_slots == 0);
  const KvLayout planned(config, SpanPlan::dense(config.head_shape()), 1000, KvType::kF16);
  for (const AttentionSpan& span : planned.spans) EXPECT_EQ(span.span, 100);
}

// add_runs at every moment of a cache's life against brute force: it covers every position that a query from
// first_query on sees, each once, in the slot where the layout put it, and where that position still is.
TEST(KvCache, RunsCoverWhatIsVisible) {
  ModelConfig config = small_config();
  config.n_layers = 1;
  for (const int64_t n_sink : {0, 1, 4, 16, 64})
    for (const int64_t length : {1, 40, 65, 150, 400}) {
      const SpanPlan plan = plan_of_spans(config, {64, 70, 64, 100, 64, 81}, n_sink);
      KvCache cache(KvLayout(config, plan, length, KvType::kF16));
      for (int64_t kv_head = 0; kv_head < 2; ++kv_head) {
        const KvHeadLayout& layout = cache.layout().head(0, kv_head);
        const AttentionSpan* spans = cache.layout().head_spans(0, kv_head);
        std::map<int64_t, int64_t> position_in_slot;
        for (int64_t n = 1; n <= length; ++n) {  // positions [0, n) are written
          position_in_slot[layout.slot(n - 1)] = n - 1;
          for (const int64_t first_query : {n - 1, n}) {  // the last position's own query; the next one's
            SCOPED_TRACE(testing::Message() << "n_sink " << n_sink << " length " << length << " kv_head " << kv_head
                                            << " n " << n << " first_query " << first_query);
            AttentionHead head;
            cache.add_runs(0, kv_head, first_query, n, head);
            ASSERT_LE(head.n_runs, AttentionHead::kMaxRuns - 1);  // one is left for the chunk
            std::set<int64_t> covered;
            for (int64_t i = 0; i < head.n_runs; ++i) {
              const KvRun& run = head.runs[static_cast<size_t>(i)];
              ASSERT_TRUE(run.storage == cache.storage(0, kv_head) && run.capacity == layout.capacity() &&
                          run.n_keys > 0);
              for (int64_t key = 0; key < run.n_keys; ++key) {
                ASSERT_EQ(position_in_slot[run.first_slot + key], run.first_position + key) << "overwritten";
                ASSERT_TRUE(covered.insert(run.first_position + key).second) << "twice";
              }
            }
            for (int64_t position = 0; position < n; ++position)
              for (int64_t r = 0; r < 3; ++r)
                ASSERT_TRUE(covered.contains(position) ||
                            (position >= n_sink && first_query - position >= spans[r].span))
                    << "position " << position << " is missing";
          }
        }
      }
    }
}

// Where can_write_first says so, writing n tokens leaves all that their queries may see.
TEST(KvCache, WritingFirstLosesNothing) {
  ModelConfig config = small_config();
  config.n_layers = 1;
  const int64_t length = 300;
  for (const int64_t n_sink : {0, 4, 64}) {
    const SpanPlan plan = plan_of_spans(config, {64, 70, 100}, n_sink);
    KvCache cache(KvLayout(config, plan, length, KvType::kF16));
    const KvHeadLayout& layout = cache.layout().head(0, 0);
    int64_t n_allowed = 0;
    for (int64_t position = 0; position < length; position += 7)
      for (const int64_t n : {1, 2, 17, 40, 100}) {
        if (position + n > length || !cache.can_write_first(0, 0, position, n)) continue;
        SCOPED_TRACE(testing::Message() << "n_sink " << n_sink << " position " << position << " n " << n);
        ++n_allowed;
        std::map<int64_t, int64_t> position_in_slot;
        for (int64_t p = 0; p < position + n; ++p) position_in_slot[layout.slot(p)] = p;
        for (int64_t p = 0; p < position + n; ++p)  // the first query sees furthest back
          ASSERT_TRUE(position_in_slot[layout.slot(p)] == p || (p >= n_sink && position - p >= 100)) << p;
      }
    EXPECT_GT(n_allowed, 50);
  }
}

TEST(KvCache, AdvanceAndClear) {
  const ModelConfig config = small_config();
  KvCache cache(KvLayout(config, SpanPlan::dense(config.head_shape()), 100, KvType::kQ8));
  EXPECT_EQ(cache.max_tokens(), 100);
  EXPECT_EQ(cache.n_tokens(), 0);
  cache.advance(60);
  cache.advance(1);
  EXPECT_EQ(cache.n_tokens(), 61);
  EXPECT_EQ(cache.bytes(), cache.layout().bytes);
  cache.clear();
  EXPECT_EQ(cache.n_tokens(), 0);
}

TEST(KvCache, TooLargeIsAnErrorBeforeAnythingIsTaken) {
  ModelConfig config = small_config();
  config.head_dim = 512;
  try {
    KvCache cache(KvLayout(config, SpanPlan::dense(config.head_shape()), int64_t{1} << 31, KvType::kF16));
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kOutOfMemory);
    const std::string message = error.what();
    EXPECT_NE(message.find("a f16 KV cache for 2147483648 tokens needs 17592186044416 bytes"), std::string::npos)
        << message;
    EXPECT_NE(message.find("are available"), std::string::npos) << message;
  }
}

TEST(KvCache, F8IsForGpus) {
  const ModelConfig config = small_config();
  const KvLayout layout(config, SpanPlan::dense(config.head_shape()), 100, KvType::kF8);
  EXPECT_EQ(2 * layout.bytes, KvLayout(config, SpanPlan::dense(config.head_shape()), 100, KvType::kF16).bytes);
  try {
    KvCache cache(layout);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUnsupported);
    EXPECT_NE(std::string(error.what()).find("--device cuda"), std::string::npos) << error.what();
  }
}

TEST(KvType, NamesReadBack) {
  for (const KvType type : {KvType::kF16, KvType::kBF16, KvType::kQ8, KvType::kF8})
    EXPECT_EQ(kv_type_by_name(kv_type_name(type)), type);
  for (const char* name : {"", "F16", "f32", "q4"}) {
    try {
      kv_type_by_name(name);
      FAIL() << name;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      EXPECT_EQ(std::string(error.what()),
                "cache type \"" + std::string(name) + "\" is not known; wanted f16, bf16, q8 or f8");
    }
  }
}

TEST(CopyKvSlot, CopiesOneSlotAndNoOther) {
  for (const KvType type : kKvTypes)
    for (const int64_t padded : {16, 32, 80})
      for (const auto& [from_slot, to_slot] : {std::pair<int64_t, int64_t>{0, 0}, {5, 31}, {31, 2}, {17, 16}}) {
        SCOPED_TRACE(testing::Message() << kv_type_text(type) << " padded " << padded << " slots " << from_slot << " "
                                        << to_slot);
        Random random(9);
        constexpr int64_t kFrom = 32, kTo = 48;
        std::vector<std::byte> from(static_cast<size_t>(kv_storage_bytes(type, padded, kFrom)));
        std::vector<std::byte> to(static_cast<size_t>(kv_storage_bytes(type, padded, kTo)));
        fill_garbage(type, padded, kFrom, random, from.data());
        fill_garbage(type, padded, kTo, random, to.data());
        const std::vector<std::byte> before = to;
        copy_kv_slot(type, padded, from.data(), kFrom, from_slot, to.data(), kTo, to_slot);
        for (const bool is_value : {false, true})
          for (int64_t slot = 0; slot < kTo; ++slot)
            for (int64_t i = 0; i < padded; ++i)
              ASSERT_EQ(read_slot(type, padded, kTo, to.data(), slot, i, is_value),
                        slot == to_slot ? read_slot(type, padded, kFrom, from.data(), from_slot, i, is_value)
                                        : read_slot(type, padded, kTo, before.data(), slot, i, is_value))
                  << "value " << is_value << " slot " << slot << " channel " << i;
      }
}

}  // namespace
}  // namespace polyspan
