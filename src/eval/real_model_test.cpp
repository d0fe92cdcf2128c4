// The default model (SmolLM2-135M-Instruct, Q4_1; POLYSPAN_MODEL names its file) against numbers made with llama.cpp
// (llama-cpp-python 0.3.36): perplexity, greedy continuations, and what a plan does to retrieval.
#include <gtest/gtest.h>

#include <cstdlib>

#include "engine/engine_test_util.h"
#include "engine/generate.h"
#include "eval/passkey.h"
#include "eval/perplexity.h"
#include "eval/ruler.h"
#include "eval/summary.h"

namespace polyspan {
namespace {

// Loads the model once for all tests of this file; they are skipped without it.
class RealModel : public testing::Test {
 protected:
  void SetUp() override {
    const char* path = std::getenv("POLYSPAN_MODEL");
    if (path == nullptr) GTEST_SKIP() << "POLYSPAN_MODEL does not name the default model";
    if (!engine_) engine_ = Engine::load(path, 2);
    ASSERT_EQ(engine_->config().vocab_size, 49152) << path << " is not SmolLM2-135M-Instruct";
  }
  static void TearDownTestSuite() { engine_ = nullptr; }
  SpanPlan plan(double density) const { return SpanPlan::uniform(engine_->config().head_shape(), density); }
  static std::unique_ptr<Engine> engine_;
};
std::unique_ptr<Engine> RealModel::engine_;

// 110 sentences, chosen by a linear congruential generator: 1,377 tokens.
std::string generated_text() {
  const char* const subjects[] = {"The old miller", "A young teacher",    "The ship's captain",
                                  "My neighbour",   "The quiet engineer", "Her grandmother"};
  const char* const verbs[] = {"repaired", "painted", "sold", "measured", "carried", "found"};
  const char* const objects[] = {"a wooden boat",       "the village clock", "two heavy boxes",
                                 "a map of the valley", "the garden gate",   "an iron bridge"};
  const char* const places[] = {"near the river",         "behind the church",
                                "before the winter came", "on the road to the market",
                                "in the early morning",   "while it rained"};
  uint64_t state = 12345;
  const auto pick = [&state](const char* const(&list)[6]) {
    state = (state * 1103515245 + 12345) % (uint64_t{1} << 31);
    return std::string(list[(state >> 16) % 6]);
  };
  std::string text;
  for (int i = 0; i < 110; ++i) {
    text += pick(subjects) + " ";
    text += pick(verbs) + " ";
    text += pick(objects) + " ";
    text += pick(places) + ". ";
  }
  return text;
}

TEST_F(RealModel, SlowPerplexityIsThatOfLlamaCpp) {
  const std::string text = generated_text();
  EXPECT_EQ(engine_->tokenizer().encode(text, {}).size(), 1377u);
  constexpr double kExpected = 4.40660;  // llama_cpp, f16 cache, 5 windows of 256: logits 128 to 254 of each
  for (const KvType type : {KvType::kF16, KvType::kQ8}) {
    const PerplexityResult result = perplexity(*engine_, text, plan(1.0), {256, 0, type});
    EXPECT_EQ(result.n_windows, 5);
    EXPECT_EQ(result.n_scored, 635);
    EXPECT_NEAR(result.perplexity, kExpected, 0.005 * kExpected) << kv_type_name(type);
    RecordProperty(std::string("perplexity_") + std::string(kv_type_name(type)), std::to_string(result.perplexity));
  }
}

// Prompts without a near-tie: `margin` is the smallest distance of the best two logits on the way, by llama_cpp. What
// the two programs round differently moves logits by some 0.05.
struct Continuation {
  const char* prompt;
  double margin;
  std::vector<TokenId> expected;
};

TEST_F(RealModel, SlowGreedyTextIsThatOfLlamaCpp) {
  const Continuation cases[] = {
      {"1, 2, 3, 4, 5, 6, 7, 8,", 1.822, {216, 41, 28, 216, 33, 32, 28, 216, 33, 33, 28, 216,
                                          33,  34, 28, 216, 33, 35, 28, 216, 33, 36, 28, 216}},
      {"The Fibonacci numbers are 1, 1, 2, 3, 5, 8,", 0.767, {216, 33, 35, 28, 216, 34, 33, 28, 216, 35, 36, 28,
                                                              216, 37, 37, 28, 216, 40, 41, 28, 216, 33, 36, 36}},
      {"for i in range(10):\n    print(i)\nfor i in range(10):\n", 0.355, {3272, 24,   89,  25,   198, 3725, 198, 198,
                                                                           1348, 2909, 523, 3124, 42,  198,  198, 3725,
                                                                           198,  33,   198, 34,   198, 35,   198, 36}},
      {"Alpha, beta, gamma,", 0.3, {284, 36298, 359, 511,  4959, 20946, 281,  6530, 30,    1069, 359, 804,
                                    288, 5125,  260, 2555, 282,  1784,  2966, 281,  22478, 30,   198, 198}},
      {"a b c d e f g", 0.268, {294, 2056, 544, 501, 303,  283, 304,  263,  273, 7329, 412,  262,
                                252, 326,  386, 267, 1792, 329, 1892, 1892, 198, 198,  1348, 314}},
  };
  for (const Continuation& c : cases)
    for (const double density : {1.0, 0.99}) {  // shorter than sink and span: any plan of such a density is dense
      const std::vector<TokenId> prompt = engine_->tokenizer().encode(c.prompt, {});
      const auto sequence = engine_->new_sequence(plan(density), 64, KvType::kF16);
      const GenerateResult result = generate(*engine_, *sequence, prompt, {.max_tokens = 24, .ignore_end = true});
      EXPECT_EQ(result.tokens, c.expected)
          << "density " << density << " prompt " << c.prompt << " margin " << c.margin << " text " << result.text;
    }
}

// Dense attention finds the key; a uniform plan that keeps an eighth of 1,024 tokens loses most keys.
TEST_F(RealModel, SlowPasskeyNeedsTheSpan) {
  PasskeyOptions options;
  options.lengths = {512, 1024};
  options.n_samples = 4;
  const std::vector<PromptItem> items = passkey_items(*engine_, generated_text(), options);
  const auto rows = [&](double density) {
    return summarize(items, evaluate_items(*engine_, same_plan(plan(density)), items, KvType::kF16));
  };
  const std::vector<EvalRow> dense = rows(1.0), short_spans = rows(0.125);
  for (const EvalRow& row : dense)
    for (const auto& [kind, cell] : row.kinds) EXPECT_GE(cell.sum, 3) << row.length << " " << kind;
  EXPECT_LT(short_spans[1].kinds[0].second.sum, dense[1].kinds[0].second.sum);
  EXPECT_LT(short_spans[1].accuracy, dense[1].accuracy);
  EXPECT_LT(short_spans[1].kv_bytes * 4, dense[1].kv_bytes);
  EXPECT_EQ(effective_context(dense, dense).tokens, 1024);
  EXPECT_LT(effective_context(dense, short_spans).tokens, 1024);
}

// The retrieval kinds of RULER can be solved by the default model where the haystack says nothing.
TEST_F(RealModel, SlowRulerFindsNeedles) {
  RulerOptions options;
  options.lengths = {512};
  options.n_samples = 4;
  options.kinds = {"niah_single_1"};
  const std::vector<PromptItem> items = ruler_items(*engine_, generated_text(), options);
  const std::vector<EvalRow> rows =
      summarize(items, evaluate_items(*engine_, same_plan(plan(1.0)), items, KvType::kF16));
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_GE(rows[0].accuracy, 0.75);
}

}  // namespace
}  // namespace polyspan
