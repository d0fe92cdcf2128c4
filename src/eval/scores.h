// eval/scores.h: how an answer is scored, 0 to 1, against the answers wanted.
// Sources: RULER (arXiv 2404.06654, section 3: recall of the wanted strings), LongBench (arXiv 2308.14508, section 3.3).
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace polyspan {

enum class ScoreRule {
  kStartsWith,      // spaces aside, the output begins with the wanted text
  kFirstNumber,     // the first run of digits in the output is the wanted number
  kContainsAll,     // share of the wanted strings that stand in the output, small and capital letters alike
  kContainsAny,     // 1 where one of them does
  kTokenF1,         // the best of the wanted: F1 of the words, without case, ASCII punctuation and a/an/the
  kRougeL,          // the best of the wanted: F1 of the longest common subsequence of words (Lin 2004, beta 1)
  kClassification,  // 1 / classes named, where the wanted one is among them
  kRetrieval,       // share of the output's numbers that are the number in the wanted text ("Paragraph 12")
  kCount,           // share of the output's numbers that are the wanted number
  kCodeSimilarity,  // the best of the wanted: 2 * common subsequence / both lengths, of the first line that is code, in whole %
};
std::string_view score_rule_name(ScoreRule rule);

// `wanted`: at least one. `classes`: all class names (kClassification only).
double score_answer(ScoreRule rule, std::string_view output, std::span<const std::string> wanted,
                    std::span<const std::string> classes = {});

// Whether more output can only leave a score of 1 as it is: generation may end there.
bool score_is_final_at_one(ScoreRule rule);

// The single measures, for tests and other users.
double token_f1(std::string_view output, std::string_view wanted);
double rouge_l(std::string_view output, std::string_view wanted);
double code_similarity(std::string_view output, std::string_view wanted);

}  // namespace polyspan
