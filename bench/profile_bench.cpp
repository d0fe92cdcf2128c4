// polyspan-profile-bench: time and memory of one profile sample (forward, backward) of a model, by length.
//   polyspan-profile-bench model.gguf --lengths 1024,4096 --density 0.25
#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <random>

#include "core/error.h"
#include "engine/engine.h"

namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

int main(int argc, char** argv) {
  using namespace polyspan;
  std::string path;
  std::vector<int64_t> lengths = {1024, 2048, 4096};
  int threads = 0, reps = 1;
  double density = 1;
  CLI::App app{"Time and memory of one profile sample"};
  app.add_option("model", path)->required();
  app.add_option("--lengths", lengths)->delimiter(',');
  app.add_option("--density", density, "of a uniform plan that the sample runs under");
  app.add_option("--reps", reps);
  app.add_option("-t", threads);
  CLI11_PARSE(app, argc, argv);
  try {
    const auto engine = Engine::load(path, threads > 0 ? threads : default_thread_count());
    const auto start = std::chrono::steady_clock::now();
    const auto profiler = engine->model().make_span_profiler(no_progress());
    const ModelConfig& c = engine->config();
    std::printf("transposing the weights: %.2f s\n", seconds_since(start));
    const SpanPlan plan = SpanPlan::uniform(c.head_shape(), density);
    for (const int64_t n : lengths)
      for (int rep = 0; rep < reps; ++rep) {
        std::mt19937_64 random(1);
        std::vector<int32_t> tokens;
        for (int64_t i = 0; i < n; ++i)
          tokens.push_back(static_cast<int32_t>(random() % static_cast<uint64_t>(c.vocab_size)));
        std::vector<int64_t> targets, candidates;
        for (int64_t i = n - 8; i < n; ++i) targets.push_back(i);
        for (int64_t i = 0; i < 16; ++i) candidates.push_back(std::max<int64_t>(64, n * i / 16));
        candidates.erase(std::unique(candidates.begin(), candidates.end()), candidates.end());
        candidates.push_back(n);
        std::vector<AttentionSpan> spans;
        for (const auto& layer : plan.spans(n).query_head_spans)
          for (const int64_t span : layer) spans.push_back({span, plan.n_sink_tokens()});
        const ProfileRequest request{tokens, targets, spans, candidates};
        const auto before = std::chrono::steady_clock::now();
        profiler->forward(request);
        const double forward = seconds_since(before);
        profiler->backward(request);
        const double backward = seconds_since(before) - forward;
        std::printf(
            "%6lld tokens: forward %.2f s, backward %.2f s, ratio %.2f; peak %lld MB (needed %lld MB beside the "
            "model)\n",
            static_cast<long long>(n), forward, backward, backward / forward,
            static_cast<long long>(peak_resident_bytes() / 1000000),
            static_cast<long long>(profiler->bytes_needed(n) / 1000000));
      }
  } catch (const Error& error) {
    std::fprintf(stderr, "polyspan-profile-bench: %s\n", error.what());
    return 1;
  }
  return 0;
}
