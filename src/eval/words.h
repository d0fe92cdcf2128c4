// eval/words.h: words, names and values that generated prompts are made of.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_set>

#include "eval/random_source.h"

namespace polyspan {

std::span<const std::string_view> adjectives();  // distinct lower-case words; none is also a noun
std::span<const std::string_view> nouns();

// Draws values of several kinds and never gives one twice. `taken_in`: text that no value may occur in (the filler of a
// prompt), so that an answer stands nowhere but where it was put; must outlive the source.
class DistinctValues {
 public:
  explicit DistinctValues(RandomSource& random, std::string_view taken_in = {})
      : random_(random), taken_in_(taken_in) {}

  std::string number(int n_digits);  // the first digit is not 0
  std::string uuid();                // 8-4-4-4-12 hexadecimal digits; the first is a decimal one
  std::string letters(int n);        // capital letters
  std::string coded_word(int n);     // small letters
  std::string invented_name();       // three syllables, six letters: "Tamoke"
  std::string word_pair();           // "calm-river"; Error (kBadInput) once (almost) all are used up

  static int64_t n_word_pairs() { return std::ssize(adjectives()) * std::ssize(nouns()); }

 private:
  template <typename Make>
  std::string draw(Make make);
  RandomSource& random_;
  std::string_view taken_in_;
  std::unordered_set<std::string> taken_;
};

}  // namespace polyspan
