#include "cuda/transformer.h"

#include "core/error.h"
#include "cuda/cuda_test_util.h"
#include "engine/engine_test_util.h"
#include "engine/generate.h"
#include "model/model_test_util.h"

namespace polyspan::cuda {
namespace {
using namespace testing_util;

// The same random model on the CPU and on the GPU.
struct Pair {
  TinyModel cpu;
  std::unique_ptr<Model> gpu;
  explicit Pair(const RandomModelConfig& config)
      : cpu(config, 1),
        gpu(load_cuda_model(std::make_unique<GgufFile>(GgufFile::from_bytes(cpu.bytes, "tiny")), 0, no_progress())) {}
};

RandomModelConfig small(const std::string& arch, DType type, int64_t n_heads, int64_t n_kv_heads, int64_t head_dim) {
  RandomModelConfig config = find_model_shape("tiny-" + arch).value();
  config.type = type, config.n_heads = n_heads, config.n_kv_heads = n_kv_heads, config.head_dim = head_dim,
  config.tied = false;
  return config;
}

std::vector<float> feed(Model& model, std::span<KvCache* const> caches, std::span<const std::vector<int32_t>> tokens) {
  std::vector<int32_t> all;
  std::vector<BatchSequence> sequences;
  std::vector<int64_t> rows;
  for (size_t i = 0; i < caches.size(); ++i) {
    sequences.push_back({caches[i], std::ssize(all), std::ssize(tokens[i])});
    all.insert(all.end(), tokens[i].begin(), tokens[i].end());
    rows.push_back(std::ssize(all) - 1);
  }
  model.forward({all, sequences});
  std::vector<float> logits(rows.size() * static_cast<size_t>(model.config().vocab_size), NAN);
  model.logits(rows, logits.data());
  return logits;
}

// Two sequences of unlike lengths: prompts in chunks past the rings' wrap, then single tokens, on both.
void check_agreement(const RandomModelConfig& config, const std::string& plan_text, KvType kv, double bound) {
  const KvType cpu_kv = kv == KvType::kF8 ? KvType::kF16 : kv;  // the CPU has no f8

  SCOPED_TRACE(testing::Message() << config.arch << " " << dtype_name(config.type) << " heads " << config.n_heads << "/"
                                  << config.n_kv_heads << " of " << config.head_dim << ", " << plan_text << ", cache "
                                  << kv_type_text(kv));
  Pair pair(config);
  const SpanPlan plan = SpanPlan::from_spec(plan_text, pair.cpu.model->config().head_shape());
  const int64_t lengths[] = {420, 300};
  std::vector<KvCache> cpu, gpu;
  for (const int64_t length : lengths) {
    cpu.push_back(pair.cpu.cache(plan, length, cpu_kv));
    gpu.push_back(pair.gpu->make_cache(KvLayout(pair.gpu->config(), plan, length, kv)));
    EXPECT_EQ(cpu.back().bytes(), (kv == KvType::kF8 ? 2 : 1) * gpu.back().bytes());
  }
  KvCache* const cpu_caches[] = {&cpu[0], &cpu[1]};
  KvCache* const gpu_caches[] = {&gpu[0], &gpu[1]};
  const std::vector<int32_t> a = random_tokens(pair.cpu, 420, 1), b = random_tokens(pair.cpu, 300, 2);
  const auto part = [](const std::vector<int32_t>& tokens, int64_t begin, int64_t end) {
    return std::vector<int32_t>(tokens.begin() + begin, tokens.begin() + end);
  };
  struct Chunk {
    int64_t a_begin, a_end, b_begin, b_end;
  };
  std::vector<Chunk> chunks = {{0, 150, 0, 1}, {150, 151, 1, 130}, {151, 390, 130, 270}};
  for (int64_t i = 0; i < 30; ++i) chunks.push_back({390 + i, 391 + i, 270 + i, 271 + i});
  for (const Chunk& c : chunks) {
    SCOPED_TRACE(testing::Message() << "tokens " << c.a_begin << " to " << c.a_end);
    const std::vector<int32_t> tokens[] = {part(a, c.a_begin, c.a_end), part(b, c.b_begin, c.b_end)};
    const std::vector<float> expected = feed(*pair.cpu.model, cpu_caches, tokens),
                             actual = feed(*pair.gpu, gpu_caches, tokens);
    ASSERT_LT(error_norm(actual, expected), bound);
  }
}

TEST(CudaTransformer, AgreesWithTheCpu) {
  POLYSPAN_NEEDS_GPU();
  // F32: what differs is the rounding of keys and values to f16 and, in chunks, of queries and weights.
  for (const char* plan : {"dense", "uniform:0.5"})
    for (const KvType kv : kKvTypes) {
      check_agreement(small("llama", DType::kF32, 4, 2, 64), plan, kv, kv == KvType::kF16 ? 4e-3 : 2e-2);
      check_agreement(small("qwen2", DType::kF32, 6, 2, 64), plan, kv, kv == KvType::kF16 ? 4e-3 : 2e-2);
    }
  // f8 has 3 bits of mantissa: its rounding, 2 to 3% of a value, moves the logits of this model by 11%.
  check_agreement(small("llama", DType::kF32, 4, 2, 64), "uniform:0.5", KvType::kF8, 0.3);
  check_agreement(small("llama", DType::kF32, 2, 2, 128), "uniform:0.5", KvType::kF16, 4e-3);
  check_agreement(small("llama", DType::kF16, 4, 2, 64), "uniform:0.5", KvType::kF16, 5e-3);
  check_agreement(small("llama", DType::kBF16, 4, 2, 64), "uniform:0.5", KvType::kF16, 3e-2);
}

TEST(CudaTransformer, AgreesWithTheCpuQuantized) {
  POLYSPAN_NEEDS_GPU();
  // The CPU rounds activations to 8 bits always, the GPU for one or two tokens only.
  for (const DType type : {DType::kQ8_0, DType::kQ4_0, DType::kQ4_1, DType::kQ4_K, DType::kQ6_K, DType::kQ5_K})
    check_agreement(small("llama", type, 4, 2, 64), "uniform:0.5", KvType::kF16, 4e-2);
}

// Single tokens of as many sequences as each way of multiplying quantised weights serves.
TEST(CudaTransformer, ManySequencesAgreeWithTheCpuQuantized) {
  POLYSPAN_NEEDS_GPU();
  for (const DType type : {DType::kQ4_K, DType::kQ8_0})
    for (const int64_t n : {2, 3, 9, 20, 40, 100}) {
      SCOPED_TRACE(testing::Message() << dtype_name(type) << ", " << n << " sequences");
      const Pair pair(small("llama", type, 4, 2, 64));
      const SpanPlan plan = SpanPlan::uniform(pair.cpu.model->config().head_shape(), 0.5);
      std::vector<KvCache> cpu, gpu;
      for (int64_t i = 0; i < n; ++i) {
        cpu.push_back(pair.cpu.cache(plan, 200, KvType::kF16));
        gpu.push_back(pair.gpu->make_cache(KvLayout(pair.gpu->config(), plan, 200, KvType::kF16)));
      }
      std::vector<KvCache*> cpu_caches, gpu_caches;
      for (KvCache& cache : cpu) cpu_caches.push_back(&cache);
      for (KvCache& cache : gpu) gpu_caches.push_back(&cache);
      for (int64_t i = 0; i < n; ++i) {
        const std::vector<int32_t> prompt[] = {random_tokens(pair.cpu, 3 + i % 7, static_cast<uint64_t>(i + 1))};
        const auto at = static_cast<size_t>(i);
        feed(*pair.cpu.model, std::span(cpu_caches).subspan(at, 1), prompt);
        feed(*pair.gpu, std::span(gpu_caches).subspan(at, 1), prompt);
      }
      for (uint64_t step = 0; step < 4; ++step) {  // the first by single launches, the others as a graph
        std::vector<std::vector<int32_t>> next;
        for (int64_t i = 0; i < n; ++i)
          next.push_back(random_tokens(pair.cpu, 1, 1000 * (step + 1) + static_cast<uint64_t>(i)));
        const std::vector<float> expected = feed(*pair.cpu.model, cpu_caches, next),
                                 actual = feed(*pair.gpu, gpu_caches, next);
        ASSERT_LT(error_norm(actual, expected), 4e-2) << "step " << step;
      }
    }
}

// The tokens that the GPU chooses for itself are those that it would be given.
TEST(CudaTransformer, ContinuesAsStepByStep) {
  POLYSPAN_NEEDS_GPU();
  const RandomModelConfig config = small("llama", DType::kF16, 4, 2, 64);
  Pair pair(config);
  const SpanPlan plan = SpanPlan::uniform(pair.gpu->config().head_shape(), 0.5);
  const std::vector<int32_t> prompt = random_tokens(pair.cpu, 300, 5);
  std::vector<int32_t> chosen[2];
  std::vector<float> last[2];
  for (const bool by_itself : {false, true}) {
    KvCache cache = pair.gpu->make_cache(KvLayout(pair.gpu->config(), plan, 1000, KvType::kF16));
    KvCache* const caches[] = {&cache};
    const std::vector<int32_t> prompts[] = {prompt};
    std::vector<float> logits = feed(*pair.gpu, caches, prompts);
    int32_t token = greedy_token(logits);
    const int64_t row = 0;
    constexpr int kSteps = 600;  // past the first work lists
    for (int step = 0; step < kSteps; ++step) {
      if (!by_itself || step == 0) {
        const BatchSequence one{&cache, 0, 1};
        pair.gpu->forward({{&token, 1}, {&one, 1}});
      } else {
        dynamic_cast<CudaTransformer&>(*pair.gpu).continue_decoding(caches, 1);
      }
      ASSERT_TRUE(pair.gpu->chosen_tokens({&row, 1}, &token));
      chosen[by_itself].push_back(token);
    }
    last[by_itself].resize(static_cast<size_t>(config.vocab_size));
    pair.gpu->logits({&row, 1}, last[by_itself].data());
    EXPECT_EQ(cache.n_tokens(), 300 + kSteps);
  }
  EXPECT_EQ(chosen[0], chosen[1]);
  EXPECT_EQ(last[0], last[1]);
}

// After chunks and after single tokens, by rules of all kinds: what the rule chooses of the logits that it gives away.
// A pass that begins at a later layer with the inputs that another plan's pass kept, in chunks: what a whole pass gives, to
// the bit, where the layers below have the same spans.
TEST(CudaTransformer, BeginsAtALaterLayer) {
  POLYSPAN_NEEDS_GPU();
  RandomModelConfig config = small("llama", DType::kQ8_0, 4, 2, 64);
  config.n_layers = 3;
  Pair pair(config);
  Model& model = *pair.gpu;
  const HeadShape shape = model.config().head_shape();
  const SpanRule narrow{64, 0}, wide{128, 0.25};
  const SpanPlan base = SpanPlan::from_rules(shape, {3, {narrow, wide}}, false);
  const SpanPlan changed = SpanPlan::from_rules(shape, {{narrow, wide}, {narrow, wide}, {kDenseRule, narrow}}, false);
  constexpr int64_t kLength = 400;
  const std::vector<int32_t> tokens = random_tokens(pair.cpu, kLength, 3);
  const std::unique_ptr<LayerInputs> inputs = model.make_layer_inputs(kLength);
  const auto run = [&](const SpanPlan& plan, LayerInputs* with, int64_t first_layer) {
    KvCache cache = model.make_cache(KvLayout(model.config(), plan, kLength, KvType::kF16));
    std::vector<TargetScore> scores;
    for (const int64_t n : {250, 149, 1}) {
      const std::span<const int32_t> chunk = std::span(tokens).subspan(static_cast<size_t>(cache.n_tokens()), n);
      const BatchSequence sequence{&cache, 0, n};
      model.forward({chunk, {&sequence, 1}, with, first_layer});
      const int64_t row = n - 1;
      const int32_t target = 7;
      scores.push_back(model.scores({&row, 1}, {&target, 1}).front());
    }
    return scores;
  };
  const auto same = [](const std::vector<TargetScore>& a, const std::vector<TargetScore>& b) {
    for (size_t i = 0; i < a.size(); ++i)
      if (a[i].log_probability != b[i].log_probability) return false;
    return true;
  };
  const std::vector<TargetScore> of_base = run(base, inputs.get(), 0), of_changed = run(changed, inputs.get(), 2);
  EXPECT_TRUE(same(run(base, inputs.get(), 1), of_base));
  EXPECT_FALSE(same(of_changed, of_base));
  EXPECT_TRUE(same(of_changed, run(changed, inputs.get(), 2)));  // what was kept is still there
  const std::unique_ptr<LayerInputs> other = model.make_layer_inputs(kLength);
  EXPECT_TRUE(same(of_changed, run(changed, other.get(), 0)));
}

TEST(CudaTransformer, ChoosesByTheRules) {
  POLYSPAN_NEEDS_GPU();
  const RandomModelConfig config = small("llama", DType::kF16, 4, 2, 64);
  Pair pair(config);
  const SpanPlan plan = SpanPlan::uniform(pair.gpu->config().head_shape(), 0.5);
  std::vector<KvCache> caches;
  for (int i = 0; i < 3; ++i)
    caches.push_back(pair.gpu->make_cache(KvLayout(pair.gpu->config(), plan, 400, KvType::kF16)));
  Random random(7);
  const size_t vocab = static_cast<size_t>(config.vocab_size);
  int n_not_greedy = 0;
  for (int step = 0; step < 40; ++step) {
    std::vector<int32_t> tokens;
    std::vector<BatchSequence> sequences;
    std::vector<int64_t> rows;
    for (KvCache& cache : caches) {
      const TokenRule rule{.temperature = random.below(3) == 0 ? 0.0f : 0.5f + random.unit() * 0.4f,
                           .top_k = static_cast<int32_t>(random.below(3) * 20),
                           .top_p = random.below(2) == 0 ? 1.0f : 0.9f,
                           .min_p = random.below(2) == 0 ? 0.0f : 0.05f,
                           .uniform = static_cast<double>(random.next() >> 11) * 0x1p-53};
      const int64_t n = step % 4 == 0 ? 1 + random.below(20) : 1;
      sequences.push_back({&cache, std::ssize(tokens), n, rule});
      for (int64_t i = 0; i < n; ++i) tokens.push_back(static_cast<int32_t>(random.below(config.vocab_size)));
      rows.push_back(std::ssize(tokens) - 1);
    }
    std::reverse(rows.begin(), rows.end());
    pair.gpu->forward({tokens, sequences});
    std::vector<float> logits(rows.size() * vocab, NAN);
    std::vector<int32_t> chosen(rows.size(), -1);
    pair.gpu->logits(rows, logits.data());
    ASSERT_TRUE(pair.gpu->chosen_tokens(rows, chosen.data()));
    for (size_t i = 0; i < rows.size(); ++i) {
      const std::span<const float> row(logits.data() + i * vocab, vocab);
      EXPECT_EQ(chosen[i], choose_token(row, sequences[rows.size() - 1 - i].rule)) << "step " << step << ", row " << i;
      n_not_greedy += chosen[i] != greedy_token(row);
    }
  }
  EXPECT_GT(n_not_greedy, 20);
}

// The same seed gives the same text whether the GPU chooses or the host, which has to where logprobs are asked for.
TEST(CudaTransformer, SamplesAsTheHostDoes) {
  POLYSPAN_NEEDS_GPU();
  const TinyEngine tiny(small("llama", DType::kF16, 4, 2, 64), "", 1, {DeviceKind::kCuda, 0});
  const std::vector<TokenId> prompt = tiny.random_tokens(40, 3);
  std::vector<std::vector<TokenId>> texts;
  for (const uint64_t seed : {1, 2}) {
    for (const bool by_host : {false, true}) {
      GenerateOptions options{.max_tokens = 60, .sampling = {.temperature = 0.8f, .seed = seed}, .ignore_end = true};
      if (by_host) options.n_logprobs = 0;
      const std::unique_ptr<Sequence> sequence = tiny->new_sequence(tiny.uniform(0.5), 200, KvType::kF16);
      texts.push_back(generate(*tiny, *sequence, prompt, options).tokens);
    }
    EXPECT_EQ(texts[texts.size() - 2], texts.back()) << "seed " << seed;
  }
  EXPECT_NE(texts[0], texts[2]);
}

TEST(CudaTransformer, SaysWhatMemoryIsMissing) {
  POLYSPAN_NEEDS_GPU();
  Pair pair(small("llama", DType::kF16, 4, 2, 64));
  KvLayout layout(pair.gpu->config(), SpanPlan::dense(pair.gpu->config().head_shape()), 4096, KvType::kF16);
  layout.bytes = int64_t{1} << 50;
  try {
    pair.gpu->make_cache(layout);
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kOutOfMemory);
    EXPECT_NE(std::string(error.what()).find(std::to_string(int64_t{1} << 50)), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("free"), std::string::npos) << error.what();
  }
  // It goes on.
  KvCache cache = pair.gpu->make_cache(
      KvLayout(pair.gpu->config(), SpanPlan::dense(pair.gpu->config().head_shape()), 100, KvType::kF16));
  KvCache* const caches[] = {&cache};
  const std::vector<int32_t> prompts[] = {random_tokens(pair.cpu, 30, 1)};
  for (const float value : feed(*pair.gpu, caches, prompts)) ASSERT_TRUE(std::isfinite(value));
}

TEST(CudaTransformer, RefusesWhatItCannotRun) {
  POLYSPAN_NEEDS_GPU();
  const auto refused = [](int device, const RandomModelConfig& config, const char* mention) {
    const std::vector<std::byte> bytes = make_random_model(config).to_bytes();
    try {
      load_cuda_model(std::make_unique<GgufFile>(GgufFile::from_bytes(bytes, "tiny")), device, no_progress());
      ADD_FAILURE() << mention;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUnsupported);
      EXPECT_NE(std::string(error.what()).find(mention), std::string::npos) << error.what();
    }
  };
  refused(99, small("llama", DType::kF16, 4, 2, 64), "cuda:99");
  refused(0, small("llama", DType::kF16, 4, 2, 32), "32 dimensions");
}

}  // namespace
}  // namespace polyspan::cuda
