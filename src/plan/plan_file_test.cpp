// Reading and writing plan files: every form that must be read, and every way a file can be wrong.
#include "plan/plan_file.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "core/error.h"

namespace polyspan {
namespace {

constexpr HeadShape kModel{.n_layers = 2, .n_heads = 4, .n_kv_heads = 2};
constexpr const char* kAlphas = "[[0, 1, 2, 3], [4, 5, 6, 7]]";
constexpr const char* kBetas = "[[0.5, 0.5, 0.5, 0.5], [0, 0.25, 0.75, 1]]";

std::string plan_text(const std::string& alphas, const std::string& betas, const std::string& more = "") {
  return "{" + more + "\"alphas\": " + alphas + ", \"betas\": " + betas + "}";
}

// The message of the error that reading `json` for `shape` gives; "" when it gives none.
std::string error_of(const std::string& json, const std::optional<HeadShape>& shape = kModel) {
  try {
    SpanPlan::parse(json, "a.json", shape);
    return "";
  } catch (const Error& error) {
    return error.what();
  }
}

TEST(PlanFile, ReadsThePublishedForm) {
  for (const bool with_model : {false, true}) {
    SCOPED_TRACE(with_model);
    const auto shape = with_model ? std::optional(kModel) : std::nullopt;
    const SpanPlan plan = SpanPlan::parse(plan_text(kAlphas, kBetas), "a.json", shape);
    EXPECT_EQ(plan.shape().n_layers, 2);
    EXPECT_EQ(plan.shape().n_heads, 4);
    EXPECT_EQ(plan.shape().n_kv_heads, with_model ? 2 : 4);
    EXPECT_EQ(plan.per_query_head(), with_model);
    EXPECT_EQ(plan.n_sink_tokens(), 64);
    EXPECT_FALSE(plan.names_sink());
    EXPECT_EQ(plan.rule(0, 3), (SpanRule{3, 0.5}));
    EXPECT_EQ(plan.rule(1, 2), (SpanRule{6, 0.75}));
    const SpanPlan again = SpanPlan::parse(plan.to_json(), "again.json", shape);
    EXPECT_EQ(again.to_json(), plan.to_json());
    for (int64_t layer = 0; layer < 2; ++layer)
      for (int64_t head = 0; head < 4; ++head) EXPECT_EQ(again.rule(layer, head), plan.rule(layer, head));
  }
}

TEST(PlanFile, ReadsOneRuleAKvHead) {
  const SpanPlan plan = SpanPlan::parse(plan_text("[[1, 2], [3, 4]]", "[[0, 0], [1, 1]]"), "a.json", kModel);
  EXPECT_FALSE(plan.per_query_head());
  EXPECT_EQ(plan.rules_per_layer(), 2);
  EXPECT_EQ(plan.rule(1, 1), (SpanRule{4, 1}));
}

TEST(PlanFile, ReadsEveryOptionalKeyAndSkipsTheOthers) {
  const std::string more =
      R"("format_version": 1, "model": {"name": "m", "fingerprint": "f", "x": [{"name": "no"}]}, "sink": 4,
         "n_heads": 4,
         "n_kv_heads": 2, "lengths": [1024, 2048], "density": 0.5, "influence": "span", "created_by": "c",
         "objective": {"alphas": [["x"]], "y": [[[[null, true, "z", 1e300]]]]}, "Sink": "no", )";
  for (const auto& shape : {std::optional(kModel), std::optional<HeadShape>()}) {
    const SpanPlan plan = SpanPlan::parse(plan_text(kAlphas, kBetas, more), "a.json", shape);
    EXPECT_EQ(plan.n_sink_tokens(), 4);
    EXPECT_TRUE(plan.names_sink());
    EXPECT_EQ(plan.shape().n_kv_heads, 2);
    EXPECT_TRUE(plan.per_query_head());
    EXPECT_EQ(plan.info().model_name, "m");
    EXPECT_EQ(plan.info().model_fingerprint, "f");
    EXPECT_EQ(plan.info().lengths, (std::vector<int64_t>{1024, 2048}));
    EXPECT_EQ(plan.info().density, 0.5);
    EXPECT_EQ(plan.info().influence, "span");
    EXPECT_EQ(plan.info().created_by, "c");
  }
}

TEST(PlanFile, WhatIsWrittenReadsBackEqual) {
  for (const bool per_query_head : {false, true})
    for (const int64_t n_sink_tokens : {0, 64}) {
      SCOPED_TRACE(per_query_head);
      std::vector<std::vector<SpanRule>> rules(2, std::vector<SpanRule>(per_query_head ? 4 : 2));
      double alpha = -1024;
      for (auto& row : rules)
        for (SpanRule& rule : row) rule = {alpha += 0.1, 1 / (3 + alpha * alpha)};
      SpanPlan plan = SpanPlan::from_rules(kModel, rules, per_query_head, n_sink_tokens);
      plan.set_info({.model_name = "na\"me\n\xff",
                     .model_fingerprint = "f",
                     .created_by = "c",
                     .influence = "i",
                     .density = 0.1,
                     .lengths = {1, 2}});
      const SpanPlan read = SpanPlan::parse(plan.to_json(), "a.json", std::nullopt);
      EXPECT_EQ(read.to_json(), plan.to_json());
      EXPECT_EQ(read.per_query_head(), per_query_head);
      EXPECT_EQ(read.n_sink_tokens(), n_sink_tokens);
      EXPECT_EQ(read.shape().n_heads, 4);
      EXPECT_EQ(read.info().model_name, "na\"me\n\xef\xbf\xbd");  // U+FFFD for the byte that is no UTF-8
      for (int64_t layer = 0; layer < 2; ++layer)
        for (int64_t head = 0; head < plan.rules_per_layer(); ++head)
          EXPECT_EQ(read.rule(layer, head), plan.rule(layer, head)) << layer << " " << head;
      const auto path = std::filesystem::path(testing::TempDir()) / "polyspan_plan_test.json";
      plan.save(path);
      EXPECT_EQ(SpanPlan::load(path, kModel).to_json(), read.to_json());
      std::filesystem::remove(path);
    }
}

// Each file with the words its message must have: the place, what was found, what was wanted.
TEST(PlanFile, EveryMistakeIsNamed) {
  struct Case {
    std::string json;
    std::vector<std::string> words;
  };
  const std::string deep(100, '[');
  const std::vector<Case> cases{
      {"", {"broken JSON at line 1, column 1", "the end of the file", "an object"}},
      {"[]", {"found an array", "an object"}},
      {"3", {"found 3", "an object"}},
      {"{}", {"found no \"alphas\""}},
      {"{\"alphas\": [[1]]}", {"found no \"betas\""}},
      {"{\"alphas\": [[0, 1", {"broken JSON at line 1, column 18", "alphas, layer 0, head 2", "the end of the file"}},
      {plan_text(kAlphas, kBetas) + "x", {"broken JSON", "found \"x\""}},
      {plan_text("[[0, 1, NaN, 3], [4, 5, 6, 7]]", kBetas), {"alphas, layer 0, head 2", "\"NaN\"", "a finite number"}},
      {plan_text("[[0, 1, Infinity, 3], [4, 5, 6, 7]]", kBetas), {"alphas, layer 0, head 2", "\"Infinity\""}},
      {plan_text("[[0, 1, 1e999, 3], [4, 5, 6, 7]]", kBetas), {"alphas, layer 0, head 2", "1e999", "a finite number"}},
      {plan_text("[[0, 1, 1e13, 3], [4, 5, 6, 7]]", kBetas), {"alphas, layer 0, head 2", "found 1e+13"}},
      {plan_text("[[0, 1, 2, null], [4, 5, 6, 7]]", kBetas), {"alphas, layer 0, head 3: found null, wanted a finite"}},
      {plan_text("[[0, 1, 2, \"3\"], [4, 5, 6, 7]]", kBetas), {"alphas, layer 0, head 3: found \"3\""}},
      {plan_text("[[0, 1, 2, [3]], [4, 5, 6, 7]]", kBetas), {"alphas, layer 0, head 3: found an array"}},
      {plan_text("[[0, 1, 2, {}], [4, 5, 6, 7]]", kBetas), {"alphas, layer 0, head 3: found an object"}},
      {plan_text("[0, 1]", kBetas), {"alphas, layer 0: found 0, wanted an array of a layer's heads"}},
      {plan_text("7", kBetas), {"alphas: found 7, wanted an array of layers"}},
      {plan_text("{}", kBetas), {"alphas: found an object, wanted an array of layers"}},
      {plan_text(kAlphas, "[[0.5, 0.5, 0.5, 0.5], [0, -0.25, 0.75, 1]]"), {"betas, layer 1, head 1: found -0.25"}},
      {plan_text(kAlphas, "[[0.5, 0.5, 0.5, 0.5], [0, 1.25, 0.75, 1]]"),
       {"betas, layer 1, head 1: found 1.25", "0 to 1"}},
      {plan_text(kAlphas, "[[0.5, 0.5, 0.5, 0.5], [0, true, 0.75, 1]]"), {"betas, layer 1, head 1: found true"}},
      {plan_text("[[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]", kBetas), {"betas: found 2 layers, wanted 3"}},
      {plan_text("[[0, 0, 0, 0]]", "[[0, 0, 0, 0]]"), {"1 layers, wanted 2 as the model has"}},
      {plan_text("[]", "[]"), {"alphas: found no layers"}},
      {plan_text("[[], []]", "[[], []]"), {"alphas, layer 0: found no heads"}},
      {plan_text("[[0, 0, 0, 0], [0, 0, 0]]", kBetas), {"alphas, layer 1: found 3 heads, wanted 4"}},
      {plan_text(kAlphas, "[[0, 0, 0, 0], [0, 0, 0]]"), {"betas, layer 1: found 3 heads, wanted 4"}},
      {plan_text("[[0, 0, 0], [0, 0, 0]]", "[[0, 0, 0], [0, 0, 0]]"),
       {"found 3 heads, wanted 4 (query heads of the model) or 2"}},
      {plan_text("[[0, 0, 0, 0], [0, -5, 0, 0]]", "[[0, 0, 0, 0], [0, 0, 0, 0]]"),
       {"layer 1, head 1: found alpha -5 with beta 0", "negative span"}},
      {plan_text(kAlphas, kBetas, "\"window\": 0, "), {"window: found 0, wanted an integer from 1"}},
      {plan_text(kAlphas, kBetas, "\"span_step\": 64.5, "), {"span_step: found 64.5"}},
      {plan_text(kAlphas, kBetas, "\"sink\": -1, "), {"sink: found -1, wanted an integer from 0"}},
      {plan_text(kAlphas, kBetas, "\"sink\": 1.5, "), {"sink: found 1.5"}},
      {plan_text(kAlphas, kBetas, "\"sink\": 99999999999999999999, "), {"sink: found 1e+20"}},
      {plan_text(kAlphas, kBetas, "\"n_kv_heads\": 0, "), {"n_kv_heads: found 0"}},
      {plan_text(kAlphas, kBetas, "\"n_heads\": 70000, "), {"n_heads: found 70000, wanted an integer from 1 to 65536"}},
      {plan_text(kAlphas, kBetas, "\"n_kv_heads\": 4, "), {"n_kv_heads: found 4, wanted 2 as the model has"}},
      {plan_text(kAlphas, kBetas, "\"n_heads\": 8, "), {"n_heads: found 8, wanted 4 as the model has"}},
      {plan_text(kAlphas, kBetas, "\"format_version\": 2, "), {"format_version: found 2, this program reads up to 1"}},
      {plan_text(kAlphas, kBetas, "\"format_version\": \"1\", "), {"format_version: found \"1\""}},
      {plan_text(kAlphas, kBetas, "\"model\": \"m\", "), {"model: found \"m\", wanted an object"}},
      {plan_text(kAlphas, kBetas, "\"model\": [], "), {"model: found an array, wanted an object"}},
      {plan_text(kAlphas, kBetas, "\"model\": {\"name\": 3}, "), {"model, name: found 3, wanted a text"}},
      {plan_text(kAlphas, kBetas, "\"model\": {\"name\": {}}, "), {"model, name: found an object, wanted a text"}},
      {plan_text(kAlphas, kBetas, "\"lengths\": 3, "), {"lengths: found 3, wanted an array"}},
      {plan_text(kAlphas, kBetas, "\"lengths\": [0], "), {"lengths: found 0, wanted a positive integer"}},
      {plan_text(kAlphas, kBetas, "\"lengths\": [[1]], "), {"lengths: found an array"}},
      {plan_text(kAlphas, kBetas, "\"density\": 0, "), {"density: found 0"}},
      {plan_text(kAlphas, kBetas, "\"influence\": 1, "), {"influence: found 1, wanted a text"}},
      {plan_text(kAlphas, kBetas, "\"created_by\": \"" + std::string(5000, 'x') + "\", "),
       {"created_by: found \"xxx", "..."}},
      {plan_text(kAlphas, kBetas, "\"alphas\": [], "), {"alphas: found it twice"}},
      {plan_text(kAlphas, kBetas, "\"other\": " + deep), {"nested deeper than 64"}},
      {"{\n  \"sink\":\n \x01\xff\n}", {"sink: broken JSON at line 3, column 2", "\"??\"", "wanted an integer"}},
  };
  for (const Case& c : cases) {
    const std::string message = error_of(c.json);
    EXPECT_EQ(message.rfind("a.json: ", 0), 0u) << c.json.substr(0, 200) << "\n  gave: " << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    EXPECT_LT(message.size(), 200u) << message;
    for (const std::string& word : c.words)
      EXPECT_NE(message.find(word), std::string::npos) << "wanted \"" << word << "\" in: " << message;
  }
}

TEST(PlanFile, EveryTruncationIsAnError) {
  const std::string json = SpanPlan::uniform(kModel, 0.5).to_json();
  for (size_t length = 0; length + 2 < json.size(); ++length)  // the last two bytes are "}\n"
    EXPECT_NE(error_of(std::string(json, 0, length)), "") << "cut at " << length;
}

TEST(PlanFile, ShapesOfFilesWithoutAModelMustAgree) {
  const std::string two = "[[0, 0], [0, 0]]";
  EXPECT_EQ(error_of(plan_text(two, two, "\"n_kv_heads\": 2, "), std::nullopt), "");
  EXPECT_EQ(error_of(plan_text(two, two, "\"n_kv_heads\": 1, "), std::nullopt), "");
  EXPECT_EQ(error_of(plan_text(two, two, "\"n_heads\": 6, \"n_kv_heads\": 2, "), std::nullopt), "");
  EXPECT_NE(error_of(plan_text(two, two, "\"n_kv_heads\": 3, "), std::nullopt), "");
  EXPECT_NE(error_of(plan_text(two, two, "\"n_heads\": 3, "), std::nullopt), "");
  EXPECT_NE(error_of(plan_text(two, two, "\"n_heads\": 7, \"n_kv_heads\": 2, "), std::nullopt), "");
}

TEST(PlanFile, SizeAndCountsAreBounded) {
  EXPECT_NE(error_of(std::string(kMaxPlanFileBytes + 1, ' ')).find("wanted a plan of at most"), std::string::npos);
  std::string layers = "[[]";
  for (int64_t layer = 0; layer < kMaxPlanLayers; ++layer) layers += ",[]";
  EXPECT_NE(error_of(plan_text(layers + "]", "[]")).find("more than 4096 layers"), std::string::npos);
  std::string rules = "[[0";
  for (int64_t rule = 0; rule < kMaxPlanRules; ++rule) rules += ",0";
  EXPECT_NE(error_of(plan_text(rules + "]]", "[]")).find("more than 4194304 rules"), std::string::npos);
  std::string lengths = "\"lengths\": [1";
  for (int i = 0; i < 4096; ++i) lengths += ",1";
  EXPECT_NE(error_of(plan_text(kAlphas, kBetas, lengths + "], ")).find("more than 4096 lengths"), std::string::npos);
  std::string wide = "[[0]";  // 4,096 layers of 65,536 heads: a small file must not become a huge table
  for (int64_t layer = 1; layer < kMaxPlanLayers; ++layer) wide += ",[0]";
  wide += "]";
  EXPECT_NE(
      error_of(plan_text(wide, wide, "\"n_heads\": 65536, \"n_kv_heads\": 1, "), std::nullopt).find("heads in all"),
      std::string::npos);
}

}  // namespace
}  // namespace polyspan
