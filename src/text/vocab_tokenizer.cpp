#include "text/vocab_tokenizer.h"

#include <algorithm>
#include <cctype>
#include <limits>
#include <set>

#include "core/error.h"

namespace polyspan {
namespace {

// Tokens that end a turn or the text, by name: a file's own ids do not cover them. llama.cpp's list.
constexpr std::string_view kEndTexts[] = {
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>",
    "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[",
    // Code models put these between files and repositories; what follows is another document.
    "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>",
    "<reponame>", "<|file_sep|>"};
// Control tokens that some files call normal.
constexpr std::string_view kFillInTexts[] = {
    "<|fim_prefix|>",  "<fim-prefix>",  "<fim_prefix>",    "<｜fim▁begin｜>", "<PRE>",           "▁<PRE>",
    "<|code_prefix|>", "<|prefix|>",    "<|fim_suffix|>",  "<fim-suffix>",    "<fim_suffix>",    "<｜fim▁hole｜>",
    "<SUF>",           "▁<SUF>",        "<|code_suffix|>", "<|suffix|>",      "<|fim_middle|>",  "<fim-middle>",
    "<fim_middle>",    "<｜fim▁end｜>", "<MID>",           "▁<MID>",          "<|code_middle|>", "<|middle|>"};
// GPT-OSS writes these as part of its answer.
constexpr std::string_view kChannelTexts[] = {"<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"};

std::optional<TokenId> checked_id(const VocabSpec& spec, std::string_view key, std::optional<int64_t> id) {
  if (!id) return std::nullopt;
  if (*id < 0 || *id >= static_cast<int64_t>(spec.tokens.size()))
    throw Error::bad_file(spec.source, "tokenizer.ggml.", key, "_token_id is ", *id, ", the vocabulary has ",
                          spec.tokens.size(), " tokens");
  return static_cast<TokenId>(*id);
}

bool names_phi3(std::string title) {
  std::transform(title.begin(), title.end(), title.begin(), [](unsigned char c) { return std::tolower(c); });
  return title.find("phi-3") != std::string::npos || title.find("phi3") != std::string::npos;
}

}  // namespace

std::optional<uint8_t> parse_byte_token(std::string_view text) {
  constexpr std::string_view kDigits = "0123456789ABCDEF";
  if (text.size() != 6 || text.substr(0, 3) != "<0x" || text[5] != '>') return std::nullopt;
  const size_t high = kDigits.find(static_cast<char>(std::toupper(static_cast<unsigned char>(text[3]))));
  const size_t low = kDigits.find(static_cast<char>(std::toupper(static_cast<unsigned char>(text[4]))));
  if (high == std::string_view::npos || low == std::string_view::npos) return std::nullopt;
  return static_cast<uint8_t>(high << 4 | low);
}

VocabTokenizer::VocabTokenizer(const VocabSpec& spec) : vocabulary_(spec) {
  vocab_size_ = vocabulary_.size();
  model_name_ = spec.model;
  bos_ = checked_id(spec, "bos", spec.bos);
  eos_ = checked_id(spec, "eos", spec.eos);
  unknown_ = checked_id(spec, "unknown", spec.unknown);
  find_end_tokens(spec);
  special_.emplace(vocabulary_, names_phi3(spec.model_title));
}

void VocabTokenizer::find_end_tokens(const VocabSpec& spec) {
  std::set<TokenId> ends;
  for (const std::string_view text : kFillInTexts)
    if (const TokenId id = vocabulary_.find(text); id >= 0) vocabulary_.set_type(id, TokenType::kControl);
  for (const std::string_view text : kEndTexts)
    if (const TokenId id = vocabulary_.find(text); id >= 0) {
      vocabulary_.set_type(id, TokenType::kControl);
      ends.insert(id);
    }
  for (const std::string_view text : kChannelTexts)
    if (const TokenId id = vocabulary_.find(text); id >= 0) vocabulary_.set_type(id, TokenType::kUserDefined);
  if (eos_) ends.insert(*eos_);
  if (const auto id = checked_id(spec, "eot", spec.eot)) ends.insert(*id);
  if (const auto id = checked_id(spec, "eom", spec.eom)) ends.insert(*id);

  // Two families where one of the names means something else.
  const auto has = [&](std::string_view text) { return vocabulary_.find(text) >= 0; };
  const bool calls = has("<|call|>") || has("<|calls|>");
  if (has("<|end|>") && calls && (has("<|return|>") || has("<|flush|>"))) {
    ends.erase(vocabulary_.find("<|end|>"));
    vocabulary_.set_type(vocabulary_.find("<|end|>"), TokenType::kUserDefined);
  }
  if (has("</s>") && has("<|tool_response>")) {
    ends.erase(vocabulary_.find("</s>"));
    vocabulary_.set_type(vocabulary_.find("</s>"), TokenType::kNormal);
  }
  end_of_generation_.assign(ends.begin(), ends.end());
}

std::optional<TokenId> VocabTokenizer::find_token(std::string_view text) const {
  const TokenId id = vocabulary_.find(text);
  return id < 0 ? std::nullopt : std::optional(id);
}

std::string VocabTokenizer::token_bytes(TokenId id, bool with_special) const {
  if (id < 0 || id >= vocab_size_)
    throw Error::bad_input("token ", id, " is outside of the vocabulary of ", vocab_size_, " tokens");
  const std::string_view text = vocabulary_.text(id);
  switch (vocabulary_.type(id)) {
    case TokenType::kNormal: return normal_bytes(text);
    case TokenType::kUserDefined: return std::string(text);
    case TokenType::kControl:
    case TokenType::kUnknown: return with_special ? std::string(text) : std::string();
    case TokenType::kByte: {
      const std::optional<uint8_t> byte = parse_byte_token(text);
      return byte ? std::string(1, static_cast<char>(*byte)) : std::string();
    }
    case TokenType::kUnused:
    case TokenType::kUndefined: break;
  }
  return {};
}

std::vector<TokenId> VocabTokenizer::encode_parts(std::span<const TextPart> parts, const EncodeOptions& options) const {
  std::string joined;
  std::string_view text;
  uint64_t n_bytes = 0;
  for (const TextPart& part : parts) n_bytes += part.text.size();
  if (n_bytes >= std::numeric_limits<uint32_t>::max())
    throw Error::bad_input("a text of ", n_bytes, " bytes; at most 4 GiB can be encoded at once");
  if (parts.size() == 1) {
    text = parts[0].text;
  } else {
    joined.reserve(n_bytes);
    for (const TextPart& part : parts) joined += part.text;
    text = joined;
  }
  std::vector<ByteRange> markup;  // neighbouring parts of markup count as one
  uint32_t position = 0;
  for (const TextPart& part : parts) {
    const uint32_t end = position + static_cast<uint32_t>(part.text.size());
    if (part.is_markup && !markup.empty() && markup.back().end == position)
      markup.back().end = end;
    else if (part.is_markup)
      markup.push_back({position, end});
    position = end;
  }

  std::vector<TokenId> ids;
  if (options.add_bos && bos_) ids.push_back(*bos_);
  bool after_special = true;
  for (const Fragment& fragment : special_->split(text, markup)) {
    if (fragment.id >= 0) {
      ids.push_back(fragment.id);
    } else {
      encode_text(text.substr(fragment.begin, fragment.end - fragment.begin), after_special, options, ids);
    }
    after_special = fragment.id >= 0;
  }
  return ids;
}

}  // namespace polyspan
