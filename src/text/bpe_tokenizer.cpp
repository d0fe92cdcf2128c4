// Byte-level BPE (GPT-2): every byte of a word is a symbol, and the pair of neighbours with the best merge (ties: the
// leftmost) becomes one symbol until no pair has a merge. Sennrich et al. 2016, arXiv 1508.07909.
#include <algorithm>
#include <array>
#include <bit>
#include <queue>

#include "core/error.h"
#include "io/byte_vocabulary.h"
#include "text/pre_tokenizer.h"
#include "text/unicode_class.h"
#include "text/vocab_tokenizer.h"

namespace polyspan {
namespace {

struct ByteAlphabet {
  std::array<char32_t, 256> char_of_byte = byte_characters();
  std::array<int16_t, 0x144> byte_of_char{};  // -1: not in the alphabet
};

constexpr ByteAlphabet make_byte_alphabet() {
  ByteAlphabet alphabet;
  for (int16_t& byte : alphabet.byte_of_char) byte = -1;
  for (int16_t byte = 0; byte < 256; ++byte) alphabet.byte_of_char[alphabet.char_of_byte[byte]] = byte;
  return alphabet;
}

constexpr ByteAlphabet kByteAlphabet = make_byte_alphabet();

// (left id, right id) -> (rank, merged id); an open hash table.
class MergeTable {
 public:
  struct Merge {
    int32_t rank;  // 0 is the best; kNone: no merge
    TokenId merged;
  };
  static constexpr int32_t kNone = INT32_MAX;

  explicit MergeTable(size_t n_merges)
      : slots_(std::bit_ceil(n_merges * 2 + 2), Slot{kEmpty, {kNone, -1}}),
        shift_(64 - std::countr_zero(slots_.size())) {}

  // The first merge of a pair stays.
  void add(TokenId left, TokenId right, Merge merge) {
    const uint64_t key = key_of(left, right);
    size_t slot = first_slot(key);
    for (; slots_[slot].key != kEmpty; slot = (slot + 1) & (slots_.size() - 1))
      if (slots_[slot].key == key) return;
    slots_[slot] = {key, merge};
  }
  Merge find(TokenId left, TokenId right) const {
    const uint64_t key = key_of(left, right);
    for (size_t slot = first_slot(key); slots_[slot].key != kEmpty; slot = (slot + 1) & (slots_.size() - 1))
      if (slots_[slot].key == key) return slots_[slot].merge;
    return {kNone, -1};
  }

 private:
  static constexpr uint64_t kEmpty = ~uint64_t{0};  // a pair of -1, which never has a merge
  struct Slot {
    uint64_t key;
    Merge merge;
  };
  static uint64_t key_of(TokenId left, TokenId right) {
    return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
  }
  size_t first_slot(uint64_t key) const {
    key ^= key >> 32;
    return (key * 0x9E3779B97F4A7C15) >> shift_;
  }
  std::vector<Slot> slots_;
  int shift_;
};

class BpeTokenizer final : public VocabTokenizer {
 public:
  BpeTokenizer(const VocabSpec& spec, const PreTokenizerSpec& pre)
      : VocabTokenizer(spec), pre_(pre), ignores_merges_(pre.ignores_merges), merges_(spec.merges.size()) {
    pre_name_ = spec.pre;
    adds_bos_ = spec.add_bos.value_or(pre.adds_bos);
    if (adds_bos_ && !bos_)
      throw Error::bad_file(spec.source, "a BOS token is asked for, but no bos_token_id is there");
    for (int byte = 0; byte < 256; ++byte) {
      std::string text;
      append_utf8(kByteAlphabet.char_of_byte[byte], text);
      byte_ids_[byte] = vocabulary_.find(text);
    }
    read_merges(spec);
  }

 private:
  struct Candidate {  // a pair of neighbours that may merge
    int32_t rank;
    uint32_t left;
    TokenId left_id, right_id;  // as they were; the pair is stale when they changed
    TokenId merged;
    bool operator>(const Candidate& other) const { return rank != other.rank ? rank > other.rank : left > other.left; }
  };
  struct Scratch {  // kept from word to word
    std::vector<TokenId> ids;
    std::vector<MergeTable::Merge> merges;
    std::vector<uint32_t> previous, next;
    std::string word_text;
  };

  void read_merges(const VocabSpec& spec);
  void encode_text(std::string_view text, bool after_special, const EncodeOptions& options,
                   std::vector<TokenId>& out) const override;
  void encode_word(std::string_view word, Scratch& scratch, std::vector<TokenId>& out) const;
  void merge_short(Scratch& scratch) const;
  void merge_long(Scratch& scratch) const;
  std::string normal_bytes(std::string_view text) const override;

