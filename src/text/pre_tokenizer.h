// text/pre_tokenizer.h: how byte-level BPE cuts a text into words before it merges (tokenizer.ggml.pre of a GGUF file).
//
// A pre-tokeniser is a list of expressions. Each cuts every piece that the one before left: its matches and the gaps
// between them become pieces of their own. The expressions run on a class text with one byte a character: ASCII as it
// is, any other character as a byte that tells its class (unicode_class.h). So one PCRE2 byte expression needs neither
// UTF-8 nor PCRE2's own Unicode tables, whose version moves with the system and would change ids.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace polyspan {

using CharRange = std::pair<char32_t, char32_t>;  // first and last code point

// One expression, in Perl syntax. \p{N} \p{L} \p{P} \p{M} \p{S} are classes, alone or inside [ ]; \p{U} is a letter
// beyond ASCII; \p{R} is a character beyond ASCII that lies in `ranges` (a space never does).
struct PreExpression {
  std::string pattern;
  std::span<const CharRange> ranges = {};
};

struct PreTokenizerSpec {
  std::vector<PreExpression> expressions;
  bool ignores_merges = false;  // a word that is a token becomes it, whatever the merges say
  bool adds_bos = false;        // unless the file says otherwise
};

// The pre-tokeniser that files call `name`. Throws kUnsupported naming an unknown one.
PreTokenizerSpec find_pre_tokenizer(std::string_view name);
// All names that find_pre_tokenizer knows.
std::vector<std::string_view> pre_tokenizer_names();

// Compiled expressions. Thread-safe after construction.
class PreTokenizer {
 public:
  explicit PreTokenizer(const PreTokenizerSpec& spec);
  ~PreTokenizer();

  // Writes the end of every word, as a byte offset in `text`. The words cover the text; none is empty. An invalid byte
  // (decode_utf8) counts as U+FFFD. Throws kBadInput for texts of 4 GiB and more.
  void split(std::string_view text, std::vector<uint32_t>& word_ends) const;

 private:
  struct Compiled;
  std::vector<std::unique_ptr<const Compiled>> compiled_;
};

}  // namespace polyspan
