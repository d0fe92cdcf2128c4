// SentencePiece's BPE as llama.cpp runs it: every character is a symbol, and the pair of neighbours whose joined text
// is the token of the highest score (ties: the leftmost) becomes one symbol until no pair makes a token. What is no
// token in the end becomes bytes. Kudo and Richardson 2018, arXiv 1808.06226.
#include <algorithm>
#include <array>
#include <queue>

#include "core/error.h"
#include "text/unicode_class.h"
#include "text/vocab_tokenizer.h"

namespace polyspan {
namespace {

constexpr std::string_view kEscapedSpace = "\xE2\x96\x81";  // U+2581

// Length of a character by its first byte alone, as llama.cpp has it: after an invalid byte it may swallow the start of
// an escaped space, which then comes back as U+2581.
uint32_t announced_bytes(char first) {
  const auto byte = static_cast<uint8_t>(first);
  return byte < 0xC0 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

class SpmTokenizer final : public VocabTokenizer {
 public:
  explicit SpmTokenizer(const VocabSpec& spec)
      : VocabTokenizer(spec), add_space_prefix_(spec.add_space_prefix.value_or(true)) {
    if (!spec.scores.empty() && spec.scores.size() != spec.tokens.size())
      throw Error::bad_file(spec.source, "tokenizer.ggml.scores has ", spec.scores.size(),
                            " entries, tokenizer.ggml.tokens has ", spec.tokens.size());
    scores_.assign(spec.tokens.size(), 0.0f);
    for (size_t i = 0; i < spec.scores.size(); ++i) {
      scores_[i] = static_cast<float>(spec.scores[i]);
      if (scores_[i] != scores_[i])
        throw Error::bad_file(spec.source, "tokenizer.ggml.scores[", i, "] is not a number");
    }
    // SentencePiece's usual ids where the file names none.
    const auto usual = [&](TokenId id) { return id < vocab_size_ ? std::optional(id) : std::nullopt; };
    if (!unknown_) unknown_ = usual(0);
    if (!bos_) bos_ = usual(1);
    if (!eos_ && (eos_ = usual(2))) add_end_of_generation(*eos_);
    adds_bos_ = spec.add_bos.value_or(true) && bos_.has_value();
    find_byte_tokens(spec);
  }

 private:
  struct Symbol {
    uint32_t begin, n_bytes;  // n_bytes 0: merged into a symbol to its left
    int32_t previous, next;   // -1: none
  };
  struct Candidate {
    float score;
    int32_t left, right;
    uint32_t n_bytes;  // of both; the pair is stale when it changed
    bool operator<(const Candidate& other) const {
      return score != other.score ? score < other.score : left > other.left;
    }
  };

  void add_end_of_generation(TokenId id);
  void find_byte_tokens(const VocabSpec& spec);
  void encode_text(std::string_view text, bool after_special, const EncodeOptions& options,
                   std::vector<TokenId>& out) const override;
  void merge(std::string_view text, std::vector<Symbol>& symbols) const;
  std::string normal_bytes(std::string_view text) const override;

  // -1 for texts that are no token, and for tokens that plain text may not become.
  TokenId find_formable(std::string_view text) const {
    if (text.size() > max_token_bytes_) return -1;
    const TokenId id = vocabulary_.find(text);
    return id >= 0 && is_formable(id) ? id : -1;
  }

  bool add_space_prefix_;
  std::vector<float> scores_;          // [n_tokens]
  std::array<TokenId, 256> byte_ids_;  // the unknown token where the vocabulary has none
  size_t max_token_bytes_ = 0;
};

void SpmTokenizer::add_end_of_generation(TokenId id) {
  if (is_end_of_generation(id)) return;
  end_of_generation_.push_back(id);
  std::sort(end_of_generation_.begin(), end_of_generation_.end());
}

void SpmTokenizer::find_byte_tokens(const VocabSpec& spec) {
  constexpr std::string_view kDigits = "0123456789ABCDEF";
  for (size_t byte = 0; byte < 256; ++byte) {
    const char text[] = {'<', '0', 'x', kDigits[byte >> 4], kDigits[byte & 15], '>'};
    const char plain = static_cast<char>(byte);
    TokenId id = vocabulary_.find({text, sizeof text});
    if (id < 0) id = vocabulary_.find({&plain, 1});
    if (id < 0 && !unknown_)
      throw Error::bad_file(spec.source, "the vocabulary has neither a token for byte ", byte, " nor an unknown token");
    byte_ids_[byte] = id >= 0 ? id : *unknown_;
  }
  for (TokenId id = 0; id < vocab_size_; ++id)
    max_token_bytes_ = std::max(max_token_bytes_, vocabulary_.text(id).size());
}

void SpmTokenizer::encode_text(std::string_view text, bool after_special, const EncodeOptions& options,
                               std::vector<TokenId>& out) const {
  constexpr size_t kMaxBytes = size_t{512} << 20;  // symbols have 31-bit indices, and a space grows to three bytes
  if (text.size() > kMaxBytes)
    throw Error::bad_input("a text of ", text.size(), " bytes; at most 512 MiB can be encoded");
  std::string escaped;
  escaped.reserve(text.size() + text.size() / 4 + 4);
  if (add_space_prefix_ && after_special) escaped += kEscapedSpace;
  for (const char byte : text) {
    if (byte == ' ')
      escaped += kEscapedSpace;
    else
      escaped += byte;
  }

  std::vector<Symbol> symbols;
  symbols.reserve(escaped.size());
  for (uint32_t i = 0; i < escaped.size();) {
    const auto index = static_cast<int32_t>(symbols.size());
    const uint32_t n_bytes = options.keep_invalid_bytes
                                 ? decode_utf8(escaped, i).n_bytes
                                 : std::min(announced_bytes(escaped[i]), static_cast<uint32_t>(escaped.size()) - i);
    symbols.push_back({i, n_bytes, index - 1, index + 1});
    i += n_bytes;
  }
  if (symbols.empty()) return;
  symbols.back().next = -1;
  merge(escaped, symbols);
  for (int32_t i = 0; i != -1; i = symbols[i].next) {
    const std::string_view piece = std::string_view(escaped).substr(symbols[i].begin, symbols[i].n_bytes);
    if (const TokenId id = find_formable(piece); id >= 0) {
      out.push_back(id);
    } else {
      for (const char byte : piece) out.push_back(byte_ids_[static_cast<uint8_t>(byte)]);
    }
  }
}

void SpmTokenizer::merge(std::string_view text, std::vector<Symbol>& symbols) const {
  std::priority_queue<Candidate> queue;
  const auto push_pair = [&](int32_t left, int32_t right) {
    if (left < 0 || right < 0) return;
    const uint32_t n_bytes = symbols[left].n_bytes + symbols[right].n_bytes;
    const TokenId id = find_formable(text.substr(symbols[left].begin, n_bytes));
    if (id >= 0) queue.push({scores_[id], left, right, n_bytes});
  };
  for (int32_t i = 1; i < static_cast<int32_t>(symbols.size()); ++i) push_pair(i - 1, i);
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    Symbol& left = symbols[best.left];
    Symbol& right = symbols[best.right];
    if (left.n_bytes == 0 || right.n_bytes == 0 || left.n_bytes + right.n_bytes != best.n_bytes) continue;
    left.n_bytes = best.n_bytes;
    right.n_bytes = 0;
    left.next = right.next;
    if (right.next >= 0) symbols[right.next].previous = best.left;
    push_pair(left.previous, best.left);
    push_pair(best.left, left.next);
  }
}

std::string SpmTokenizer::normal_bytes(std::string_view text) const {
  std::string bytes;
  while (!text.empty()) {
    const size_t space = std::min(text.find(kEscapedSpace), text.size());
    bytes += text.substr(0, space);
    text.remove_prefix(space);
    if (text.empty()) break;
    bytes += ' ';
    text.remove_prefix(kEscapedSpace.size());
  }
  return bytes;
}

}  // namespace

std::unique_ptr<Tokenizer> make_spm_tokenizer(const VocabSpec& spec) { return std::make_unique<SpmTokenizer>(spec); }

}  // namespace polyspan
