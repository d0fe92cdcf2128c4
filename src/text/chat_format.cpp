#include "text/chat_format.h"

#include "core/error.h"

namespace polyspan {
namespace {

bool contains(std::string_view text, std::string_view wanted) { return text.find(wanted) != std::string_view::npos; }

std::string_view trimmed(std::string_view text) {
  constexpr std::string_view kSpaces = " \t\n\v\f\r";
  const size_t first = text.find_first_not_of(kSpaces);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kSpaces) - first + 1);
}

// Collects what is encoded as one text: markup, where control tokens count, and contents, where they do not.
class PartsWriter {
 public:
  PartsWriter& markup(std::string_view text) { return add(text, true); }
  PartsWriter& content(std::string_view text) { return add(text, false); }
  std::vector<TokenId> encode(const Tokenizer& tokenizer, bool add_bos) const {
    return tokenizer.encode_parts(parts_, {.add_bos = add_bos});
  }

 private:
  // Views into messages and literals: both outlive the writer.
  PartsWriter& add(std::string_view text, bool is_markup) {
    parts_.push_back({text, is_markup});
    return *this;
  }
  std::vector<TextPart> parts_;
};

[[noreturn]] void refuse_role(const ChatMessage& message, ChatFormatKind kind) {
  throw Error::bad_input("the role '", message.role, "' is not known to the chat format ", chat_format_name(kind),
                         "; system, user and assistant are");
}

bool is_system(const ChatMessage& message) { return message.role == "system"; }
bool is_user(const ChatMessage& message) { return message.role == "user"; }
bool is_assistant(const ChatMessage& message) { return message.role == "assistant"; }

// One function a format.
void write_chatml(std::span<const ChatMessage> messages, PartsWriter& out) {
  for (const ChatMessage& message : messages)
    out.markup("<|im_start|>")
        .content(message.role)
        .content("\n")
        .content(message.content)
        .markup("<|im_end|>")
        .content("\n");
}

void write_llama3(std::span<const ChatMessage> messages, PartsWriter& out) {
  for (const ChatMessage& message : messages) {
    out.markup("<|start_header_id|>").content(message.role).markup("<|end_header_id|>").content("\n\n");
    out.content(trimmed(message.content)).markup("<|eot_id|>");
  }
}

void write_gemma(std::span<const ChatMessage> messages, PartsWriter& out) {
  std::vector<std::string_view> system;  // Gemma has no such role: it goes before the next user message
  for (const ChatMessage& message : messages) {
    if (is_system(message)) {
      system.push_back(trimmed(message.content));
      continue;
    }
    if (!is_user(message) && !is_assistant(message)) refuse_role(message, ChatFormatKind::kGemma);
    out.markup("<start_of_turn>").content(is_user(message) ? "user" : "model").content("\n");
    if (is_user(message)) {
      size_t n_bytes = 0;
      for (const std::string_view text : system) {
        out.content(text);
        n_bytes += text.size();
      }
      if (n_bytes > 0) out.content("\n\n");
      system.clear();
    }
    out.content(trimmed(message.content)).markup("<end_of_turn>").content("\n");
  }
}

void write_vicuna(std::span<const ChatMessage> messages, const ChatFormatVariant& variant, PartsWriter& out) {
  for (const ChatMessage& message : messages) {
    if (is_system(message)) {
      if (variant.names_system) out.content("SYSTEM: ");
      out.content(message.content).content(variant.names_system ? "\n" : "\n\n");
    } else if (is_user(message)) {
      out.content("USER: ").content(message.content).content("\n");
    } else if (is_assistant(message)) {
      out.content("ASSISTANT: ").content(message.content).markup("</s>").content("\n");
    } else {
      refuse_role(message, ChatFormatKind::kVicuna);
    }
  }
}

void write_llama2(std::span<const ChatMessage> messages, const ChatFormatVariant& variant, bool first,
                  PartsWriter& out) {
  bool inside_turn = false;
  for (const ChatMessage& message : messages) {
    const std::string_view content =
        variant.trims_contents ? trimmed(message.content) : std::string_view(message.content);
    if (!inside_turn) out.markup(variant.repeats_bos && !first ? "<s>[INST] " : "[INST] ");
    inside_turn = true;
    first = false;
    if (is_system(message)) {
      if (variant.marks_system)
        out.markup("<<SYS>>\n").content(content).markup("\n<</SYS>>\n\n");
      else
        out.content(content).content("\n");
    } else if (is_user(message)) {
      out.content(content).markup(" [/INST]");
    } else if (is_assistant(message)) {
      out.content(content).markup("</s>");
      inside_turn = false;
    } else {
      refuse_role(message, ChatFormatKind::kLlama2);
    }
  }
}

