// recipe/prepare.h: from text to a token file.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "core/progress.h"
#include "io/byte_vocabulary.h"
#include "recipe/token_file.h"
#include "text/tokenizer.h"

namespace polyspan {

// Byte b is token b; kByteBegin and kByteEnd follow; 258 and 259 are unused, so that the size divides by four.
inline constexpr int64_t kByteVocabulary = 260;

// "bytes" or a GGUF file with a tokeniser.
class CorpusTokenizer {
 public:
  // Throws Error (kIo, kBadFile, kUnsupported).
  explicit CorpusTokenizer(const std::string& spec);
  std::vector<int32_t> encode(std::string_view text) const;
  int64_t vocab_size() const;
  std::string fingerprint() const;  // "bytes", or a hash of the vocabulary: a token file names what made it
  int32_t end_token() const;        // put behind each document

 private:
  std::unique_ptr<Tokenizer> tokenizer_;  // null: bytes
};

// Encodes each file, an end token behind it. Throws Error; kBadInput where there are fewer than two tokens in all.
void prepare_text(const std::vector<std::filesystem::path>& files, const CorpusTokenizer& tokenizer,
                  const std::filesystem::path& out, Progress& progress);

}  // namespace polyspan
