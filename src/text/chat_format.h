// text/chat_format.h: the chat formats of common models, recognised from the file's template.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace polyspan {

struct ChatMessage {
  std::string role;  // "system", "user", "assistant"
  std::string content;
};

enum class ChatFormatKind { kChatML, kLlama2, kLlama3, kVicuna, kGemma, kMistral };
std::string_view chat_format_name(ChatFormatKind kind);

// How a conversation becomes tokens. Message contents never turn into control tokens (a user who types "<|im_end|>" gets
// ordinary text tokens); only the format's own markers do.
class ChatFormat {
 public:
  // From tokenizer.chat_template. nullopt when the file has no template; throws kUnsupported naming the template's first
  // characters when it is none of the known ones.
  static std::optional<ChatFormat> recognize(const GgufFile& file);
  static ChatFormat of_kind(ChatFormatKind kind, std::optional<std::string> default_system = std::nullopt);

  ChatFormatKind kind() const { return kind_; }
  // The system message that the template itself puts in front when the conversation has none (SmolLM2 and Qwen2 do).
  const std::optional<std::string>& default_system() const { return default_system_; }

  // Tokens of a whole conversation, BOS included where the format has one; ends with the opening of the assistant's turn
  // when `open_assistant`.
  std::vector<TokenId> encode(std::span<const ChatMessage> messages, const Tokenizer& tokenizer, bool open_assistant = true) const;
  // Tokens that continue a conversation whose cache ends right after the assistant's last generated token (`ended` tells
  // whether that token was the end-of-turn token itself): closes that turn, adds `message`, opens the next assistant turn.
  std::vector<TokenId> encode_next_turn(const ChatMessage& message, const Tokenizer& tokenizer, bool ended) const;

 private:
  ChatFormatKind kind_ = ChatFormatKind::kChatML;
  std::optional<std::string> default_system_;
};

}  // namespace polyspan
