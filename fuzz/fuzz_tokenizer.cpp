// Encodes arbitrary bytes with small vocabularies under every pre-tokeniser and with the SentencePiece one, and checks
// that what comes out decodes to what went in. The first byte chooses.
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "text/pre_tokenizer.h"
#include "text/small_vocabulary.h"
#include "text/unicode_class.h"

namespace {

void expect(bool condition) {
  if (!condition) std::abort();
}

std::vector<std::unique_ptr<polyspan::Tokenizer>> make_tokenizers() {
  std::vector<std::unique_ptr<polyspan::Tokenizer>> tokenizers;
  tokenizers.push_back(polyspan::make_tokenizer(polyspan::small_spm_vocabulary().spec));
  for (const std::string_view pre : polyspan::pre_tokenizer_names())
    tokenizers.push_back(polyspan::make_tokenizer(polyspan::small_bpe_vocabulary(std::string(pre)).spec));
  return tokenizers;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::vector<std::unique_ptr<polyspan::Tokenizer>> tokenizers = make_tokenizers();
  if (size == 0) return 0;
  const polyspan::Tokenizer& tokenizer = *tokenizers[data[0] % tokenizers.size()];
  const std::string text(reinterpret_cast<const char*>(data) + 1, size - 1);
  const bool is_bpe = tokenizer.model_name() == "gpt2";

  const auto kept = tokenizer.encode(text, {.parse_special = true, .keep_invalid_bytes = true});
  const auto plain = tokenizer.encode(text, {});
  if (is_bpe) {
    expect(tokenizer.decode(kept, /*with_special=*/true) == text);
    expect(tokenizer.decode(plain, /*with_special=*/true) == polyspan::repair_utf8(text));
  } else {
    const auto bytes = tokenizer.encode(text, {.keep_invalid_bytes = true});
    const bool has_own_mark = text.find("\u2581") != std::string::npos || text.find("<tool>") != std::string::npos;
    if (!has_own_mark && !text.empty()) expect(tokenizer.decode(bytes, /*with_special=*/true) == " " + text);
  }
  for (const polyspan::TokenId id : plain) expect(tokenizer.token_bytes(id) != "");  // no control token

  polyspan::StreamDecoder decoder(tokenizer);
  std::string streamed;
  for (const polyspan::TokenId id : kept) streamed += decoder.push(id);
  streamed += decoder.finish();
  expect(polyspan::is_valid_utf8(streamed));
  return 0;
}