void write_mistral(std::span<const ChatMessage> messages, const ChatFormatVariant& variant, PartsWriter& out) {
  const std::string_view before = variant.space_before_inst ? " " : "", after = variant.space_after_inst ? " " : "";
  bool inside_turn = false;
  for (const ChatMessage& message : messages) {
    if (!is_system(message) && !is_user(message) && !is_assistant(message))
      refuse_role(message, ChatFormatKind::kMistral);
    if (variant.system_prompt && is_system(message)) {
      out.markup("[SYSTEM_PROMPT]").content(after).content(message.content).markup("[/SYSTEM_PROMPT]");
      continue;
    }
    if (!inside_turn && (is_user(message) || !variant.system_prompt))
      out.content(before).markup("[INST]").content(after);
    inside_turn = !variant.system_prompt;
    if (is_system(message)) {
      out.content(message.content).content("\n\n");
    } else if (is_user(message)) {
      out.content(message.content).content(before).markup("[/INST]");
    } else {
      out.content(after).content(variant.trims_answers ? trimmed(message.content) : std::string_view(message.content));
      out.markup("</s>");
      inside_turn = false;
    }
  }
}

void write_messages(ChatFormatKind kind, const ChatFormatVariant& variant, std::span<const ChatMessage> messages,
                    bool first, PartsWriter& out) {
  switch (kind) {
    case ChatFormatKind::kChatML: return write_chatml(messages, out);
    case ChatFormatKind::kLlama2: return write_llama2(messages, variant, first, out);
    case ChatFormatKind::kLlama3: return write_llama3(messages, out);
    case ChatFormatKind::kVicuna: return write_vicuna(messages, variant, out);
    case ChatFormatKind::kGemma: return write_gemma(messages, out);
    case ChatFormatKind::kMistral: return write_mistral(messages, variant, out);
  }
}

// What an answer starts with; Llama 2 and Mistral need nothing after [/INST].
void open_answer(ChatFormatKind kind, PartsWriter& out) {
  switch (kind) {
    case ChatFormatKind::kChatML: out.markup("<|im_start|>").content("assistant\n"); break;
    case ChatFormatKind::kLlama3:
      out.markup("<|start_header_id|>").content("assistant").markup("<|end_header_id|>").content("\n\n");
      break;
    case ChatFormatKind::kVicuna: out.content("ASSISTANT:"); break;
    case ChatFormatKind::kGemma: out.markup("<start_of_turn>").content("model\n"); break;
    case ChatFormatKind::kLlama2:
    case ChatFormatKind::kMistral: break;
  }
}

// The token that ends an answer, and what stands between it and the next turn.
struct TurnEnd {
  std::string_view token, gap;
};
TurnEnd turn_end(ChatFormatKind kind) {
  switch (kind) {
    case ChatFormatKind::kChatML: return {"<|im_end|>", "\n"};
    case ChatFormatKind::kLlama3: return {"<|eot_id|>", ""};
    case ChatFormatKind::kVicuna: return {"</s>", "\n"};
    case ChatFormatKind::kGemma: return {"<end_of_turn>", "\n"};
    case ChatFormatKind::kLlama2:
    case ChatFormatKind::kMistral: break;
  }
  return {"</s>", ""};
}

// The text after `opening` up to "<|im_end|>", when the template holds it as one literal. Escapes are undone.
std::optional<std::string> find_literal_system(std::string_view chat_template) {
  constexpr std::string_view kOpenings[] = {"<|im_start|>system\n", "<|im_start|>system\\n"};
  constexpr std::string_view kEnd = "<|im_end|>";
  for (const std::string_view opening : kOpenings)
    for (size_t at = chat_template.find(opening); at != std::string_view::npos;
         at = chat_template.find(opening, at + 1)) {
      const std::string_view rest = chat_template.substr(at + opening.size());
      const std::string_view literal = rest.substr(0, rest.find(kEnd));
      const bool ends = literal.size() < rest.size();
      if (!ends || literal.empty() || contains(literal, "}}") || contains(literal, "{{") || contains(literal, "{%"))
        continue;
      // An expression between two literals: 'system\n' + message['content'] + '<|im_end|>'
      if (literal.front() == '\'' || literal.front() == '"') continue;
      std::string text;
      for (size_t i = 0; i < literal.size(); ++i) {
        const bool is_escape = literal[i] == '\\' && i + 1 < literal.size();
        if (!is_escape)
          text += literal[i];
        else if (const char escaped = literal[++i]; escaped == 'n')
          text += '\n';
        else
          text += escaped;
      }
      return text;
    }
  return std::nullopt;
}

}  // namespace

