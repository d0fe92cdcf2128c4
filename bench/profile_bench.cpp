// polyspan-profile-bench: time and memory of one profile sample (forward, backward) of a model, by length.
//   polyspan-profile-bench model.gguf --lengths 1024,4096 --density 0.25 --device cuda
//   polyspan-profile-bench --random vicuna-7b --lengths 8192    (f16 weights made on the GPU)
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <random>

#include "core/error.h"
#include "engine/engine.h"
#include "ops/isa.h"
#include "shape_config.h"
#ifdef POLYSPAN_HAS_CUDA
#include "cuda/runtime.h"
#include "cuda/transformer.h"
#endif

namespace polyspan {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

constexpr const char* kShapes[] = {"vicuna-7b", "llama-3-8b", "smollm2-135m"};

std::unique_ptr<Model> random_model(const std::string& name) {
#ifdef POLYSPAN_HAS_CUDA
  if (std::find(std::begin(kShapes), std::end(kShapes), name) != std::end(kShapes))
    return cuda::CudaTransformer::random(bench::shape_config(name), DType::kF16, 1, 0);
  throw Error::usage("--random: found \"", name, "\", wanted ", kShapes[0], ", ", kShapes[1], " or ", kShapes[2]);
#else
  throw Error::unsupported("--random ", name, ": this build has no CUDA component (shapes such as ", kShapes[0], ")");
#endif
}

int64_t free_bytes([[maybe_unused]] bool on_gpu) {
#ifdef POLYSPAN_HAS_CUDA
  if (on_gpu) return cuda::free_device_bytes();
#endif
  return 0;
}

void measure(Model& model, const std::vector<int64_t>& lengths, double density, int64_t n_targets, int reps) {
  const bool on_gpu = model.device() != "cpu";
  const ModelConfig& c = model.config();
  const auto start = std::chrono::steady_clock::now();
  const int64_t free_before = free_bytes(on_gpu);
  const auto profiler = model.make_span_profiler(no_progress());
  std::printf("%s: making the profiler %.2f s\n", std::string(model.device()).c_str(), seconds_since(start));
  const SpanPlan plan = SpanPlan::uniform(c.head_shape(), density);
  for (const int64_t n : lengths)
    for (int rep = 0; rep < reps; ++rep) {
      std::mt19937_64 random(1);
      std::vector<int32_t> tokens;
      for (int64_t i = 0; i < n; ++i)
        tokens.push_back(static_cast<int32_t>(random() % static_cast<uint64_t>(c.vocab_size)));
      std::vector<int64_t> targets, candidates;
      for (int64_t i = std::max<int64_t>(1, n - n_targets); i < n; ++i) targets.push_back(i);
      for (int64_t i = 0; i < 16; ++i) candidates.push_back(std::max<int64_t>(64, n * i / 16));
      candidates.erase(std::unique(candidates.begin(), candidates.end()), candidates.end());
      candidates.push_back(n);
      const std::vector<AttentionSpan> spans = query_spans(plan, n);
      const ProfileRequest request{tokens, targets, spans, candidates};
      const auto before = std::chrono::steady_clock::now();
      profiler->forward(request);
      const double forward = seconds_since(before);
      profiler->backward(request);
      const double backward = seconds_since(before) - forward;
      // Of the GPU: what the profiler took; the weights are beside it.
      const int64_t peak = on_gpu ? free_before - free_bytes(on_gpu) + model.weight_bytes() : peak_resident_bytes();
      std::printf(
          "%6lld tokens: forward %.3f s, backward %.3f s, ratio %.2f; peak %lld MB (needed %lld MB beside the "
          "model)\n",
          static_cast<long long>(n), forward, backward, backward / forward, static_cast<long long>(peak / 1000000),
          static_cast<long long>(profiler->bytes_needed(n) / 1000000));
    }
}

}  // namespace
}  // namespace polyspan

int main(int argc, char** argv) {
  using namespace polyspan;
  std::string path, shape, device = "cpu", isa;
  std::vector<int64_t> lengths = {1024, 2048, 4096};
  int threads = 0, reps = 1;
  int64_t n_targets = 8;
  double density = 1;
  CLI::App app{"Time and memory of one profile sample"};
  CLI::Option* const model_option = app.add_option("model", path);
  app.add_option("--random", shape, "in place of a model: random f16 weights of this shape, on a GPU")
      ->excludes(model_option);
  app.add_option("--lengths", lengths)->delimiter(',');
  app.add_option("--density", density, "of a uniform plan that the sample runs under");
  app.add_option("--device", device, "cpu, cuda, cuda:N or auto")->capture_default_str();
  app.add_option("--isa", isa, "instruction level of the CPU (default: the best of this machine)");
  app.add_option("--targets", n_targets,
                 "tokens at the end that the loss is taken on: pass keys have about 8, text half of it")
      ->capture_default_str();
  app.add_option("--reps", reps);
  app.add_option("-t", threads);
  CLI11_PARSE(app, argc, argv);
  try {
    if (!isa.empty()) select_isa(isa_by_name(isa).value());
    if (path.empty() && shape.empty()) throw Error::usage("a model file or --random SHAPE is wanted");
    if (!shape.empty()) {
      measure(*random_model(shape), lengths, density, n_targets, reps);
    } else {
      const auto engine =
          Engine::load(path, threads > 0 ? threads : default_thread_count(), no_progress(), parse_device(device));
      measure(engine->model(), lengths, density, n_targets, reps);
    }
  } catch (const Error& error) {
    std::fprintf(stderr, "polyspan-profile-bench: %s\n", error.what());
    return 1;
  }
  return 0;
}
