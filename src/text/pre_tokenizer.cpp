#include "text/pre_tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <limits>

#include "core/error.h"
#include "text/unicode_class.h"

namespace polyspan {
namespace {

// Bytes of a class text beyond ASCII. A space beyond ASCII is '\v', which \s matches.
constexpr uint8_t kFirstClassByte = 0x80;
constexpr char kRangeByte = '\x87';
constexpr char kSpaceByte = '\v';

char class_byte(CharClass value) {
  return value == CharClass::kSpace ? kSpaceByte : static_cast<char>(kFirstClassByte + static_cast<uint8_t>(value));
}

// What stands for \p{name} inside brackets.
std::string class_members(char name) {
  switch (name) {
    case 'N': return std::string("0-9") + class_byte(CharClass::kNumber);
    case 'L': return std::string("A-Za-z") + class_byte(CharClass::kLetter);
    case 'P': return std::string("!-#%-*,-/:;?@\\[-\\]_{}") + class_byte(CharClass::kPunctuation);
    case 'M': return std::string(1, class_byte(CharClass::kMark));
    case 'S': return std::string("$+<=>^`|~") + class_byte(CharClass::kSymbol);
    case 'U': return std::string(1, class_byte(CharClass::kLetter));
    case 'R': return std::string(1, kRangeByte);
    default: check_failed("known class", __FILE__, __LINE__, std::string("\\p{") + name + "}");
  }
}

// The expression with every \p{X} written out as bytes.
std::string byte_pattern(std::string_view pattern) {
  std::string out;
  bool in_brackets = false;
  for (size_t i = 0; i < pattern.size(); ++i) {
    if (pattern.substr(i, 3) == "\\p{") {
      const std::string members = class_members(pattern[i + 3]);
      out += in_brackets ? members : "[" + members + "]";
      i += 4;
    } else if (pattern[i] == '\\') {
      out += pattern.substr(i++, 2);
    } else {
      if (pattern[i] == '[') in_brackets = true;
      if (pattern[i] == ']') in_brackets = false;
      out += pattern[i];
    }
  }
  return out;
}

bool in_ranges(std::span<const CharRange> ranges, char32_t code) {
  return std::any_of(ranges.begin(), ranges.end(),
                     [code](const CharRange& range) { return range.first <= code && code <= range.second; });
}

bool is_ascii(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char byte) { return static_cast<uint8_t>(byte) < 0x80; });
}

// One byte a character. Writes where each character starts, and the end of the text, when `starts` is given.
std::string make_class_text(std::string_view text, std::span<const CharRange> ranges, std::vector<uint32_t>* starts) {
  std::string classes;
  classes.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    if (starts != nullptr) starts->push_back(static_cast<uint32_t>(i));
    if (static_cast<uint8_t>(text[i]) < 0x80) {
      classes += text[i++];
      continue;
    }
    const Utf8Char decoded = decode_utf8(text, i);
    const CharClass value = char_class(decoded.code);
    const bool is_in_range = value != CharClass::kSpace && in_ranges(ranges, decoded.code);
    classes += is_in_range ? kRangeByte : class_byte(value);
    i += decoded.n_bytes;
  }
  if (starts != nullptr) starts->push_back(static_cast<uint32_t>(text.size()));
  return classes;
}

struct MatchScratch {
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
  MatchScratch() {
    constexpr uint32_t kHeapLimitKib = 64 * 1024;  // of the interpreter, which runs where there is no JIT
    pcre2_set_heap_limit(context, kHeapLimitKib);
    pcre2_set_match_limit(context, std::numeric_limits<uint32_t>::max());  // no expression backtracks over and over
  }
  ~MatchScratch() {
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
  }
  MatchScratch(const MatchScratch&) = delete;
  MatchScratch& operator=(const MatchScratch&) = delete;
};

}  // namespace

struct PreTokenizer::Compiled {
  pcre2_code* code = nullptr;
  std::span<const CharRange> ranges;

  explicit Compiled(const PreExpression& expression) : ranges(expression.ranges) {
    const std::string pattern = byte_pattern(expression.pattern);
    int error = 0;
    PCRE2_SIZE offset = 0;
    code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), 0, &error, &offset, nullptr);
    POLYSPAN_CHECK(code != nullptr, expression.pattern + " at " + std::to_string(offset));
    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // without JIT, pcre2_match interprets
  }
  ~Compiled() { pcre2_code_free(code); }
  Compiled(const Compiled&) = delete;
  Compiled& operator=(const Compiled&) = delete;

  // Cuts classes[begin, end), which the expression sees as a text of its own. Appends the ends of the pieces.
  void cut(const std::string& classes, uint32_t begin, uint32_t end, MatchScratch& scratch,
           std::vector<uint32_t>& ends) const {
    const auto* subject = reinterpret_cast<PCRE2_SPTR>(classes.data() + begin);
    const uint32_t length = end - begin;
    const PCRE2_SIZE* match = pcre2_get_ovector_pointer(scratch.data);
    uint32_t position = 0;
    while (position < length) {
      int status = pcre2_match(code, subject, length, position, 0, scratch.data, scratch.context);
      if (status == PCRE2_ERROR_JIT_STACKLIMIT)
        status = pcre2_match(code, subject, length, position, PCRE2_NO_JIT, scratch.data, scratch.context);
      if (status == PCRE2_ERROR_NOMATCH) break;
      if (status < 0)
        throw Error::bad_input("a text of ", length, " characters cannot be cut into words: PCRE2 error ", status);
      POLYSPAN_CHECK(match[1] > match[0], "an expression matched nothing");
      if (match[0] > position) ends.push_back(begin + static_cast<uint32_t>(match[0]));
      position = static_cast<uint32_t>(match[1]);
      ends.push_back(begin + position);
    }
    if (position < length) ends.push_back(end);
  }
};

PreTokenizer::PreTokenizer(const PreTokenizerSpec& spec) {
  for (const PreExpression& expression : spec.expressions) compiled_.push_back(std::make_unique<Compiled>(expression));
}

PreTokenizer::~PreTokenizer() = default;

void PreTokenizer::split(std::string_view text, std::vector<uint32_t>& word_ends) const {
  word_ends.clear();
  if (text.empty()) return;
  if (text.size() >= std::numeric_limits<uint32_t>::max())
    throw Error::bad_input("a text of ", text.size(), " bytes; at most 4 GiB can be cut into words at once");
  const bool ascii = is_ascii(text);
  std::vector<uint32_t> starts;  // of characters, in bytes; empty for ASCII
  const std::string classes = make_class_text(text, {}, ascii ? nullptr : &starts);

  std::vector<uint32_t> ends = {static_cast<uint32_t>(classes.size())};  // of pieces, in characters
  MatchScratch scratch;
  for (const std::unique_ptr<const Compiled>& expression : compiled_) {
    const bool has_own_classes = !ascii && !expression->ranges.empty();
    const std::string own = has_own_classes ? make_class_text(text, expression->ranges, nullptr) : std::string();
    word_ends.clear();
    uint32_t begin = 0;
    for (const uint32_t end : ends) {
      expression->cut(has_own_classes ? own : classes, begin, end, scratch, word_ends);
      begin = end;
    }
    ends.swap(word_ends);
  }
  word_ends.swap(ends);
  if (!ascii)
    for (uint32_t& end : word_ends) end = starts[end];
}

}  // namespace polyspan
