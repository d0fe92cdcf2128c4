// Products with packed weights: one token, bound by reading the weights, and 512 tokens, bound by arithmetic.
// Shapes: SmolLM2-135M and Qwen2.5-1.5B. usage: matmul_bench --benchmark_filter=Q4_1.*tokens:512
#include <algorithm>

#include "bench_util.h"
#include "ops/matmul.h"

namespace polyspan::bench {
namespace {

struct Shape {
  const char* name;
  int64_t d_out, d_in;
  bool only_q8;
};
constexpr Shape kShapes[] = {
    {"smollm2/attn_q", 576, 576, false},     {"smollm2/ffn_up", 1536, 576, false},
    {"smollm2/ffn_down", 576, 1536, false},  {"smollm2/output", 49152, 576, true},
    {"qwen2.5/attn_q", 1536, 1536, false},   {"qwen2.5/ffn_up", 8960, 1536, false},
    {"qwen2.5/ffn_down", 1536, 8960, false},
};

// Copies of one packed matrix, kStreamBytes in all for one token.
struct Weights {
  HugeBuffer memory;
  std::vector<PackedMatrix> copies;
  Weights(DType type, const Shape& shape, bool stream) {
    std::vector<std::byte> rows(static_cast<size_t>(shape.d_out * row_bytes(type, shape.d_in)));
    fill_random_blocks(type, 0.02f, 1, rows);
    const int64_t bytes = (packed_bytes(type, shape.d_out, shape.d_in) + 4095) / 4096 * 4096;
    const int64_t n_copies = stream ? std::max<int64_t>(1, kStreamBytes / bytes) : 1;
    memory = HugeBuffer(bytes * n_copies, "benchmark");
    for (int64_t i = 0; i < n_copies; ++i) {
      std::byte* at = memory.data() + i * bytes;
      copies.push_back({type, shape.d_out, shape.d_in, at});
      if (i == 0) pack_tiles(type, rows.data(), shape.d_out, shape.d_in, 0, copies[0].n_tiles(), at);
      if (i > 0) std::memcpy(at, memory.data(), static_cast<size_t>(bytes));
    }
  }
};

void run_matmul(benchmark::State& state, DType type, const Shape& shape, int64_t n_tokens, int n_threads) {
  const Roofs& roof = roofs(n_threads);
  OpContext context(n_threads);
  const Weights weights(type, shape, n_tokens == 1);
  const std::vector<float> x = random_floats(n_tokens * shape.d_in, 2);
  std::vector<ActBlock> blocks(x.size() / kBlockCols);
  quantize_activations(x.data(), n_tokens, shape.d_in, blocks.data(), context);
  std::vector<float> out(static_cast<size_t>(n_tokens * shape.d_out));
  size_t next = 0;
  const Stopwatch watch;
  for (auto _ : state) {
    const MatmulOutput output[] = {{&weights.copies[next], nullptr, out.data(), shape.d_out, Epilogue::kStore}};
    matmul({x.data(), blocks.data(), n_tokens, shape.d_in}, output, context);
    benchmark::ClobberMemory();
    next = (next + 1) % weights.copies.size();
  }
  const double n_weights = static_cast<double>(shape.d_out * shape.d_in);
  if (n_tokens == 1) {
    watch.set_counters(state, "GB/s", 1e-9 * static_cast<double>(packed_bytes(type, shape.d_out, shape.d_in)),
                       roof.memory_gb_per_s);
  } else {
    const bool quantized = weights.copies[0].is_quantized();
    watch.set_counters(state, "Gop/s", 2e-9 * n_weights * static_cast<double>(n_tokens),
                       quantized ? roof.dot_gops : roof.fma_gflops);
  }
}

const bool kRegistered = [] {
  for (const Shape& shape : kShapes)
    for (const DTypeInfo& info : all_dtypes())
      for (const int64_t n_tokens : {1, 512})
        for (const int n_threads : kThreadCounts) {
          const DType type = info.type;
          if (shape.d_in % info.block_len != 0 || (shape.only_q8 && type != DType::kQ8_0)) continue;
          add_benchmark(std::string(shape.name) + "/" + std::string(info.name) + "/tokens:" + std::to_string(n_tokens) +
                            "/threads:" + std::to_string(n_threads),
                        [=](benchmark::State& state) { run_matmul(state, type, shape, n_tokens, n_threads); });
        }
  return true;
}();

}  // namespace
}  // namespace polyspan::bench
