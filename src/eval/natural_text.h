// eval/natural_text.h: running text that prompts are filled with.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace polyspan {

// Running text from files that every Debian system has (/usr/share/common-licenses), or nullopt where they are missing.
std::optional<std::string> default_natural_text();

// The sentences of a text, each on one line, at most about 400 bytes (a longer one is cut between words).
std::vector<std::string> split_sentences(std::string_view text);

}  // namespace polyspan
