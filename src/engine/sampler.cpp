#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <unordered_set>

#include "core/error.h"

namespace polyspan {

void SamplingOptions::check() const {
  const auto within = [](const char* name, double value, double low, double high) {
    if (!(value >= low && value <= high))
      throw Error::usage(name, " is ", value, "; it must be between ", low, " and ", high);
  };
  within("temperature", temperature, 0, 100);
  within("top-k", static_cast<double>(top_k), 0, 1e9);
  within("top-p", top_p, 0, 1);
  within("min-p", min_p, 0, 1);
  within("repetition penalty", repetition_penalty, 0.01, 100);
}

Sampler::Sampler(const SamplingOptions& options) : options_(options), random_(options.seed) { options_.check(); }

TokenId greedy_token(std::span<const float> logits) {
  size_t best = 0;
  while (best < logits.size() && std::isnan(logits[best])) ++best;
  if (best == logits.size()) return 0;
  for (size_t id = best + 1; id < logits.size(); ++id)
    if (logits[id] > logits[best]) best = id;
  return static_cast<TokenId>(best);
}

TokenRule Sampler::next_rule() {
  TokenRule rule{.temperature = options_.temperature,
                 .top_k = static_cast<int32_t>(options_.top_k),
                 .top_p = options_.top_p,
                 .min_p = options_.min_p};
  // From the top 53 bits: the same on every standard library.
  if (rule.temperature != 0.0f) rule.uniform = static_cast<double>(random_() >> 11) * 0x1p-53;
  return rule;
}

TokenId Sampler::sample(std::span<float> logits, std::span<const TokenId> history) {
  if (options_.repetition_penalty != 1.0f) {
    const size_t n = std::min(history.size(), static_cast<size_t>(std::max<int64_t>(0, options_.repetition_window)));
    const std::unordered_set<TokenId> recent(history.end() - static_cast<std::ptrdiff_t>(n), history.end());
    for (TokenId id : recent) {
      float& logit = logits[static_cast<size_t>(id)];
      logit = logit > 0 ? logit / options_.repetition_penalty : logit * options_.repetition_penalty;
    }
  }
  return choose_token(logits, next_rule());
}

TokenId choose_token(std::span<const float> logits, const TokenRule& rule) {
  if (rule.temperature == 0.0f) return greedy_token(logits);

  // Candidates in order of likelihood; a NaN logit can never be chosen.
  struct Candidate {
    TokenId id;
    float logit;
  };
  thread_local std::vector<Candidate> candidates;  // kept: a vocabulary of them is a megabyte
  candidates.clear();
  for (size_t id = 0; id < logits.size(); ++id)
    if (!std::isnan(logits[id])) candidates.push_back({static_cast<TokenId>(id), logits[id]});
  if (candidates.empty()) return greedy_token(logits);
  const size_t k = rule.top_k == 0 ? candidates.size() : std::min(candidates.size(), static_cast<size_t>(rule.top_k));
  std::partial_sort(
      candidates.begin(), candidates.begin() + static_cast<std::ptrdiff_t>(k), candidates.end(),
      [](const Candidate& a, const Candidate& b) { return a.logit != b.logit ? a.logit > b.logit : a.id < b.id; });
  candidates.resize(k);

  std::vector<double> weights(k);
  double total = 0;
  for (size_t i = 0; i < k; ++i)
    total += weights[i] = std::exp((static_cast<double>(candidates[i].logit) - candidates[0].logit) /
                                   static_cast<double>(rule.temperature));
  size_t kept = 0;
  double kept_weight = 0;
  while (kept < k && weights[kept] >= static_cast<double>(rule.min_p) * weights[0] &&
         (kept == 0 || kept_weight < static_cast<double>(rule.top_p) * total))
    kept_weight += weights[kept++];
  double at = rule.uniform * kept_weight;
  for (size_t i = 0; i + 1 < kept; ++i) {
    if (at < weights[i]) return candidates[i].id;
    at -= weights[i];
  }
  return candidates[kept == 0 ? 0 : kept - 1].id;
}

}  // namespace polyspan
