#include "recipe/prepare.h"

#include "core/error.h"
#include "core/fnv1a.h"
#include "core/mapped_file.h"

namespace polyspan {

CorpusTokenizer::CorpusTokenizer(const std::string& spec) {
  if (spec != "bytes") tokenizer_ = Tokenizer::from_gguf(GgufFile::open(spec));
}

std::vector<int32_t> CorpusTokenizer::encode(std::string_view text) const {
  if (tokenizer_ != nullptr) return tokenizer_->encode(text, {});
  std::vector<int32_t> tokens;
  tokens.reserve(text.size());
  for (const char c : text) tokens.push_back(static_cast<unsigned char>(c));
  return tokens;
}

int64_t CorpusTokenizer::vocab_size() const {
  return tokenizer_ == nullptr ? kByteVocabulary : tokenizer_->vocab_size();
}

std::string CorpusTokenizer::fingerprint() const {
  if (tokenizer_ == nullptr) return "bytes";
  Fnv1a hash;  // over every token's bytes
  for (TokenId id = 0; id < tokenizer_->vocab_size(); ++id) {
    hash.add(tokenizer_->token_bytes(id, /*with_special=*/true));
    hash.add(std::string_view("", 1));  // a zero between two tokens
  }
  return std::string(tokenizer_->model_name()) + "-" + hash.hex();
}

int32_t CorpusTokenizer::end_token() const {
  if (tokenizer_ == nullptr) return kByteEnd;
  return tokenizer_->eos().value_or(tokenizer_->bos().value_or(0));
}

void prepare_text(const std::vector<std::filesystem::path>& files, const CorpusTokenizer& tokenizer,
                  const std::filesystem::path& out, Progress& progress) {
  std::vector<int32_t> tokens;
  std::string sources;
  constexpr size_t kPiece = size_t{1} << 22;  // encoded at a time, up to a line's end
  for (const std::filesystem::path& path : files) {
    const MappedFile file(path);
    const std::string_view text = file.text();
    progress.start("encoding " + path.filename().string(), std::ssize(text));
    for (size_t begin = 0; begin < text.size();) {
      size_t end = std::min(text.size(), begin + kPiece);
      if (end < text.size())
        if (const size_t line = text.rfind('\n', end); line != text.npos && line > begin) end = line;
      const std::vector<int32_t> piece = tokenizer.encode(text.substr(begin, end - begin));
      tokens.insert(tokens.end(), piece.begin(), piece.end());
      begin = end;
      progress.update(static_cast<int64_t>(begin));
    }
    progress.finish();
    tokens.push_back(tokenizer.end_token());
    sources += (sources.empty() ? "" : ", ") + path.filename().string();
  }
  if (tokens.size() < 2) throw Error::bad_input(sources, ": no text, so there are no tokens to learn from");
  write_token_file(out, {.vocab_size = tokenizer.vocab_size(), .tokenizer = tokenizer.fingerprint(), .source = sources},
                   tokens, {});
}

}  // namespace polyspan
