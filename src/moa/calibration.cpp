#include "moa/calibration.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "core/fnv1a.h"
#include "eval/prompt_item.h"
#include "moa/calibration_parts.h"

namespace polyspan {
namespace {

constexpr std::string_view kPasskeyRepeated = "passkey-repeated", kPasskeyNatural = "passkey-natural";
constexpr std::string_view kMultikey = "multikey", kRecords = "records", kCopy = "copy", kSection = "section";
constexpr std::string_view kDocument = "document";
constexpr std::string_view kKinds[] = {kPasskeyRepeated, kPasskeyNatural, kMultikey, kRecords, kCopy,
                                       kSection,         kRunningText};

// Bit 62 is set. Evaluation's pass-key seeds are small numbers (PasskeyGenerator doubles a seed, so bit 63 would be
// lost).
uint64_t sample_seed(uint64_t seed, std::string_view kind, int64_t length, int64_t index) {
  RandomSource random{seed, fnv1a(kind), static_cast<uint64_t>(length), static_cast<uint64_t>(index)};
  constexpr int64_t kBit = int64_t{1} << 62;
  return static_cast<uint64_t>(random.below(kBit) + kBit);
}

// Every other pass key stands within the first sixteenth (but not among the sink tokens), which the longest span short of
// the whole does not reach; the rest are spread evenly over the text. With keys at random places none of a few falls
// there: spans just short of the whole then look free, and a plan loses early keys (retrieval at 4,096 tokens and half the
// cache: 0.85 of dense's against 1.0).
double needle_depth(int64_t length, int64_t index, uint64_t seed) {
  constexpr double kGoldenRatio = 0.6180339887498949, kFirstPart = 0.03;  // of the filler, behind the instruction
  constexpr double kSinkTokens = 32;                                      // likewise
  if (index % 2 == 0)
    return std::max(kSinkTokens / static_cast<double>(length), kFirstPart * RandomSource{seed, 1}.unit());
  const double turns = static_cast<double>(index / 2 + 1) * kGoldenRatio;
  return turns - std::floor(turns);
}

}  // namespace

std::span<const std::string_view> calibration_kinds() { return kKinds; }

struct CalibrationSource::Parts {
  Parts(Engine& engine, CalibrationOptions given, int64_t longest_length)
      : tokenizer(engine.tokenizer()),
        options(std::move(given)),
        longest(longest_length),
        material(tokenizer, engine.has_chat_format() ? &engine.chat_format() : nullptr, options.text, options.apart),
        documents(engine, options.documents) {}

  calibration::Draft draw(std::string_view kind, int64_t length, int64_t index, uint64_t seed) const {
    // Of the two that a dense profile takes one; and the next, which the first step at a length takes.
    const bool apart = options.apart && (index + 1) / 2 % 2 == 1;
    const double depth = needle_depth(length, index, seed);
    const PasskeyVariant variant{1, depth};
    if (kind == kPasskeyRepeated) return material.passkey(FillerKind::kRepeated, length, seed, false, variant);
    if (kind == kPasskeyNatural) return material.passkey(FillerKind::kNatural, length, seed, apart, variant);
    if (kind == kMultikey) return material.multikey(length, seed, apart);
    if (kind == kRecords) return material.records(length, seed, depth);
    if (kind == kCopy) return material.copy(length, seed);
    if (kind == kSection) return material.section(length, seed);
    if (kind == kRunningText) return material.text(length, seed, apart);
    POLYSPAN_CHECK(kind == kDocument && !options.documents.empty(), "no such kind: " + std::string(kind));
    return documents.draw(length, index, seed);
  }

  const Tokenizer& tokenizer;
  CalibrationOptions options;
  int64_t longest;
  calibration::Material material;
  calibration::Documents documents;
};

CalibrationSource::CalibrationSource(Engine& engine, CalibrationOptions options, int64_t longest) {
  check_length(engine, longest);
  parts_ = std::make_unique<Parts>(engine, std::move(options), longest);
  if (const int64_t n = parts_->material.n_tokens(); n < longest)
    throw Error::bad_input("the natural text has ", n, " tokens; calibration at a length of ", longest,
                           " needs as many (--text FILE)");
  parts_->documents.check(longest);
}

CalibrationSource::~CalibrationSource() = default;

CalibrationSample CalibrationSource::make(std::string_view kind, int64_t length, int64_t index) {
  POLYSPAN_CHECK(length >= 1 && length <= parts_->longest && index >= 0, "a length or index that was not announced");
  CalibrationSample sample;
  sample.id = std::to_string(length) + "/" + std::string(kind) + "/" + std::to_string(index);
  sample.kind = kind;
  sample.length = length;
  sample.seed = sample_seed(parts_->options.seed, kind, length, index);
  sample.retrieval = kind != kRunningText;
  calibration::Draft draft;
  try {
    draft = parts_->draw(kind, length, index, sample.seed);
  } catch (const Error& error) {
    throw Error(error.kind(), "calibration sample " + sample.id + ": " + error.what());
  }
  POLYSPAN_CHECK(std::ssize(draft.tokens) <= length && !draft.targets.empty(), sample.id);
  sample.tokens = std::move(draft.tokens);
  sample.targets = std::move(draft.targets);
  if (sample.retrieval) {
    std::vector<TokenId> answer;
    for (const int64_t p : sample.targets) answer.push_back(sample.tokens[static_cast<size_t>(p)]);
    sample.answer = parts_->tokenizer.decode(answer);
  }
  return sample;
}

}  // namespace polyspan
