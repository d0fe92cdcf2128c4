// The runner and its summary, on a random model and on made-up results.
#include "eval/prompt_item.h"

#include "engine/generate.h"
#include "eval/eval_test_util.h"
#include "eval/summary.h"

namespace polyspan {
namespace {
using namespace testing_util;

struct Record final : Progress {
  int64_t total = 0, done = 0, n_starts = 0;
  bool goes_back = false;
  void start(std::string_view, int64_t n) override { total = n, ++n_starts; }
  void update(int64_t n) override {
    goes_back = goes_back || n < done;
    done = n;
  }
};

// Its density differs from length to length.
SpanPlan mixed_plan(const TinyEngine& tiny) {
  const HeadShape shape = tiny->config().head_shape();
  const std::vector<SpanRule> layer(static_cast<size_t>(shape.n_kv_heads), {200, 0});
  std::vector<std::vector<SpanRule>> rules(static_cast<size_t>(shape.n_layers), layer);
  rules[0][0] = {-500, 0.75};
  return SpanPlan::from_rules(shape, rules, false);
}

// What greedy generation by itself says.
std::string greedy_text(const TinyEngine& tiny, const SpanPlan& plan, const PromptItem& item, KvType type) {
  const auto sequence = tiny->new_sequence(plan, item.planned_length, type);
  return generate(*tiny, *sequence, item.tokens, {.max_tokens = item.max_new_tokens}).text;
}

TEST(EvaluateItems, AnswersAreGreedyAndScored) {
  const TinyEngine tiny;
  const SpanPlan plan = mixed_plan(tiny);
  std::vector<PromptItem> items;
  for (uint64_t i = 0; i < 6; ++i) {
    PromptItem item{.tokens = tiny.random_tokens(600 + static_cast<int64_t>(i), i),
                    .max_new_tokens = 12,
                    .planned_length = 700,
                    .rule = ScoreRule::kTokenF1};
    item.row_length = i < 3 ? 700 : 800;
    item.kind = i % 2 == 0 ? "even" : "odd";
    // Half of the answers are made right beforehand.
    item.wanted = {i % 2 == 0 ? greedy_text(tiny, plan, item, KvType::kQ8) : "something else altogether"};
    items.push_back(item);
  }
  Record progress;
  const std::vector<ItemResult> results = evaluate_items(*tiny, same_plan(plan), items, KvType::kQ8, progress);
  ASSERT_EQ(results.size(), items.size());
  for (size_t i = 0; i < items.size(); ++i) {
    SCOPED_TRACE(testing::Message() << "item " << i << " output " << results[i].output);
    EXPECT_EQ(results[i].output, greedy_text(tiny, plan, items[i], KvType::kQ8));
    EXPECT_EQ(results[i].score, score_answer(ScoreRule::kTokenF1, results[i].output, items[i].wanted));
    EXPECT_EQ(results[i].kv_bytes, KvLayout(tiny->config(), plan, 700, KvType::kQ8).bytes);
    EXPECT_EQ(results[i].density, plan.density(700));
  }
  EXPECT_EQ(progress.total, 6 * 700);
  EXPECT_EQ(progress.total, work_tokens(items));
  EXPECT_EQ(progress.done, progress.total);
  EXPECT_EQ(progress.n_starts, 1);
  EXPECT_FALSE(progress.goes_back);
}

// Generation ends early only where the score is certain: the output is then a beginning of the whole one, the score the same.
TEST(EvaluateItems, StopsOnceTheScoreIsCertain) {
  const TinyEngine tiny;
  PromptItem item{.tokens = tiny.random_tokens(100, 3), .max_new_tokens = 40, .planned_length = 140};
  const std::string whole = greedy_text(tiny, tiny.dense(), item, KvType::kF16);
  ASSERT_GT(whole.size(), 8u);
  item.wanted = {whole.substr(0, 3)};
  for (const ScoreRule rule : {ScoreRule::kContainsAll, ScoreRule::kTokenF1}) {
    item.rule = rule;
    const std::string output = evaluate_items(*tiny, same_plan(tiny.dense()), {&item, 1}, KvType::kF16)[0].output;
    EXPECT_TRUE(whole.starts_with(output));
    EXPECT_EQ(output.size() < whole.size(), rule == ScoreRule::kContainsAll) << output;
  }
}

TEST(EvaluateItems, ChecksBeforeTheWork) {
  const TinyEngine tiny;
  std::vector<PromptItem> items(2);
  for (PromptItem& item : items)
    item = {.tokens = tiny.random_tokens(10, 1), .max_new_tokens = 4, .planned_length = 20, .wanted = {"x"}};
  items[1].planned_length = 4097;
  Record progress;
  expect_error([&] { evaluate_items(*tiny, same_plan(tiny.dense()), items, KvType::kF16, progress); },
               ErrorKind::kBadInput, {"4097", "4096"});
  EXPECT_EQ(progress.n_starts, 0);
  for (const int64_t length : {int64_t{-1}, int64_t{0}, int64_t{4097}})
    expect_error([&] { check_length(*tiny, length); }, ErrorKind::kBadInput, {std::to_string(length)});
  EXPECT_NO_THROW(check_length(*tiny, 4096));
}

// At every length the uniform plan keeps as much as the plan does, to a few tokens a head.
TEST(UniformLike, HasTheDensityAtEachLength) {
  const TinyEngine tiny;
  const SpanPlan plan = mixed_plan(tiny);
  EXPECT_GT(plan.density(1000) - plan.density(4000), 0.05);  // no one density would do
  for (const int64_t length : {1000, 2000, 4000}) {
    const SpanPlan uniform = uniform_like(plan)(length);
    EXPECT_NEAR(uniform.density(length), plan.density(length), 2.0 / static_cast<double>(length)) << length;
    const SpanTable table = uniform.spans(length);
    for (const auto& layer : table.kv_head_spans)
      for (const int64_t span : layer) EXPECT_EQ(span, table.kv_head_spans[0][0]);
  }
}

TEST(Summary, RowsKindsAndDepths) {
  const auto item = [](int64_t length, const char* kind, std::optional<double> depth) {
    return PromptItem{.row_length = length, .kind = kind, .depth = depth};
  };
  const std::vector<PromptItem> items = {item(100, "b", 1.0), item(100, "b", 0.0), item(100, "b", 0.0),
                                         item(100, "a", 1.0), item(50, "a", {})};
  const std::vector<ItemResult> results = {
      {"", 1, 10, 0.5}, {"", 0, 20, 0.25}, {"", 0.5, 10, 0.25}, {"", 0, 10, 0.5}, {"", 1, 7, 1}};
  const std::vector<EvalRow> rows = summarize(items, results);
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0].length, 100);
  EXPECT_EQ(rows[0].n, 4);
  ASSERT_EQ(rows[0].kinds.size(), 2u);
  EXPECT_EQ(rows[0].kinds[0].first, "b");
  EXPECT_EQ(rows[0].kinds[0].second.n, 3);
  EXPECT_DOUBLE_EQ(rows[0].kinds[0].second.accuracy(), 0.5);
  EXPECT_DOUBLE_EQ(rows[0].accuracy, 0.25);  // kinds 0.5 and 0, not the mean of the four
  EXPECT_EQ(rows[0].kv_bytes, 20);
  EXPECT_DOUBLE_EQ(rows[0].density, 0.375);
  ASSERT_EQ(rows[0].depths.size(), 2u);
  EXPECT_EQ(rows[0].depths[0].first, 0.0);
  EXPECT_DOUBLE_EQ(rows[0].depths[0].second.accuracy(), 0.25);
  EXPECT_DOUBLE_EQ(rows[0].depths[1].second.accuracy(), 0.5);
  EXPECT_EQ(rows[1].length, 50);
  EXPECT_DOUBLE_EQ(rows[1].accuracy, 1);
  EXPECT_TRUE(rows[1].depths.empty());
}

