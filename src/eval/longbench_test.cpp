#include "eval/longbench.h"

#include <nlohmann/json.hpp>

#include "eval/eval_test_util.h"
#include "eval/prompt_frame.h"

namespace polyspan {
namespace {
using namespace testing_util;

std::string record(const std::string& dataset, const std::string& context, const std::string& input = "the input",
                   std::vector<std::string> answers = {"an answer", "another"}) {
  const nlohmann::json classes = dataset == "trec" ? nlohmann::json({"Date", "City"}) : nlohmann::json();
  return nlohmann::json{{"dataset", dataset},     {"context", context}, {"input", input}, {"answers", answers},
                        {"all_classes", classes}, {"length", 5},        {"_id", "x"}}
             .dump() +
         "\n";
}

std::vector<LongBenchRecord> read(const std::string& contents) {
  const TemporaryFile file(contents);
  return read_longbench(file.path());
}

TEST(LongBench, EveryDatasetHasThePapersMeasure) {
  const std::pair<const char*, ScoreRule> cases[] = {
      {"narrativeqa", ScoreRule::kTokenF1},     {"qasper", ScoreRule::kTokenF1},
      {"multifieldqa_en", ScoreRule::kTokenF1}, {"hotpotqa", ScoreRule::kTokenF1},
      {"2wikimqa", ScoreRule::kTokenF1},        {"musique", ScoreRule::kTokenF1},
      {"gov_report", ScoreRule::kRougeL},       {"qmsum", ScoreRule::kRougeL},
      {"multi_news", ScoreRule::kRougeL},       {"trec", ScoreRule::kClassification},
      {"triviaqa", ScoreRule::kTokenF1},        {"samsum", ScoreRule::kRougeL},
      {"passage_count", ScoreRule::kCount},     {"passage_retrieval_en", ScoreRule::kRetrieval},
      {"lcc", ScoreRule::kCodeSimilarity},      {"repobench-p", ScoreRule::kCodeSimilarity}};
  const TinyEngine tiny;
  for (const auto& [dataset, rule] : cases) {
    SCOPED_TRACE(dataset);
    EXPECT_EQ(longbench_rule(dataset), rule);
    const auto records = read(record(dataset, "A context."));
    ASSERT_EQ(records.size(), 1u);
    const std::vector<PromptItem> items = longbench_items(*tiny, records, {});
    ASSERT_EQ(items.size(), 1u);
    EXPECT_EQ(items[0].rule, rule);
    EXPECT_EQ(items[0].wanted, (std::vector<std::string>{"an answer", "another"}));
    EXPECT_EQ(items[0].kind, dataset);
    EXPECT_EQ(items[0].row_length, 4096);
    EXPECT_EQ(items[0].planned_length, std::ssize(items[0].tokens) + items[0].max_new_tokens);
    const std::string text = tiny->tokenizer().decode(items[0].tokens, true);
    EXPECT_EQ(count(text, "A context."), 1);
    EXPECT_EQ(count(text, "{input}"), 0);
    const std::string name = dataset;
    const bool has_input = name != "gov_report" && name != "multi_news" && name != "passage_count" && name != "lcc";
    EXPECT_EQ(count(text, "the input"), has_input ? 1 : 0);
    // Examples to continue and code are no conversation.
    const bool is_plain =
        name == "trec" || name == "triviaqa" || name == "samsum" || name == "lcc" || name == "repobench-p";
    EXPECT_EQ(text.ends_with("<|im_start|>assistant\n"), !is_plain) << text;
    EXPECT_EQ(count(text, "<|im_start|>") > 0, !is_plain);
  }
  EXPECT_EQ(longbench_rule("qasper_e"), ScoreRule::kTokenF1);
  EXPECT_EQ(longbench_items(*tiny, read(record("trec", "c")), {})[0].classes,
            (std::vector<std::string>{"Date", "City"}));
}

// A prompt that is too long keeps its beginning and its end, to the token, and as much of one as of the other.
TEST(LongBench, CutsTheMiddle) {
  RandomModelConfig config = tiny_engine_config();
  config.context_length = 30000;
  const TinyEngine tiny(config);
  std::string context;
  for (int i = 0; i < 2000; ++i) context += std::to_string(i) + ";";
  const std::vector<PromptItem> items =
      longbench_items(*tiny, read(record("hotpotqa", context, "Which one?")), {.lengths = {30000, 500, 501, 4096}});
  ASSERT_EQ(items.size(), 4u);
  const std::vector<TokenId>& uncut = items[0].tokens;
  EXPECT_LT(items[0].planned_length, 15000);  // its own, not the context's
  EXPECT_EQ(count(tiny->tokenizer().decode(uncut), context + "\n\nQuestion: Which one?\nAnswer:"), 1);
  const PromptFrame frame(tiny->tokenizer(), &tiny->chat_format(), "", "", "");
  for (size_t i = 1; i < items.size(); ++i) {
    const std::vector<TokenId>& cut = items[i].tokens;
    EXPECT_EQ(items[i].planned_length, items[i].row_length);
    EXPECT_EQ(std::ssize(cut), items[i].row_length - 32);
    const size_t half = frame.head.size() + (cut.size() - static_cast<size_t>(frame.size())) / 2;
    EXPECT_TRUE(std::equal(cut.begin(), cut.begin() + static_cast<std::ptrdiff_t>(half), uncut.begin())) << i;
    EXPECT_TRUE(std::equal(cut.rbegin(), cut.rbegin() + static_cast<std::ptrdiff_t>(cut.size() - half), uncut.rbegin()))
        << i;
  }
}

TEST(LongBench, TakesTheFirstOfEachDataset) {
  const TinyEngine tiny;
  const auto records =
      read(record("qasper", "one") + record("qasper", "two") + record("lcc", "three") + record("qasper", "four"));
  EXPECT_EQ(longbench_items(*tiny, records, {}).size(), 4u);
  const std::vector<PromptItem> items = longbench_items(*tiny, records, {.lengths = {1000, 2000}, .n_samples = 1});
  ASSERT_EQ(items.size(), 4u);
  EXPECT_EQ(items[0].kind, "qasper");
  EXPECT_EQ(items[1].kind, "lcc");
  EXPECT_EQ(items[2].row_length, 2000);
  EXPECT_EQ(count(tiny->tokenizer().decode(items[0].tokens), "one"), 1);
}

TEST(LongBench, Refuses) {
  const std::string good = record("qasper", "c");
  const std::pair<std::string, std::vector<std::string>> cases[] = {
      {"", {"no line"}},
      {good + "{", {"line 2", "JSON"}},
      {good + record("no-such-set", "c"), {"line 2", "no-such-set", "qasper"}},
      {good + record("dureader", "c"), {"line 2", "dureader", "Chinese"}},
      {good + "{\"dataset\": \"qasper\"}", {"line 2", "input", "missing"}},
      {good + R"({"dataset": "qasper", "input": "i", "context": "c", "answers": []})", {"line 2", "answers"}},
      {good + R"({"dataset": "qasper", "input": "i", "context": "c", "answers": "a"})", {"line 2", "answers"}},
      {good + R"({"dataset": "qasper", "input": "i", "context": "c", "answers": ["a", 1]})", {"line 2", "answers"}},
      {good + R"({"dataset": "qasper", "input": "i", "context": 7, "answers": ["a"]})", {"line 2", "context"}},
      {good + R"({"dataset": "trec", "input": "i", "context": "c", "answers": ["a"], "all_classes": null})",
       {"line 2", "all_classes"}},
  };
  for (const auto& [contents, mentions] : cases) {
    SCOPED_TRACE(contents);
    expect_error([&, text = contents] { read(text); }, ErrorKind::kBadFile, mentions);
  }
  const TinyEngine tiny;
  expect_error([&] { longbench_items(*tiny, read(good), {.lengths = {150}}); }, ErrorKind::kBadInput,
               {"qasper", "150"});
  expect_error([&] { longbench_items(*tiny, read(good), {.lengths = {4097}}); }, ErrorKind::kBadInput, {"4097"});
}

}  // namespace
}  // namespace polyspan
