// text/vocab_tokenizer.h: what the tokenisers have in common: ids of special meaning, and cutting special tokens out.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/special_tokens.h"
#include "text/tokenizer.h"
#include "text/vocabulary.h"

namespace polyspan {

class VocabTokenizer : public Tokenizer {
 public:
  std::vector<TokenId> encode_parts(std::span<const TextPart> parts, const EncodeOptions& options) const override;
  std::optional<TokenId> find_token(std::string_view text) const override;
  std::string token_bytes(TokenId id, bool with_special) const override;

 protected:
  explicit VocabTokenizer(const VocabSpec& spec);

  // Appends the tokens of a text that holds no special tokens. `after_special`: it stands first or after one.
  virtual void encode_text(std::string_view text, bool after_special, const EncodeOptions& options,
                           std::vector<TokenId>& out) const = 0;
  // The bytes of a normal token's text.
  virtual std::string normal_bytes(std::string_view text) const = 0;

  // Whether plain text may become this token: no control tokens, and none that would not decode to the text.
  bool is_formable(TokenId id) const {
    const TokenType type = vocabulary_.type(id);
    return type != TokenType::kControl && type != TokenType::kUnknown && type != TokenType::kByte;
  }

  Vocabulary vocabulary_;
  std::optional<TokenId> unknown_;

 private:
  void find_end_tokens(const VocabSpec& spec);
  std::optional<SpecialTokens> special_;
};

// The byte of "<0x0A>"; nullopt for other texts.
std::optional<uint8_t> parse_byte_token(std::string_view text);

std::unique_ptr<Tokenizer> make_bpe_tokenizer(const VocabSpec& spec);
std::unique_ptr<Tokenizer> make_spm_tokenizer(const VocabSpec& spec);

}  // namespace polyspan
