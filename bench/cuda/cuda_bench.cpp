// polyspan-cuda-bench: ceilings of the GPU, span attention and whole models against them.
#include "cuda_bench.h"

#include <CLI/CLI.hpp>
#include <fstream>

#include "core/error.h"
#include "cuda/blas.h"
#include "cuda/elementwise.h"
#include "cuda/runtime.h"

namespace polyspan::bench {
namespace {

Ceilings measure_ceilings() {
  const cuda::Stream stream;
  Ceilings ceilings;
  {
    const int64_t bytes = int64_t{4} << 30;
    const cuda::DeviceBuffer from(bytes, "a copy"), to(bytes, "a copy");
    cuda::fill_random(DType::kF16, from.data(), bytes / 2, 1.0f, 1, stream);
    const double ms = time_ms(stream, 10, [&] { cuda::copy_on_device(to.data(), from.data(), bytes, stream); });
    ceilings.copy_bytes_per_s = 2.0 * static_cast<double>(bytes) / ms * 1e3;
  }
  {
    const int64_t n = 8192;
    const cuda::DeviceBuffer a(n * n * 2, "a product"), b(n * n * 2, "a product"), c(n * n * 4, "a product");
    cuda::fill_random(DType::kBF16, a.data(), n * n, 1.0f, 1, stream);
    cuda::fill_random(DType::kBF16, b.data(), n * n, 1.0f, 2, stream);
    const cuda::Blas blas(stream);
    const double ms = time_ms(
        stream, 10, [&] { blas.multiply(DType::kBF16, a.data(), b.data(), n, n, n, DType::kF32, c.data(), n, false); });
    ceilings.bf16_flops = 2.0 * static_cast<double>(n) * static_cast<double>(n) * static_cast<double>(n) / ms * 1e3;
  }
  return ceilings;
}

void run(const std::vector<std::string>& parts, const ModelChoice& models, const std::vector<int64_t>& product_tokens,
         const std::string& out) {
  const cuda::DeviceProperties device = cuda::select_device(0);
  const Ceilings ceilings = measure_ceilings();
  std::printf("%s, %d multiprocessors: copy %.0f GB/s, bf16 products %.0f TFLOP/s\n", device.name.c_str(),
              device.n_multiprocessors, ceilings.copy_bytes_per_s / 1e9, ceilings.bf16_flops / 1e12);
  Json document = {{"device", device.name},
                   {"copy_gb_per_s", ceilings.copy_bytes_per_s / 1e9},
                   {"bf16_tflops", ceilings.bf16_flops / 1e12}};
  const auto save = [&] {
    if (!out.empty()) std::ofstream(out) << document.dump(1) << "\n";
  };
  for (const std::string& part : parts) {
    if (part == "decode") document["decode_attention"] = measure_decode_attention(ceilings);
    if (part == "prefill") document["prefill_attention"] = measure_prefill_attention(ceilings);
    if (part == "models") document["models"] = measure_models(ceilings, models);
    if (part == "products") document["products"] = measure_products(ceilings, product_tokens);
    std::fflush(stdout);
    save();
  }
}

}  // namespace
}  // namespace polyspan::bench

int main(int argc, char** argv) {
  CLI::App app("Speed of the CUDA component against the GPU's limits");
  std::vector<std::string> parts = {"decode", "prefill", "models"};
  polyspan::bench::ModelChoice models;
  std::vector<int64_t> product_tokens = {483};
  std::string out;
  app.add_option("parts", parts, "decode, prefill, models, products (default: the first three)")
      ->check(CLI::IsMember({"decode", "prefill", "models", "products"}));
  app.add_option("--plans", models.plans, "folder with the published plans of MoA");
  app.add_option("-o,--output", out, "JSON file of all results");
  app.add_flag("--quick", models.quick, "fewer models and lengths");
  app.add_option("--model", models.model, "this model alone")
      ->check(CLI::IsMember({"vicuna-7b", "llama-3-8b", "vicuna-13b"}));
  app.add_option("--length", models.length, "this length alone")->check(CLI::IsMember({4096, 8192, 16384}));
  app.add_option("--batches", models.batches, "of the models: sequences of a step, beside the largest that fits")
      ->check(CLI::Range(1, 1 << 20));
  app.add_option("--file", models.file,
                 "of the models: this GGUF file alone, dense, at --length (default: 4096) and --batches")
      ->check(CLI::ExistingFile);
  app.add_option("--tokens", product_tokens, "of the products: sequences of a step (default: 483)")
      ->check(CLI::Range(1, 1 << 20));
  CLI11_PARSE(app, argc, argv);
  try {
    polyspan::bench::run(parts, models, product_tokens, out);
  } catch (const polyspan::Error& error) {
    std::fprintf(stderr, "polyspan-cuda-bench: %s\n", error.what());
    return 1;
  }
  return 0;
}
