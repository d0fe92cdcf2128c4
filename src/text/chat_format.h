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

// What models of one format do differently; read out of the template.
struct ChatFormatVariant {
  bool marks_system = true;        // Llama 2: <<SYS>> around the system message
  bool repeats_bos = false;        // Llama 2: BOS before every user turn
  bool trims_contents = false;     // Llama 2: spaces around contents are dropped (Llama 3 and Gemma always do)
  bool trims_answers = false;      // Mistral: those of the assistant only
  bool space_before_inst = false;  // Mistral v1: " [INST]", " [/INST]"
  bool space_after_inst = true;    // Mistral, all but Tekken models: "[INST] "
  bool system_prompt = false;      // Mistral v7: [SYSTEM_PROMPT] around the system message
  bool names_system = false;       // Vicuna of the Orca kind: "SYSTEM: "
};
std::string_view chat_format_name(ChatFormatKind kind);

// How a conversation becomes tokens. Message contents never turn into control tokens (a user who types "<|im_end|>"
// gets ordinary text tokens); only the format's own markers do.
class ChatFormat {
 public:
  // From tokenizer.chat_template. nullopt when the file has no template; throws kUnsupported naming the template's
  // first characters when it is none of the known ones.
  static std::optional<ChatFormat> recognize(const GgufFile& file);
  static std::optional<ChatFormat> recognize_template(std::string_view chat_template);
  static ChatFormat of_kind(ChatFormatKind kind, std::optional<std::string> default_system = std::nullopt);

  const ChatFormatVariant& variant() const { return variant_; }
  ChatFormatKind kind() const { return kind_; }
  // The system message that the template itself puts in front when the conversation has none (SmolLM2 and Qwen2 do).
  const std::optional<std::string>& default_system() const { return default_system_; }

  // Tokens of a whole conversation, BOS included where the format has one; ends with the opening of the assistant's
  // turn when `open_assistant`. Throws kBadInput for roles that the format does not have (ChatML takes any).
  std::vector<TokenId> encode(std::span<const ChatMessage> messages, const Tokenizer& tokenizer,
                              bool open_assistant = true) const;
  // Tokens that continue a conversation whose cache ends right after the assistant's last generated token (`ended`
  // tells whether that token was the end-of-turn token itself): closes that turn, adds `message`, opens the next
  // assistant turn.
  std::vector<TokenId> encode_next_turn(const ChatMessage& message, const Tokenizer& tokenizer, bool ended) const;

 private:
  bool puts_bos(const Tokenizer& tokenizer) const;
  ChatFormatKind kind_ = ChatFormatKind::kChatML;
  ChatFormatVariant variant_;
  std::optional<std::string> default_system_;
};

}  // namespace polyspan
