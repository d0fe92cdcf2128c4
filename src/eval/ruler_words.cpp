// RULER's aggregation kinds: common words of a list, frequent words of a coded text.
#include <algorithm>
#include <cmath>
#include <memory>
#include <numbers>

#include "eval/ruler_draft.h"

namespace polyspan::ruler {
namespace {

constexpr int64_t kCommonWords = 10;

std::string numbered(const std::vector<std::string>& words) {
  std::string out;
  for (size_t i = 0; i < words.size(); ++i) {
    if (i > 0) out += ' ';
    out += std::to_string(i + 1);
    out += ". ";
    out += words[i];
  }
  return out;
}

}  // namespace

// Ten words stand in the list more often than all others: 30 and 3 times in the paper, 20 and 2, or 10 and 1, where the
// length leaves no room for that.
Draft common_words_draft(const Material& material) {
  RandomSource& random = material.random;
  std::vector<std::string> words;
  for (const auto list : {nouns(), adjectives()}) words.insert(words.end(), list.begin(), list.end());
  random.shuffle(words);
  const int64_t all_words_tokens = material.count_tokens(numbered(words)), n_words = std::ssize(words);
  int64_t times = 10;                  // that a common word stands in the list; another one a tenth of that
  for (const int64_t more : {20, 30})  // the rest of the prompt and other words take a third
    if (material.budget * 2 / 3 >= kCommonWords * more * all_words_tokens / n_words) times = more;
  Draft draft;
  draft.least = 10;
  draft.most = std::max<int64_t>(draft.least, material.budget / 4 * 10 / times);
  DistinctValues values(random);
  while (std::ssize(words) < kCommonWords + draft.most) {  // beyond the list of real words
    std::string name = values.invented_name();
    name[0] = static_cast<char>(name[0] - 'A' + 'a');
    words.push_back(std::move(name));
  }
  draft.wanted.assign(words.begin(), words.begin() + kCommonWords);
  const uint64_t order = static_cast<uint64_t>(random.below(INT64_MAX));
  draft.text = [words = std::move(words), times, order](int64_t n) {
    std::vector<std::string> list;
    for (int64_t i = 0; i < kCommonWords + n; ++i)
      list.insert(list.end(), static_cast<size_t>(i < kCommonWords ? times : times / 10),
                  words[static_cast<size_t>(i)]);
    RandomSource shuffled{order};
    shuffled.shuffle(list);
    return "This is a numbered list of words. Some words stand in it far more often than the others. Remember "
           "those.\n\n" +
           numbered(list) + "\n\nWhich ten words stand in the list most often?";
  };
  draft.answer_start = "The ten words that stand in the list most often are:";
  return draft;
}

// Words by Zipf's law with exponent 2. The most frequent "word" is a row of dots; the three after it are asked for.
Draft frequent_words_draft(const Material& material) {
  constexpr int64_t kAsked = 3, kLeastWords = 100;  // with 100 words the ranks 2 to 5 stand 15, 7, 4 and 2 times
  constexpr double kZeta2 = std::numbers::pi * std::numbers::pi / 6;
  RandomSource& random = material.random;
  DistinctValues values(random);
  std::vector<std::string> vocabulary = {"..."};
  const int64_t n_vocabulary = std::max<int64_t>(20, material.budget / 50);
  while (std::ssize(vocabulary) < n_vocabulary) vocabulary.push_back(values.coded_word(6));
  Draft draft;
  draft.least = kLeastWords;
  draft.most = std::max(kLeastWords, material.budget);
  draft.wanted.assign(vocabulary.begin() + 1, vocabulary.begin() + 1 + kAsked);
  const uint64_t order = static_cast<uint64_t>(random.below(INT64_MAX));
  draft.text = [vocabulary = std::move(vocabulary), order](int64_t n) {
    std::vector<std::string> text;
    for (size_t rank = 1; rank <= vocabulary.size(); ++rank) {
      const double share = 1 / (kZeta2 * static_cast<double>(rank * rank));
      text.insert(text.end(), static_cast<size_t>(std::llround(share * static_cast<double>(n))), vocabulary[rank - 1]);
    }
    RandomSource shuffled{order};
    shuffled.shuffle(text);
    std::string out = "This is a text of coded words. Track how often each one stands in it; leave out the dots.\n\n";
    for (const std::string& word : text) {
      out += word;
      out += ' ';
    }
    out.back() = '\n';
    return out + "\nWhich three coded words stand in the text most often?";
  };
  draft.answer_start = "The three coded words that stand in the text most often are:";
  return draft;
}

}  // namespace polyspan::ruler
