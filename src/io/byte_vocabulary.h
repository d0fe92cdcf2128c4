// io/byte_vocabulary.h: the letters that byte-level BPE vocabularies write bytes as, and the smallest of these vocabularies.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace polyspan {

class GgufWriter;

// [256]: the character that GPT-2 writes each byte as: printable Latin-1 stands for itself, the rest follows from U+0100 on,
// in the order of bytes.
constexpr std::array<char32_t, 256> byte_characters() {
  std::array<char32_t, 256> characters{};
  char32_t next = 0x100;
  for (char32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte != 0xad);
    characters[byte] = printable ? byte : next++;
  }
  return characters;
}

// The same in UTF-8.
std::vector<std::string> byte_letters();

// A tokenizer of bytes: a byte-level vocabulary without merges, tokens that begin and end a text, unused ones up to vocab_size.
inline constexpr int32_t kByteBegin = 256, kByteEnd = 257;
void write_byte_tokenizer(int64_t vocab_size, GgufWriter& writer);

}  // namespace polyspan
