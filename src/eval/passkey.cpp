#include "eval/passkey.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "core/error.h"
#include "engine/sampler.h"

namespace polyspan {
namespace {

constexpr std::string_view kSystem = "You are a helpful assistant.";
constexpr std::string_view kInstruction =
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. I will quiz you about the "
    "important information there.\n";
constexpr std::string_view kQuestion = "\nWhat is the pass key?";
constexpr std::string_view kRepeatedText =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. ";
// With the space, which is a token of its own before digits: without it, SmolLM2-135M often goes on with a word.
constexpr std::string_view kAnswerStart = "The pass key is ";
constexpr int64_t kAnswerTokens = 8;  // room for five digits and what may follow

// A conversation is encoded whole, so the filler's place is marked and the tokens are cut there.
constexpr std::string_view kMark = "\x01";

}  // namespace

PasskeyGenerator::PasskeyGenerator(const Tokenizer& tokenizer, const ChatFormat* format, std::string_view natural_text) : tokenizer_(tokenizer) {
  const std::vector<TokenId> mark = tokenizer.encode(kMark, {});
  std::vector<TokenId> all;
  if (format != nullptr) {
    const ChatMessage messages[] = {{"system", std::string(kSystem)},
                                    {"user", std::string(kInstruction) + std::string(kMark) + std::string(kQuestion)}};
    all = format->encode(messages, tokenizer);
  } else {
    all = tokenizer.encode(std::string(kInstruction) + std::string(kMark) + std::string(kQuestion) + "\n", {.add_bos = tokenizer.adds_bos()});
  }
  const auto cut = mark.empty() ? all.end() : std::find(all.begin(), all.end(), mark.back());
  if (cut == all.end()) throw Error::unsupported("the tokenizer has no token for the byte 1, which pass-key prompts are cut at");
  head_.assign(all.begin(), cut);
  tail_.assign(cut + 1, all.end());
  answer_start_ = tokenizer.encode(kAnswerStart, {});
  unit_ = tokenizer.encode(kRepeatedText, {});
  natural_ = tokenizer.encode(natural_text, {});
}

PasskeyPrompt PasskeyGenerator::make(FillerKind kind, int64_t n_tokens, uint64_t seed) const {
  std::mt19937_64 random(seed * 2 + (kind == FillerKind::kNatural ? 1 : 0) + static_cast<uint64_t>(n_tokens) * 1000003);
  const auto below = [&random](int64_t n) { return static_cast<int64_t>(random() % static_cast<uint64_t>(n)); };
  PasskeyPrompt prompt;
  prompt.key = std::to_string(10000 + below(90000));
  const std::vector<TokenId> needle = tokenizer_.encode("The pass key is " + prompt.key + ". Remember it. " + prompt.key + " is the pass key. ", {});
  const int64_t fixed = static_cast<int64_t>(head_.size() + needle.size() + tail_.size() + answer_start_.size()) + kAnswerTokens;
  const int64_t n_filler = n_tokens - fixed;
  if (n_filler < 1) throw Error::bad_input("a pass-key prompt of ", n_tokens, " tokens: the question alone needs ", fixed);
  std::vector<TokenId> filler;
  int64_t at = 0;
  const int64_t unit = static_cast<int64_t>(unit_.size());
  if (kind == FillerKind::kRepeated) {
    for (int64_t i = 0; i < n_filler; ++i) filler.push_back(unit_[static_cast<size_t>(i % unit)]);
    at = below(n_filler / unit + 1) * unit;
  } else {
    const int64_t n_natural = static_cast<int64_t>(natural_.size());
    if (n_natural < n_filler + 1)
      throw Error::bad_input("the natural text has ", n_natural, " tokens; prompts of ", n_tokens, " need more than ", n_filler, " (--text FILE)");
    const int64_t start = below(n_natural - n_filler);
    filler.assign(natural_.begin() + start, natural_.begin() + start + n_filler);
    at = below(n_filler + 1);
  }
  prompt.depth = static_cast<double>(at) / static_cast<double>(n_filler);
  auto& out = prompt.tokens;
  out = head_;
  out.insert(out.end(), filler.begin(), filler.begin() + at);
  out.insert(out.end(), needle.begin(), needle.end());
  out.insert(out.end(), filler.begin() + at, filler.end());
  out.insert(out.end(), tail_.begin(), tail_.end());
  out.insert(out.end(), answer_start_.begin(), answer_start_.end());
  return prompt;
}

std::vector<PasskeyRow> evaluate_passkey(Engine& engine, const SpanPlan& plan, std::string_view text, const PasskeyOptions& options, Progress& progress) {
  const ChatFormat* format = engine.has_chat_format() ? &engine.chat_format() : nullptr;
  const PasskeyGenerator generator(engine.tokenizer(), format, text);
  std::vector<PasskeyRow> rows;
  std::vector<float> logits(static_cast<size_t>(engine.config().vocab_size));
  int64_t total = 0, done = 0;
  for (int64_t length : options.lengths) {  // what cannot be served is found before the work
    engine.new_sequence(plan, length, options.kv_type);
    for (FillerKind kind : {FillerKind::kRepeated, FillerKind::kNatural}) generator.make(kind, length, options.seed);
  }
  for (int64_t length : options.lengths) total += 2 * options.n_samples * length;
  progress.start("pass key", total);
  for (int64_t length : options.lengths) {
    PasskeyRow row;
    row.length = length;
    for (FillerKind kind : {FillerKind::kRepeated, FillerKind::kNatural})
      for (int64_t sample = 0; sample < options.n_samples; ++sample) {
        const PasskeyPrompt prompt = generator.make(kind, length, options.seed * 7919 + static_cast<uint64_t>(sample));
        const std::unique_ptr<Sequence> sequence = engine.new_sequence(plan, length, options.kv_type);
        row.kv_bytes = sequence->cache().bytes();
        std::vector<TokenId> answer;
        const StepRequest feed{sequence.get(), prompt.tokens, logits.data()};
        engine.step({&feed, 1});
        for (int64_t i = 0; i < kAnswerTokens; ++i) {
          answer.push_back(greedy_token(logits));
          if (i + 1 == kAnswerTokens) break;
          const StepRequest next{sequence.get(), {&answer.back(), 1}, logits.data()};
          engine.step({&next, 1});
        }
        const std::string said = engine.tokenizer().decode(answer);
        const size_t digits = said.find_first_not_of(" \n");
        PasskeyCell& cell = kind == FillerKind::kRepeated ? row.repeated : row.natural;
        ++cell.n;
        cell.n_right += digits != std::string::npos && said.compare(digits, prompt.key.size(), prompt.key) == 0;
        progress.update(done += length);
      }
    rows.push_back(row);
  }
  progress.finish();
  return rows;
}

std::optional<std::string> default_natural_text() {
  std::string text;
  // The longest plain texts first; names are those of Debian's base-files.
  for (const char* name : {"GPL-3", "GFDL-1.3", "MPL-1.1", "LGPL-2.1", "Apache-2.0", "GPL-2", "Artistic"}) {
    std::ifstream file(std::filesystem::path("/usr/share/common-licenses") / name, std::ios::binary);
    if (file) text.append(std::istreambuf_iterator<char>(file), {});
  }
  if (text.empty()) return std::nullopt;
  return text;
}

}  // namespace polyspan
