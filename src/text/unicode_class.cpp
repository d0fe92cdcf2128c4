#include "text/unicode_class.h"

#include <algorithm>
#include <iterator>
#include <vector>

namespace polyspan {
namespace {

constexpr char32_t kEndOfUnicode = 0x110000;

constexpr uint32_t kClassStarts[] = {
#include "text/unicode_class_table.inc"
};

// One byte a code point: 1.1 MB, filled once in about 0.2 ms. A binary search per character was not tried.
std::vector<CharClass> make_class_table() {
  std::vector<CharClass> table(kEndOfUnicode, CharClass::kOther);
  const auto fill = [&](char32_t first, char32_t last, CharClass value) {
    std::fill(table.begin() + first, table.begin() + last + 1, value);
  };
  for (const char symbol : std::string_view("$+<=>^`|~")) fill(symbol, symbol, CharClass::kSymbol);
  for (const char mark : std::string_view("!\"#%&'()*,-./:;?@[\\]_{}")) fill(mark, mark, CharClass::kPunctuation);
  fill('0', '9', CharClass::kNumber);
  fill('A', 'Z', CharClass::kLetter);
  fill('a', 'z', CharClass::kLetter);
  fill('\t', '\r', CharClass::kSpace);
  fill(' ', ' ', CharClass::kSpace);
  for (size_t i = 0; i < std::size(kClassStarts); ++i) {
    const char32_t end = i + 1 < std::size(kClassStarts) ? kClassStarts[i + 1] >> 3 : kEndOfUnicode;
    fill(kClassStarts[i] >> 3, end - 1, static_cast<CharClass>(kClassStarts[i] & 7));
  }
  return table;
}

// Bytes that the first byte of a character announces; 0 for a byte that starts none.
uint32_t announced_bytes(uint8_t first) {
  if (first < 0x80) return 1;
  if (first < 0xC0) return 0;
  if (first < 0xE0) return 2;
  if (first < 0xF0) return 3;
  return first < 0xF8 ? 4 : 0;
}

// As decode_utf8, but takes overlong forms too.
Utf8Char decode_any_form(std::string_view text, size_t position) {
  constexpr Utf8Char kInvalid = {kReplacementChar, 1, false};
  const auto first = static_cast<uint8_t>(text[position]);
  const uint32_t n_bytes = announced_bytes(first);
  if (n_bytes == 1) return {first, 1, true};
  if (n_bytes == 0 || text.size() - position < n_bytes) return kInvalid;
  char32_t code = first & (0x7Fu >> n_bytes);
  for (uint32_t i = 1; i < n_bytes; ++i) {
    const auto byte = static_cast<uint8_t>(text[position + i]);
    if ((byte & 0xC0) != 0x80) return kInvalid;
    code = code << 6 | (byte & 0x3F);
  }
  if (code >= kEndOfUnicode) return kInvalid;
  return {code, n_bytes, true};
}

}  // namespace

CharClass char_class(char32_t code) {
  static const std::vector<CharClass> table = make_class_table();
  return table[code];
}

Utf8Char decode_utf8(std::string_view text, size_t position) {
  constexpr char32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};  // of a form of that many bytes
  const Utf8Char decoded = decode_any_form(text, position);
  if (decoded.is_valid && decoded.code < kSmallest[decoded.n_bytes]) return {kReplacementChar, 1, false};
  return decoded;
}

void append_utf8(char32_t code, std::string& out) {
  if (code < 0x80) {
    out += static_cast<char>(code);
    return;
  }
  const int n_tail = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
  out += static_cast<char>((0xFFu << (7 - n_tail) & 0xFF) | code >> (6 * n_tail));
  for (int i = n_tail - 1; i >= 0; --i) out += static_cast<char>(0x80 | (code >> (6 * i) & 0x3F));
}

bool is_valid_utf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const Utf8Char decoded = decode_utf8(text, i);
    if (!decoded.is_valid) return false;
    i += decoded.n_bytes;
  }
  return true;
}

std::string repair_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size() + 16);
  for (size_t i = 0; i < text.size();) {
    const Utf8Char decoded = decode_any_form(text, i);
    append_utf8(decoded.code, out);
    i += decoded.n_bytes;
  }
  return out;
}

}  // namespace polyspan
