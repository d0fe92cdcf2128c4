// eval/passkey.h: retrieval of a pass key hidden in a long prompt (arXiv 2305.16300, in the chat form of docs/eval.md).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "eval/natural_text.h"
#include "eval/prompt_frame.h"
#include "eval/prompt_item.h"

namespace polyspan {

enum class FillerKind { kRepeated, kNatural };

struct PasskeyPrompt {
  std::vector<TokenId>
      tokens;        // ends with the answer's opening ("The pass key is "): the model goes on with the digits
  std::string key;   // five digits
  std::string name;  // of the key asked for; empty where there is one key only
  double depth = 0;  // where in the filler the key stands, 0 to 1
};

struct PasskeyVariant {
  int64_t n_keys = 1;                // more than one: each has a name, and one of them is asked for
  std::optional<double> depth = {};  // 0 to 1, where the key asked for stands; absent: anywhere
};

// Builds prompts of an exact length from tokenised parts.
class PasskeyGenerator {
 public:
  // natural_text: running text for FillerKind::kNatural; may be empty when only repeated filler is asked for.
  // `tokenizer` and `format` must outlive the generator; format may be null.
  PasskeyGenerator(const Tokenizer& tokenizer, const ChatFormat* format, std::string_view natural_text);
  // Prompt and answer together have n_tokens tokens. Deterministic in (kind, n_tokens, seed, variant); the default variant
  // is one key at a random place, and a depth changes nothing but that place. Throws Error (kBadInput) when n_tokens is
  // too small for the question, the natural text too short, or n_keys not in [1, most_keys()].
  PasskeyPrompt make(FillerKind kind, int64_t n_tokens, uint64_t seed, const PasskeyVariant& variant = {}) const;

  const std::vector<TokenId>& natural() const { return natural_; }  // the natural text

  static int64_t most_keys();
  static int64_t answer_tokens();  // the room that a prompt leaves

 private:
  const Tokenizer& tokenizer_;
  const ChatFormat* format_;
  PromptFrame frame_;
  std::vector<TokenId> unit_, natural_;
};

struct PasskeyOptions {
  std::vector<int64_t> lengths = {1024, 2048, 4096};
  int64_t n_samples = 8;  // prompts a length, kind of filler and depth
  uint64_t seed = 1;
  int64_t n_keys = 1;
  int64_t n_depths = 0;  // 0: random places; 1: the middle; else evenly spaced from the beginning to the end
};

// Kinds "repeated" and "natural"; rows by length. A prompt counts when the greedy continuation starts with the five digits.
// `text` is the natural filler. Throws Error before a prompt is made for what cannot be served.
std::vector<PromptItem> passkey_items(const Engine& engine, std::string_view text, const PasskeyOptions& options);

}  // namespace polyspan
