#include "recipe/token_file.h"

#include <cstring>
#include <nlohmann/json.hpp>

#include "core/atomic_file.h"
#include "core/error.h"

namespace polyspan {
namespace {

using Json = nlohmann::ordered_json;
constexpr char kMagic[8] = {'P', 'S', 'T', 'O', 'K', 'E', 'N', '1'};
constexpr uint64_t kMostHeader = 1 << 20;

}  // namespace

TokenFile TokenFile::open(const std::filesystem::path& path) {
  TokenFile out{MappedFile(path)};
  const std::span<const std::byte> bytes = out.file_.bytes();
  if (bytes.size() < 16 || std::memcmp(bytes.data(), kMagic, 8) != 0)
    throw Error::bad_file(path, "this is no token file; make one with polyspan prepare");
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data() + 8, 8);
  if (header_bytes > kMostHeader || 16 + header_bytes > bytes.size() || header_bytes % 8 != 0)
    throw Error::bad_file(path, "the header claims ", header_bytes, " bytes of a file of ", bytes.size());
  const char* const text = reinterpret_cast<const char*>(bytes.data()) + 16;
  const Json header = Json::parse(text, text + header_bytes, nullptr, /*allow_exceptions=*/false);
  if (!header.is_object()) throw Error::bad_file(path, "the header is no JSON object");
  try {
    out.info_ = {header.at("n_tokens"), header.at("vocab_size"), header.at("example_length"),
                 header.at("has_mask"), header.at("tokenizer"),  header.at("source")};
  } catch (const nlohmann::json::exception& error) {
    throw Error::bad_file(path, "the header: ", error.what());
  }
  const TokenFileInfo& info = out.info_;
  const uint64_t n = static_cast<uint64_t>(info.n_tokens), rest = bytes.size() - 16 - header_bytes;
  if (info.n_tokens < 0 || n > rest || n * (info.has_mask ? 5 : 4) != rest)
    throw Error::bad_file(path, "the header names ", info.n_tokens, " tokens, but ", rest,
                          " bytes follow it; the file is truncated or damaged");
  if (info.example_length < 0 || (info.example_length > 0 && info.n_tokens % info.example_length != 0))
    throw Error::bad_file(path, info.n_tokens, " tokens are no whole number of examples of ", info.example_length);
  out.tokens_ = {reinterpret_cast<const int32_t*>(bytes.data() + 16 + header_bytes), n};
  if (info.has_mask) out.mask_ = {reinterpret_cast<const uint8_t*>(bytes.data() + 16 + header_bytes + 4 * n), n};
  for (size_t i = 0; i < n; ++i)
    if (out.tokens_[i] < 0 || out.tokens_[i] >= info.vocab_size)
      throw Error::bad_file(path, "token ", i, " is ", out.tokens_[i], "; the vocabulary has ", info.vocab_size);
  return out;
}

void write_token_file(const std::filesystem::path& path, TokenFileInfo info, std::span<const int32_t> tokens,
                      std::span<const uint8_t> mask) {
  POLYSPAN_CHECK(mask.empty() || mask.size() == tokens.size());
  const Json header = {
      {"n_tokens", tokens.size()}, {"vocab_size", info.vocab_size}, {"example_length", info.example_length},
      {"has_mask", !mask.empty()}, {"tokenizer", info.tokenizer},   {"source", info.source}};
  std::string text = header.dump(-1, ' ', false, Json::error_handler_t::replace);
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t header_bytes = text.size();
  AtomicFile file(path);
  file.append(std::as_bytes(std::span(kMagic)));
  file.append(std::as_bytes(std::span(&header_bytes, 1)));
  file.append(std::as_bytes(std::span(text)));
  file.append(std::as_bytes(tokens));
  if (!mask.empty()) file.append(std::as_bytes(mask));
  file.commit();
}

}  // namespace polyspan
