#include "eval/words.h"

#include "core/error.h"

namespace polyspan {
namespace {

constexpr std::string_view kAdjectives[] = {
    "amber",   "ancient", "autumn",  "bitter", "blank",  "blue",   "bold",   "brave",   "brief",  "bright",  "broad",
    "brown",   "calm",    "careful", "cheap",  "clean",  "clever", "cold",   "common",  "cool",   "curious", "damp",
    "dark",    "deep",    "distant", "double", "dry",    "eager",  "early",  "eastern", "easy",   "empty",   "exact",
    "faint",   "famous",  "fancy",   "fast",   "final",  "firm",   "flat",   "fresh",   "gentle", "giant",   "golden",
    "grand",   "gray",    "green",   "happy",  "hard",   "heavy",  "hidden", "hollow",  "honest", "humble",  "idle",
    "inner",   "jolly",   "keen",    "kind",   "large",  "late",   "lazy",   "light",   "little", "lonely",  "long",
    "loud",    "lucky",   "mild",    "modern", "narrow", "neat",   "noble",  "odd",     "old",    "orange",  "pale",
    "patient", "plain",   "polite",  "proud",  "purple", "quick",  "quiet",  "rapid",   "rare",   "red",     "rough",
    "round",   "royal",   "secret",  "sharp",  "shy",    "silent", "simple", "slow"};
constexpr std::string_view kNouns[] = {
    "anchor",  "apple",   "arrow",   "badge",   "basket",   "beach",   "bell",   "bench",    "bird",    "blanket",
    "boat",    "bottle",  "branch",  "bridge",  "brush",    "bucket",  "button", "cabin",    "camera",  "candle",
    "canyon",  "carpet",  "castle",  "chair",   "cherry",   "circle",  "clock",  "cloud",    "coast",   "copper",
    "corner",  "cotton",  "desert",  "diamond", "doctor",   "dragon",  "drum",   "eagle",    "engine",  "farmer",
    "feather", "field",   "flower",  "forest",  "fountain", "garden",  "glove",  "guitar",   "hammer",  "harbor",
    "hill",    "horse",   "island",  "jacket",  "kettle",   "kitchen", "ladder", "lake",     "lantern", "lemon",
    "letter",  "library", "lion",    "market",  "meadow",   "mirror",  "monkey", "mountain", "museum",  "needle",
    "ocean",   "onion",   "painter", "paper",   "pepper",   "piano",   "pillow", "pilot",    "planet",  "pocket",
    "potato",  "rabbit",  "river",   "rocket",  "saddle",   "school",  "shadow", "ship",     "silver",  "spoon",
    "station", "stone",   "table",   "temple",  "tiger",    "tower"};
constexpr std::string_view kSyllables[] = {
    "ba", "be", "bi", "bo", "da", "de", "di", "do", "fa", "fe", "fi", "fo", "ga", "go", "ka", "ke", "ki", "ko",
    "la", "le", "li", "lo", "ma", "me", "mi", "mo", "na", "ne", "ni", "no", "pa", "pe", "pi", "po", "ra", "re",
    "ri", "ro", "sa", "se", "si", "so", "ta", "te", "ti", "to", "va", "ve", "vi", "vo", "za", "ze", "zi", "zo"};

}  // namespace

std::span<const std::string_view> adjectives() { return kAdjectives; }
std::span<const std::string_view> nouns() { return kNouns; }

template <typename Make>
std::string DistinctValues::draw(Make make) {
  // The kinds have at least 10^4 values; a prompt takes a small part of them, so a few draws are enough.
  for (int64_t attempt = 0; attempt < 1'000'000; ++attempt) {
    std::string value = make();
    if (taken_in_.find(value) != std::string_view::npos) continue;
    if (taken_.insert(value).second) return value;
  }
  throw Error::bad_input("no value is left that does not stand in the text already: the text is not fit for this task");
}

std::string DistinctValues::number(int n_digits) {
  return draw([&] {
    std::string digits(1, static_cast<char>('1' + random_.below(9)));
    while (std::ssize(digits) < n_digits) digits += static_cast<char>('0' + random_.below(10));
    return digits;
  });
}

std::string DistinctValues::uuid() {
  return draw([&] {
    std::string text;
    for (int i = 0; i < 36; ++i) {
      if (i == 8 || i == 13 || i == 18 || i == 23)
        text += '-';
      else
        text += "0123456789abcdef"[random_.below(i == 0 ? 10 : 16)];
    }
    return text;
  });
}

std::string DistinctValues::letters(int n) {
  return draw([&] {
    std::string text;
    for (int i = 0; i < n; ++i) text += static_cast<char>('A' + random_.below(26));
    return text;
  });
}

std::string DistinctValues::coded_word(int n) {
  return draw([&] {
    std::string text;
    for (int i = 0; i < n; ++i) text += static_cast<char>('a' + random_.below(26));
    return text;
  });
}

std::string DistinctValues::invented_name() {
  return draw([&] {
    std::string name;
    for (int i = 0; i < 3; ++i) name += random_.pick(std::span<const std::string_view>(kSyllables));
    name[0] = static_cast<char>(name[0] - 'a' + 'A');
    return name;
  });
}

std::string DistinctValues::word_pair() {
  return draw([&] { return std::string(random_.pick(adjectives())) + "-" + std::string(random_.pick(nouns())); });
}

}  // namespace polyspan
