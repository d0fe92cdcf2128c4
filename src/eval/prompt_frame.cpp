#include "eval/prompt_frame.h"

#include <algorithm>
#include <string>

#include "core/error.h"

namespace polyspan {
namespace {

// A conversation is encoded whole, so the body's place is marked and the tokens are cut there.
constexpr std::string_view kMark = "\x01";

std::vector<TokenId> encode_user_text(const Tokenizer& tokenizer, const ChatFormat* format, std::string text) {
  if (format == nullptr) return tokenizer.encode(text + "\n", {.add_bos = tokenizer.adds_bos()});
  const ChatMessage messages[] = {{"system", std::string(kEvalSystem)}, {"user", std::move(text)}};
  return format->encode(messages, tokenizer);
}

}  // namespace

PromptFrame::PromptFrame(const Tokenizer& tokenizer, const ChatFormat* format, std::string_view before,
                         std::string_view after, std::string_view answer_start) {
  const std::vector<TokenId> mark = tokenizer.encode(kMark, {});
  const std::vector<TokenId> all =
      encode_user_text(tokenizer, format, std::string(before) + std::string(kMark) + std::string(after));
  const auto cut = mark.empty() ? all.end() : std::find(all.begin(), all.end(), mark.back());
  if (cut == all.end()) throw Error::unsupported("the tokenizer has no token for the byte 1, which prompts are cut at");
  head.assign(all.begin(), cut);
  tail.assign(cut + 1, all.end());
  const std::vector<TokenId> start = tokenizer.encode(answer_start, {});
  tail.insert(tail.end(), start.begin(), start.end());
}

std::vector<TokenId> encode_prompt(const Tokenizer& tokenizer, const ChatFormat* format, std::string_view text,
                                   std::string_view answer_start) {
  std::vector<TokenId> tokens = encode_user_text(tokenizer, format, std::string(text));
  const std::vector<TokenId> start = tokenizer.encode(answer_start, {});
  tokens.insert(tokens.end(), start.begin(), start.end());
  return tokens;
}

std::optional<int64_t> largest_fitting(int64_t least, int64_t most, int64_t budget,
                                       const std::function<int64_t(int64_t)>& size) {
  POLYSPAN_CHECK(least <= most, "an empty range");
  const int64_t least_size = size(least);
  if (least_size > budget) return std::nullopt;
  // The answer is in [fits, fails). Each guess follows the slope seen so far; once a size above the budget is known, every
  // fourth halves, which bounds the calls. Sizes far above the budget are never asked for: they may be slow.
  int64_t fits = least, fits_size = least_size, fails = most + 1;
  double slope = 8;
  for (int64_t step = 0; fails - fits > 1; ++step) {
    int64_t guess = fits + (fails - fits) / 2;
    if (step % 4 != 3 || fails == most + 1)
      guess = std::min(
          guess, fits + std::max<int64_t>(1, static_cast<int64_t>(static_cast<double>(budget - fits_size) / slope)));
    const int64_t guess_size = size(guess);
    slope = std::max(0.25, static_cast<double>(guess_size - fits_size) / static_cast<double>(guess - fits));
    if (guess_size <= budget) {
      fits = guess;
      fits_size = guess_size;
    } else {
      fails = guess;
    }
  }
  return fits;
}

}  // namespace polyspan
