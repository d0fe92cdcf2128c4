// cuda/sample.h: the next token of each sequence from its logits, by the rules of model/token_rule.h.
#pragma once

#include <cstdint>

#include "cuda/runtime.h"
#include "model/token_rule.h"

namespace polyspan::cuda {

// tokens[r] = what choose_token (engine/sampler.h) chooses of logits [n_rows, vocab_size] of row r by rules[r], all in GPU
// memory. Sums of more than kMostOrderedCandidates candidates are added in another order than there: a draw within 1e-13 of
// a candidate's edge may fall to its neighbour. Repeatable to the bit. Adds 1 to positions[r] where `positions` is not null.
void choose_tokens(const float* logits, int64_t n_rows, int64_t vocab_size, const TokenRule* rules, int32_t* tokens,
                   int32_t* positions, const Stream& stream);

// A rule with a top_k up to that adds weights one by one, in order.
inline constexpr int32_t kMostOrderedCandidates = 256;

}  // namespace polyspan::cuda
