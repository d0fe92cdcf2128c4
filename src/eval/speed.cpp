#include "eval/speed.h"

#include <algorithm>
#include <chrono>
#include <memory>

#include "engine/sampler.h"

namespace polyspan {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

}  // namespace

SpeedMeter::SpeedMeter(Engine& engine, const SpanPlan& plan, KvType type, uint64_t seed)
    : engine_(engine),
      plan_(plan),
      type_(type),
      random_(seed),
      logits_(static_cast<size_t>(engine.config().vocab_size)) {}

void SpeedMeter::feed(Sequence& sequence, int64_t n) {
  std::vector<TokenId> tokens(static_cast<size_t>(n));
  const auto vocab_size = static_cast<uint64_t>(engine_.config().vocab_size);
  for (TokenId& token : tokens) token = static_cast<TokenId>(random_() % vocab_size);
  const StepRequest request{&sequence, tokens, logits_.data()};
  engine_.step({&request, 1});
}

SpeedRow SpeedMeter::prefill(int64_t n, int64_t n_reps) {
  SpeedRow row{.test = "prefill", .n_tokens = n};
  for (int64_t rep = 0; rep < n_reps; ++rep) {
    const std::unique_ptr<Sequence> sequence = engine_.new_sequence(plan_, n, type_);
    row.kv_bytes = sequence->cache().bytes();
    const Clock::time_point start = Clock::now();
    feed(*sequence, n);
    row.repeats.push_back(static_cast<double>(n) / seconds_since(start));
  }
  row.tokens_per_s = median(row.repeats);
  return row;
}

std::vector<SpeedRow> SpeedMeter::decode_in_turn(const std::vector<int64_t>& depths, int64_t n_tokens, int64_t n_reps) {
  struct Depth {
    std::unique_ptr<Sequence> sequence;
    TokenId token;
    SpeedRow row;
  };
  std::vector<Depth> all;
  for (const int64_t depth : depths) {
    Depth& d = all.emplace_back();
    d.row = {.test = "decode", .n_tokens = n_tokens, .depth = depth};
    d.sequence = engine_.new_sequence(plan_, decode_length(depth, n_tokens, n_reps), type_);
    feed(*d.sequence, depth + 1);
    d.token = greedy_token(logits_);
  }
  for (int64_t rep = 0; rep < n_reps; ++rep)
    for (Depth& d : all) {
      const Clock::time_point start = Clock::now();
      for (int64_t i = 0; i < n_tokens; ++i) {
        const StepRequest next{d.sequence.get(), {&d.token, 1}, nullptr, &d.token};
        engine_.step({&next, 1});
      }
      d.row.repeats.push_back(static_cast<double>(n_tokens) / seconds_since(start));
    }
  std::vector<SpeedRow> rows;
  for (Depth& d : all) {
    SpeedRow& row = d.row;
    row.tokens_per_s = median(row.repeats);
    row.kv_bytes = d.sequence->cache().bytes();
    // Half a repetition's growth is ignored.
    const double filled = static_cast<double>(row.depth + 1) / static_cast<double>(d.sequence->cache().max_tokens());
    const double bytes = static_cast<double>(engine_.model().bytes_per_token()) +
                         static_cast<double>(row.kv_bytes) * std::min(1.0, filled);
    row.bytes_per_token = static_cast<int64_t>(bytes);
    row.gb_per_s = bytes * row.tokens_per_s / 1e9;
    rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace polyspan
