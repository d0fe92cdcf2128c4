// Span attention over scattered KV storages against the masked reference in double, which sees the keys and values as
// the cache rounds them: what is left is the rounding of float sums, of exp, and, for q8, of the query to 15 bits.
#include "ops/span_attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "ops/kv_test_util.h"
#include "ops/test_util.h"

namespace polyspan {
namespace {
using namespace testing_util;

struct AttentionCase {
  KvType type = KvType::kF16;
  int64_t n_positions = 1, n_rows = 1;  // the queries are the last n_rows of n_positions
  int64_t n_kv_heads = 2, n_rep = 3, head_dim = 64;
  int64_t span = 1, n_sink = 0;
  bool mixed_spans = false;  // heads of a group: span, half of it, 1, ...
  uint64_t seed = 1;
  std::string describe() const {
    std::ostringstream out;
    out << kv_type_text(type) << " n_positions " << n_positions << " n_rows " << n_rows << " n_kv_heads " << n_kv_heads
        << " n_rep " << n_rep << " head_dim " << head_dim << " span " << span << " n_sink " << n_sink << " mixed_spans "
        << mixed_spans << " seed " << seed;
    return out.str();
  }
};

// The inputs of one sequence, its storages (garbage but for the runs) and the expected output.
struct SequenceData {
  AttentionCase c;
  std::vector<float> q, k, v, expected;  // q as the op takes it: scaled
  std::vector<AttentionSpan> spans;
  std::vector<std::vector<std::byte>> storages;
  std::vector<AttentionHead> heads;
  AttentionSequence sequence;

  explicit SequenceData(const AttentionCase& config) : c(config) {
    Random random(c.seed);
    const int64_t n_heads = c.n_kv_heads * c.n_rep;
    k = random.vector(c.n_positions * c.n_kv_heads * c.head_dim);
    v = random.vector(c.n_positions * c.n_kv_heads * c.head_dim);
    std::vector<float> plain_q = random.vector(c.n_rows * n_heads * c.head_dim, 4.0f);
    for (int64_t head = 0; head < n_heads; ++head) {
      const int64_t divisor = !c.mixed_spans ? 1 : head % c.n_rep == 0 ? 1 : head % c.n_rep == 1 ? 2 : c.span;
      spans.push_back({std::max<int64_t>(1, c.span / divisor), c.n_sink});
    }
    for (int64_t kv_head = 0; kv_head < c.n_kv_heads; ++kv_head) make_storages(kv_head, random);
    round_rows(k);
    round_rows(v);
    expected.resize(plain_q.size());
    const int64_t first = c.n_positions - c.n_rows;
    span_attention_reference(
        {n_heads, c.n_kv_heads, c.head_dim, c.n_rows, first, plain_q.data(), k.data(), v.data(), spans.data()},
        expected.data());
    q = plain_q;
    for (float& value : q) value /= std::sqrt(static_cast<float>(c.head_dim));
    for (AttentionHead& head : heads) head.spans = spans.data() + (&head - heads.data()) * c.n_rep;
    sequence = {0, c.n_rows, first, heads.data()};
  }

