// eval/longeval.h: line retrieval after LongEval (lmsys.org/blog/2023-06-29-longchat, "longchat lines"): many lines of the
// form "line calm-river: REGISTER_CONTENT is <12345>", one of them asked for.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "eval/prompt_item.h"

namespace polyspan {

struct LongEvalOptions {
  std::vector<int64_t> lengths = {1024, 2048, 4096};
  int64_t n_samples = 8;  // prompts a length
  uint64_t seed = 1;
};
// Prompts of at most the lengths (as many lines as fit). Throws Error (kBadInput) for lengths that hold fewer than two lines.
std::vector<PromptItem> longeval_items(const Engine& engine, const LongEvalOptions& options);

// A record of the published JSONL form: its prompt and the number expected. Other fields are not needed.
struct LongEvalRecord {
  std::string prompt;
  std::string expected_number;
};
// Throws Error (kBadFile) naming the line for what is not of this form, and for files without a record.
std::vector<LongEvalRecord> read_longeval(const std::filesystem::path& path);

// One row for each file, in order; its length is that of the longest prompt with its answer. n_samples: of each file the
// first ones; absent: all.
std::vector<PromptItem> longeval_file_items(const Engine& engine, const std::vector<std::vector<LongEvalRecord>>& files,
                                            std::optional<int64_t> n_samples);

}  // namespace polyspan
