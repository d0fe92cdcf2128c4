#include "eval/passkey.h"

#include <algorithm>
#include <numeric>
#include <random>

#include "core/error.h"
#include "eval/words.h"

namespace polyspan {
namespace {

constexpr std::string_view kInstruction =
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. I will quiz you about "
    "the "
    "important information there.\n";
constexpr int64_t kKeyAnswerTokens = 8;  // room for five digits and what may follow

// "The pass key" or "The pass key of river". The answer's opening ends with its space, which is a token of its own before
// digits: without it, SmolLM2-135M often goes on with a word.
std::string pass_key(const std::string& name) { return name.empty() ? "pass key" : "pass key of " + name; }
std::string question(const std::string& name) { return "\nWhat is the " + pass_key(name) + "?"; }
std::string answer_start(const std::string& name) { return "The " + pass_key(name) + " is "; }
std::string needle(const std::string& name, const std::string& key) {
  return "The " + pass_key(name) + " is " + key + ". Remember it. " + key + " is the " + pass_key(name) + ". ";
}

struct PlacedKey {
  int64_t at = 0;  // filler tokens before it
  std::vector<TokenId> tokens;
};

}  // namespace

PasskeyGenerator::PasskeyGenerator(const Tokenizer& tokenizer, const ChatFormat* format, std::string_view natural_text)
    : tokenizer_(tokenizer),
      format_(format),
      frame_(tokenizer, format, kInstruction, question(""), answer_start("")),
      unit_(tokenizer.encode(kRepeatedText, {})),
      natural_(tokenizer.encode(natural_text, {})) {}

int64_t PasskeyGenerator::most_keys() { return std::ssize(nouns()); }
int64_t PasskeyGenerator::answer_tokens() { return kKeyAnswerTokens; }

PasskeyPrompt PasskeyGenerator::make(FillerKind kind, int64_t n_tokens, uint64_t seed,
                                     const PasskeyVariant& variant) const {
  if (variant.n_keys < 1 || variant.n_keys > most_keys())
    throw Error::bad_input("a pass-key prompt of ", variant.n_keys, " keys; it can have 1 to ", most_keys());
  std::mt19937_64 random(seed * 2 + (kind == FillerKind::kNatural ? 1 : 0) + static_cast<uint64_t>(n_tokens) * 1000003);
  const auto below = [&random](int64_t n) { return static_cast<int64_t>(random() % static_cast<uint64_t>(n)); };
  const auto five_digits = [&] { return std::to_string(10000 + below(90000)); };
  PasskeyPrompt prompt;
  prompt.key = five_digits();
  std::vector<std::string> names(1), keys = {prompt.key};
  if (variant.n_keys > 1) {
    names.assign(nouns().begin(), nouns().end());
    for (int64_t i = 0; i < variant.n_keys; ++i)
      std::swap(names[static_cast<size_t>(i)], names[static_cast<size_t>(i + below(std::ssize(names) - i))]);
    names.resize(static_cast<size_t>(variant.n_keys));
    while (std::ssize(keys) < variant.n_keys)
      if (std::string key = five_digits(); std::find(keys.begin(), keys.end(), key) == keys.end())
        keys.push_back(std::move(key));
  }
  prompt.name = names[0];
  std::vector<PlacedKey> placed(keys.size());
  int64_t needle_tokens = 0;
  for (size_t i = 0; i < keys.size(); ++i) {
    placed[i].tokens = tokenizer_.encode(needle(names[i], keys[i]), {});
    needle_tokens += std::ssize(placed[i].tokens);
  }
  const PromptFrame frame = prompt.name.empty() ? frame_
                                                : PromptFrame(tokenizer_, format_, kInstruction, question(prompt.name),
                                                              answer_start(prompt.name));
  const int64_t fixed = frame.size() + needle_tokens + kKeyAnswerTokens;
  const int64_t n_filler = n_tokens - fixed;
  if (n_filler < 1)
    throw Error::bad_input("a pass-key prompt of ", n_tokens, " tokens: the question alone needs ", fixed);
  std::vector<TokenId> filler;
  const int64_t unit = std::ssize(unit_);
  if (kind == FillerKind::kRepeated) {
    for (int64_t i = 0; i < n_filler; ++i) filler.push_back(unit_[static_cast<size_t>(i % unit)]);
  } else {
    const int64_t n_natural = std::ssize(natural_);
    if (n_natural < n_filler + 1)
      throw Error::bad_input("the natural text has ", n_natural, " tokens; prompts of ", n_tokens, " need more than ",
                             n_filler, " (--text FILE)");
    const int64_t start = below(n_natural - n_filler);
    filler.assign(natural_.begin() + start, natural_.begin() + start + n_filler);
  }
  const int64_t step = kind == FillerKind::kRepeated ? unit : 1;  // between two repetitions; anywhere in running text
  for (PlacedKey& key : placed) key.at = below(n_filler / step + 1) * step;
  if (variant.depth)
    placed[0].at =
        static_cast<int64_t>(std::clamp(*variant.depth, 0.0, 1.0) * static_cast<double>(n_filler / step) + 0.5) * step;
  prompt.depth = static_cast<double>(placed[0].at) / static_cast<double>(n_filler);
  std::stable_sort(placed.begin(), placed.end(), [](const PlacedKey& a, const PlacedKey& b) { return a.at < b.at; });
  auto& out = prompt.tokens;
  out = frame.head;
  int64_t from = 0;
  for (const PlacedKey& key : placed) {
    out.insert(out.end(), filler.begin() + from, filler.begin() + key.at);
    out.insert(out.end(), key.tokens.begin(), key.tokens.end());
    from = key.at;
  }
  out.insert(out.end(), filler.begin() + from, filler.end());
  out.insert(out.end(), frame.tail.begin(), frame.tail.end());
  return prompt;
}

std::vector<PromptItem> passkey_items(const Engine& engine, std::string_view text, const PasskeyOptions& options) {
  if (options.n_depths < 0) throw Error::usage(options.n_depths, " depths; wanted 1 or more, or 0 for random places");
  for (const int64_t length : options.lengths) check_length(engine, length);
  const PasskeyGenerator generator(engine.tokenizer(), engine.has_chat_format() ? &engine.chat_format() : nullptr,
                                   text);
  std::vector<PromptItem> items;
  for (const int64_t length : options.lengths)
    for (const FillerKind kind : {FillerKind::kRepeated, FillerKind::kNatural})
      for (int64_t place = 0; place < std::max<int64_t>(1, options.n_depths); ++place)
        for (int64_t sample = 0; sample < options.n_samples; ++sample) {
          PasskeyVariant variant{options.n_keys, std::nullopt};
          if (options.n_depths == 1) variant.depth = 0.5;
          if (options.n_depths > 1)
            variant.depth = static_cast<double>(place) / static_cast<double>(options.n_depths - 1);
          const uint64_t seed = options.seed * 7919 + static_cast<uint64_t>(sample + place * 1'000'003);
          PasskeyPrompt prompt = generator.make(kind, length, seed, variant);
          items.push_back({.tokens = std::move(prompt.tokens),
                           .max_new_tokens = kKeyAnswerTokens,
                           .planned_length = length,
                           .rule = ScoreRule::kStartsWith,
                           .wanted = {prompt.key},
                           .place = prompt.depth,
                           .row_length = length,
                           .kind = kind == FillerKind::kRepeated ? "repeated" : "natural",
                           .depth = variant.depth});
        }
  return items;
}

}  // namespace polyspan
