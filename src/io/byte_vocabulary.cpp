#include "io/byte_vocabulary.h"

#include <cstdint>

namespace polyspan {
namespace {

void append_utf8(std::string& out, uint32_t code_point) {
  if (code_point < 0x80) {
    out += static_cast<char>(code_point);
  } else {  // below 0x800 is all that byte letters need
    out += static_cast<char>(0xc0 | code_point >> 6);
    out += static_cast<char>(0x80 | (code_point & 0x3f));
  }
}

}  // namespace

std::vector<std::string> byte_letters() {
  std::vector<std::string> letters;
  for (const char32_t character : byte_characters()) append_utf8(letters.emplace_back(), character);
  return letters;
}

}  // namespace polyspan
