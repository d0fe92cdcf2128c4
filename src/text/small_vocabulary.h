// text/small_vocabulary.h: vocabularies of a few hundred tokens, for tests and fuzzing.
#pragma once

#include <deque>
#include <string>
#include <utility>

#include "text/unicode_class.h"
#include "text/vocabulary.h"

namespace polyspan {

// A VocabSpec together with the strings that it points to. Movable: a deque keeps its elements where they are.
struct SmallVocabulary {
  std::deque<std::string> strings;
  VocabSpec spec;

  TokenId add(std::string text, TokenType type = TokenType::kNormal, double score = 0.0) {
    strings.push_back(std::move(text));
    spec.tokens.push_back(strings.back());
    spec.types.push_back(static_cast<int64_t>(type));
    if (spec.model == "llama") spec.scores.push_back(score);
    return static_cast<TokenId>(spec.tokens.size()) - 1;
  }
  // Adds the merge, and its result as a token where it is none yet.
  void add_merge(const std::string& left, const std::string& right) {
    strings.push_back(left + " " + right);
    spec.merges.push_back(strings.back());
    for (const std::string_view token : spec.tokens)
      if (token == left + right) return;
    add(left + right);
  }
};

// GPT-2's printable character for a byte.
inline std::string gpt2_char(int byte) {
  const auto is_printable = [](int b) { return (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b != 0xAD && b <= 0xFF); };
  int code = 0x100;
  for (int before = 0; before < byte; ++before) code += !is_printable(before);
  std::string text;
  append_utf8(static_cast<char32_t>(is_printable(byte) ? byte : code), text);
  return text;
}

// Token b is byte b; then some merges, three control tokens and two user-defined ones.
inline SmallVocabulary small_bpe_vocabulary(std::string pre) {
  SmallVocabulary small;
  small.spec.pre = std::move(pre);
  for (int byte = 0; byte < 256; ++byte) small.add(gpt2_char(byte));
  const std::string space = gpt2_char(' '), newline = gpt2_char('\n');
  const std::pair<std::string, std::string> merges[] = {{"a", "a"},
                                                        {"aa", "aa"},
                                                        {"t", "h"},
                                                        {"th", "e"},
                                                        {space, "the"},
                                                        {space, space},
                                                        {space + space, space + space},
                                                        {newline, newline},
                                                        {"l", "l"},
                                                        {"'", "ll"},
                                                        {"i", "n"},
                                                        {"in", "g"},
                                                        {"1", "2"},
                                                        {"12", "3"},
                                                        {"!", "!"},
                                                        {"<", "|"}};
  for (const auto& [left, right] : merges) small.add_merge(left, right);
  small.spec.bos = small.add("<|bos|>", TokenType::kControl);
  small.spec.eos = small.add("<|im_end|>", TokenType::kControl);
  small.add("<|im_start|>", TokenType::kControl);
  small.add("<tool>", TokenType::kUserDefined);
  small.add("<tool>>", TokenType::kUserDefined);
  return small;
}

// <unk>, <s>, </s>, the bytes, pieces with scores, one user-defined token.
inline SmallVocabulary small_spm_vocabulary() {
  SmallVocabulary small;
  small.spec.model = "llama";
  small.spec.unknown = small.add("<unk>", TokenType::kUnknown);
  small.spec.bos = small.add("<s>", TokenType::kControl);
  small.spec.eos = small.add("</s>", TokenType::kControl);
  for (int byte = 0; byte < 256; ++byte) {
    constexpr std::string_view kDigits = "0123456789ABCDEF";
    small.add(std::string("<0x") + kDigits[byte >> 4] + kDigits[byte & 15] + ">", TokenType::kByte);
  }
  const std::pair<std::string, double> pieces[] = {{"▁", -1},    {"a", -2},   {"t", -2},    {"h", -2},  {"e", -2},
                                                   {"<", -2},    {"s", -2},   {">", -2},    {"<s", -3}, {"th", -4},
                                                   {"he", -4},   {"the", -3}, {"▁the", -5}, {"▁t", -6}, {"aa", -7},
                                                   {"aaaa", -8}, {"▁▁", -9},  {"é", -10},   {"éa", -11}};
  for (const auto& [piece, score] : pieces) small.add(piece, TokenType::kNormal, score);
  small.add("<tool>", TokenType::kUserDefined);
  return small;
}

}  // namespace polyspan
