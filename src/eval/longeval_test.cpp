#include "eval/longeval.h"

#include <map>
#include <regex>
#include <set>

#include "eval/eval_test_util.h"

namespace polyspan {
namespace {
using namespace testing_util;

TEST(LongEval, PromptsAreFullAndHoldTheAnswer) {
  const TinyEngine tiny;
  const std::vector<PromptItem> items =
      longeval_items(*tiny, {.lengths = {1000, 1500, 4000}, .n_samples = 4, .seed = 3});
  ASSERT_EQ(items.size(), 12u);
  const std::regex line("line ([a-z]+-[a-z]+): REGISTER_CONTENT is <([0-9]+)>\n");
  std::set<std::string> asked;
  for (const PromptItem& item : items) {
    SCOPED_TRACE(item.row_length);
    const std::string text = tiny->tokenizer().decode(item.tokens, true);
    // Another line (about 50 bytes, a token each) would not have fitted.
    EXPECT_LE(std::ssize(item.tokens) + item.max_new_tokens, item.planned_length);
    EXPECT_GT(std::ssize(item.tokens) + item.max_new_tokens, item.planned_length - 70);
    EXPECT_EQ(item.planned_length, item.row_length);
    std::map<std::string, std::string> lines;
    for (std::sregex_iterator it(text.begin(), text.end(), line), end; it != end; ++it)
      EXPECT_TRUE(lines.emplace((*it)[1], (*it)[2]).second) << (*it)[1];
    EXPECT_GT(lines.size(), 5u);
    std::smatch question;
    ASSERT_TRUE(std::regex_search(text, question, std::regex("in line ([a-z]+-[a-z]+)\\?")));
    EXPECT_EQ(lines[question[1]], item.wanted.at(0));
    EXPECT_EQ(count(text, "<" + item.wanted[0] + ">"), 1);
    EXPECT_TRUE(text.ends_with("in line " + question[1].str() + " is <"));
    asked.insert(question[1]);
    EXPECT_EQ(score_answer(item.rule, item.wanted[0] + ">.", item.wanted), 1);
  }
  EXPECT_GT(asked.size(), 10u);
}

TEST(LongEval, FollowsTheSeed) {
  const TinyEngine tiny;
  const LongEvalOptions options{.lengths = {1000}, .n_samples = 2, .seed = 5};
  const std::vector<PromptItem> items = longeval_items(*tiny, options), again = longeval_items(*tiny, options);
  EXPECT_EQ(items[0].tokens, again[0].tokens);
  EXPECT_NE(items[0].tokens, items[1].tokens);
  EXPECT_NE(items[0].tokens, longeval_items(*tiny, {.lengths = {1000}, .n_samples = 1, .seed = 6})[0].tokens);
}

TEST(LongEval, LengthsThatCannotBeServed) {
  const TinyEngine tiny;
  for (const int64_t length : {int64_t{0}, int64_t{1}, int64_t{200}, int64_t{4097}, INT64_MAX})
    expect_error(
        [&] {
          longeval_items(*tiny, {.lengths = {1000, length}});
        },
        ErrorKind::kBadInput, {std::to_string(length)});
}

TEST(LongEval, ReadsThePublishedForm) {
  const TinyEngine tiny;
  const TemporaryFile file(
      "{\"random_idx\": [\"wet-feast\", 1], \"expected_number\": 49934, \"num_lines\": 2, \"correct_line\": \"...\", "
      "\"prompt\": \"Lines:\\nline "
      "wet-feast: "
      "REGISTER_CONTENT is <49934>\\nWhich?\"}\n"
      "\n{\"expected_number\": 7, \"prompt\": \"short\"}");
  const std::vector<LongEvalRecord> records = read_longeval(file.path());
  ASSERT_EQ(records.size(), 2u);
  EXPECT_EQ(records[0].expected_number, "49934");
  EXPECT_EQ(records[1].prompt, "short");
  const std::vector<PromptItem> items = longeval_file_items(*tiny, {records, {records[1], records[0]}}, std::nullopt);
  ASSERT_EQ(items.size(), 4u);
  for (const PromptItem& item : items) EXPECT_EQ(std::ssize(item.tokens) + item.max_new_tokens, item.planned_length);
  EXPECT_EQ(items[0].row_length, items[0].planned_length);
  EXPECT_EQ(items[1].row_length, items[0].row_length);
  EXPECT_EQ(items[2].row_length, items[3].row_length);
  EXPECT_NE(items[0].row_length, items[2].row_length);  // a row each, though both are as long
  EXPECT_EQ(
      count(tiny->tokenizer().decode(items[0].tokens), "Lines:\nline wet-feast: REGISTER_CONTENT is <49934>\nWhich?"),
      1);
  EXPECT_EQ(score_answer(items[0].rule, "It is <49934>.", items[0].wanted), 1);
  EXPECT_EQ(longeval_file_items(*tiny, {records}, 1).size(), 1u);
  const std::vector<LongEvalRecord> too_long = {{std::string(5000, 'x'), "1"}};
  expect_error([&] { longeval_file_items(*tiny, {too_long}, std::nullopt); }, ErrorKind::kBadInput, {"4096"});
}

TEST(LongEval, NamesTheLineThatIsWrong) {
  const std::string good = "{\"expected_number\": 7, \"prompt\": \"short\"}\n";
  const std::pair<std::string, std::vector<std::string>> cases[] = {
      {"", {"no line"}},
      {"\n\n", {"no line"}},
      {good + "{\"expected_number\": 7, \"prom", {"line 2", "JSON"}},
      {good + "\n[1, 2]\n", {"line 3", "array", "object"}},
      {good + "{\"expected_number\": 7}", {"line 2", "prompt", "missing"}},
      {good + "{\"expected_number\": 7, \"prompt\": 5}", {"line 2", "prompt", "number"}},
      {good + "{\"expected_number\": 7, \"prompt\": \"\"}", {"line 2", "empty"}},
      {"{\"prompt\": \"a\"}", {"line 1", "expected_number"}},
      {"{\"expected_number\": -7, \"prompt\": \"a\"}", {"line 1", "expected_number"}},
      {"{\"expected_number\": 1.5, \"prompt\": \"a\"}", {"line 1", "expected_number"}},
      {"{\"expected_number\": 7, \"prompt\": \"\xff\"}", {"line 1", "JSON"}},
      {std::string(100000, '['), {"line 1", "JSON"}},
      {std::string("\0\0\0", 3), {"line 1", "JSON"}},
  };
  for (const auto& [contents, mentions] : cases) {
    const TemporaryFile file(contents);
    expect_error([&] { read_longeval(file.path()); }, ErrorKind::kBadFile, mentions);
  }
  expect_error([&] { read_longeval("no-such-folder/file.jsonl"); }, ErrorKind::kIo, {"file.jsonl"});
}

}  // namespace
}  // namespace polyspan
