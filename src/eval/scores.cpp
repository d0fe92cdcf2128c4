#include "eval/scores.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <vector>

#include "core/error.h"

namespace polyspan {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
bool is_punctuation(char c) {
  return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') || (c >= '{' && c <= '~');
}

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return out;
}

std::vector<std::string> words_of(std::string_view text) {
  std::vector<std::string> words;
  for (size_t at = 0; at < text.size();) {
    if (is_space(text[at])) {
      ++at;
      continue;
    }
    const size_t begin = at;
    while (at < text.size() && !is_space(text[at])) ++at;
    words.emplace_back(text.substr(begin, at - begin));
  }
  return words;
}

// Words as question answering counts them (SQuAD): punctuation vanishes first, so that "U.S." is "us".
std::vector<std::string> answer_words(std::string_view text) {
  std::string plain = lower(text);
  std::erase_if(plain, is_punctuation);
  std::vector<std::string> words = words_of(plain);
  std::erase_if(words, [](const std::string& word) { return word == "a" || word == "an" || word == "the"; });
  return words;
}

// Runs of digits without leading zeros.
std::vector<std::string> numbers_in(std::string_view text) {
  std::vector<std::string> numbers;
  for (size_t at = 0; at < text.size(); ++at) {
    if (!is_digit(text[at])) continue;
    const size_t begin = at;
    while (at < text.size() && is_digit(text[at])) ++at;
    std::string number(text.substr(begin, at - begin));
    number.erase(0, std::min(number.find_first_not_of('0'), number.size() - 1));
    numbers.push_back(std::move(number));
  }
  return numbers;
}

template <typename Sequence>
int64_t longest_common_subsequence(const Sequence& a, const Sequence& b) {
  std::vector<int64_t> best(b.size() + 1, 0);  // best[j]: of what was seen of a, and b's first j
  for (const auto& from_a : a) {
    int64_t diagonal = 0;
    for (size_t j = 0; j < b.size(); ++j) {
      const int64_t above = best[j + 1];
      best[j + 1] = from_a == b[j] ? diagonal + 1 : std::max(above, best[j]);
      diagonal = above;
    }
  }
  return best.back();
}

double f1(int64_t common, size_t n_output, size_t n_wanted) {
  return common == 0 ? 0 : 2.0 * static_cast<double>(common) / static_cast<double>(n_output + n_wanted);
}

double share_of_numbers(std::string_view output, std::string_view wanted) {
  const std::vector<std::string> said = numbers_in(output), right = numbers_in(wanted);
  if (said.empty() || right.empty()) return 0;
  return static_cast<double>(std::count(said.begin(), said.end(), right.front())) / static_cast<double>(said.size());
}

// A class that is a part of the wanted one's name ("city" of "other city") does not count as named.
double classification(std::string_view output, std::string_view wanted, std::span<const std::string> classes) {
  int64_t n_named = 0;
  bool is_named = false;
  for (const std::string& name : classes) {
    if (output.find(name) == std::string_view::npos) continue;
    if (name != wanted && wanted.find(name) != std::string_view::npos) continue;
    ++n_named;
    is_named = is_named || name == wanted;
  }
  return is_named ? 1.0 / static_cast<double>(n_named) : 0;
}

double contained_share(std::string_view output, std::span<const std::string> wanted) {
  const std::string said = lower(output);
  const auto n = std::count_if(wanted.begin(), wanted.end(),
                               [&](const std::string& text) { return said.find(lower(text)) != std::string::npos; });
  return static_cast<double>(n) / static_cast<double>(wanted.size());
}

double score_one(ScoreRule rule, std::string_view output, std::string_view wanted,
                 std::span<const std::string> classes) {
  switch (rule) {
    case ScoreRule::kStartsWith:
      return output.substr(std::min(output.find_first_not_of(" \n"), output.size())).starts_with(wanted) ? 1 : 0;
    case ScoreRule::kFirstNumber: {
      const std::vector<std::string> numbers = numbers_in(output);
      return !numbers.empty() && numbers.front() == wanted ? 1 : 0;
    }
    case ScoreRule::kTokenF1: return token_f1(output, wanted);
    case ScoreRule::kRougeL: return rouge_l(output, wanted);
    case ScoreRule::kClassification: return classification(output, wanted, classes);
    case ScoreRule::kRetrieval:
    case ScoreRule::kCount: return share_of_numbers(output, wanted);
    case ScoreRule::kCodeSimilarity: return code_similarity(output, wanted);
    case ScoreRule::kContainsAll:
    case ScoreRule::kContainsAny: break;
  }
  POLYSPAN_CHECK(false, "a rule that is not for one answer");
  return 0;
}

}  // namespace

std::string_view score_rule_name(ScoreRule rule) {
  switch (rule) {
    case ScoreRule::kStartsWith: return "starts with the answer";
    case ScoreRule::kFirstNumber: return "exact number";
    case ScoreRule::kContainsAll: return "share of answers found";
    case ScoreRule::kContainsAny: return "any answer found";
    case ScoreRule::kTokenF1: return "token F1";
    case ScoreRule::kRougeL: return "ROUGE-L";
    case ScoreRule::kClassification: return "classification accuracy";
    case ScoreRule::kRetrieval: return "retrieval accuracy";
    case ScoreRule::kCount: return "count accuracy";
    case ScoreRule::kCodeSimilarity: return "code edit similarity";
  }
  return "";
}

double score_answer(ScoreRule rule, std::string_view output, std::span<const std::string> wanted,
                    std::span<const std::string> classes) {
  POLYSPAN_CHECK(!wanted.empty(), "a score needs an answer to compare with");
  if (rule == ScoreRule::kContainsAll) return contained_share(output, wanted);
  if (rule == ScoreRule::kContainsAny) return contained_share(output, wanted) > 0 ? 1 : 0;
  double best = 0;
  for (const std::string& text : wanted) best = std::max(best, score_one(rule, output, text, classes));
  return best;
}

bool score_is_final_at_one(ScoreRule rule) {
  return rule == ScoreRule::kStartsWith || rule == ScoreRule::kContainsAll || rule == ScoreRule::kContainsAny;
}

double token_f1(std::string_view output, std::string_view wanted) {
  const std::vector<std::string> said = answer_words(output), right = answer_words(wanted);
  std::map<std::string, int64_t> left;
  for (const std::string& word : right) ++left[word];
  int64_t common = 0;
  for (const std::string& word : said)
    if (const auto found = left.find(word); found != left.end() && found->second > 0) {
      --found->second;
      ++common;
    }
  return f1(common, said.size(), right.size());
}

double rouge_l(std::string_view output, std::string_view wanted) {
  const std::vector<std::string> said = words_of(output), right = words_of(wanted);
  return f1(longest_common_subsequence(said, right), said.size(), right.size());
}

double code_similarity(std::string_view output, std::string_view wanted) {
  std::string_view line;
  for (size_t at = 0; at < output.size();) {
    const size_t end = std::min(output.find('\n', at), output.size());
    const std::string_view next = output.substr(at, end - at);
    at = end + 1;
    // Comments, fences of Markdown and blank lines are not the answer.
    if (next.find_first_of("`#") != std::string_view::npos || next.find("//") != std::string_view::npos) continue;
    if (std::all_of(next.begin(), next.end(), is_space)) continue;
    line = next;
    break;
  }
  return std::round(100 * f1(longest_common_subsequence(line, wanted), line.size(), wanted.size())) / 100;
}

}  // namespace polyspan
