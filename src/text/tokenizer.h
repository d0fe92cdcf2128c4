// text/tokenizer.h: tokenisers as GGUF files carry them: byte-level BPE ("gpt2") and SentencePiece-style ("llama").
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/gguf.h"

namespace polyspan {

using TokenId = int32_t;

struct EncodeOptions {
  bool add_bos = false;        // put the file's BOS token in front (where the file has one)
  bool parse_special = false;  // recognise the text of control tokens ("<|im_end|>") as those tokens
  // Byte-level BPE takes an invalid byte as U+FFFD, as llama.cpp does. With this, the byte itself is encoded (and lost
  // where the vocabulary has no token for it: SmolLM2 lacks 21 of the 256). SentencePiece always encodes such bytes,
  // but without this a space right after them may come back as U+2581 (again llama.cpp's ids).
  bool keep_invalid_bytes = false;
};

// A part of a text that is encoded as one: control tokens are recognised only inside parts that are markup.
struct TextPart {
  std::string_view text;
  bool is_markup = false;
};

// Thread-safe after construction.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Reads tokenizer.ggml.* . Throws Error: kBadFile (inconsistent vocabulary), kUnsupported (an unknown tokenizer model
  // or pre-tokeniser: named, never guessed). Copies what it needs: the file may go.
  static std::unique_ptr<Tokenizer> from_gguf(const GgufFile& file);

  // Any bytes are accepted, invalid UTF-8 included. Valid UTF-8 comes back from decode() as the same bytes, but for
  // SentencePiece's added leading space and its U+2581 (a space), for bytes that the vocabulary has no token for
  // (SmolLM2 lacks six control characters and the planes of U+40000 to U+BFFFF; llama.cpp drops them as well), and for
  // spaces that special tokens strip. Without parse_special no control token comes out, whatever the text. Throws
  // kBadInput from 4 GiB on.
  std::vector<TokenId> encode(std::string_view text, const EncodeOptions& options) const;
  // The parts joined, as one text. options.parse_special is not read: each part says it for itself.
  virtual std::vector<TokenId> encode_parts(std::span<const TextPart> parts, const EncodeOptions& options) const = 0;

  // The bytes that a token stands for. Control tokens give "" unless `with_special`. Throws kBadInput for ids outside
  // the vocabulary.
  virtual std::string token_bytes(TokenId id, bool with_special = false) const = 0;
  std::string decode(std::span<const TokenId> ids, bool with_special = false) const;

  int64_t vocab_size() const { return vocab_size_; }
  std::optional<TokenId> bos() const { return bos_; }
  std::optional<TokenId> eos() const { return eos_; }
  // Whether the file asks for a BOS in front of every text (tokenizer.ggml.add_bos_token, or its model's default).
  bool adds_bos() const { return adds_bos_; }
  // Tokens that end a model's turn: EOS, EOT/EOM ids of the file, and control tokens that are known to end a turn
  // ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", ...).
  bool is_end_of_generation(TokenId id) const;
  // The id of a token by its exact text, control tokens included.
  virtual std::optional<TokenId> find_token(std::string_view text) const = 0;
  std::string_view model_name() const { return model_name_; }        // "gpt2", "llama"
  std::string_view pre_tokenizer_name() const { return pre_name_; }  // "smollm"; "" where there is none

 protected:
  int64_t vocab_size_ = 0;
  std::optional<TokenId> bos_, eos_;
  bool adds_bos_ = false;
  std::vector<TokenId> end_of_generation_;  // sorted
  std::string model_name_, pre_name_;
};

// Turns a stream of tokens into text without ever giving half a UTF-8 character: incomplete bytes wait for the next
// token.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}
  // The text that became complete with this token; may be empty. Bytes that can never become a character are replaced
  // by U+FFFD, so that the result is always valid UTF-8.
  std::string push(TokenId id);
  // What is left at the end (an unfinished character becomes U+FFFD).
  std::string finish();

 private:
  const Tokenizer& tokenizer_;
  std::string pending_;
};

}  // namespace polyspan
