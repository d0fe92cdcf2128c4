// text/vocabulary.h: the tokens of a model: their texts, types and ids.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace polyspan {

// Values are those of tokenizer.ggml.token_type in GGUF files.
enum class TokenType : uint8_t {
  kUndefined = 0,
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6,
};

// What a tokeniser is made of: the fields of a GGUF file, or what a test puts here. Views need to live only as long as
// make_tokenizer runs.
struct VocabSpec {
  std::filesystem::path source = "vocabulary";  // for messages
  std::string model = "gpt2";                   // "gpt2" or "llama"
  std::string pre = "default";                  // gpt2 only
  std::string model_title;                      // general.name: some models need an exception of their own
  std::vector<std::string_view> tokens;
  std::vector<int64_t> types;            // [n_tokens] or empty: all normal
  std::vector<double> scores;            // [n_tokens]; llama only
  std::vector<std::string_view> merges;  // "left right", best first; gpt2 only
  std::optional<int64_t> bos, eos, eot, eom, unknown;
  std::optional<bool> add_bos, add_space_prefix;
};

// Throws as Tokenizer::from_gguf does.
std::unique_ptr<Tokenizer> make_tokenizer(const VocabSpec& spec);

// 64 bits over bytes, eight at a time. For hash tables in memory only: the value may change with the version.
uint64_t hash_bytes(std::string_view bytes);

// Token texts with their ids. All texts lie in one block; the index is an open hash table of ids.
class Vocabulary {
 public:
  // Throws kBadFile: no tokens, a list of another length, a duplicate.
  explicit Vocabulary(const VocabSpec& spec);

  int64_t size() const { return static_cast<int64_t>(types_.size()); }
  // As the file has it. REQUIRES: 0 <= id < size().
  std::string_view text(TokenId id) const {
    return std::string_view(texts_).substr(starts_[id], starts_[id + 1] - starts_[id]);
  }
  TokenType type(TokenId id) const { return types_[id]; }
  void set_type(TokenId id, TokenType type) { types_[id] = type; }
  // -1 when there is no such token.
  TokenId find(std::string_view text) const;

 private:
  struct Slot {
    uint32_t hash_tag;  // upper half of the hash
    TokenId id;         // -1: empty
  };
  std::string texts_;
  std::vector<uint64_t> starts_;  // [n_tokens + 1]
  std::vector<TokenType> types_;
  std::vector<Slot> slots_;  // a power of two, at most half full
};

}  // namespace polyspan
