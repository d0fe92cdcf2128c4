#include "text/vocabulary.h"

#include <bit>
#include <cstring>
#include <limits>

#include "core/error.h"

namespace polyspan {
namespace {

std::string quoted(std::string_view text) {
  constexpr size_t kMaxShown = 40;
  std::string out = "'";
  for (const char byte : text.substr(0, kMaxShown)) out += static_cast<uint8_t>(byte) < 0x20 ? '?' : byte;
  return out + (text.size() > kMaxShown ? "...'" : "'");
}

}  // namespace

uint64_t hash_bytes(std::string_view bytes) {
  constexpr uint64_t kFactor = 0x9E3779B97F4A7C15;  // 2^64 / golden ratio
  uint64_t hash = bytes.size() * kFactor;
  const auto mix = [&hash](uint64_t word) {
    hash = (hash ^ word) * kFactor;
    hash ^= hash >> 29;
  };
  size_t position = 0;
  for (; position + 8 <= bytes.size(); position += 8) {
    uint64_t word;
    std::memcpy(&word, bytes.data() + position, 8);
    mix(word);
  }
  uint64_t tail = 0;
  for (; position < bytes.size(); ++position) tail = tail << 8 | static_cast<uint8_t>(bytes[position]);
  mix(tail);
  return hash * kFactor;
}

Vocabulary::Vocabulary(const VocabSpec& spec) {
  const size_t n_tokens = spec.tokens.size();
  if (n_tokens == 0) throw Error::bad_file(spec.source, "tokenizer.ggml.tokens is empty");
  if (n_tokens > static_cast<size_t>(std::numeric_limits<TokenId>::max()) / 4)
    throw Error::bad_file(spec.source, "tokenizer.ggml.tokens has ", n_tokens, " entries: too many");
  if (!spec.types.empty() && spec.types.size() != n_tokens)
    throw Error::bad_file(spec.source, "tokenizer.ggml.token_type has ", spec.types.size(),
                          " entries, tokenizer.ggml.tokens has ", n_tokens);
  size_t n_bytes = 0;
  for (const std::string_view token : spec.tokens) n_bytes += token.size();
  texts_.reserve(n_bytes);
  starts_.reserve(n_tokens + 1);
  types_.reserve(n_tokens);
  slots_.assign(std::bit_ceil(n_tokens * 2), Slot{0, -1});

  const size_t mask = slots_.size() - 1;
  starts_.push_back(0);
  for (size_t i = 0; i < n_tokens; ++i) {
    const auto id = static_cast<TokenId>(i);
    if (spec.tokens[i].empty()) {
      texts_ += "[EMPTY_" + std::to_string(i) + "]";  // llama.cpp's name for a token without text
    } else {
      texts_ += spec.tokens[i];
    }
    starts_.push_back(texts_.size());
    const int64_t type = spec.types.empty() ? int64_t{1} : spec.types[i];
    types_.push_back(type >= 1 && type <= 6 ? static_cast<TokenType>(type) : TokenType::kUndefined);

    const uint64_t hash = hash_bytes(text(id));
    size_t slot = hash & mask;
    for (; slots_[slot].id >= 0; slot = (slot + 1) & mask)
      if (slots_[slot].hash_tag == hash >> 32 && text(slots_[slot].id) == text(id))
        throw Error::bad_file(spec.source, "token ", i, " ", quoted(text(id)), " is the same as token ",
                              slots_[slot].id);
    slots_[slot] = {static_cast<uint32_t>(hash >> 32), id};
  }
}

TokenId Vocabulary::find(std::string_view token) const {
  const size_t mask = slots_.size() - 1;
  const uint64_t hash = hash_bytes(token);
  for (size_t slot = hash & mask; slots_[slot].id >= 0; slot = (slot + 1) & mask)
    if (slots_[slot].hash_tag == hash >> 32 && text(slots_[slot].id) == token) return slots_[slot].id;
  return -1;
}

}  // namespace polyspan
