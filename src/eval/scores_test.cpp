// The measures against values worked out by hand.
#include "eval/scores.h"

#include <gtest/gtest.h>

#include <vector>

namespace polyspan {
namespace {

using Texts = std::vector<std::string>;

double score(ScoreRule rule, std::string_view output, const Texts& wanted, const Texts& classes = {}) {
  return score_answer(rule, output, wanted, classes);
}

TEST(Scores, StartsWith) {
  EXPECT_EQ(score(ScoreRule::kStartsWith, "12345. Remember", {"12345"}), 1);
  EXPECT_EQ(score(ScoreRule::kStartsWith, " \n 12345", {"12345"}), 1);
  EXPECT_EQ(score(ScoreRule::kStartsWith, "1234", {"12345"}), 0);
  EXPECT_EQ(score(ScoreRule::kStartsWith, "the 12345", {"12345"}), 0);
  EXPECT_EQ(score(ScoreRule::kStartsWith, "", {"12345"}), 0);
  EXPECT_EQ(score(ScoreRule::kStartsWith, " \n", {"12345"}), 0);
}

TEST(Scores, FirstNumber) {
  EXPECT_EQ(score(ScoreRule::kFirstNumber, "The number is <42222>.", {"42222"}), 1);
  EXPECT_EQ(score(ScoreRule::kFirstNumber, "422221", {"42222"}), 0);
  EXPECT_EQ(score(ScoreRule::kFirstNumber, "7 or 42222", {"42222"}), 0);
  EXPECT_EQ(score(ScoreRule::kFirstNumber, "00274", {"274"}), 1);
  EXPECT_EQ(score(ScoreRule::kFirstNumber, "000", {"0"}), 1);
  EXPECT_EQ(score(ScoreRule::kFirstNumber, "none", {"42222"}), 0);
}

TEST(Scores, Contains) {
  const Texts wanted = {"Alpha", "beta", "gamma", "delta"};
  EXPECT_EQ(score(ScoreRule::kContainsAll, "ALPHA and Beta, deltas", wanted), 0.75);
  EXPECT_EQ(score(ScoreRule::kContainsAll, "", wanted), 0);
  EXPECT_EQ(score(ScoreRule::kContainsAll, "alpha beta gamma delta", wanted), 1);
  EXPECT_EQ(score(ScoreRule::kContainsAny, "only gamma", wanted), 1);
  EXPECT_EQ(score(ScoreRule::kContainsAny, "only gamm", wanted), 0);
}

TEST(Scores, TokenF1) {
  // said: {quick, brown, fox}; right: {brown, fox, jumps, high}. Common 2: precision 2/3, recall 2/4.
  EXPECT_DOUBLE_EQ(token_f1("The quick, brown fox!", "a brown fox jumps high"), 2 * (2.0 / 3) * 0.5 / (2.0 / 3 + 0.5));
  EXPECT_DOUBLE_EQ(token_f1("U.S.", "us"), 1);
  EXPECT_DOUBLE_EQ(token_f1("yes yes yes", "yes"), 0.5);  // each word counts as often as it stands: 2 * 1 / (3 + 1)
  EXPECT_EQ(token_f1("", "us"), 0);
  EXPECT_EQ(token_f1("the a an", "the"), 0);  // nothing left on either side
  EXPECT_DOUBLE_EQ(score(ScoreRule::kTokenF1, "blue car", {"green", "car", "blue car door"}),
                   0.8);  // best: 2 * 2 / (2 + 3)
}

TEST(Scores, RougeL) {
  // Lin (2004), section 3.1: "police killed the gunman" against "police kill the gunman" has the subsequence police the gunman.
  EXPECT_DOUBLE_EQ(rouge_l("police kill the gunman", "police killed the gunman"), 0.75);
  EXPECT_DOUBLE_EQ(rouge_l("the gunman kill police", "police killed the gunman"), 0.5);
  EXPECT_DOUBLE_EQ(rouge_l("a b c d e", "b d"), 2.0 * 2 / 7);
  EXPECT_DOUBLE_EQ(rouge_l("x y x y x", "x x x"), 2.0 * 3 / 8);
  EXPECT_EQ(rouge_l("", "a"), 0);
  EXPECT_EQ(rouge_l("a", ""), 0);
}

TEST(Scores, Classification) {
  const Texts classes = {"City", "Other city", "Country", "Date"};
  EXPECT_EQ(score(ScoreRule::kClassification, "Type: Country", {"Country"}, classes), 1);
  EXPECT_EQ(score(ScoreRule::kClassification, "Country or Date", {"Country"}, classes), 0.5);
  EXPECT_EQ(score(ScoreRule::kClassification, "Date", {"Country"}, classes), 0);
  EXPECT_EQ(score(ScoreRule::kClassification, "", {"Country"}, classes), 0);
  const Texts nested = {"food", "fast food", "place"};
  EXPECT_EQ(score(ScoreRule::kClassification, "fast food", {"fast food"}, nested),
            1);  // "food" is a part of the right name
  EXPECT_EQ(score(ScoreRule::kClassification, "fast food", {"food"}, nested), 0.5);
}

TEST(Scores, RetrievalAndCount) {
  EXPECT_EQ(score(ScoreRule::kRetrieval, "Paragraph 12", {"Paragraph 12"}), 1);
  EXPECT_EQ(score(ScoreRule::kRetrieval, "12 or 13", {"Paragraph 12"}), 0.5);
  EXPECT_EQ(score(ScoreRule::kRetrieval, "Paragraph 1", {"Paragraph 12"}), 0);
  EXPECT_EQ(score(ScoreRule::kRetrieval, "none", {"Paragraph 12"}), 0);
  EXPECT_DOUBLE_EQ(score(ScoreRule::kCount, "17, 17 and 8", {"17"}), 2.0 / 3);
}

TEST(Scores, CodeSimilarity) {
  EXPECT_EQ(code_similarity("return x;", "return x;"), 1);
  EXPECT_DOUBLE_EQ(code_similarity("abcd", "abxd"), 0.75);   // subsequence abd: 2 * 3 / 8
  EXPECT_DOUBLE_EQ(code_similarity("abc", "abcdefg"), 0.6);  // 2 * 3 / 10
  EXPECT_DOUBLE_EQ(code_similarity("ab", "abcd"), 0.67);     // whole per cent of 2 * 2 / 6
  EXPECT_EQ(code_similarity("```python\n# comment\n// other\n\nx = 1\ny = 2", "x = 1"), 1);
  EXPECT_EQ(code_similarity("# only a comment", "x"), 0);
  EXPECT_EQ(code_similarity("", "x"), 0);
}

TEST(Scores, AFinalOneStaysOne) {
  // What score_is_final_at_one says, on outputs that go on.
  for (const ScoreRule rule : {ScoreRule::kStartsWith, ScoreRule::kContainsAll, ScoreRule::kContainsAny}) {
    EXPECT_TRUE(score_is_final_at_one(rule));
    for (const char* more : {"", "1", " 99", "\nand so on"})
      EXPECT_EQ(score(rule, "42" + std::string(more), {"42"}), 1) << more;
  }
  EXPECT_FALSE(score_is_final_at_one(ScoreRule::kFirstNumber));
  EXPECT_EQ(score(ScoreRule::kFirstNumber, "42", {"42"}), 1);
  EXPECT_EQ(score(ScoreRule::kFirstNumber, "421", {"42"}), 0);
  for (const ScoreRule rule : {ScoreRule::kTokenF1, ScoreRule::kRougeL, ScoreRule::kCount, ScoreRule::kCodeSimilarity})
    EXPECT_FALSE(score_is_final_at_one(rule));
}

}  // namespace
}  // namespace polyspan
