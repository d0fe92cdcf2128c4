// io/gguf_parse.h: the header of a GGUF file, read and checked in one pass. Used by GgufFile only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/gguf.h"

namespace polyspan {

struct GgufContents {
  uint32_t version = 0;
  std::map<std::string_view, GgufValue> metadata;
  std::vector<GgufTensor> tensors;
  std::map<std::string_view, size_t> tensor_index;
};

// Everything returned points into `bytes`; `name` is for messages. Throws Error (kBadFile, kUnsupported).
GgufContents parse_gguf(std::span<const std::byte> bytes, const std::filesystem::path& name);

// Text of a file as it may stand in a one-line message: in quotes, printable ASCII, cut after 64 characters.
std::string quoted(std::string_view text);

}  // namespace polyspan