  // Positions [0, sink) and from the oldest that a query sees, cut at random into up to four runs of random places in
  // two storages; a run's neighbours in its tiles are garbage.
  void make_storages(int64_t kv_head, Random& random) {
    const int64_t n = c.n_positions, sink = std::min(c.n_sink, n);
    const int64_t oldest = std::max(sink, n - c.n_rows - c.span + 1);
    std::vector<std::pair<int64_t, int64_t>> ranges;
    if (sink > 0) ranges.push_back({0, sink});
    std::vector<int64_t> cuts = {oldest, n};
    for (size_t i = ranges.size(); i < 3; ++i) cuts.push_back(oldest + random.below(n - oldest + 1));
    std::sort(cuts.begin(), cuts.end());
    for (size_t i = 0; i + 1 < cuts.size(); ++i)
      if (cuts[i] < cuts[i + 1]) ranges.push_back({cuts[i], cuts[i + 1]});
    const int64_t padded = kv_head_dim_padded(c.head_dim);
    std::vector<KvRun> runs;
    int64_t used[2] = {random.below(20), random.below(40)};
    for (const auto& [begin, end] : ranges) {
      const size_t which = random.next() % 2;
      runs.push_back({nullptr, static_cast<int64_t>(which), used[which], begin, end - begin});
      used[which] += end - begin + random.below(20);
    }
    for (size_t which = 0; which < 2; ++which) {
      const int64_t capacity = round_up_to(used[which] + 1, kTileSlots);
      std::vector<std::byte>& storage =
          storages.emplace_back(static_cast<size_t>(kv_storage_bytes(c.type, padded, capacity)));
      fill_garbage(c.type, padded, capacity, random, storage.data());
      for (KvRun& run : runs) {
        if (run.storage != nullptr || run.capacity != static_cast<int64_t>(which)) continue;
        run.capacity = capacity;
        run.storage = storage.data();
        for (int64_t i = 0; i < run.n_keys; ++i) {
          const int64_t at = ((run.first_position + i) * c.n_kv_heads + kv_head) * c.head_dim;
          kernels().write_kv_slot(c.type, k.data() + at, v.data() + at, c.head_dim, padded, capacity,
                                  run.first_slot + i, storage.data());
        }
      }
    }
    AttentionHead head;
    head.n_runs = std::ssize(runs);
    std::copy(runs.begin(), runs.end(), head.runs.begin());
    heads.push_back(head);
  }
  void round_rows(std::vector<float>& rows) const {
    for (auto at = rows.begin(); at != rows.end(); at += c.head_dim) {
      const std::vector<float> row = round_as(c.type, {at, at + c.head_dim});
      std::copy(row.begin(), row.end(), at);
    }
  }
};

void run_attention(SpanAttention& attention, const AttentionCase& c, std::span<const AttentionSequence> sequences,
                   const float* q, float* out, OpContext& context) {
  attention.run({c.type, c.n_kv_heads * c.n_rep, c.n_kv_heads, c.head_dim, q, out, sequences}, context);
}

// |score| is up to some 10, so its float rounding makes 1e-6 of a weight. q8 rounds the query to 1 part in 32,512 of
// its largest, a score by 1e-4 at most, and weights to 1 part in 130,560 of the largest, up to 512 of them in one sum
// (random signs: 23 times that). Values are below 1.
double tolerance_of(KvType type) { return type == KvType::kQ8 ? 2e-4 : 5e-6; }

struct TwoContexts {
  OpContext one{1}, two{2};
};

void check(const AttentionCase& c, TwoContexts& contexts) {
  SCOPED_TRACE(c.describe());
  for_each_isa([&] {
    const SequenceData data(c);
    SpanAttention attention;
    Poisoned out(std::ssize(data.q)), again(std::ssize(data.q));
    run_attention(attention, c, std::span(&data.sequence, 1), data.q.data(), out.data(), contexts.one);
    ASSERT_NO_FATAL_FAILURE(expect_close(out.values(), data.expected, [&](size_t) { return tolerance_of(c.type); }));
    run_attention(attention, c, std::span(&data.sequence, 1), data.q.data(), again.data(), contexts.two);
    ASSERT_NO_FATAL_FAILURE(expect_same_bits(again.values(), out.values()));
  });
}

// The other parameters go round with a counter, in steps that share no factor with the lists' lengths.
class CaseMaker {
 public:
  AttentionCase make(int64_t n_positions, int64_t n_rows, int64_t span) {
    AttentionCase c{.n_positions = n_positions, .n_rows = n_rows, .span = std::max<int64_t>(1, span)};
    const size_t i = count_++;
    c.type = kKvTypes[i % 3];
    c.n_sink = std::array{0, 1, 4, 64, 20}[i % 5];
    c.n_rep = std::array{1, 2, 3, 7, 8, 9, 4}[i % 7];
    c.head_dim = std::array{64, 16, 20, 80, 128, 2, 64, 48, 96, 17, 32}[i % 11];
    c.n_kv_heads = 1 + static_cast<int64_t>(i / 2 % 2);
    c.mixed_spans = i / 3 % 2 == 0;
    c.seed = i + 1;
    return c;
  }

