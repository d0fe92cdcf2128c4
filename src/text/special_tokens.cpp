#include "text/special_tokens.h"

#include <algorithm>
#include <map>

namespace polyspan {
namespace {

size_t first_bytes_key(std::string_view text, uint32_t length) {
  const size_t first = static_cast<uint8_t>(text[0]);
  return length == 1 ? first : first << 8 | static_cast<uint8_t>(text[1]);
}

bool is_space(char byte) { return byte == ' ' || (byte >= '\t' && byte <= '\r'); }

// Appends what is left of the plain fragment [begin, end).
void push_text(uint32_t begin, uint32_t end, std::vector<Fragment>& out) {
  if (begin < end) out.push_back({begin, end, -1});
}

}  // namespace

SpecialTokens::SpecialTokens(const Vocabulary& vocabulary, bool strips_right) : vocabulary_(vocabulary) {
  std::map<uint32_t, Group, std::greater<>> by_length;
  for (TokenId id = 0; id < vocabulary.size(); ++id) {
    const TokenType type = vocabulary.type(id);
    if (type != TokenType::kControl && type != TokenType::kUserDefined && type != TokenType::kUnknown) continue;
    const std::string_view text = vocabulary.text(id);
    const auto length = static_cast<uint32_t>(text.size());
    Group& group = by_length.try_emplace(length, Group{length, false, {}, {}}).first->second;
    const bool is_user_defined = type == TokenType::kUserDefined;
    group.has_user_defined |= is_user_defined;
    group.first_bytes.resize(length == 1 ? 256 : 65536);
    group.first_bytes[first_bytes_key(text, length)] = true;
    const bool strips = strips_right && text != "<unk>" && text != "<s>" && text != "<|endoftext|>";
    group.tokens.push_back({id, is_user_defined, strips});
  }
  for (auto& [length, group] : by_length) {
    std::sort(group.tokens.begin(), group.tokens.end(),
              [&](const Token& a, const Token& b) { return vocabulary.text(a.id) < vocabulary.text(b.id); });
    groups_.push_back(std::move(group));
  }
}

const SpecialTokens::Token* SpecialTokens::find(const Group& group, std::string_view text) const {
  const auto found =
      std::lower_bound(group.tokens.begin(), group.tokens.end(), text,
                       [&](const Token& token, auto wanted) { return vocabulary_.text(token.id) < wanted; });
  return found != group.tokens.end() && vocabulary_.text(found->id) == text ? &*found : nullptr;
}

std::vector<Fragment> SpecialTokens::split(std::string_view text, std::span<const ByteRange> markup) const {
  std::vector<Fragment> fragments, next;
  push_text(0, static_cast<uint32_t>(text.size()), fragments);
  for (const Group& group : groups_) {
    if (group.length > text.size() || (markup.empty() && !group.has_user_defined)) continue;
    next.clear();
    auto range = markup.begin();  // the last one that may still hold a token at `position`
    for (const Fragment& fragment : fragments) {
      if (fragment.id >= 0) {
        next.push_back(fragment);
        continue;
      }
      uint32_t begin = fragment.begin;  // of what is not yet in `next`
      for (uint32_t position = begin; position + uint64_t{group.length} <= fragment.end;) {
        if (!group.has_user_defined) {  // then tokens can only start inside markup: jump there
          while (range != markup.end() && range->end < position + group.length) ++range;
          if (range == markup.end()) break;
          if (range->begin > position) {
            position = range->begin;
            continue;
          }
        }
        const std::string_view candidate = text.substr(position, group.length);
        if (!group.first_bytes[first_bytes_key(candidate, group.length)]) {
          ++position;
          continue;
        }
        const Token* token = find(group, candidate);
        const uint32_t end = position + group.length;
        if (token != nullptr && !token->is_user_defined) {
          while (range != markup.end() && range->end < end) ++range;
          if (range == markup.end() || range->begin > position) token = nullptr;
        }
        if (token == nullptr) {
          ++position;
          continue;
        }
        push_text(begin, position, next);
        next.push_back({position, end, token->id});
        begin = end;
        if (token->strips_right)
          while (begin < fragment.end && is_space(text[begin])) ++begin;
        position = begin;
      }
      push_text(begin, fragment.end, next);
    }
    fragments.swap(next);
  }
  return fragments;
}

}  // namespace polyspan
