// eval/longbench.h: LongBench (arXiv 2308.14508) on local files of its published JSONL form, scored with its measures. The
// wording of the prompts is ours. English and code data sets; the Chinese ones need a word segmenter.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "eval/prompt_item.h"

namespace polyspan {

struct LongBenchRecord {
  std::string dataset, input, context;
  std::vector<std::string> answers;  // at least one
  std::vector<std::string> classes;  // trec only
};

// Fields read: dataset, input, context, answers, all_classes. Throws Error: kIo, kBadFile naming the line for what is not of
// this form, for a data set that is not known, and for files without a record.
std::vector<LongBenchRecord> read_longbench(const std::filesystem::path& path);

struct LongBenchOptions {
  std::vector<int64_t> lengths = {};      // contexts, one row each; empty: the model's own
  std::optional<int64_t> n_samples = {};  // the first ones of each data set; absent: all
};
// Prompts that are longer than a context lose their middle, as in the paper. An item is planned for its own prompt and
// answer. Kinds are data sets. Throws Error (kBadInput) for contexts that hold no prompt.
std::vector<PromptItem> longbench_items(const Engine& engine, const std::vector<LongBenchRecord>& records,
                                        const LongBenchOptions& options);

// "token F1", ... of a data set that read_longbench has let through.
ScoreRule longbench_rule(const std::string& dataset);

}  // namespace polyspan
