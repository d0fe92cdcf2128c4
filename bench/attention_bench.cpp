// Span attention of SmolLM2-135M's shape: 9 heads on 3 KV heads of 64. Decode, one query over 1,920 and 7,680 keys,
// bound by reading the cache; prefill, a chunk of 512 queries at the end of a context, bound by multiply-adds.
#include <algorithm>

#include "bench_util.h"
#include "ops/span_attention.h"

namespace polyspan::bench {
namespace {

constexpr int64_t kHeads = 9, kKvHeads = 3, kHeadDim = 64;

const char* type_name(KvType type) { return type == KvType::kF16 ? "f16" : type == KvType::kBF16 ? "bf16" : "q8"; }

// A cache of random keys and values, `n_copies` times (layers), dense.
struct Cache {
  HugeBuffer memory;
  std::vector<AttentionSpan> spans;
  std::vector<std::vector<AttentionHead>> layers;  // [n_copies][kKvHeads]
  Cache(KvType type, int64_t n_keys, int64_t n_copies) : spans(kHeads, {n_keys, 0}) {
    const int64_t capacity = round_up_to(n_keys, kTileSlots), bytes = kv_storage_bytes(type, kHeadDim, capacity);
    memory = HugeBuffer(bytes * kKvHeads * n_copies, "benchmark");
    const std::vector<float> values = random_floats(1024 + 2 * kHeadDim, 3);
    for (int64_t slot = 0; slot < n_keys; ++slot) {
      const float* row = values.data() + slot * 7 % 1024;
      kernels().write_kv_slot(type, row, row + kHeadDim, kHeadDim, kHeadDim, capacity, slot, memory.data());
    }
    for (int64_t i = 0; i < n_copies * kKvHeads; ++i) {
      std::byte* at = memory.data() + i * bytes;
      if (i > 0) std::memcpy(at, memory.data(), static_cast<size_t>(bytes));
      if (i % kKvHeads == 0) layers.emplace_back();
      AttentionHead head;
      head.n_runs = 1;
      head.runs[0] = {at, capacity, 0, 0, n_keys};
      head.spans = spans.data() + i % kKvHeads * (kHeads / kKvHeads);
      layers.back().push_back(head);
    }
  }
};

void run_attention(benchmark::State& state, KvType type, int64_t n_keys, int64_t n_rows, int n_threads) {
  const Roofs& roof = roofs(n_threads);
  OpContext context(n_threads);
  const int64_t layer_bytes = kv_storage_bytes(type, kHeadDim, round_up_to(n_keys, kTileSlots)) * kKvHeads;
  const Cache cache(type, n_keys, n_rows == 1 ? std::max<int64_t>(1, kStreamBytes / layer_bytes) : 1);
  const std::vector<float> q = random_floats(n_rows * kHeads * kHeadDim, 4);
  std::vector<float> out(q.size());
  SpanAttention attention;
  size_t next = 0;
  const Stopwatch watch;
  for (auto _ : state) {
    const AttentionSequence sequence{0, n_rows, n_keys - n_rows, cache.layers[next].data()};
    attention.run({type, kHeads, kKvHeads, kHeadDim, q.data(), out.data(), std::span(&sequence, 1)}, context);
    benchmark::ClobberMemory();
    next = (next + 1) % cache.layers.size();
  }
  if (n_rows == 1) {
    watch.set_counters(state, "GB/s", 1e-9 * static_cast<double>(layer_bytes), roof.memory_gb_per_s);
  } else {
    // Visible pairs of query and key; two products of head_dim multiply-adds each.
    const int64_t pairs = n_rows * (n_keys - n_rows) + n_rows * (n_rows + 1) / 2;
    watch.set_counters(state, "Gop/s", 1e-9 * static_cast<double>(4 * kHeadDim * kHeads * pairs), roof.fma_gflops);
  }
}

const bool kRegistered = [] {
  for (const KvType type : {KvType::kF16, KvType::kBF16, KvType::kQ8})
    for (const int64_t n_rows : {1, 512})
      for (const int64_t n_keys : {512, 1920, 7680})
        for (const int n_threads : kThreadCounts) {
          if (n_rows == 1 && n_keys == 512) continue;
          add_benchmark(std::string(n_rows == 1 ? "decode/" : "prefill/") + type_name(type) +
                            "/keys:" + std::to_string(n_keys) + "/threads:" + std::to_string(n_threads),
                        [=](benchmark::State& state) { run_attention(state, type, n_keys, n_rows, n_threads); });
        }
  return true;
}();

}  // namespace
}  // namespace polyspan::bench
