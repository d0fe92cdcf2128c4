// The built-in generators of calibration samples.
//
// What the dense model makes of them: SmolLM2-135M-Instruct Q4_1, 8 samples a cell of licence texts / of WikiText-2;
// targets that are its most likely token, and samples with all of them. At 1,024, without what stands more than 96
// tokens before the first target, it gets 0.37 / 0.45 of "copy" and 0.28 / 0.35 of "section".
//   kind               targets at 1,024   at 2,048           samples at 1,024   at 2,048
//   passkey-repeated   1.00 / 1.00        1.00 / 1.00        8 / 8              8 / 8
//   passkey-natural    1.00 / 1.00        1.00 / 1.00        8 / 8              8 / 8
//   multikey           0.95 / 0.98        0.95 / 0.95        6 / 7              6 / 6
//   copy               0.95 / 0.92        0.91 / 0.89        0 / 0              0 / 0
//   section            0.91 / 0.86        0.88 / 0.85        1 / 0              1 / 0
//   text               0.47 / 0.45        0.47 / 0.45
// "document" (8 articles, its own greedy answers, at 1,024): 0.98, 4 of 8 samples. Where a prefill of the whole sample
// prefers another token than decoding did, it is ahead by 0.04 to 0.34 in the logits.
#include <algorithm>

#include "core/error.h"
#include "eval/prompt_frame.h"
#include "eval/words.h"
#include "moa/calibration_parts.h"
#include "moa/calibration_text.h"

