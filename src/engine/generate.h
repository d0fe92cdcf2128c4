// engine/generate.h: from a prompt to text, token by token.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/engine.h"
#include "engine/sampler.h"
#include "engine/token_choice.h"

namespace polyspan {

struct GenerateOptions {
  int64_t max_tokens = 256;
  SamplingOptions sampling = {};
  std::vector<std::string> stop = {};      // text that ends the answer; not part of it
  bool ignore_end = false;                 // go on past end-of-turn tokens (benchmarks)
  std::optional<int64_t> n_logprobs = {};  // of the most likely tokens, to be told with each generated one
};

enum class FinishReason { kStop, kLength };  // an end token or a stop string; no room or max_tokens reached

struct GenerateResult {
  std::string text;                  // valid UTF-8
  std::vector<TokenId> tokens;       // generated, the ending token included
  std::vector<TokenChoice> choices;  // one each, where n_logprobs was given
  FinishReason finish_reason = FinishReason::kLength;
  bool ended_with_token = false;  // the last token is an end-of-turn token (it is not in the cache yet)
  int64_t n_prompt_tokens = 0;
  double prefill_seconds = 0, decode_seconds = 0;
  int64_t n_decode_steps = 0;  // forward passes of one token: tokens generated after the first
  double prefill_tokens_per_s() const {
    return prefill_seconds > 0 ? static_cast<double>(n_prompt_tokens) / prefill_seconds : 0;
  }
  double decode_tokens_per_s() const {
    return decode_seconds > 0 ? static_cast<double>(n_decode_steps) / decode_seconds : 0;
  }
};

// Feeds `prompt` to the sequence (which may already hold earlier turns), then generates. `on_text` receives text as it
// becomes certain (never half a character, never a part of a stop string) and may return false to end the answer.
// The last token is not in the sequence's cache afterwards. Throws Error (kBadInput) for an empty or too long prompt.
GenerateResult generate(Engine& engine, Sequence& sequence, std::span<const TokenId> prompt,
                        const GenerateOptions& options, const std::function<bool(std::string_view)>& on_text = {},
                        Progress& progress = no_progress());

// Holds text back as long as it could be the beginning of a stop string. The first stop string that is complete ends the
// text, whatever pieces it comes in.
class StopMatcher {
 public:
  explicit StopMatcher(std::vector<std::string> stops) : stops_(std::move(stops)) {}
  // Adds text; returns what is certain now. After stopped() nothing more comes.
  std::string push(std::string_view text);
  std::string finish();
  bool stopped() const { return stopped_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace polyspan
