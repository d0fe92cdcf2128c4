// recipe/token_file.h: token files, what `polyspan prepare` writes and training reads (docs/hydra.md: the bytes).
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "core/mapped_file.h"

namespace polyspan {

struct TokenFileInfo {
  int64_t n_tokens = 0, vocab_size = 0;
  int64_t example_length = 0;  // tokens of each example; 0: running text
  bool has_mask = false;       // whether only some tokens are to be predicted
  std::string tokenizer;       // "bytes", or the fingerprint of the tokeniser's vocabulary
  std::string source;          // files or task, for people
};

// Memory-mapped and checked: the sizes fit the file and every token is within the vocabulary.
class TokenFile {
 public:
  // Throws Error: kIo, kBadFile with what was found and wanted.
  static TokenFile open(const std::filesystem::path& path);
  const TokenFileInfo& info() const { return info_; }
  const std::filesystem::path& path() const { return file_.path(); }
  std::span<const int32_t> tokens() const { return tokens_; }
  // [n_tokens] of 0 or 1: whether token i counts when it is predicted from those before it; empty: all do.
  std::span<const uint8_t> mask() const { return mask_; }

 private:
  explicit TokenFile(MappedFile file) : file_(std::move(file)) {}
  MappedFile file_;
  TokenFileInfo info_;
  std::span<const int32_t> tokens_;
  std::span<const uint8_t> mask_;
};

// Writes beside `path` and renames. `mask` is empty or as long as `tokens`. info.n_tokens and has_mask follow from them.
void write_token_file(const std::filesystem::path& path, TokenFileInfo info, std::span<const int32_t> tokens,
                      std::span<const uint8_t> mask);

}  // namespace polyspan
