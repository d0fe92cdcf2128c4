// eval/perplexity.h: perplexity of a text in windows, as llama.cpp measures it.
#pragma once

#include <cstdint>
#include <string_view>

#include "engine/engine.h"

namespace polyspan {

struct PerplexityOptions {
  int64_t window_tokens = 2048;  // each window starts with an empty cache and no BOS
  int64_t n_windows = 0;         // 0: all whole windows of the text
  KvType kv_type = KvType::kF16;
};

struct PerplexityResult {
  double perplexity = 0;
  int64_t n_windows = 0, n_scored = 0;  // tokens scored: those of each window's second half
  int64_t kv_bytes = 0;
};

// The windows that perplexity() will score. Throws the errors that it would, but for those of the model's memory.
int64_t count_windows(const Engine& engine, std::string_view text, const PerplexityOptions& options);

// Throws Error (kBadInput) when the text is shorter than one window, or holds fewer windows than asked for.
PerplexityResult perplexity(Engine& engine, std::string_view text, const SpanPlan& plan,
                            const PerplexityOptions& options, Progress& progress = no_progress());

}  // namespace polyspan
