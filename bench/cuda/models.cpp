// Whole-model greedy decode of models of real shapes with random f16 weights, under plans: tokens a second at the largest
// batch that fits, and at the dense cache's batch.
#include <filesystem>
#include <memory>

#include "../shape_config.h"
#include "core/error.h"
#include "cuda/device.h"
#include "cuda/transformer.h"
#include "cuda_bench.h"
#include "io/gguf.h"
#include "plan/span_plan.h"

namespace polyspan::bench {
namespace {

struct TimedModel {
  const char* name;  // of its shape
  const char* plan_file;
};
constexpr TimedModel kModels[] = {{"vicuna-7b", "lmsys--vicuna-7b-v1.5-16k.moa.json"},
                                  {"llama-3-8b", "gradientai--Llama-3-8B-Instruct-262k.moa.json"},
                                  {"vicuna-13b", "lmsys--vicuna-13b-v1.5-16k.moa.json"}};
constexpr int64_t kLengths[] = {4096, 8192, 16384};

constexpr int64_t kReserveBytes = int64_t{2} << 30;  // left for activations and the tables of a large batch
constexpr int64_t kWarmSteps = 4, kSteps = 16;

struct Sampling {
  const char* name;
  TokenRule rule;
};
const Sampling kGreedy = {"greedy", {}};
// The rule of `polyspan run`, which sorts a few candidates, and one that looks for its place among all.
const Sampling kSampled[] = {
    {"top_k 40", {.temperature = 0.8f, .top_k = 40, .top_p = 0.95f, .min_p = 0.05f, .uniform = 0.7}},
    {"top_p 0.95", {.temperature = 0.8f, .top_p = 0.95f, .uniform = 0.7}}};

Json measure(cuda::CudaTransformer& model, const SpanPlan& plan, const std::string& plan_name, int64_t length,
             int64_t batch, int64_t dense_batch, const Ceilings& ceilings, double& dense_rate,
             const Sampling& sampling = kGreedy) {
  const KvLayout layout(model.config(), plan, length, KvType::kF16);
  std::vector<KvCache> caches;
  for (int64_t i = 0; i < batch; ++i) {
    caches.push_back(model.make_cache(layout));
    model.fill_cache(caches.back(), length - kWarmSteps - kSteps - 1, static_cast<uint64_t>(i + 1));
  }
  std::vector<KvCache*> pointers;
  std::vector<BatchSequence> sequences;
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < batch; ++i) {
    pointers.push_back(&caches[static_cast<size_t>(i)]);
    sequences.push_back({pointers.back(), i, 1, sampling.rule});
    tokens.push_back(static_cast<int32_t>(i));
  }
  model.forward({tokens, sequences});
  model.continue_decoding(pointers, kWarmSteps);
  cuda::Timer timer;
  const double ms = timer.milliseconds(model.stream(), [&] { model.continue_decoding(pointers, kSteps); }) /
                    static_cast<double>(kSteps);
  const double rate = static_cast<double>(batch) / ms * 1e3;
  if (plan_name == "dense" && batch == dense_batch && &sampling == &kGreedy) dense_rate = rate;
  const double bytes = static_cast<double>(model.bytes_per_token() + batch * layout.bytes),
               share = bytes / ms * 1e3 / ceilings.copy_bytes_per_s;
  const double total = static_cast<double>(model.weight_bytes() + model.working_bytes() + batch * layout.bytes);
  std::printf(
      "model   %-10s %6ld tokens  %-12s density %.3f  batch %3ld  %-10s  %7.2f ms  %7.0f tokens/s  %.2fx dense  %5.0f "
      "GB/s  "
      "%3.0f%% of copy  %5.1f GB\n",
      model.config().name.c_str(), long{length}, plan_name.c_str(), plan.density(length), long{batch}, sampling.name,
      ms, rate, dense_rate > 0 ? rate / dense_rate : 0.0, bytes / ms / 1e6, 100 * share, total / 1e9);
  std::fflush(stdout);
  return {{"model", model.config().name},
          {"length", length},
          {"plan", plan_name},
          {"density", plan.density(length)},
          {"batch", batch},
          {"sampling", sampling.name},
          {"milliseconds", ms},
          {"tokens_per_s", rate},
          {"over_dense", dense_rate > 0 ? rate / dense_rate : 0.0},
          {"bytes_read", bytes},
          {"share_of_copy", share},
          {"kv_bytes", batch * layout.bytes},
          {"weight_bytes", model.weight_bytes()},
          {"working_bytes", model.working_bytes()}};
}

// A step by its batch: from where one token is bound by reading the weights to where products are.
Json measure_file(const Ceilings& ceilings, const ModelChoice& choice) {
  const std::unique_ptr<Model> loaded =
      load_cuda_model(std::make_unique<GgufFile>(GgufFile::open(choice.file)), 0, no_progress());
  auto& model = dynamic_cast<cuda::CudaTransformer&>(*loaded);
  const SpanPlan dense = SpanPlan::dense(model.config().head_shape());
  const int64_t length = choice.length != 0 ? choice.length : 4096;
  std::vector<int64_t> batches = choice.batches;
  if (batches.empty()) batches = {1, 2, 4, 8, 16, 32, 64};
  Json rows = Json::array();
  double dense_rate = 0;
  for (const int64_t batch : batches)
    rows.push_back(measure(model, dense, "dense", length, batch, batches[0], ceilings, dense_rate));
  return rows;
}

}  // namespace

