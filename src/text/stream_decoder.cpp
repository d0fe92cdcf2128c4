#include <utility>

#include "text/tokenizer.h"
#include "text/unicode_class.h"

namespace polyspan {
namespace {

enum class Utf8State { kComplete, kUnfinished, kInvalid };

struct Utf8Scan {
  Utf8State state;
  size_t n_bytes;  // kInvalid: of the longest start of a character there, to be replaced as one (Unicode 15, 3.9)
};

// The character at the start of `bytes`; "Well-Formed UTF-8 Byte Sequences", Unicode 15, table 3-7.
// REQUIRES: bytes is not empty.
Utf8Scan scan_utf8(std::string_view bytes) {
  const auto first = static_cast<uint8_t>(bytes[0]);
  if (first < 0x80) return {Utf8State::kComplete, 1};
  if (first < 0xC2 || first > 0xF4) return {Utf8State::kInvalid, 1};
  const size_t wanted = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
  for (size_t i = 1; i < wanted; ++i) {
    if (i == bytes.size()) return {Utf8State::kUnfinished, i};
    const auto byte = static_cast<uint8_t>(bytes[i]);
    uint8_t low = 0x80, high = 0xBF;
    if (i == 1) {  // no overlong forms, no surrogates, nothing past U+10FFFF
      if (first == 0xE0) low = 0xA0;
      if (first == 0xED) high = 0x9F;
      if (first == 0xF0) low = 0x90;
      if (first == 0xF4) high = 0x8F;
    }
    if (byte < low || byte > high) return {Utf8State::kInvalid, i};
  }
  return {Utf8State::kComplete, wanted};
}

}  // namespace

std::string StreamDecoder::push(TokenId id) {
  pending_ += tokenizer_.token_bytes(id);
  std::string text;
  size_t position = 0;
  while (position < pending_.size()) {
    const std::string_view rest = std::string_view(pending_).substr(position);
    const Utf8Scan scan = scan_utf8(rest);
    if (scan.state == Utf8State::kUnfinished) break;
    text += scan.state == Utf8State::kComplete ? rest.substr(0, scan.n_bytes) : kReplacementUtf8;
    position += scan.n_bytes;
  }
  pending_.erase(0, position);
  return text;
}

std::string StreamDecoder::finish() {
  const bool has_rest = !std::exchange(pending_, {}).empty();
  return has_rest ? std::string(kReplacementUtf8) : std::string();
}

}  // namespace polyspan
