// eval/ruler_draft.h: a RULER prompt before its length is fixed. Internal to src/eval/ruler*.cpp.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "eval/scores.h"
#include "eval/words.h"

namespace polyspan::ruler {

// What makers draw from. `budget`: tokens that the whole prompt may have.
struct Material {
  RandomSource& random;
  std::string_view natural_text;
  std::span<const std::string> sentences;  // of natural_text
  int64_t budget = 0;
  std::function<int64_t(std::string_view)> count_tokens;
};

struct Draft {
  std::function<std::string(int64_t n)> text;  // the user's message with n units of filler
  int64_t least = 1, most = 1;                 // units
  bool most_is_all_text = false;               // there is no more natural text than `most` units
  std::string answer_start;
  std::vector<std::string> wanted;
  ScoreRule rule = ScoreRule::kContainsAll;
};

struct NeedleForm {
  enum class Haystack { kRepeated, kNatural, kNeedles } haystack = Haystack::kNatural;
  bool uuid_keys = false, uuid_values = false;
  int64_t n_keys = 1, n_values = 1;  // needles = keys x values
  int64_t n_asked = 1;               // keys
};

Draft needle_draft(const Material& material, const NeedleForm& form);  // ruler_needles.cpp
Draft variable_draft(const Material& material);
Draft common_words_draft(const Material& material);  // ruler_words.cpp
Draft frequent_words_draft(const Material& material);
Draft one_hop_draft(const Material& material);  // ruler_questions.cpp
Draft two_hop_draft(const Material& material);

}  // namespace polyspan::ruler