Json measure_models(const Ceilings& ceilings, const ModelChoice& choice) {
  if (!choice.file.empty()) return measure_file(ceilings, choice);
  Json rows = Json::array();
  for (const TimedModel& timed : kModels) {
    if (choice.model.empty() ? choice.quick && std::string(timed.name) == "vicuna-13b" : choice.model != timed.name)
      continue;
    const std::unique_ptr<cuda::CudaTransformer> model =
        cuda::CudaTransformer::random(shape_config(timed.name), DType::kF16, 1, 0);
    const HeadShape heads = model->config().head_shape();
    std::vector<std::pair<std::string, SpanPlan>> columns = {{"dense", SpanPlan::dense(heads)},
                                                             {"uniform:0.5", SpanPlan::uniform(heads, 0.5)},
                                                             {"uniform:0.25", SpanPlan::uniform(heads, 0.25)}};
    const std::filesystem::path file = std::filesystem::path(choice.plans) / timed.plan_file;
    if (!choice.plans.empty() && std::filesystem::exists(file))
      columns.insert(columns.begin() + 1, {"published", SpanPlan::load(file, heads)});
    for (const int64_t length : kLengths) {
      if (choice.length != 0 ? length != choice.length : choice.quick && length != 8192) continue;
      double dense_rate = 0;
      int64_t dense_batch = 0;
      for (const auto& [name, plan] : columns) {
        const KvLayout layout(model->config(), plan, length, KvType::kF16);
        const int64_t most = (cuda::free_device_bytes() - kReserveBytes) / (layout.bytes + (2 << 20));
        if (most < 1) continue;
        if (name == "dense") dense_batch = most;
        rows.push_back(measure(*model, plan, name, length, most, dense_batch, ceilings, dense_rate));
        if (name != "dense")
          rows.push_back(measure(*model, plan, name, length, dense_batch, dense_batch, ceilings, dense_rate));
        for (const int64_t batch : choice.batches)
          if (batch < most)
            rows.push_back(measure(*model, plan, name, length, batch, dense_batch, ceilings, dense_rate));
      }
      for (const int64_t batch : {int64_t{1}, dense_batch}) {
        const auto row = [&](const Sampling& sampling) {
          rows.push_back(
              measure(*model, columns[0].second, "dense", length, batch, dense_batch, ceilings, dense_rate, sampling));
        };
        if (batch == 1) row(kGreedy);
        if (length == 8192)
          for (const Sampling& sampling : kSampled) row(sampling);
      }
    }
  }
  return rows;
}

}  // namespace polyspan::bench
