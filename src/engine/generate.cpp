#include "engine/generate.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "core/error.h"

namespace polyspan {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

std::string StopMatcher::push(std::string_view text) {
  if (stopped_) return {};
  held_ += text;
  // The stop string that is complete first counts, of several that end together the longest: then it does not matter in
  // which pieces the text came.
  size_t first = std::string::npos, end = std::string::npos;
  for (const std::string& stop : stops_) {
    const size_t at = stop.empty() ? std::string::npos : held_.find(stop);
    if (at == std::string::npos || at + stop.size() > end || (at + stop.size() == end && at > first)) continue;
    first = at;
    end = at + stop.size();
  }
  if (first != std::string::npos) {
    stopped_ = true;
    std::string certain = held_.substr(0, first);
    held_.clear();
    return certain;
  }
  // The longest end of the text that a stop string begins with stays back.
  size_t keep = 0;
  for (const std::string& stop : stops_)
    for (size_t n = std::min(held_.size(), stop.empty() ? 0 : stop.size() - 1); n > keep; --n)
      if (held_.compare(held_.size() - n, n, stop, 0, n) == 0) keep = n;
  std::string certain = held_.substr(0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return certain;
}

std::string StopMatcher::finish() { return stopped_ ? std::string() : std::exchange(held_, {}); }

GenerateResult generate(Engine& engine, Sequence& sequence, std::span<const TokenId> prompt,
                        const GenerateOptions& options, const std::function<bool(std::string_view)>& on_text,
                        Progress& progress) {
  if (prompt.empty()) throw Error::bad_input("the prompt is empty");
  if (static_cast<int64_t>(prompt.size()) > sequence.room())
    throw Error::bad_input("the prompt has ", prompt.size(), " tokens, ", sequence.n_tokens(),
                           " are in the context already, which has room for ", sequence.cache().max_tokens());
  GenerateResult result;
  result.n_prompt_tokens = static_cast<int64_t>(prompt.size());
  Sampler sampler(options.sampling);
  StreamDecoder decoder(engine.tokenizer());
  StopMatcher matcher(options.stop);
  std::vector<float> logits(static_cast<size_t>(engine.config().vocab_size));
  std::vector<float> said;
  bool go_on = true;
  const auto emit = [&](const std::string& text) {
    if (text.empty() || !go_on) return;  // whoever has said no is not asked again
    result.text += text;
    if (on_text && !on_text(text)) go_on = false;
  };

  const auto start = std::chrono::steady_clock::now();
  // Without a penalty and logprobs nobody here needs logits: a GPU then keeps them and chooses.
  const bool token_only = options.sampling.repetition_penalty == 1.0f && !options.n_logprobs;
  TokenId chosen = 0;
  const auto request = [&](std::span<const TokenId> tokens) {
    if (token_only) return StepRequest{&sequence, tokens, nullptr, &chosen, sampler.next_rule()};
    return StepRequest{&sequence, tokens, logits.data()};
  };
  const StepRequest feed = request(prompt);
  engine.step({&feed, 1}, progress);
  result.prefill_seconds = seconds_since(start);
  if (options.max_tokens < 1) return result;

  std::vector<TokenId> history = sequence.tokens();
  const auto decode_start = std::chrono::steady_clock::now();
  for (;;) {
    // Sampling may change the logits (penalty): what is told is what the model said.
    if (options.n_logprobs) said = logits;
    const TokenId token = token_only ? chosen : sampler.sample(logits, history);
    if (options.n_logprobs) result.choices.push_back(token_choice(said, token, *options.n_logprobs));
    result.tokens.push_back(token);
    history.push_back(token);
    if (!options.ignore_end && engine.tokenizer().is_end_of_generation(token)) {
      result.finish_reason = FinishReason::kStop;
      result.ended_with_token = true;
      break;
    }
    emit(matcher.push(decoder.push(token)));
    if (matcher.stopped() || !go_on) {
      result.finish_reason = FinishReason::kStop;
      break;
    }
    if (static_cast<int64_t>(result.tokens.size()) >= options.max_tokens || sequence.room() == 0) break;
    const StepRequest next = request({&token, 1});
    engine.step({&next, 1});
    ++result.n_decode_steps;
  }
  result.decode_seconds = seconds_since(decode_start);
  if (!matcher.stopped()) {
    emit(matcher.push(decoder.finish()));
    emit(matcher.finish());
  }
  return result;
}

}  // namespace polyspan
