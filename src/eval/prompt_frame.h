// eval/prompt_frame.h: from the text of a task to prompt tokens, with or without a chat format.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string_view>
#include <vector>

#include "text/chat_format.h"
#include "text/tokenizer.h"

namespace polyspan {

inline constexpr std::string_view kEvalSystem = "You are a helpful assistant.";
// Filler that says nothing, as in arXiv 2305.16300.
inline constexpr std::string_view kRepeatedText =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. ";

// What stands before and after a body whose tokens are made apart: system message, user text around the body, opening of
// the answer. Without a chat format: the user text as plain text, and a line end.
struct PromptFrame {
  std::vector<TokenId> head, tail;
  PromptFrame(const Tokenizer& tokenizer, const ChatFormat* format, std::string_view before, std::string_view after,
              std::string_view answer_start);
  int64_t size() const { return std::ssize(head) + std::ssize(tail); }
};

// A whole prompt, its text tokenised in one piece.
std::vector<TokenId> encode_prompt(const Tokenizer& tokenizer, const ChatFormat* format, std::string_view text,
                                   std::string_view answer_start);

// The largest n in [least, most] with size(n) <= budget, or nullopt where size(least) is more. size must grow with n,
// about linearly; it is called a few times.
std::optional<int64_t> largest_fitting(int64_t least, int64_t most, int64_t budget,
                                       const std::function<int64_t(int64_t)>& size);

}  // namespace polyspan
