// eval/ruler.h: the thirteen kinds of task of RULER (arXiv 2404.06654, table 2 and appendix B) as generators. The wording is
// ours, there are no examples in the prompts, and the two question-answering kinds stand on facts that the generator makes
// (the paper's take SQuAD and HotpotQA): see docs/eval.md.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "eval/prompt_item.h"

namespace polyspan {

struct RulerOptions {
  std::vector<int64_t> lengths = {1024, 2048, 4096};
  int64_t n_samples = 8;  // prompts a length and kind
  uint64_t seed = 1;
  std::vector<std::string> kinds = {};  // empty: all
};

// "niah_single_1", ..., "qa_2".
std::span<const std::string_view> ruler_kinds();
// Throws Error (kUsage) naming the kinds there are for one that is not.
void check_ruler_kinds(std::span<const std::string> kinds);

// Prompts of at most the lengths, room for the answer included: filler as far as whole sentences, lines or documents fit.
// `text` is the natural filler. Throws Error: kBadInput for a length that is too short for a kind or beyond the context, and
// a text that is too short.
std::vector<PromptItem> ruler_items(const Engine& engine, std::string_view text, const RulerOptions& options);

}  // namespace polyspan
