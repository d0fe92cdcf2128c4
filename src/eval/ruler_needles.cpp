// RULER's retrieval kinds (needles in a haystack) and variable tracking.
#include <algorithm>
#include <cmath>
#include <memory>

#include "core/error.h"
#include "eval/natural_text.h"
#include "eval/prompt_frame.h"
#include "eval/ruler_draft.h"

namespace polyspan::ruler {
namespace {

// Sentences put between those of a filler, at shares of its length.
struct Haystack {
  std::vector<std::string> filler;  // cyclic where `cycles`
  bool cycles = false;
  double start = 0;                                     // share of the text that is not used, before the part that is
  std::vector<std::pair<double, std::string>> needles;  // by place, 0 to 1

  std::string text(int64_t n) const {
    const int64_t size = std::ssize(filler),
                  first = cycles ? 0 : static_cast<int64_t>(start * static_cast<double>(size - n + 1));
    std::string out;
    size_t next = 0;
    for (int64_t i = 0; i <= n; ++i) {
      while (next < needles.size() && std::llround(needles[next].first * static_cast<double>(n)) == i)
        append(out, needles[next++].second);
      if (i < n) append(out, filler[static_cast<size_t>((first + i) % size)]);
    }
    return out;
  }

 private:
  static void append(std::string& out, const std::string& sentence) {
    if (!out.empty()) out += ' ';
    out += sentence;
  }
};

Haystack repeated_haystack() { return {split_sentences(kRepeatedText), true, 0, {}}; }

Haystack natural_haystack(const Material& material) {
  if (material.sentences.empty()) throw Error::bad_input("there is no natural text to hide needles in (--text FILE)");
  return {{material.sentences.begin(), material.sentences.end()}, false, material.random.unit(), {}};
}

std::string listed(std::span<const std::string> words) {
  std::string out;
  for (size_t i = 0; i < words.size(); ++i) {
    if (i > 0) out += i + 1 == words.size() ? " and " : ", ";
    out += words[i];
  }
  return out;
}

std::string needle(const std::string& key, const std::string& value, std::string_view what) {
  return "One of the secret " + std::string(what) + "s for " + key + " is " + value + ".";
}

}  // namespace

Draft needle_draft(const Material& material, const NeedleForm& form) {
  RandomSource& random = material.random;
  const bool all_needles = form.haystack == NeedleForm::Haystack::kNeedles;
  DistinctValues values(random,
                        form.haystack == NeedleForm::Haystack::kNatural ? material.natural_text : std::string_view());
  const std::string_view what = form.uuid_values ? "code" : "number";
  const auto key = [&] { return form.uuid_keys ? values.uuid() : values.word_pair(); };
  const auto value = [&] { return form.uuid_values ? values.uuid() : values.number(7); };

  Draft draft;
  std::vector<std::string> asked;
  auto hay = std::make_shared<Haystack>();
  if (all_needles) {
    asked.push_back(key());
    draft.wanted.push_back(value());
    // Every other needle is a sentence of the filler; one is 20 tokens or more.
    draft.most = std::clamp<int64_t>(material.budget / 16, 1, DistinctValues::n_word_pairs() * 3 / 4);
    hay->cycles = true;
    while (std::ssize(hay->filler) < draft.most) {
      const std::string other = key();
      hay->filler.push_back(needle(other, value(), what));
    }
    hay->needles.emplace_back(random.unit(), needle(asked[0], draft.wanted[0], what));
  } else {
    *hay = form.haystack == NeedleForm::Haystack::kRepeated ? repeated_haystack() : natural_haystack(material);
    draft.most_is_all_text = !hay->cycles && std::ssize(hay->filler) <= material.budget;
    draft.most = hay->cycles ? material.budget : std::min(material.budget, std::ssize(hay->filler));
    for (int64_t k = 0; k < form.n_keys; ++k) {
      const std::string name = key();
      const bool is_asked = k < form.n_asked;
      if (is_asked) asked.push_back(name);
      for (int64_t v = 0; v < form.n_values; ++v) {
        const std::string secret = value();
        if (is_asked) draft.wanted.push_back(secret);
        hay->needles.emplace_back(random.unit(), needle(name, secret, what));
      }
    }
    std::sort(hay->needles.begin(), hay->needles.end());
  }
  const bool several = draft.wanted.size() > 1;
  const std::string things = std::string(what) + (several ? "s" : "") + " for " + listed(asked);
  const std::string question =
      std::string("What ") + (several ? "are all the" : "is the") + " secret " + things + " in the text?";
  const std::string intro = "Secret " + std::string(what) +
                            "s are hidden in the following text. Remember them: I ask for some of them afterwards.\n\n";
  draft.text = [hay, intro, question](int64_t n) { return intro + hay->text(n) + "\n\n" + question; };
  draft.answer_start = "The secret " + things + (several ? " are " : " is ");
  return draft;
}

// One chain: the first variable gets the number, each of the four others the one before it.
Draft variable_draft(const Material& material) {
  constexpr int64_t kVariables = 5;
  DistinctValues values(material.random);
  const std::string number = values.number(5);
  Draft draft;
  for (int64_t i = 0; i < kVariables; ++i) draft.wanted.push_back(values.letters(5));
  auto hay = std::make_shared<Haystack>(repeated_haystack());
  std::vector<double> places;
  for (int64_t i = 0; i < kVariables; ++i) places.push_back(material.random.unit());
  std::sort(places.begin(), places.end());
  for (size_t i = 0; i < draft.wanted.size(); ++i)
    hay->needles.emplace_back(
        places[i], "VAR " + draft.wanted[i] + " = " + (i == 0 ? number : "VAR " + draft.wanted[i - 1]) + ".");
  draft.most = material.budget;
  draft.text = [hay, number](int64_t n) {
    return "Assignments of variables are hidden in the following text. Follow them.\n\n" + hay->text(n) +
           "\n\nWhich variables have the value " + number + ", directly or through another variable? There are " +
           std::to_string(kVariables) + ".";
  };
  draft.answer_start = "The " + std::to_string(kVariables) + " variables that have the value " + number + " are:";
  return draft;
}

}  // namespace polyspan::ruler