std::string_view chat_format_name(ChatFormatKind kind) {
  switch (kind) {
    case ChatFormatKind::kChatML: return "chatml";
    case ChatFormatKind::kLlama2: return "llama2";
    case ChatFormatKind::kLlama3: return "llama3";
    case ChatFormatKind::kVicuna: return "vicuna";
    case ChatFormatKind::kGemma: return "gemma";
    case ChatFormatKind::kMistral: return "mistral";
  }
  return "unknown";
}

ChatFormat ChatFormat::of_kind(ChatFormatKind kind, std::optional<std::string> default_system) {
  ChatFormat format;
  format.kind_ = kind;
  format.default_system_ = std::move(default_system);
  return format;
}

std::optional<ChatFormat> ChatFormat::recognize(const GgufFile& file) {
  const std::optional<std::string_view> chat_template = file.find_string("tokenizer.chat_template");
  return chat_template ? recognize_template(*chat_template) : std::nullopt;
}

// The markers and their order are those by which llama.cpp tells templates apart, so that both choose the same format.
std::optional<ChatFormat> ChatFormat::recognize_template(std::string_view chat_template) {
  if (trimmed(chat_template).empty()) return std::nullopt;
  const auto has = [&](std::string_view marker) { return contains(chat_template, marker); };
  ChatFormat format;
  ChatFormatVariant& variant = format.variant_;
  if (has("<|im_start|>") && !has("<|im_sep|>") && !has("<end_of_utterance>")) {
    format.kind_ = ChatFormatKind::kChatML;
    format.default_system_ = find_literal_system(chat_template);
  } else if (has("[INST]") && has("[SYSTEM_PROMPT]")) {
    format.kind_ = ChatFormatKind::kMistral;
    variant.system_prompt = true;
    variant.space_after_inst = has("[INST] ") || has("[SYSTEM_PROMPT] ");
  } else if (has("[INST]") && (has("' [INST] ' + system_message") || has("[AVAILABLE_TOOLS]"))) {
    format.kind_ = ChatFormatKind::kMistral;
    variant.space_before_inst = has(" [INST]");
    variant.space_after_inst = variant.space_before_inst || !has("\"[INST]\"");
    variant.trims_answers = !variant.space_before_inst && variant.space_after_inst;
  } else if (has("[INST]")) {
    format.kind_ = ChatFormatKind::kLlama2;
    variant.trims_contents = has("content.strip()");
    variant.repeats_bos = !variant.trims_contents && has("bos_token + '[INST]");
    variant.marks_system = variant.trims_contents || variant.repeats_bos || has("<<SYS>>");
  } else if (has("<start_of_turn>")) {
    format.kind_ = ChatFormatKind::kGemma;
  } else if (has("USER: ") && has("ASSISTANT: ")) {
    format.kind_ = ChatFormatKind::kVicuna;
    variant.names_system = has("SYSTEM: ");
  } else if (has("<|start_header_id|>") && has("<|end_header_id|>")) {
    format.kind_ = ChatFormatKind::kLlama3;
  } else {
    std::string start(chat_template.substr(0, 60));
    for (char& byte : start)
      if (static_cast<uint8_t>(byte) < 0x20) byte = ' ';
    throw Error::unsupported("the chat template (tokenizer.chat_template) is of no known format: '", start, "...'");
  }
  return format;
}

bool ChatFormat::puts_bos(const Tokenizer& tokenizer) const {
  const bool has_bos_in_template = kind_ != ChatFormatKind::kChatML && kind_ != ChatFormatKind::kVicuna;
  return tokenizer.adds_bos() || has_bos_in_template;
}

std::vector<TokenId> ChatFormat::encode(std::span<const ChatMessage> messages, const Tokenizer& tokenizer,
                                        bool open_assistant) const {
  PartsWriter out;
  if (default_system_ && !messages.empty() && !is_system(messages[0])) {
    // Only ChatML templates have one that is read.
    out.markup("<|im_start|>").content("system\n").content(*default_system_).markup("<|im_end|>").content("\n");
  }
  write_messages(kind_, variant_, messages, /*first=*/true, out);
  if (open_assistant) open_answer(kind_, out);
  return out.encode(tokenizer, puts_bos(tokenizer));
}

std::vector<TokenId> ChatFormat::encode_next_turn(const ChatMessage& message, const Tokenizer& tokenizer,
                                                  bool ended) const {
  const TurnEnd end = turn_end(kind_);
  PartsWriter out;
  if (!ended) out.markup(end.token);
  out.content(end.gap);
  write_messages(kind_, variant_, {&message, 1}, /*first=*/false, out);
  open_answer(kind_, out);
  return out.encode(tokenizer, /*add_bos=*/false);
}

}  // namespace polyspan
