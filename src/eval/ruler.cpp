#include "eval/ruler.h"

#include <algorithm>

#include "core/error.h"
#include "eval/natural_text.h"
#include "eval/prompt_frame.h"
#include "eval/ruler_draft.h"

namespace polyspan {
namespace {

using namespace ruler;
using Haystack = NeedleForm::Haystack;

constexpr int64_t kNeedleTokens = 128, kVariableTokens = 30, kCommonTokens = 120, kFrequentTokens = 50,
                  kQuestionTokens = 32;
constexpr int64_t kSpareTokens = 8;  // beyond the answer itself, where a tokenizer needs more than the paper's room

struct Kind {
  std::string_view name;
  int64_t max_new_tokens;  // the paper's
  Draft (*make)(const Material&);
};

constexpr Kind kKinds[] = {
    {"niah_single_1", kNeedleTokens,
     [](const Material& m) { return needle_draft(m, {.haystack = Haystack::kRepeated}); }},
    {"niah_single_2", kNeedleTokens, [](const Material& m) { return needle_draft(m, {}); }},
    {"niah_single_3", kNeedleTokens, [](const Material& m) { return needle_draft(m, {.uuid_values = true}); }},
    {"niah_multikey_1", kNeedleTokens, [](const Material& m) { return needle_draft(m, {.n_keys = 4}); }},
    {"niah_multikey_2", kNeedleTokens,
     [](const Material& m) { return needle_draft(m, {.haystack = Haystack::kNeedles}); }},
    {"niah_multikey_3", kNeedleTokens,
     [](const Material& m) {
       return needle_draft(m, {.haystack = Haystack::kNeedles, .uuid_keys = true, .uuid_values = true});
     }},
    {"niah_multivalue", kNeedleTokens, [](const Material& m) { return needle_draft(m, {.n_values = 4}); }},
    {"niah_multiquery", kNeedleTokens, [](const Material& m) { return needle_draft(m, {.n_keys = 4, .n_asked = 4}); }},
    {"vt", kVariableTokens, variable_draft},
    {"cwe", kCommonTokens, common_words_draft},
    {"fwe", kFrequentTokens, frequent_words_draft},
    {"qa_1", kQuestionTokens, one_hop_draft},
    {"qa_2", kQuestionTokens, two_hop_draft},
};
constexpr size_t kNKinds = std::size(kKinds);

PromptItem fit(const Engine& engine, const Kind& kind, const Material& material, int64_t length) {
  const Tokenizer& tokenizer = engine.tokenizer();
  const ChatFormat* format = engine.has_chat_format() ? &engine.chat_format() : nullptr;
  const Draft draft = kind.make(material);
  int64_t answer_tokens = kSpareTokens;
  for (const std::string& text : draft.wanted) answer_tokens += std::ssize(tokenizer.encode(" " + text + ",", {}));
  const int64_t room = std::max(kind.max_new_tokens, answer_tokens), budget = length - room;
  const auto tokens = [&](int64_t n) { return encode_prompt(tokenizer, format, draft.text(n), draft.answer_start); };
  const auto size = [&](int64_t n) { return std::ssize(tokens(n)); };
  const std::optional<int64_t> n = largest_fitting(draft.least, std::max(draft.least, draft.most), budget, size);
  if (!n)
    throw Error::bad_input(kind.name, ": a prompt of ", length, " tokens; the least is ", size(draft.least), " and ",
                           room, " for the answer");
  PromptItem item{.tokens = tokens(*n),
                  .max_new_tokens = room,
                  .planned_length = length,
                  .rule = draft.rule,
                  .wanted = draft.wanted,
                  .row_length = length,
                  .kind = std::string(kind.name)};
  if (draft.most_is_all_text && *n == draft.most && std::ssize(item.tokens) < budget * 9 / 10)
    throw Error::bad_input(kind.name, ": all of the natural text makes a prompt of ", item.tokens.size(),
                           " tokens, wanted about ", budget, " (--text FILE)");
  return item;
}

}  // namespace

std::span<const std::string_view> ruler_kinds() {
  static const std::vector<std::string_view> names = [] {
    std::vector<std::string_view> all;
    for (const Kind& kind : kKinds) all.push_back(kind.name);
    return all;
  }();
  return names;
}

void check_ruler_kinds(std::span<const std::string> kinds) {
  for (const std::string& kind : kinds) {
    const auto names = ruler_kinds();
    if (std::find(names.begin(), names.end(), kind) != names.end()) continue;
    std::string all;
    for (std::string_view name : names) all += (all.empty() ? "" : ", ") + std::string(name);
    throw Error::usage("RULER kind \"", kind, "\" is not known; there are ", all);
  }
}

std::vector<PromptItem> ruler_items(const Engine& engine, std::string_view text, const RulerOptions& options) {
  check_ruler_kinds(options.kinds);
  for (const int64_t length : options.lengths) check_length(engine, length);
  const std::vector<std::string> sentences = split_sentences(text);
  const auto count_tokens = [&](std::string_view part) { return std::ssize(engine.tokenizer().encode(part, {})); };
  std::vector<PromptItem> items;
  for (const int64_t length : options.lengths)
    for (size_t k = 0; k < kNKinds; ++k) {
      if (!options.kinds.empty() &&
          std::find(options.kinds.begin(), options.kinds.end(), kKinds[k].name) == options.kinds.end())
        continue;
      for (int64_t sample = 0; sample < options.n_samples; ++sample) {
        RandomSource random{options.seed, static_cast<uint64_t>(length), k, static_cast<uint64_t>(sample)};
        items.push_back(fit(engine, kKinds[k], {random, text, sentences, length, count_tokens}, length));
      }
    }
  return items;
}

}  // namespace polyspan
