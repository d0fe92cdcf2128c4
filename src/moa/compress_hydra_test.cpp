// A run of compress on a tiny random Hydra model: spans of its few heads with attention, profiled by forward passes.
#include <cmath>

#include "eval/eval_test_util.h"
#include "moa/compress.h"
#include "moa/refine_stage.h"
#include "moa/search_stage.h"
#include "model/hydra_test_util.h"

namespace polyspan {
namespace {
using namespace testing_util;
namespace fs = std::filesystem;

class CompressHydra : public testing::Test {
 protected:
  CompressHydra() : text_(natural_text(200)) {
    options_.densities = {0.8, 0.6};
    options_.lengths = {256, 384};
    options_.extend = {512};
    options_.kinds = {"text"};
    options_.samples = 1, options_.steps = 2, options_.validation_samples = 1;
    options_.text = text_.path().string();
    engine_ = load(tiny_hydra_config());
  }
  std::unique_ptr<Engine> load(const HydraConfig& config) const {
    return load(config, random_hydra_tensors(config, 1));
  }
  std::unique_ptr<Engine> load(const HydraConfig& config, const HydraTensors& tensors) const {
    const std::vector<std::byte> bytes = hydra_file(config, tensors);
    write_file_atomically(folder_ / "model.gguf",
                          std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
    return Engine::load(folder_ / "model.gguf", 1);
  }
  std::vector<CompressedPlan> run(Engine& engine, const char* folder, const CompressOptions& options) {
    RunDirectory directory(folder_ / folder);
    return compress(engine, directory, options, no_progress());
  }

  TemporaryFile text_;
  const TemporaryFolder temporary_;
  const fs::path folder_ = temporary_.path();
  std::unique_ptr<Engine> engine_;
  CompressOptions options_;
};

TEST_F(CompressHydra, LeavesPlansThatTheEngineRuns) {
  const std::vector<CompressedPlan> plans = run(*engine_, "run", options_);
  ASSERT_EQ(plans.size(), 2u);
  const HeadShape shape = engine_->config().head_shape();
  const std::vector<TokenId> tokens = random_bytes(300, 1);
  int64_t bytes = KvLayout(engine_->config(), SpanPlan::dense(shape), 300, KvType::kF16).bytes;
  for (const CompressedPlan& plan : plans) {
    const SpanPlan loaded = SpanPlan::load(plan.file, shape);
    EXPECT_LE(loaded.density(1), plan.density + 1e-9);
    EXPECT_GT(loaded.density(1), plan.density - 0.15);
    for (const auto& [length, density] : plan.densities) EXPECT_EQ(density, loaded.density(length)) << length;
    const std::unique_ptr<Sequence> sequence = engine_->new_sequence(loaded, 300, KvType::kF16);
    EXPECT_LT(sequence->cache().bytes(), bytes);
    bytes = sequence->cache().bytes();
    const StepRequest request{sequence.get(), tokens};
    engine_->step({&request, 1});
  }
  for (const char* name : {"run.json", "search/0.6.json", "validation/0.6.json", "candidates/0.6/annealed.json",
                           "candidates/0.6/uniform.json", "candidates/0.6/dense-span-abs.json"})
    EXPECT_TRUE(fs::is_regular_file(folder_ / "run" / name)) << name;
  EXPECT_FALSE(fs::exists(folder_ / "run/candidates/0.6/dense-pairwise.json"));  // was not profiled
  run(*engine_, "again", options_);
  fs::remove(folder_ / "again/plans/0.6.json");
  fs::remove(folder_ / "again/validation/0.6.json");
  fs::remove(folder_ / "again" / RunDirectory::profile_name("dense", "384/text/0"));
  run(*engine_, "again", options_);  // resumes
  for (const char* name : {"plans/0.8.json", "plans/0.6.json", "search/0.6.json", "samples.jsonl"})
    EXPECT_TRUE(contents(folder_ / "run" / name) == contents(folder_ / "again" / name)) << name;
}

// With one head that matters and a budget for one more chunk, the search gives it that chunk.
TEST_F(CompressHydra, TheSearchSpendsWhereItHelps) {
  const HeadShape shape = engine_->config().head_shape();
  LossCurve curve{.length = 384, .source_length = 384, .spans = candidate_spans(shape, 384), .loss = {}};
  EXPECT_EQ(curve.spans, (std::vector<int64_t>{64, 80, 96, 112, 128}));
  for (int64_t head = 0; head < 4; ++head)
    for (size_t i = 0; i < 5; ++i) curve.loss.push_back((head == 2 ? 1.0 : 0.01) * static_cast<double>(4 - i));
  const SearchProblem problem = search_problem(options_, shape, {curve}, 5.0 / 8);
  const SpanTable spans = minimise(problem, {1.0}).plan.spans(1000);
  EXPECT_EQ(spans.kv_head_spans, (std::vector<std::vector<int64_t>>{{64, 64}, {128, 64}}));
  EXPECT_EQ(spans.n_sink_tokens, 0);
}

// Of tiny_hydra_config(): the second KV head's output of the last attention reaches the residual stream, the others' do not.
HydraTensors where_one_head_matters() {
  const HydraConfig config = tiny_hydra_config();
  HydraTensors tensors = random_hydra_tensors(config, 1);
  const int64_t row = config.n_heads * config.head_dim, group = row / config.n_kv_heads;
  for (const char* name : {"blk.1.attn_output.weight", "blk.3.attn_output.weight"})
    for (int64_t i = 0; i < std::ssize(tensors.at(name)); ++i)
      if (name[4] == '1' || i % row / group != 1) tensors.at(name)[static_cast<size_t>(i)] = 0;
  return tensors;
}

// Profile, search and validation together: one head's output reaches the residual stream, the others' do not. It keeps its
// window, at a density that leaves the others the smallest span.
TEST_F(CompressHydra, AHeadThatMattersKeepsItsWindow) {
  options_.densities = {5.0 / 8};
  const std::unique_ptr<Engine> engine = load(tiny_hydra_config(), where_one_head_matters());
  const CompressedPlan plan = run(*engine, "one", options_).front();
  EXPECT_EQ(plan.winner, "annealed");
  EXPECT_NEAR(plan.loss, 0, 1e-6);
  EXPECT_GT(std::abs(plan.uniform_loss), 1e-6);
  const HeadShape shape = engine->config().head_shape();
  EXPECT_EQ(SpanPlan::load(plan.file, shape).spans(1000).kv_head_spans,
            (std::vector<std::vector<int64_t>>{{64, 64}, {64, 128}}));
}

// One head's output reaches the residual stream, the others' do not; two plans, which give it its window and the smallest
// span. Refined from the worse one, the plan gives it what the better one does; from the better one nothing is better.
TEST_F(CompressHydra, RefinementMendsAWrongChoice) {
  options_.refine = 1, options_.refine_samples = 24;
  const std::unique_ptr<Engine> engine = load(tiny_hydra_config(), where_one_head_matters());
  const HeadShape shape = engine->config().head_shape();
  const LossCurve flat{.length = 384, .source_length = 384, .spans = {64, 128}, .loss = std::vector<double>(8, 0.0)};
  const SearchProblem problem = search_problem(options_, shape, {flat}, 5.0 / 8);
  const SpanRule smallest = problem.rules.front();
  const NamedPlan wide{"wide", SpanPlan::from_rules(shape, {{smallest, smallest}, {smallest, kDenseRule}}, false),
                       false},
      narrow{"narrow", SpanPlan::from_rules(shape, {{kDenseRule, smallest}, {smallest, smallest}}, false), false};
  const auto refined = [&](const char* folder, std::span<const NamedPlan> candidates) {
    RunDirectory directory(folder_ / folder);
    SampleStore store(directory, *engine, options_);
    ProfileStage profiles(directory, *engine, options_, store, no_progress());
    return RefineStage(*engine, directory, options_, store, profiles, no_progress()).refine(problem, candidates);
  };
  const std::optional<SpanPlan> from_wide = refined("wide", {&wide, 1}), from_narrow = refined("narrow", {&narrow, 1});
  ASSERT_NE(from_wide.has_value(), from_narrow.has_value());
  const bool wide_is_better = from_narrow.has_value();
  const SpanPlan& end = wide_is_better ? *from_narrow : *from_wide;
  EXPECT_EQ(end.rule(1, 1), wide_is_better ? kDenseRule : smallest);
  const NamedPlan both[] = {wide_is_better ? narrow : wide, wide_is_better ? wide : narrow};
  EXPECT_FALSE(refined("both", both).has_value());  // it begins with the better one
}

TEST_F(CompressHydra, RefusesWhatItCannotDo) {
  CompressOptions options = options_;
  options.densities = {0.3};
  expect_error([&] { run(*engine_, "sparse", options); }, ErrorKind::kBadInput, {"0.3", "0.5, the smallest"});
  options = options_;
  options.per_query_head = true;
  expect_error([&] { run(*engine_, "query", options); }, ErrorKind::kUnsupported, {"--per-query-head", "KV head"});
  options = options_;
  options.influence = Estimator::kPairwise;
  expect_error([&] { run(*engine_, "pairwise", options); }, ErrorKind::kUnsupported, {"pairwise", "forward"});
  HydraConfig config = tiny_hydra_config();
  config.window = 64;
  expect_error([&] { run(*load(config), "narrow", options_); }, ErrorKind::kUnsupported, {"windows of 64", "64"});
  config.attention_every = 0, config.n_slots = 0;
  expect_error([&] { run(*load(config), "without", options_); }, ErrorKind::kUnsupported, {"no attention"});
}

}  // namespace
}  // namespace polyspan
