#include "eval/natural_text.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>

namespace polyspan {

std::optional<std::string> default_natural_text() {
  std::string text;
  // The longest plain texts first; names are those of Debian's base-files.
  for (const char* name : {"GPL-3", "GFDL-1.3", "MPL-1.1", "LGPL-2.1", "Apache-2.0", "GPL-2", "Artistic"}) {
    std::ifstream file(std::filesystem::path("/usr/share/common-licenses") / name, std::ios::binary);
    if (file) text.append(std::istreambuf_iterator<char>(file), {});
  }
  if (text.empty()) return std::nullopt;
  return text;
}

std::vector<std::string> split_sentences(std::string_view text) {
  constexpr size_t kLongest = 400;
  std::vector<std::string> sentences;
  std::string sentence;
  const auto end_sentence = [&] {
    if (!sentence.empty()) sentences.push_back(std::move(sentence));
    sentence.clear();
  };
  for (size_t at = 0; at < text.size();) {
    const size_t begin = text.find_first_not_of(" \t\r\n\f\v", at);
    if (begin == std::string_view::npos) break;
    at = std::min(text.find_first_of(" \t\r\n\f\v", begin), text.size());
    const std::string_view word = text.substr(begin, at - begin);
    if (!sentence.empty()) sentence += ' ';
    sentence += word;
    if (word.back() == '.' || word.back() == '!' || word.back() == '?' || sentence.size() >= kLongest) end_sentence();
  }
  end_sentence();
  return sentences;
}

}  // namespace polyspan
