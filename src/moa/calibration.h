// moa/calibration.h: what a model is profiled and validated on: long prompts with answers that need far keys, and
// running text. Source: MoA (arXiv 2406.14909) section 4.1 (long-range dependency, answers of the dense model's own).
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/engine.h"

namespace polyspan {

// A token sequence and the tokens in it that the loss is taken on. Whether the dense model predicts them is found out
// when the sample is profiled: what it gets wrong of a retrieval sample carries no signal and is to be set aside. A
// pass key (all kinds of them) is right as a whole; of the long answers of "copy", "section" and of documents a small
// model misses a token in ten, so that targets are set aside rather than samples (shares: calibration_kinds.cpp).
struct CalibrationSample {
  std::string id;                // "4096/passkey-natural/3"
  std::string kind;              // "passkey-natural": samples of a kind are normalised together
  int64_t length = 0;            // planned length: tokens.size() <= length
  uint64_t seed = 0;             // of this sample
  std::vector<TokenId> tokens;   // prompt and answer
  std::vector<int64_t> targets;  // ascending positions p >= 1 of scored tokens: tokens[p] is predicted from row p - 1
  bool retrieval = true;         // false: running text, scored whatever the model predicts
  std::string answer;            // as text, for people
};

// A user's document: JSONL with "context", "question" and, optionally, "answer" (null is as good as absent).
struct CalibrationDocument {
  std::string context, question;
  std::optional<std::string> answer;  // absent: the dense model's own answer is taken
};
// Throws Error: kIo; kBadFile naming the line for fields that are missing, no text, or blank.
std::vector<CalibrationDocument> read_documents(const std::filesystem::path& path);

struct CalibrationOptions {
  uint64_t seed = 1;
  std::string text;                            // natural text: fillers, running text, sections
  std::vector<CalibrationDocument> documents;  // empty: built-in generators only
  bool apart = false;  // half of the samples of "passkey-natural", "multikey" and "text" are of words_apart(text)
};

// The kind whose samples are no retrieval.
inline constexpr std::string_view kRunningText = "text";

// The kinds of the built-in generators, in the order in which they are drawn:
// - "passkey-repeated", "passkey-natural": the pass-key prompts of `polyspan eval` with their digits behind them; the
//   digits are scored. Other prompts than the evaluation's, whatever the seeds (below 2^48).
// - "multikey": four to six named keys in natural text, one asked for.
// - "records": a list of names with their numbers that fills the prompt, one asked for: what LongEval's lines need. Small
//   models answer short lists only.
// - "copy": a passage of 64 to 96 tokens that stands anywhere in the text is begun again at its end with 16 tokens; the
//   rest is scored. No chat format.
// - "section": a question in the chat format that quotes the beginning of a sentence of the text, about 10 tokens, and
//   asks for all of it. The answer is opened with the quote and a few words more; at most 48 tokens after it are
//   scored.
// - "text": running text, the second half scored, evenly thinned to at most 2,048 targets.
std::span<const std::string_view> calibration_kinds();

// Draws samples one by one: sample `index` of a kind and length depends on nothing but (seed, kind, length, index,
// texts), and on the tokenizer and chat format, so that a run can be resumed or lengthened anywhere. Samples of the
// built-in kinds have exactly `length` tokens. The natural kinds of different indices may overlap in the text.
class CalibrationSource {
 public:
  // Throws Error (kBadInput) where the model's context or the natural text is too short for `longest`, or where a
  // document with the contexts of all others does not reach half of it.
  CalibrationSource(Engine& engine, CalibrationOptions options, int64_t longest);
  ~CalibrationSource();

  // kind: one of calibration_kinds(), or "document" where there are documents; sample `index` asks about document
  // index % documents. A document whose context is longer than the length loses its middle; one that is shorter is
  // joined with others' contexts in random order. "document" generates the answer greedily with the dense model where
  // none is given (at most 48 tokens, the end token not counted); every other kind costs no forward pass. Throws Error
  // (kBadInput) for lengths that do not hold the question, and naming the document that the model answers with nothing.
  // REQUIRES: 1 <= length <= longest; index >= 0.
  CalibrationSample make(std::string_view kind, int64_t length, int64_t index);

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace polyspan