namespace polyspan::calibration {
namespace {

constexpr int64_t kLeastPassage = 64, kMostPassage = 96, kBegunAgain = 16;  // "copy"
constexpr int64_t kLeastSentence = 32, kMostSentence = 72;                  // "section": tokens of a sentence
constexpr int64_t kQuoted = 10, kMostContinued = 48;                        // tokens quoted (about), and scored
// The answer's opening goes on with a few words more than the question quotes: right after the quote a small model also
// goes on as the question does, with its end.
constexpr int64_t kGivenMore = 4;
constexpr int64_t kLeastRecord = 8;  // tokens of one of "records", at least
constexpr int64_t kWordTokens = 4;   // of a word, when words are cut apart
constexpr int64_t kMostTextTargets = 2048;
constexpr int64_t kTries = 16;  // for a passage whose beginning stands in the text once

constexpr std::string_view kSpaces = " \t\r\n\f\v";
constexpr std::string_view kReadText =
    "Read the following text. Afterwards I quote the beginning of one of its sentences.\n\n";

std::string joined(const std::vector<std::string>& sentences) {
  std::string text;
  for (const std::string& sentence : sentences) text += (text.empty() ? "" : " ") + sentence;
  return text;
}

bool begins_a_sentence(char c) { return c < 'a' || c > 'z'; }  // not "e.g. this"

int64_t count(std::span<const TokenId> tokens, std::span<const TokenId> wanted) {
  int64_t n = 0;
  for (auto at = tokens.begin(); (at = std::search(at, tokens.end(), wanted.begin(), wanted.end())) != tokens.end();
       ++at)
    ++n;
  return n;
}

}  // namespace

void Draft::append_answer(std::span<const TokenId> answer) {
  for (const TokenId token : answer) {
    targets.push_back(std::ssize(tokens));
    tokens.push_back(token);
  }
}

std::vector<TokenId> continuation(const Tokenizer& tokenizer, std::string_view opening, const std::string& text) {
  const std::vector<TokenId> start = tokenizer.encode(opening, {});
  std::vector<TokenId> whole = tokenizer.encode(std::string(opening) + text, {});
  // Where the opening's last token would merge with the text, the text's own tokens follow it.
  if (whole.size() <= start.size() || !std::equal(start.begin(), start.end(), whole.begin()))
    return tokenizer.encode(text, {});
  whole.erase(whole.begin(), whole.begin() + std::ssize(start));
  return whole;
}

Material::Material(const Tokenizer& tokenizer, const ChatFormat* format, std::string_view text, bool apart)
    : tokenizer_(tokenizer),
      format_(format),
      text_(tokenizer, format, text),
      flat_(tokenizer.encode(joined(split_sentences(text)), {})) {
  if (apart) apart_.emplace(tokenizer, format, words_apart(text));
  if (tokenizer.adds_bos() && tokenizer.bos()) bos_ = {*tokenizer.bos()};
  find_sentences();
}

// A sentence begins with the first token, or with the space that follows a full stop. (Tokens of the whole text, not of
// its sentences: pre-tokenisers and SentencePiece's added space see the same text as in a prompt.)
void Material::find_sentences() {
  char last = '.';    // last byte that is no space
  int64_t space = 0;  // the first token after it that begins with a space, or follows one; -1: none
  for (int64_t i = 0; i < std::ssize(flat_); ++i) {
    const std::string bytes = tokenizer_.token_bytes(flat_[static_cast<size_t>(i)]);
    const size_t word = bytes.find_first_not_of(kSpaces);
    if (word > 0 && space < 0 && !bytes.empty()) space = i;
    if (word == bytes.npos) continue;
    if (space >= 0 && (last == '.' || last == '!' || last == '?') && begins_a_sentence(bytes[word]))
      starts_.push_back(space);
    const size_t end = bytes.find_last_not_of(kSpaces);
    last = bytes[end];
    space = end + 1 < bytes.size() ? i + 1 : -1;
  }
  const int64_t size = std::ssize(flat_);
  for (size_t i = 0; i < starts_.size(); ++i) {
    const Sentence sentence{starts_[i], i + 1 < starts_.size() ? starts_[i + 1] : size};
    const int64_t n = sentence.end - sentence.begin;
    if (n >= kLeastSentence && n <= kMostSentence) sentences_.push_back(sentence);
  }
  // A script without full stops and spaces, or verse: pieces of the text stand for sentences.
  if (sentences_.empty())
    for (int64_t at = 0; at + kMostSentence <= size; at += kMostSentence)
      sentences_.push_back({at, at + kMostSentence});
}

// The start of a sentence in [first, last]; any place in it where no sentence starts there.
int64_t Material::sentence_start(int64_t first, int64_t last, RandomSource& random) const {
  const auto begin = std::lower_bound(starts_.begin(), starts_.end(), first),
             end = std::upper_bound(begin, starts_.end(), last);
  return begin < end ? *(begin + random.below(end - begin)) : random.between(first, last);
}

Draft Material::passkey(FillerKind filler, int64_t length, uint64_t seed, bool apart,
                        const PasskeyVariant& variant) const {
  // What every answer's opening ends with.
  const auto digits = [&](const std::string& key) { return continuation(tokenizer_, "The pass key is ", key); };
  // The key is drawn with the prompt: the room for it is a guess that is right with tokenizers of fixed groups of
  // digits.
  int64_t room = std::ssize(digits("48297"));
  for (;;) {
    PasskeyPrompt prompt = form(apart).make(filler, length - room + PasskeyGenerator::answer_tokens(), seed, variant);
    const std::vector<TokenId> answer = digits(prompt.key);
    if (std::ssize(answer) > room) {
      room = std::ssize(answer);
      continue;
    }
    Draft draft{std::move(prompt.tokens), {}};
    draft.append_answer(answer);
    return draft;
  }
}

Draft Material::multikey(int64_t length, uint64_t seed, bool apart) const {
  PasskeyVariant variant;
  variant.n_keys = RandomSource{seed}.between(4, 6);
  return passkey(FillerKind::kNatural, length, seed, apart, variant);
}

// Records of a name and a number, as many as fit; what is left over is text before them.
Draft Material::records(int64_t length, uint64_t seed, double place) const {
  constexpr std::string_view kNumberOf = "The number of ";
  RandomSource random{seed};
  DistinctValues values(random);
  const int64_t most = std::min(length / kLeastRecord, DistinctValues::n_word_pairs() * 3 / 4);
  std::vector<TokenId> body;
  std::vector<int64_t> ends;
  std::vector<std::pair<std::string, std::string>> all;
  while (std::ssize(all) < most && std::ssize(body) < length) {
    const auto& [name, number] = all.emplace_back(values.word_pair(), values.number(5));
    const std::vector<TokenId> record = tokenizer_.encode(std::string(kNumberOf) + name + " is " + number + ".\n", {});
    body.insert(body.end(), record.begin(), record.end());
    ends.push_back(std::ssize(body));
  }
  for (int64_t n = std::ssize(all); n >= 2; --n) {  // the frame's length depends a little on the name asked for
    const auto& [name, number] = all[static_cast<size_t>(place * static_cast<double>(n))];
    const std::string opening = std::string(kNumberOf) + name + " is ";
    const PromptFrame frame(tokenizer_, format_,
                            "Below are records, each of a name and its number. Remember the numbers.\n\n",
                            "\nWhat is the number of " + name + "?", opening);
    const std::vector<TokenId> answer = continuation(tokenizer_, opening, number);
    const int64_t n_body = ends[static_cast<size_t>(n - 1)], left = length - frame.size() - std::ssize(answer) - n_body;
    if (left < 0) continue;
    Draft draft{frame.head, {}};
    draft.append(flat(sentence_start(0, std::ssize(flat_) - left, random), left));
    draft.append(std::span(body).first(static_cast<size_t>(n_body)));
    draft.append(frame.tail);
    draft.append_answer(answer);
    return draft;
  }
  throw Error::bad_input("records in ", length, " tokens: not even two and the question fit");
}

// Text that ends with a sentence, then the passage again.
Draft Material::copy(int64_t length, uint64_t seed) const {
  RandomSource random{seed};
  const int64_t n_passage = random.between(kLeastPassage, kMostPassage);
  const std::vector<TokenId> between = continuation(tokenizer_, "end.", "\n\n");
  const int64_t n_fixed = std::ssize(bos_) + std::ssize(between) + n_passage, n_text = length - n_fixed;
  if (n_text < 2 * kMostPassage)
    throw Error::bad_input("a copy sample of ", length, " tokens; ", n_fixed + 2 * kMostPassage, " are needed");
  const int64_t end = sentence_start(n_text, std::ssize(flat_), random);
  const std::span<const TokenId> text = flat(end - n_text, n_text);
  int64_t at = 0;
  for (int64_t i = 0; i < kTries; ++i) {
    at = sentence_start(end - n_text, end - n_passage, random);
    if (count(text, flat(at, kBegunAgain)) == 1) break;
  }
  Draft draft{bos_, {}};
  draft.append(text);
  draft.append(between);
  draft.append(flat(at, kBegunAgain));
  draft.append_answer(flat(at + kBegunAgain, n_passage - kBegunAgain));
  return draft;
}

// The first token from `at` on that begins a word, but not far from there (scripts without spaces).
int64_t Material::word_start(int64_t at) const {
  for (int64_t i = at; i < at + kWordTokens; ++i)
    if (tokenizer_.token_bytes(flat_[static_cast<size_t>(i)]).starts_with(' ')) return i;
  return at;
}

// Running text with the asked sentence anywhere in it.
Draft Material::section(int64_t length, uint64_t seed) const {
  RandomSource random{seed};
  if (sentences_.empty())
    throw Error::bad_input("the natural text has no sentence to ask for: it is shorter than ", kMostSentence,
                           " tokens");
  for (int64_t i = 1;; ++i) {
    const Sentence sentence = random.pick(std::span<const Sentence>(sentences_));
    const int64_t quoted = word_start(sentence.begin + kQuoted), rest = word_start(quoted + kGivenMore);
    const int64_t end = std::min(sentence.end, rest + kMostContinued);
    const auto words = [&](int64_t to) {
      const std::string bytes = tokenizer_.decode(flat(sentence.begin, to - sentence.begin));
      return bytes.substr(std::min(bytes.find_first_not_of(kSpaces), bytes.size()));
    };
    const PromptFrame frame(
        tokenizer_, format_, kReadText,
        "\n\nRepeat, word for word, the sentence of the text that begins like this:\n" + words(quoted),
        "The sentence is: " + words(rest));
    const int64_t n_fixed = frame.size() + end - rest, n_text = length - n_fixed;
    if (n_text < kMostSentence)
      throw Error::bad_input("a section sample of ", length, " tokens; ", n_fixed + kMostSentence, " are needed");
    const int64_t at =
        random.between(std::max<int64_t>(0, end - n_text), std::min(sentence.begin, std::ssize(flat_) - n_text));
    const std::span<const TokenId> text = flat(at, n_text);
    if (i < kTries && count(text, flat(sentence.begin, quoted - sentence.begin)) != 1) continue;
    Draft draft{frame.head, {}};
    draft.append(text);
    draft.append(frame.tail);
    draft.append_answer(flat(rest, end - rest));
    return draft;
  }
}

Draft Material::text(int64_t length, uint64_t seed, bool apart) const {
  RandomSource random{seed};
  const int64_t n_text = length - std::ssize(bos_);
  if (n_text < 2) throw Error::bad_input("a text sample of ", length, " tokens; ", 2 + std::ssize(bos_), " are needed");
  const std::vector<TokenId>& all = form(apart).natural();
  const int64_t at = random.between(0, std::ssize(all) - n_text);
  Draft draft{bos_, {}};
  draft.append(std::span(all).subspan(static_cast<size_t>(at), static_cast<size_t>(n_text)));
  const int64_t first = length / 2, n_scored = length - first, n = std::min(n_scored, kMostTextTargets);
  for (int64_t i = 0; i < n; ++i) draft.targets.push_back(first + i * n_scored / n);
  return draft;
}

}  // namespace polyspan::calibration
