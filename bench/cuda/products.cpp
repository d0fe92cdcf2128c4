// The products of a step of llama-3-8b as cuBLAS computes them, weights from memory.
#include "core/error.h"
#include "cuda/blas.h"
#include "cuda/elementwise.h"
#include "cuda_bench.h"

namespace polyspan::bench {
namespace {

using namespace cuda;

// out [n_tokens, d_out] = x W^T, or += .
struct NamedProduct {
  const char* name;
  int64_t d_out, d_in;
  DType out_type;
  bool add;
};
constexpr NamedProduct kProducts[] = {{"qkv", 6144, 4096, DType::kF32, false},
                                      {"output", 4096, 4096, DType::kF32, true},
                                      {"gate, up", 28672, 4096, DType::kF16, false},
                                      {"down", 4096, 14336, DType::kF32, true},
                                      {"logits", 128256, 4096, DType::kF32, false}};

Json measure_product(const NamedProduct& p, int64_t n_tokens, const Ceilings& ceilings) {
  constexpr int64_t kColdBytes = int64_t{400} << 20;  // so many weights in turn that L2 holds none
  constexpr int kRuns = 7;
  const Stream stream;
  const Blas blas(stream);
  const int64_t w_bytes = p.d_out * p.d_in * 2, n_weights = kColdBytes / w_bytes + 1;
  const DeviceBuffer w(n_weights * w_bytes, "a product"), x(n_tokens * p.d_in * 2, "a product"),
      out(n_tokens * row_bytes(p.out_type, p.d_out), "a product");
  fill_random(DType::kF16, w.data(), n_weights * p.d_out * p.d_in, 0.02f, 1, stream);
  fill_random(DType::kF16, x.data(), n_tokens * p.d_in, 1.0f, 2, stream);
  fill_bytes(out.data(), 0, out.size_bytes(), stream);
  const double us = time_ms(stream, kRuns,
                            [&] {
                              for (int64_t i = 0; i < n_weights; ++i)
                                blas.multiply(DType::kF16, w.data() + i * w_bytes, x.data(), n_tokens, p.d_out, p.d_in,
                                              p.out_type, out.data(), p.d_out, p.add);
                            }) *
                    1e3 / static_cast<double>(n_weights);
  const double rate =
      2e6 * static_cast<double>(n_tokens) * static_cast<double>(p.d_out) * static_cast<double>(p.d_in) / us;
  std::printf(
      "product %-8s  %4ld tokens  [%6ld, %5ld]  %7.1f us  %4.0f TFLOP/s  %3.0f%% of products  %5.0f GB/s of weights\n",
      p.name, long{n_tokens}, long{p.d_out}, long{p.d_in}, us, rate / 1e12, 100 * rate / ceilings.bf16_flops,
      static_cast<double>(w_bytes) / us / 1e3);
  return {{"product", p.name}, {"n_tokens", n_tokens}, {"d_out", p.d_out},
          {"d_in", p.d_in},    {"microseconds", us},   {"tflops", rate / 1e12}};
}

}  // namespace

Json measure_products(const Ceilings& ceilings, const std::vector<int64_t>& n_tokens) {
  Json rows = Json::array();
  for (const int64_t n : n_tokens)
    for (const NamedProduct& product : kProducts) rows.push_back(measure_product(product, n, ceilings));
  return rows;
}

}  // namespace polyspan::bench
