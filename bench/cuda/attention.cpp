// Span attention at densities 1, 0.5 and 0.25: decode against copy bandwidth, prefill against the rate of products.
#include <chrono>
#include <cmath>
#include <thread>

#include "core/error.h"
#include "cuda/decode_attention.h"
#include "cuda/elementwise.h"
#include "cuda/prefill_attention.h"
#include "cuda_bench.h"

namespace polyspan::bench {
namespace {

using namespace cuda;

constexpr int64_t kSinkTokens = 64;
constexpr double kDensities[] = {1.0, 0.5, 0.25};

const char* name_of(KvType type) {
  return type == KvType::kF16 ? "f16" : type == KvType::kBF16 ? "bf16" : type == KvType::kQ8 ? "q8" : "f8";
}

// Work at the power limit lowers the clock of what follows: each measurement of prefill begins after a pause.
void pause() { std::this_thread::sleep_for(std::chrono::milliseconds(300)); }

struct DecodeCase {
  KvType type;
  int64_t n_heads, n_kv_heads, head_dim, batch, n_keys;
};

// Layers of caches, read one after the other in one graph, so many that no cache of the GPU holds them.
Json measure_decode(const DecodeCase& c, double density, const DeviceBuffer& memory, const Ceilings& ceilings,
                    double& dense_us) {
  const Stream stream;
  const int64_t kept = round_up_to(static_cast<int64_t>(density * static_cast<double>(c.n_keys)), 16);
  const int64_t head_bytes = kv_storage_bytes(c.type, c.head_dim, kept),
                layer_bytes = head_bytes * c.batch * c.n_kv_heads;
  const int64_t n_layers = std::clamp<int64_t>((int64_t{512} << 20) / layer_bytes, 2, 64);
  if (n_layers * layer_bytes > memory.size_bytes()) return nullptr;
  const bool all = kept >= c.n_keys;
  std::vector<KvHeadView> views;
  for (int64_t i = 0; i < n_layers * c.batch * c.n_kv_heads; ++i)
    views.push_back({memory.data() + i * head_bytes, static_cast<int32_t>(kSinkTokens),
                     static_cast<int32_t>(kSinkTokens), static_cast<int32_t>(kept - kSinkTokens),
                     static_cast<int32_t>(kept)});
  const std::vector<int32_t> spans(static_cast<size_t>(c.batch * c.n_heads),
                                   static_cast<int32_t>(all ? c.n_keys : kept - kSinkTokens));
  const std::vector<int32_t> positions(static_cast<size_t>(c.batch), static_cast<int32_t>(c.n_keys - 1)),
      n_slots(static_cast<size_t>(c.batch * c.n_kv_heads), static_cast<int32_t>(kept));
  const int32_t n_blocks = decode_attention_blocks(c.type, c.n_heads, c.n_kv_heads, c.head_dim,
                                                   decode_attention_width(c.type, c.batch, c.n_heads, c.n_kv_heads));
  const DecodeWork work = cut_decode_work(n_slots, c.n_kv_heads, n_blocks);
  const auto upload = [&](const auto& values) { return to_device(std::span(values), "a benchmark", stream); };
  const DeviceBuffer views_d = upload(views), spans_d = upload(spans), positions_d = upload(positions),
                     begin_d = upload(work.block_begin), pieces_d = upload(work.pieces);
  const int64_t q_values = c.batch * c.n_heads * c.head_dim;
  const DeviceBuffer q(q_values * 4, "a benchmark"), out(q_values * 4, "a benchmark"),
      counters(c.batch * c.n_heads * 4, "a benchmark");
  const DeviceBuffer partials(std::ssize(work.pieces) * decode_partial_floats(c.n_heads, c.n_kv_heads, c.head_dim) * 4,
                              "a benchmark");
  fill_random(DType::kF32, q.data(), q_values, 1.0f, 3, stream);
  fill_bytes(counters.data(), 0, counters.size_bytes(), stream);
  const auto record = [&] {
    for (int64_t layer = 0; layer < n_layers; ++layer)
      decode_attention({.type = c.type,
                        .n_sequences = c.batch,
                        .n_heads = c.n_heads,
                        .n_kv_heads = c.n_kv_heads,
                        .head_dim = c.head_dim,
                        .q = q.as<float>(),
                        .heads = views_d.as<KvHeadView>() + layer * c.batch * c.n_kv_heads,
                        .spans = spans_d.as<int32_t>(),
                        .positions = positions_d.as<int32_t>(),
                        .block_begin = begin_d.as<int32_t>(),
                        .pieces = pieces_d.as<DecodePiece>(),
                        .n_blocks = n_blocks,
                        .partials = partials.as<float>(),
                        .counters = counters.as<int32_t>(),
                        .out_type = ActivationType::kF16,
                        .out = out.data()},
                       stream);
  };
  record();
  const Graph graph(stream, record);
  const double us = time_ms(stream, 9, [&] { graph.launch(stream); }) * 1e3 / static_cast<double>(n_layers);
  if (density == 1.0) dense_us = us;
  const double rate = static_cast<double>(layer_bytes) / us * 1e6, share = rate / ceilings.copy_bytes_per_s;
  std::printf(
      "decode  %-4s %2ld/%2ld heads of %3ld  batch %2ld  %6ld keys  density %.2f  %8.1f MB  %8.1f us  %5.0f GB/s  "
      "%3.0f%% of copy  %.2fx dense\n",
      name_of(c.type), long{c.n_heads}, long{c.n_kv_heads}, long{c.head_dim}, long{c.batch}, long{c.n_keys}, density,
      static_cast<double>(layer_bytes) / 1e6, us, rate / 1e9, 100 * share, dense_us / us);
  return {{"cache", name_of(c.type)}, {"n_heads", c.n_heads},   {"n_kv_heads", c.n_kv_heads},
          {"head_dim", c.head_dim},   {"batch", c.batch},       {"n_keys", c.n_keys},
          {"density", density},       {"bytes", layer_bytes},   {"microseconds", us},
          {"gb_per_s", rate / 1e9},   {"share_of_copy", share}, {"speedup_over_dense", dense_us / us}};
}

}  // namespace

Json measure_decode_attention(const Ceilings& ceilings) {
  const int64_t bytes = std::min<int64_t>(int64_t{40} << 30, free_device_bytes() * 8 / 10);
  const DeviceBuffer memory(bytes, "the caches of a benchmark");
  const Stream stream;
  fill_random(DType::kF16, memory.data(), bytes / 2, 1.0f, 5, stream);
  stream.synchronize();
  Json rows = Json::array();
  std::vector<DecodeCase> cases;
  for (const int64_t n_kv_heads : {32, 8}) {
    for (const auto& [batch, n_keys] : {std::pair<int64_t, int64_t>{1, 4096},
                                        {1, 16384},
                                        {1, 65536},
                                        {4, 8192},
                                        {8, 8192},
                                        {16, 4096},
                                        {16, 16384},
                                        {32, 16384},
                                        {64, 4096},
                                        {64, 16384},
                                        {16, 65536}})
      cases.push_back({KvType::kF16, 32, n_kv_heads, 128, batch, n_keys});
    for (const KvType type : {KvType::kBF16, KvType::kQ8, KvType::kF8})
      for (const auto& [batch, n_keys] : {std::pair<int64_t, int64_t>{1, 16384}, {16, 16384}})
        cases.push_back({type, 32, n_kv_heads, 128, batch, n_keys});
  }
  cases.push_back({KvType::kF16, 32, 8, 64, 16, 16384});
  cases.push_back({KvType::kF16, 28, 4, 128, 16, 16384});
  cases.push_back({KvType::kQ8, 28, 4, 128, 16, 16384});
  for (const DecodeCase& c : cases) {
    double dense_us = 0;
    for (const double density : kDensities)
      if (Json row = measure_decode(c, density, memory, ceilings, dense_us); !row.is_null())
        rows.push_back(std::move(row));
  }
  return rows;
}

Json measure_prefill_attention(const Ceilings& ceilings) {
  const Stream stream;
  Json rows = Json::array();
  struct Case {
    KvType type;
    int64_t n_heads, n_kv_heads, head_dim, n;
  };
  for (const Case& c : {Case{KvType::kF16, 32, 32, 128, 8192},
                        {KvType::kF16, 32, 32, 128, 16384},
                        {KvType::kF16, 32, 8, 128, 16384},
                        {KvType::kF16, 32, 8, 128, 65536},
                        {KvType::kF16, 32, 32, 128, 65536},
                        {KvType::kBF16, 32, 32, 128, 8192},
                        {KvType::kBF16, 32, 32, 128, 16384},
                        {KvType::kBF16, 32, 32, 128, 65536},
                        {KvType::kQ8, 32, 32, 128, 8192},
                        {KvType::kF8, 32, 32, 128, 8192},
                        {KvType::kF16, 32, 32, 64, 8192}}) {
    const int64_t head_bytes = kv_storage_bytes(c.type, c.head_dim, c.n);
    const DeviceBuffer memory(head_bytes * c.n_kv_heads, "a benchmark"),
        q(c.n * c.n_heads * c.head_dim * 4, "a benchmark"), out(c.n * c.n_heads * c.head_dim * 2, "a benchmark");
    fill_random(c.type == KvType::kBF16 ? DType::kBF16 : DType::kF16, memory.data(), memory.size_bytes() / 2, 1.0f, 6,
                stream);
    if (c.type == KvType::kF8) fill_bytes(memory.data(), 0x35, memory.size_bytes(), stream);  // some bytes are NaN
    if (c.type == KvType::kQ8)  // scales that make finite keys
      for (int64_t h = 0; h < c.n_kv_heads; ++h)
        fill_random(DType::kF32, memory.data() + h * head_bytes + 2 * c.n * c.head_dim, 2 * c.n, 0.01f, 7, stream);
    fill_random(DType::kF32, q.data(), c.n * c.n_heads * c.head_dim, 1.0f, 8, stream);
    std::vector<KvHeadView> chunk, rings;
    for (int64_t h = 0; h < c.n_kv_heads; ++h) {
      chunk.push_back({memory.data() + h * head_bytes, 0, 0, 0, static_cast<int32_t>(c.n)});
      rings.push_back({memory.data() + h * head_bytes, static_cast<int32_t>(kSinkTokens),
                       static_cast<int32_t>(kSinkTokens), static_cast<int32_t>(c.n - kSinkTokens),
                       static_cast<int32_t>(c.n)});
    }
    const DeviceBuffer chunk_d = to_device(std::span<const KvHeadView>(chunk), "a benchmark", stream),
                       rings_d = to_device(std::span<const KvHeadView>(rings), "a benchmark", stream);
    double dense_ms = 0;
    for (const double density : kDensities) {
      const int64_t span =
          density == 1.0 ? c.n : static_cast<int64_t>(density * static_cast<double>(c.n)) - kSinkTokens;
      const std::vector<int32_t> spans(static_cast<size_t>(c.n_heads), static_cast<int32_t>(span));
      const DeviceBuffer spans_d = to_device(std::span<const int32_t>(spans), "a benchmark", stream);
      pause();
      const double ms = time_ms(stream, 5, [&] {
        prefill_attention({.type = c.type,
                           .n_heads = c.n_heads,
                           .n_kv_heads = c.n_kv_heads,
                           .head_dim = c.head_dim,
                           .n_tokens = c.n,
                           .first_position = 0,
                           .q = q.as<float>(),
                           .heads = rings_d.as<KvHeadView>(),
                           .chunk = chunk_d.as<KvHeadView>(),
                           .spans = spans_d.as<int32_t>(),
                           .out_type = ActivationType::kF16,
                           .out = out.data()},
                          stream);
      });
      if (density == 1.0) dense_ms = ms;
      double pairs = 0;  // visible (query, key)
      for (int64_t i = 0; i < c.n; ++i)
        pairs += static_cast<double>(std::min(i + 1, span) +
                                     std::min<int64_t>(kSinkTokens, std::max<int64_t>(0, i + 1 - span)));
      const double rate = 4.0 * static_cast<double>(c.head_dim * c.n_heads) * pairs / ms * 1e3;
      std::printf(
          "prefill %-4s %2ld/%2ld heads of %3ld  %6ld tokens  density %.2f  %8.2f ms  %4.0f TFLOP/s of visible pairs  "
          "%3.0f%% of products  %.2fx dense\n",
          name_of(c.type), long{c.n_heads}, long{c.n_kv_heads}, long{c.head_dim}, long{c.n}, density, ms, rate / 1e12,
          100 * rate / ceilings.bf16_flops, dense_ms / ms);
      rows.push_back({{"cache", name_of(c.type)},
                      {"n_heads", c.n_heads},
                      {"n_kv_heads", c.n_kv_heads},
                      {"head_dim", c.head_dim},
                      {"n_tokens", c.n},
                      {"density", density},
                      {"milliseconds", ms},
                      {"visible_tflops", rate / 1e12},
                      {"speedup_over_dense", dense_ms / ms}});
    }
  }
  return rows;
}

}  // namespace polyspan::bench
