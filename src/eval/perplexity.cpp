#include "eval/perplexity.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "ops/kernels.h"

namespace polyspan {

namespace {

// The whole windows of a text of this many tokens that are wanted.
int64_t windows_of(int64_t n_tokens, const PerplexityOptions& options) {
  const int64_t window = options.window_tokens;
  if (window < 4) throw Error::usage("windows of ", window, " tokens; at least 4 are needed");
  if (options.n_windows < 0) throw Error::usage(options.n_windows, " windows; at least 1 is needed, or 0 for all");
  const int64_t whole = n_tokens / window;
  if (whole == 0 || whole < options.n_windows)
    throw Error::bad_input("the text has ", n_tokens, " tokens: ", whole, " windows of ", window, ", ",
                           std::max<int64_t>(1, options.n_windows), " wanted");
  return options.n_windows == 0 ? whole : options.n_windows;
}

}  // namespace

int64_t count_windows(const Engine& engine, std::string_view text, const PerplexityOptions& options) {
  return windows_of(std::ssize(engine.tokenizer().encode(text, {})), options);
}

PerplexityResult perplexity(Engine& engine, std::string_view text, const SpanPlan& plan,
                            const PerplexityOptions& options, Progress& progress) {
  const std::vector<TokenId> tokens = engine.tokenizer().encode(text, {});
  const int64_t window = options.window_tokens, n_windows = windows_of(std::ssize(tokens), options), half = window / 2;
  PerplexityResult result;
  result.n_windows = n_windows;
  double total = 0;
  const size_t vocab = static_cast<size_t>(engine.config().vocab_size);
  progress.start("perplexity", n_windows * window);
  for (int64_t w = 0; w < n_windows; ++w) {
    const std::span<const TokenId> part =
        std::span(tokens).subspan(static_cast<size_t>(w * window), static_cast<size_t>(window));
    const std::unique_ptr<Sequence> sequence = engine.new_sequence(plan, window, options.kv_type);
    result.kv_bytes = sequence->cache().bytes();
    engine.score(*sequence, part, half, [&](int64_t first, std::span<const float> logits, int64_t n) {
      for (int64_t i = 0; i < n && first + i + 1 < window; ++i) {
        const float* row = logits.data() + static_cast<size_t>(i) * vocab;
        const float largest = kernels().max_value(row, static_cast<int64_t>(vocab));
        const double log_sum = std::log(kernels().sum_exp(row, static_cast<int64_t>(vocab), largest));
        total += log_sum + largest - row[part[static_cast<size_t>(first + i + 1)]];
        ++result.n_scored;
      }
    });
    progress.update((w + 1) * window);
  }
  progress.finish();
  result.perplexity = std::exp(total / static_cast<double>(result.n_scored));
  return result;
}

}  // namespace polyspan
