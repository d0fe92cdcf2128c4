// The row operations on one row, which a layer finds in its L1 cache; set against reading that cache. One thread.
#include "bench_util.h"
#include "ops/kernels.h"
#include "ops/rope.h"

namespace polyspan::bench {
namespace {

struct Row {
  std::vector<float> a, b, out;
  std::vector<ActBlock> blocks;
  explicit Row(int64_t n)
      : a(random_floats(n, 5)), b(random_floats(n, 6)), out(a.size()), blocks(a.size() / kBlockCols) {}
};

// body(row, n); n_bytes_per_value: read and written.
template <typename Body>
void add_row_benchmark(const std::string& name, int64_t n, int64_t n_bytes_per_value, Body body) {
  add_benchmark(name + "/n:" + std::to_string(n), [=](benchmark::State& state) {
    const Roofs& roof = roofs(1);
    Row row(n);
    const Stopwatch watch;
    for (auto _ : state) {
      body(row, n);
      benchmark::ClobberMemory();
    }
    watch.set_counters(state, "GB/s", 1e-9 * static_cast<double>(n * n_bytes_per_value), roof.l1_gb_per_s);
  });
}

const bool kRegistered = [] {
  for (const int64_t n : {576, 1536, 8960}) {
    add_row_benchmark("rmsnorm", n, 16, [](Row& row, int64_t n_values) {  // x twice, weight, out
      kernels().rmsnorm_row(row.a.data(), row.b.data(), n_values, 1e-5f, row.out.data());
    });
    add_row_benchmark("swiglu", n, 12, [](Row& row, int64_t n_values) {
      kernels().swiglu_row(row.a.data(), row.b.data(), n_values, row.out.data());
    });
    add_row_benchmark("add", n, 12,
                      [](Row& row, int64_t n_values) { kernels().add_row(row.a.data(), n_values, row.out.data()); });
    add_row_benchmark("quantize_activations", n, 6, [](Row& row, int64_t n_values) {  // 64 bytes out for 32 values
      kernels().quantize_activations(row.a.data(), n_values, row.blocks.data());
    });
  }
  for (const bool interleaved : {true, false})
    for (const int64_t head_dim : {64, 128}) {
      RopeTable table;
      table.compute({head_dim, 10000.0, 1.0, RopePairing::kHalves, {}}, std::vector<int64_t>{1000});
      add_row_benchmark(interleaved ? "rope/interleaved" : "rope/halves", 9 * head_dim, 8, [=](Row& row, int64_t) {
        kernels().rope_row({row.a.data(), 9, head_dim, head_dim / 2, table.cos(0), table.sin(0), interleaved, 1.0f});
      });
    }
  for (const int64_t n : {49152, 151936}) {  // vocabularies: L2
    add_row_benchmark("max_value", n, 4, [](Row& row, int64_t n_values) {
      benchmark::DoNotOptimize(kernels().max_value(row.a.data(), n_values));
    });
    add_row_benchmark("sum_exp", n, 4, [](Row& row, int64_t n_values) {
      benchmark::DoNotOptimize(kernels().sum_exp(row.a.data(), n_values, 2.0f));
    });
  }
  return true;
}();

}  // namespace
}  // namespace polyspan::bench