TEST(Summary, EffectiveContext) {
  const auto rows = [](std::vector<double> accuracies, double density) {
    std::vector<EvalRow> all;
    for (size_t i = 0; i < accuracies.size(); ++i)
      all.push_back({.length = int64_t{1000} << i, .accuracy = accuracies[i], .density = density});
    return all;
  };
  const std::vector<EvalRow> dense = rows({1, 1, 0.8}, 1);
  EffectiveContext context = effective_context(dense, rows({0.95, 0.9, 0.72}, 0.25));
  EXPECT_EQ(context.tokens, 4000);
  EXPECT_DOUBLE_EQ(context.mean_span, 1000);
  EXPECT_DOUBLE_EQ(context.times_span(), 4);
  context = effective_context(dense, rows({0.95, 0.89, 0.8}, 0.25));  // the longest is right, but one before it is not
  EXPECT_EQ(context.tokens, 1000);
  EXPECT_DOUBLE_EQ(context.mean_span, 250);
  context = effective_context(dense, rows({0.5, 1, 1}, 0.25));
  EXPECT_EQ(context.tokens, 0);
  EXPECT_EQ(context.times_span(), 0);
  EXPECT_EQ(effective_context(rows({1, 0}, 1), rows({1, 0}, 0.5)).tokens,
            1000);  // nothing to keep where dense finds nothing
  std::vector<EvalRow> turned_dense = dense, turned = rows({0.95, 0.2, 0.8}, 0.25);  // rows in any order
  std::swap(turned_dense[0], turned_dense[2]);
  std::swap(turned[0], turned[2]);
  EXPECT_EQ(effective_context(turned_dense, turned).tokens, 1000);
}

}  // namespace
}  // namespace polyspan
