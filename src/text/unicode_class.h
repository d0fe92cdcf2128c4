// text/unicode_class.h: UTF-8 characters and the few classes of them that pre-tokenisers tell apart.
//
// The classes are those of Unicode 15.1, the version of llama.cpp's tables: with another version, characters that are
// newer than it would give other tokens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace polyspan {

// General categories N*, L*, P*, M*, S*; White_Space goes before them. Values are those of unicode_class_table.inc.
enum class CharClass : uint8_t { kOther, kNumber, kLetter, kPunctuation, kMark, kSymbol, kSpace };

constexpr char32_t kReplacementChar = 0xFFFD;
constexpr std::string_view kReplacementUtf8 = "\xEF\xBF\xBD";

// REQUIRES: code <= 0x10FFFF.
CharClass char_class(char32_t code);

struct Utf8Char {
  char32_t code;     // kReplacementChar when !is_valid
  uint32_t n_bytes;  // 1 when !is_valid
  bool is_valid;
};
// The character at text[position]. Shortest forms up to U+10FFFF; surrogates count as valid (llama.cpp lets them pass).
// REQUIRES: position < text.size().
Utf8Char decode_utf8(std::string_view text, size_t position);
void append_utf8(char32_t code, std::string& out);

// Whether every character is valid in the sense of decode_utf8.
bool is_valid_utf8(std::string_view text);
// What llama.cpp's tokenisers make of invalid input: a byte that starts no character becomes U+FFFD, and overlong forms
// become the character that they spell.
std::string repair_utf8(std::string_view text);

}  // namespace polyspan
