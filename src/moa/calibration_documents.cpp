// Calibration on the user's own documents and questions.
#include <algorithm>
#include <numeric>
#include <unordered_map>

#include "core/error.h"
#include "engine/generate.h"
#include "eval/jsonl.h"
#include "eval/prompt_frame.h"
#include "moa/calibration_parts.h"

namespace polyspan {
namespace {

constexpr int64_t kAnswerTokens = 48;       // of a generated answer, at most
constexpr int64_t kMostAnswerTokens = 256;  // of a given one: what is longer is cut
constexpr std::string_view kBefore = "Read the following text. Afterwards I ask a question about it.\n\n";

bool is_blank(std::string_view text) { return text.find_first_not_of(" \t\r\n\f\v") == std::string_view::npos; }

std::string text_field(const nlohmann::json& object, const char* name) {
  std::string text = string_field(object, name);
  if (is_blank(text)) throw Error::bad_input("the field \"", name, "\" is empty");
  return text;
}

// In an error: 'document 3 ("What is the name of ...")'.
std::string named(const CalibrationDocument& document, size_t index) {
  std::string question = document.question.substr(0, 60);
  std::replace(question.begin(), question.end(), '\n', ' ');
  return "document " + std::to_string(index + 1) + " (\"" + question +
         (question.size() < document.question.size() ? "..." : "") + "\")";
}

// A model without a chat format has a word to answer after.
std::string_view answer_opening(const Engine& engine) { return engine.has_chat_format() ? "" : "Answer:"; }

PromptFrame frame_of(const Engine& engine, const CalibrationDocument& document) {
  return {engine.tokenizer(), engine.has_chat_format() ? &engine.chat_format() : nullptr, kBefore,
          "\n\nQuestion: " + document.question, answer_opening(engine)};
}

std::vector<TokenId> given_answer(const Engine& engine, const std::string& answer) {
  const std::string text = answer.substr(answer.find_first_not_of(" \t\r\n\f\v"));
  std::vector<TokenId> tokens = calibration::continuation(engine.tokenizer(), answer_opening(engine),
                                                          answer_opening(engine).empty() ? text : " " + text);
  tokens.resize(std::min<size_t>(tokens.size(), kMostAnswerTokens));
  return tokens;
}

std::vector<TokenId> generated_answer(Engine& engine, std::span<const TokenId> prompt) {
  const SpanPlan dense = SpanPlan::dense(engine.config().head_shape());
  const auto sequence = engine.new_sequence(dense, std::ssize(prompt) + kAnswerTokens, KvType::kF16);
  GenerateResult result = generate(engine, *sequence, prompt, {.max_tokens = kAnswerTokens});
  if (result.ended_with_token) result.tokens.pop_back();
  if (is_blank(result.text)) result.tokens.clear();
  return std::move(result.tokens);
}

}  // namespace

std::vector<CalibrationDocument> read_documents(const std::filesystem::path& path) {
  std::vector<CalibrationDocument> documents;
  read_jsonl(path, [&](const nlohmann::json& object, int64_t) {
    CalibrationDocument document{text_field(object, "context"), text_field(object, "question"), std::nullopt};
    if (const auto answer = object.find("answer"); answer != object.end() && !answer->is_null())
      document.answer = text_field(object, "answer");
    documents.push_back(std::move(document));
  });
  return documents;
}

namespace calibration {

Documents::Documents(Engine& engine, std::span<const CalibrationDocument> documents)
    : engine_(engine), documents_(documents), between_(continuation(engine.tokenizer(), "end.", "\n\n")) {
  // Several questions about one text are common: it is joined once.
  std::unordered_map<std::string_view, size_t> known;
  for (size_t i = 0; i < documents_.size(); ++i) {
    const CalibrationDocument& document = documents_[i];
    if (is_blank(document.context) || is_blank(document.question) || (document.answer && is_blank(*document.answer)))
      throw Error::bad_input(named(document, i), " has an empty context, question or answer");
    const auto [place, is_new] = known.try_emplace(document.context, contexts_.size());
    if (is_new) contexts_.push_back(engine.tokenizer().encode(document.context, {}));
    context_of_.push_back(place->second);
  }
}

void Documents::check(int64_t longest) const {
  int64_t joined = 0;
  for (const std::vector<TokenId>& context : contexts_)
    joined += std::ssize(context) + (joined > 0 ? std::ssize(between_) : 0);
  for (size_t i = 0; i < documents_.size(); ++i)
    if (const int64_t found = frame_of(engine_, documents_[i]).size() + joined; found < (longest + 1) / 2)
      throw Error::bad_input(named(documents_[i], i), " has ", found,
                             " tokens with its question and the contexts of all other documents; "
                             "a profile length of ",
                             longest, " wants at least ", (longest + 1) / 2, " (longer or more documents)");
}

std::vector<TokenId> Documents::body(size_t document, int64_t budget, uint64_t seed) const {
  const std::vector<TokenId>& own = contexts_[context_of_[document]];
  if (const int64_t excess = std::ssize(own) - budget; excess >= 0) {
    std::vector<TokenId> cut = own;
    cut.erase(cut.begin() + budget / 2, cut.begin() + budget / 2 + excess);
    return cut;
  }
  // Others until the room is full, the last of them cut; then its own at a random place among them.
  RandomSource random{seed};
  std::vector<size_t> others(contexts_.size());
  std::iota(others.begin(), others.end(), size_t{0});
  others.erase(others.begin() + static_cast<std::ptrdiff_t>(context_of_[document]));
  random.shuffle(others);
  std::vector<std::vector<TokenId>> pieces;
  int64_t room = budget - std::ssize(own);
  for (const size_t other : others) {
    room -= std::ssize(between_);
    if (room <= 0) break;
    std::vector<TokenId> piece = contexts_[other];
    piece.resize(static_cast<size_t>(std::min(std::ssize(piece), room)));
    room -= std::ssize(piece);
    pieces.push_back(std::move(piece));
  }
  pieces.insert(pieces.begin() + random.between(0, std::ssize(pieces)), own);
  Draft out;
  for (const std::vector<TokenId>& piece : pieces) {
    if (!out.tokens.empty()) out.append(between_);
    out.append(piece);
  }
  return std::move(out.tokens);
}

Draft Documents::draw(int64_t length, int64_t index, uint64_t seed) const {
  const size_t at = static_cast<size_t>(index) % documents_.size();
  const CalibrationDocument& document = documents_[at];
  const PromptFrame frame = frame_of(engine_, document);
  std::vector<TokenId> answer;
  if (document.answer) answer = given_answer(engine_, *document.answer);
  const int64_t fixed = frame.size() + (document.answer ? std::ssize(answer) : kAnswerTokens);
  if (fixed >= length)
    throw Error::bad_input(named(document, at), ": question and answer need ", fixed, " tokens, a length of ", length,
                           " has no room for its context");
  Draft draft;
  draft.append(frame.head);
  draft.append(body(at, length - fixed, seed));
  draft.append(frame.tail);
  if (!document.answer) answer = generated_answer(engine_, draft.tokens);
  if (answer.empty())
    throw Error::bad_input("the dense model answers nothing to ", named(document, at), " at a length of ", length,
                           " tokens; ask otherwise, or give its \"answer\"");
  draft.append_answer(answer);
  return draft;
}

}  // namespace calibration
}  // namespace polyspan
