// eval/passkey.h: retrieval of a pass key hidden in a long prompt (arXiv 2305.16300, in the chat form of docs/eval.md).
#pragma once

#include <cstdint>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "engine/engine.h"

namespace polyspan {

enum class FillerKind { kRepeated, kNatural };

struct PasskeyPrompt {
  std::vector<TokenId> tokens;  // ends with "The pass key is ": the model goes on with the digits
  std::string key;              // five digits
  double depth = 0;             // where in the filler the key stands, 0 to 1
};

// Builds prompts of an exact length from tokenised parts.
class PasskeyGenerator {
 public:
  // natural_text: running text for FillerKind::kNatural; may be empty when only repeated filler is asked for.
  PasskeyGenerator(const Tokenizer& tokenizer, const ChatFormat* format, std::string_view natural_text);
  // Prompt and answer together have n_tokens tokens. Deterministic in (kind, n_tokens, seed). Throws Error (kBadInput)
  // when n_tokens is too small for the question, or the natural text too short.
  PasskeyPrompt make(FillerKind kind, int64_t n_tokens, uint64_t seed) const;

 private:
  const Tokenizer& tokenizer_;
  std::vector<TokenId> head_, tail_, answer_start_, unit_, natural_;
};

struct PasskeyOptions {
  std::vector<int64_t> lengths = {1024, 2048, 4096};
  int64_t n_samples = 8;           // prompts a length and kind of filler
  uint64_t seed = 1;
  KvType kv_type = KvType::kF16;
};

struct PasskeyCell {
  int64_t n = 0, n_right = 0;
  double accuracy() const { return n == 0 ? 0 : static_cast<double>(n_right) / static_cast<double>(n); }
};
struct PasskeyRow {
  int64_t length = 0, kv_bytes = 0;
  PasskeyCell repeated, natural;
  double accuracy() const { return static_cast<double>(repeated.n_right + natural.n_right) / static_cast<double>(repeated.n + natural.n); }
};

// A prompt counts when the greedy continuation starts with the five digits. `text` is the natural filler.
std::vector<PasskeyRow> evaluate_passkey(Engine& engine, const SpanPlan& plan, std::string_view text, const PasskeyOptions& options,
                                         Progress& progress = no_progress());

// Running text from files that every Debian system has (/usr/share/common-licenses), or nullopt where they are missing.
std::optional<std::string> default_natural_text();

}  // namespace polyspan
