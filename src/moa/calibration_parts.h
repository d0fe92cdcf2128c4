// moa/calibration_parts.h: what CalibrationSource is made of. Included by its own files and by nothing else.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "eval/passkey.h"
#include "eval/random_source.h"
#include "moa/calibration.h"

namespace polyspan::calibration {

// Tokens and scored positions of a sample: what the kinds differ in.
struct Draft {
  std::vector<TokenId> tokens;
  std::vector<int64_t> targets;
  void append(std::span<const TokenId> more) { tokens.insert(tokens.end(), more.begin(), more.end()); }
  void append_answer(std::span<const TokenId> answer);  // appended and scored
};

// The tokens of `text` as a model writes them after the tokens of `opening`.
std::vector<TokenId> continuation(const Tokenizer& tokenizer, std::string_view opening, const std::string& text);

// The natural text in the forms that the kinds need. `tokenizer` and `format` must outlive it; format may be null.
class Material {
 public:
  // apart: also words_apart(text), for those that take it.
  Material(const Tokenizer& tokenizer, const ChatFormat* format, std::string_view text, bool apart);

  // Natural tokens there are, of the form that has fewest.
  int64_t n_tokens() const {
    const int64_t n = std::min(std::ssize(text_.natural()), std::ssize(flat_));
    return apart_ ? std::min(n, std::ssize(apart_->natural())) : n;
  }

  // All have exactly `length` tokens. Throw Error (kBadInput) for lengths that are too short for their kind.
  // apart: in the form of words_apart. REQUIRES: announced to the constructor.
  Draft passkey(FillerKind filler, int64_t length, uint64_t seed, bool apart, const PasskeyVariant& variant = {}) const;
  Draft multikey(int64_t length, uint64_t seed, bool apart) const;
  Draft records(int64_t length, uint64_t seed, double place) const;  // place: of the record asked for, in [0, 1)
  Draft copy(int64_t length, uint64_t seed) const;
  Draft section(int64_t length, uint64_t seed) const;
  Draft text(int64_t length, uint64_t seed, bool apart) const;

 private:
  struct Sentence {
    int64_t begin = 0, end = 0;  // tokens of flat_
  };
  std::span<const TokenId> flat(int64_t begin, int64_t n) const {
    return std::span(flat_).subspan(static_cast<size_t>(begin), static_cast<size_t>(n));
  }
  const PasskeyGenerator& form(bool apart) const { return apart ? apart_.value() : text_; }
  void find_sentences();
  int64_t word_start(int64_t at) const;
  int64_t sentence_start(int64_t first, int64_t last, RandomSource& random) const;

  const Tokenizer& tokenizer_;
  const ChatFormat* format_;
  std::vector<TokenId> bos_;               // where texts begin with one
  PasskeyGenerator text_;                  // the text as it is, and its pass keys
  std::optional<PasskeyGenerator> apart_;  // likewise with its words apart, where they are asked for
  std::vector<TokenId> flat_;              // the text without line ends: sentences can be quoted
  std::vector<int64_t> starts_;            // of sentences in flat_, ascending
  std::vector<Sentence> sentences_;        // those of a fitting length; empty only where flat_ is short
};

// The user's documents, each distinct context tokenised once.
class Documents {
 public:
  // `documents` must outlive it.
  Documents(Engine& engine, std::span<const CalibrationDocument> documents);
  // Throws Error (kBadInput) where a document with the contexts of all others does not reach half of `longest`.
  void check(int64_t longest) const;
  Draft draw(int64_t length, int64_t index, uint64_t seed) const;

 private:
  // The contexts around and including that of the document, `budget` tokens or fewer.
  std::vector<TokenId> body(size_t document, int64_t budget, uint64_t seed) const;

  Engine& engine_;
  std::span<const CalibrationDocument> documents_;
  std::vector<TokenId> between_;                // two contexts
  std::vector<std::vector<TokenId>> contexts_;  // distinct ones
  std::vector<size_t> context_of_;              // [n_documents]
};

}  // namespace polyspan::calibration
