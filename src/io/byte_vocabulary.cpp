#include "io/byte_vocabulary.h"

#include "io/gguf_writer.h"

namespace polyspan {
namespace {

void append_utf8(std::string& out, uint32_t code_point) {
  if (code_point < 0x80) {
    out += static_cast<char>(code_point);
  } else {  // below 0x800 is all that byte letters need
    out += static_cast<char>(0xc0 | code_point >> 6);
    out += static_cast<char>(0x80 | (code_point & 0x3f));
  }
}

}  // namespace

std::vector<std::string> byte_letters() {
  std::vector<std::string> letters;
  for (const char32_t character : byte_characters()) append_utf8(letters.emplace_back(), character);
  return letters;
}

void write_byte_tokenizer(int64_t vocab_size, GgufWriter& writer) {
  std::vector<std::string> tokens = byte_letters();
  std::vector<int32_t> types(256, 1);
  tokens.insert(tokens.end(), {"<|begin|>", "<|end|>"});
  for (int64_t i = std::ssize(tokens); i < vocab_size; ++i) tokens.push_back("<|unused-" + std::to_string(i) + "|>");
  types.resize(tokens.size(), 3);
  writer.add_string("tokenizer.ggml.model", "gpt2");
  writer.add_string("tokenizer.ggml.pre", "llama-bpe");
  writer.add_strings("tokenizer.ggml.tokens", tokens);
  writer.add_i32s("tokenizer.ggml.token_type", types);
  writer.add_strings("tokenizer.ggml.merges", {});
  writer.add_u32("tokenizer.ggml.bos_token_id", kByteBegin);
  writer.add_u32("tokenizer.ggml.eos_token_id", kByteEnd);
  writer.add_bool("tokenizer.ggml.add_bos_token", false);
}

}  // namespace polyspan
