// engine/sampler.h: choosing the next token from logits.
#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "model/token_rule.h"
#include "text/tokenizer.h"

namespace polyspan {

struct SamplingOptions {
  float temperature = 0.0f;  // 0: greedy
  int64_t top_k = 40;        // keep the k most likely; 0: all
  float top_p = 0.95f;       // keep the smallest set of this probability; 1: all
  float min_p = 0.05f;       // drop tokens less likely than min_p x the most likely; 0: none
  // Logits of tokens seen lately are divided (positive) or multiplied (negative) by it; 1: none.
  float repetition_penalty = 1.0f;
  int64_t repetition_window = 64;  // how many tokens back "lately" reaches
  uint64_t seed = 0;

  // Throws Error (kUsage) naming the option and its range.
  void check() const;
};

// The same seed gives the same tokens: one number of std::mt19937_64(seed) for each token, in order, unless it is greedy.
class Sampler {
 public:
  explicit Sampler(const SamplingOptions& options);
  // What to choose the next token by, the penalty aside; takes the next number. For whoever has the logits: choose_token,
  // or a model on a GPU.
  TokenRule next_rule();
  // The next token. logits [vocab_size] are changed by the penalty. `history`: the tokens so far, prompt included.
  TokenId sample(std::span<float> logits, std::span<const TokenId> history);

 private:
  SamplingOptions options_;
  std::mt19937_64 random_;
};

// The rule's token of logits [vocab_size], in double.
TokenId choose_token(std::span<const float> logits, const TokenRule& rule);

// The most likely token; the lowest id among equals. A NaN is chosen (as token 0) only where all logits are NaN.
TokenId greedy_token(std::span<const float> logits);

}  // namespace polyspan
