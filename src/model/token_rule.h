// model/token_rule.h: how the next token is chosen from logits, for one token.
#pragma once

#include <cstdint>

namespace polyspan {

// Candidates go by likelihood, the lower id first among equals; NaN is none. Of weights exp((logit - largest) / temperature)
// the first top_k remain, of these the shortest beginning that has top_p of their sum, without those below min_p; the first
// always does. Of what remains the candidate is taken at which the running sum passes `uniform` of the whole. Where the
// largest logit is infinite it is taken, token 0 where all are NaN.
struct TokenRule {
  float temperature = 0.0f;  // 0: the most likely
  int32_t top_k = 0;         // 0: all
  float top_p = 1.0f;
  float min_p = 0.0f;
  double uniform = 0.0;  // in [0, 1)
  bool operator==(const TokenRule&) const = default;
};

}  // namespace polyspan
