// text/special_tokens.h: finds the tokens that are cut out of a text before any merging.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "text/vocabulary.h"

namespace polyspan {

// A part of a text in bytes: a special token, or plain text (id -1).
struct Fragment {
  uint32_t begin;
  uint32_t end;
  TokenId id;
};

struct ByteRange {
  uint32_t begin;
  uint32_t end;
};

// Control, unknown and user-defined tokens of a vocabulary. Longer ones go first, over the whole text; ones of the same
// length from left to right. Bytes that a token strips belong to no fragment.
class SpecialTokens {
 public:
  // `strips_right`: spaces after a special token are dropped (Phi-3), except after the named ones.
  SpecialTokens(const Vocabulary& vocabulary, bool strips_right);

  // User-defined tokens count everywhere, control and unknown ones only where they lie wholly inside one of `markup`
  // (ascending, disjoint). Cost: a pass over the text for each length of a special token.
  std::vector<Fragment> split(std::string_view text, std::span<const ByteRange> markup) const;

 private:
  struct Token {
    TokenId id;
    bool is_user_defined;
    bool strips_right;
  };
  struct Group {  // tokens of one length
    uint32_t length;
    bool has_user_defined;
    std::vector<Token> tokens;      // sorted by text
    std::vector<bool> first_bytes;  // [65536] by the first two bytes, [256] for tokens of one byte
  };
  const Token* find(const Group& group, std::string_view text) const;

  const Vocabulary& vocabulary_;
  std::vector<Group> groups_;  // longest first
};

}  // namespace polyspan