  PreTokenizer pre_;
  bool ignores_merges_;
  MergeTable merges_;
  std::array<TokenId, 256> byte_ids_;  // -1: the vocabulary has no such token
};

void BpeTokenizer::read_merges(const VocabSpec& spec) {
  std::string merged;
  for (size_t i = 0; i < spec.merges.size(); ++i) {
    const std::string_view merge = spec.merges[i];
    const auto bad = [&](const auto&... why) {
      return Error::bad_file(spec.source, "tokenizer.ggml.merges[", i, "] = '", merge.substr(0, 80), "': ", why...);
    };
    const size_t space = merge.find(' ', 1);
    if (space == std::string_view::npos || space + 1 == merge.size())
      throw bad("two tokens with a space between wanted");
    const std::string_view left = merge.substr(0, space), right = merge.substr(space + 1);
    merged.assign(left);
    merged += right;
    const TokenId ids[] = {vocabulary_.find(left), vocabulary_.find(right), vocabulary_.find(merged)};
    for (const int part : {0, 1, 2})
      if (ids[part] < 0) throw bad("part ", part + 1, " (3 is both joined) is no token");
    // Qwen2.5-Coder has the merge of "</s" and ">", which its file marks as a control token: text must not become one.
    if (!is_formable(ids[2])) continue;
    merges_.add(ids[0], ids[1], {static_cast<int32_t>(i), ids[2]});
  }
}

void BpeTokenizer::encode_text(std::string_view text, bool /*after_special*/, const EncodeOptions& options,
                               std::vector<TokenId>& out) const {
  std::string repaired;
  if (!options.keep_invalid_bytes && !is_valid_utf8(text)) {
    repaired = repair_utf8(text);
    text = repaired;
  }
  std::vector<uint32_t> word_ends;
  pre_.split(text, word_ends);
  Scratch scratch;
  uint32_t begin = 0;
  for (const uint32_t end : word_ends) {
    encode_word(text.substr(begin, end - begin), scratch, out);
    begin = end;
  }
}

void BpeTokenizer::encode_word(std::string_view word, Scratch& scratch, std::vector<TokenId>& out) const {
  constexpr size_t kMaxShortBytes = 48;  // below, a scan of all pairs for each merge is cheaper than a heap
  if (ignores_merges_) {
    scratch.word_text.clear();
    for (const char byte : word) append_utf8(kByteAlphabet.char_of_byte[static_cast<uint8_t>(byte)], scratch.word_text);
    const TokenId id = vocabulary_.find(scratch.word_text);
    if (id >= 0 && is_formable(id)) {
      out.push_back(id);
      return;
    }
  }
  scratch.ids.clear();
  for (const char byte : word) scratch.ids.push_back(byte_ids_[static_cast<uint8_t>(byte)]);
  if (word.size() <= kMaxShortBytes)
    merge_short(scratch);
  else
    merge_long(scratch);
  for (const TokenId id : scratch.ids)
    if (id >= 0) out.push_back(id);
}

void BpeTokenizer::merge_short(Scratch& scratch) const {
  std::vector<TokenId>& ids = scratch.ids;
  std::vector<MergeTable::Merge>& merges = scratch.merges;  // merges[i]: of ids[i] and ids[i + 1]
  merges.clear();
  for (size_t i = 0; i + 1 < ids.size(); ++i) merges.push_back(merges_.find(ids[i], ids[i + 1]));
  while (!merges.empty()) {
    const auto best =
        std::min_element(merges.begin(), merges.end(), [](const auto& a, const auto& b) { return a.rank < b.rank; });
    if (best->rank == MergeTable::kNone) break;
    const size_t left = best - merges.begin();
    ids[left] = best->merged;
    ids.erase(ids.begin() + left + 1);
    merges.erase(best);
    if (left > 0) merges[left - 1] = merges_.find(ids[left - 1], ids[left]);
    if (left < merges.size()) merges[left] = merges_.find(ids[left], ids[left + 1]);
  }
}

void BpeTokenizer::merge_long(Scratch& scratch) const {
  constexpr TokenId kGone = -2;  // merged into a symbol to its left
  std::vector<TokenId>& ids = scratch.ids;
  const auto n_symbols = static_cast<uint32_t>(ids.size());
  scratch.previous.resize(n_symbols);
  scratch.next.resize(n_symbols);
  for (uint32_t i = 0; i < n_symbols; ++i) {
    scratch.previous[i] = i - 1;  // of the first: never read
    scratch.next[i] = i + 1;      // n_symbols: none
  }
  std::vector<Candidate> initial;
  const auto candidate_at = [&](uint32_t left) {
    const TokenId left_id = ids[left], right_id = ids[scratch.next[left]];
    const MergeTable::Merge merge = merges_.find(left_id, right_id);
    return Candidate{merge.rank, left, left_id, right_id, merge.merged};
  };
  for (uint32_t i = 0; i + 1 < n_symbols; ++i)
    if (const Candidate candidate = candidate_at(i); candidate.rank != MergeTable::kNone) initial.push_back(candidate);
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue({}, std::move(initial));
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    const uint32_t left = best.left, right = scratch.next[left];
    if (ids[left] != best.left_id || right == n_symbols || ids[right] != best.right_id) continue;
    ids[left] = best.merged;
    ids[right] = kGone;
    scratch.next[left] = scratch.next[right];
    if (scratch.next[left] != n_symbols) scratch.previous[scratch.next[left]] = left;
    const auto push_pair = [&](uint32_t pair_left) {
      if (const Candidate candidate = candidate_at(pair_left); candidate.rank != MergeTable::kNone)
        queue.push(candidate);
    };
    if (left > 0) push_pair(scratch.previous[left]);
    if (scratch.next[left] != n_symbols) push_pair(left);
  }
  std::erase(ids, kGone);
}

std::string BpeTokenizer::normal_bytes(std::string_view text) const {
  std::string bytes;
  for (size_t i = 0; i < text.size();) {
    const Utf8Char decoded = decode_utf8(text, i);
    const bool in_alphabet = decoded.is_valid && decoded.code < kByteAlphabet.byte_of_char.size() &&
                             kByteAlphabet.byte_of_char[decoded.code] >= 0;
    if (in_alphabet)
      bytes += static_cast<char>(kByteAlphabet.byte_of_char[decoded.code]);
    else
      bytes += text.substr(i, decoded.n_bytes);  // a token beyond the alphabet stands for its own text
    i += decoded.n_bytes;
  }
  return bytes;
}

}  // namespace

std::unique_ptr<Tokenizer> make_bpe_tokenizer(const VocabSpec& spec) {
  return std::make_unique<BpeTokenizer>(spec, find_pre_tokenizer(spec.pre));
}

}  // namespace polyspan