 private:
  size_t count_ = 0;
};

TEST(SpanAttention, DecodeMatchesReference) {
  CaseMaker maker;
  TwoContexts contexts;
  for (const int64_t n : {1, 2, 15, 16, 17, 63, 64, 65, 127, 130, 511, 512, 513, 600, 1100})  // pieces of 512 keys
    for (const int64_t span : {int64_t{1}, int64_t{16}, int64_t{63}, int64_t{64}, int64_t{65}, n - 1, n, n + 5}) {
      check(maker.make(n, 1, span), contexts);
      if (HasFatalFailure()) return;
    }
}

TEST(SpanAttention, PrefillMatchesReference) {
  CaseMaker maker;
  TwoContexts contexts;
  for (const int64_t n : {2, 15, 17, 63, 64, 65, 130, 600})
    for (const int64_t n_rows : {2, 31, 33, 97})
      for (const int64_t span : {int64_t{1}, int64_t{16}, int64_t{63}, int64_t{64}, int64_t{65}, n - 1, n, n + 5}) {
        if (n_rows > n) continue;
        check(maker.make(n, n_rows, span), contexts);
        if (HasFatalFailure()) return;
      }
  for (const int64_t n : {31, 97}) check(maker.make(n, n, 40), contexts);  // no past
}

// Every number of query heads a KV head has in known models, in every cache type: decode takes eight at once.
TEST(SpanAttention, EveryGroupSize) {
  TwoContexts contexts;
  for (const KvType type : kKvTypes)
    for (int64_t n_rep = 1; n_rep <= 17; ++n_rep)
      for (const int64_t n_rows : {1, 9}) {
        check({.type = type,
               .n_positions = 75,
               .n_rows = n_rows,
               .n_rep = n_rep,
               .head_dim = 80,
               .span = 40,
               .n_sink = 4,
               .mixed_spans = true,
               .seed = static_cast<uint64_t>(n_rep)},
              contexts);
        if (HasFatalFailure()) return;
      }
}

// Decode and prefill of many sequences at once equal each alone, to the bit, whatever stands beside them.
TEST(SpanAttention, BatchEqualsEachAlone) {
  for (const KvType type : kKvTypes)
    for (const int64_t head_dim : {64, 20}) {  // 20 is padded
      AttentionCase c{.type = type, .n_kv_heads = 2, .n_rep = 3, .head_dim = head_dim, .span = 60, .n_sink = 4};
      for_each_isa([&] {
        SCOPED_TRACE(c.describe());
        std::vector<SequenceData> all;
        const std::pair<int64_t, int64_t> lengths[] = {{40, 1},  {600, 33}, {1, 1},  {130, 1},
                                                       {97, 97}, {2, 2},    {700, 1}};
        for (const auto& [n_positions, n_rows] : lengths) {
          AttentionCase one = c;
          one.n_positions = n_positions, one.n_rows = n_rows, one.seed = static_cast<uint64_t>(n_positions);
          one.span = n_positions == 700 ? 690 : c.span;  // several pieces
          all.emplace_back(one);
        }
        std::vector<float> q;
        std::vector<AttentionSequence> sequences;
        const int64_t row_floats = c.n_kv_heads * c.n_rep * head_dim;
        for (SequenceData& data : all) {
          data.sequence.heads = data.heads.data();  // the vector may have moved
          for (AttentionHead& head : data.heads) head.spans = data.spans.data() + (&head - data.heads.data()) * c.n_rep;
          sequences.push_back(data.sequence);
          sequences.back().first_row = std::ssize(q) / row_floats;
          q.insert(q.end(), data.q.begin(), data.q.end());
        }
        for (const int n_threads : {1, 2}) {
          OpContext context(n_threads);
          SpanAttention attention;
          Poisoned together(std::ssize(q));
          run_attention(attention, c, sequences, q.data(), together.data(), context);
          for (size_t i = 0; i < all.size(); ++i) {
            SCOPED_TRACE(testing::Message() << "sequence " << i << " threads " << n_threads);
            Poisoned alone(std::ssize(all[i].q));
            run_attention(attention, c, std::span(&all[i].sequence, 1), all[i].q.data(), alone.data(), context);
            ASSERT_NO_FATAL_FAILURE(expect_same_bits(
                together.values().subspan(static_cast<size_t>(sequences[i].first_row * row_floats), all[i].q.size()),
                alone.values()));
          }
        }
      });
      if (HasFatalFailure()) return;
    }
}

// Keys, values and queries from nothing to the smallest floats: whatever is scaled to 8 bits must not divide by them.
TEST(SpanAttention, TinyNumbers) {
  TwoContexts contexts;
  for (const KvType type : kKvTypes)
    for (const float scale : {0.0f, 1e-45f, 1e-40f, 1e-36f, 1e-33f, 1e-31f})
      for (const int64_t n_rows : {1, 3}) {
        AttentionCase c{
            .type = type, .n_positions = 20, .n_rows = n_rows, .n_kv_heads = 1, .n_rep = 1, .head_dim = 16, .span = 20};
        for_each_isa([&] {
          SCOPED_TRACE(testing::Message() << c.describe() << " scale " << scale);
          SequenceData data(c);
          Random random(4);
          const KvRun run = data.heads[0].runs[0];
          for (int64_t slot = run.first_slot; slot < run.first_slot + run.n_keys; ++slot) {
            const std::vector<float> k = random.vector(16, scale), v = random.vector(16, scale);
            kernels().write_kv_slot(type, k.data(), v.data(), 16, 16, run.capacity, slot,
                                    const_cast<std::byte*>(run.storage));
          }
          data.heads[0].n_runs = 1;
          data.heads[0].spans = data.spans.data();
          for (float& value : data.q) value *= scale;
          SpanAttention attention;
          Poisoned out(std::ssize(data.q));
          data.sequence.first_position = run.first_position + run.n_keys - n_rows;
          run_attention(attention, c, std::span(&data.sequence, 1), data.q.data(), out.data(), contexts.one);
          for (const float value : out.values()) ASSERT_LE(std::abs(value), scale + 1e-30f);
        });
        if (HasFatalFailure()) return;
      }
}

// A key that a head may not see has no influence to the bit: neither its value nor its key, however large.
TEST(SpanAttention, InvisibleKeysHaveNoInfluence) {
  TwoContexts contexts;
  for (const KvType type : kKvTypes)
    for (const int64_t n_rows : {1, 20}) {
      AttentionCase c{.type = type,
                      .n_positions = 100,
                      .n_rows = n_rows,
                      .n_kv_heads = 1,
                      .n_rep = 2,
                      .head_dim = 64,
                      .span = 30,
                      .n_sink = 4};
      for_each_isa([&] {
        SCOPED_TRACE(c.describe());
        // One storage with every position, seen or not.
        std::vector<std::byte> storage(static_cast<size_t>(kv_storage_bytes(type, 64, 112)));
        Random random(5);
        const std::vector<float> q = random.vector(n_rows * 128);
        const std::vector<AttentionSpan> spans(2, {c.span, c.n_sink});
        std::vector<float> first_out;
        for (const float outside : {1.0f, 500.0f}) {
          Random again(6);
          for (int64_t position = 0; position < 112; ++position) {
            std::vector<float> k = again.vector(64), v = again.vector(64);
            const bool seen = position < 4 || (position > 100 - n_rows - 30 && position < 100);
            for (float& value : k) value *= seen ? 1.0f : outside;
            for (float& value : v) value *= seen ? 1.0f : outside;
            kernels().write_kv_slot(type, k.data(), v.data(), 64, 64, 112, position, storage.data());
          }
          AttentionHead head;
          head.n_runs = 1;
          head.runs[0] = {storage.data(), 112, 0, 0, 100};
          head.spans = spans.data();
          const AttentionSequence sequence{0, n_rows, 100 - n_rows, &head};
          Poisoned out(n_rows * 128);
          SpanAttention attention;
          run_attention(attention, c, std::span(&sequence, 1), q.data(), out.data(), contexts.two);
          if (first_out.empty()) first_out.assign(out.values().begin(), out.values().end());
          ASSERT_NO_FATAL_FAILURE(expect_same_bits(out.values(), first_out));
        }
      });
      if (HasFatalFailure()) return;
    }
}

}  // namespace
}  // namespace polyspan
