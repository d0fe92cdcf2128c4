// engine/token_choice.h: how likely a generated token was, and what else was likely.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "text/tokenizer.h"

namespace polyspan {

struct LikelyToken {
  TokenId token = 0;
  double logprob = 0;  // natural logarithm of its probability at temperature 1, before any sampling option
};

struct TokenChoice {
  LikelyToken chosen;
  std::vector<LikelyToken> top;  // the most likely first, the lowest id among equals
};

// The n_top most likely tokens (all, where there are fewer) of logits [vocab_size]; `chosen` within the vocabulary.
TokenChoice token_choice(std::span<const float> logits, TokenId chosen, int64_t n_top);

}  // namespace polyspan
