#include "text/tokenizer.h"

#include <algorithm>

#include "core/error.h"
#include "text/vocab_tokenizer.h"

namespace polyspan {

std::unique_ptr<Tokenizer> make_tokenizer(const VocabSpec& spec) {
  if (spec.model == "gpt2") return make_bpe_tokenizer(spec);
  if (spec.model == "llama") return make_spm_tokenizer(spec);
  throw Error::unsupported("the tokeniser '", spec.model, "' (tokenizer.ggml.model) is not known; gpt2 and llama are");
}

std::unique_ptr<Tokenizer> Tokenizer::from_gguf(const GgufFile& file) {
  VocabSpec spec;
  spec.source = file.path();
  spec.model = file.get_string("tokenizer.ggml.model");
  spec.pre = file.find_string("tokenizer.ggml.pre").value_or("default");  // old files have none: llama.cpp's choice
  spec.model_title = file.find_string("general.name").value_or("");
  spec.tokens = file.get_strings("tokenizer.ggml.tokens");
  spec.types = file.find_ints("tokenizer.ggml.token_type").value_or(std::vector<int64_t>());
  if (spec.model == "gpt2") {
    spec.merges = file.get_strings("tokenizer.ggml.merges");
  } else {
    spec.scores = file.find_floats("tokenizer.ggml.scores").value_or(std::vector<double>());
  }
  spec.bos = file.find_int("tokenizer.ggml.bos_token_id");
  spec.eos = file.find_int("tokenizer.ggml.eos_token_id");
  spec.eot = file.find_int("tokenizer.ggml.eot_token_id");
  spec.eom = file.find_int("tokenizer.ggml.eom_token_id");
  spec.unknown = file.find_int("tokenizer.ggml.unknown_token_id");
  spec.add_bos = file.find_bool("tokenizer.ggml.add_bos_token");
  spec.add_space_prefix = file.find_bool("tokenizer.ggml.add_space_prefix");
  return make_tokenizer(spec);
}

std::vector<TokenId> Tokenizer::encode(std::string_view text, const EncodeOptions& options) const {
  const TextPart part = {text, options.parse_special};
  return encode_parts({&part, 1}, options);
}

std::string Tokenizer::decode(std::span<const TokenId> ids, bool with_special) const {
  std::string text;
  for (const TokenId id : ids) text += token_bytes(id, with_special);
  return text;
}

bool Tokenizer::is_end_of_generation(TokenId id) const {
  return std::binary_search(end_of_generation_.begin(), end_of_generation_.end(), id);
}

}  // namespace polyspan
