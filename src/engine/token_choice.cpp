#include "engine/token_choice.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <tuple>

#include "core/error.h"

namespace polyspan {

TokenChoice token_choice(std::span<const float> logits, TokenId chosen, int64_t n_top) {
  POLYSPAN_CHECK(chosen >= 0 && chosen < std::ssize(logits) && n_top >= 0);
  const double largest = static_cast<double>(*std::max_element(logits.begin(), logits.end()));
  double total = 0;
  for (const float logit : logits) total += std::exp(static_cast<double>(logit) - largest);
  const double log_total = largest + std::log(total);
  const auto likely = [&](TokenId token) {
    return LikelyToken{token, static_cast<double>(logits[static_cast<size_t>(token)]) - log_total};
  };
  std::vector<TokenId> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  const auto end = ids.begin() + std::min<int64_t>(n_top, std::ssize(ids));
  std::partial_sort(ids.begin(), end, ids.end(), [&](TokenId a, TokenId b) {
    return std::tuple(-logits[static_cast<size_t>(a)], a) < std::tuple(-logits[static_cast<size_t>(b)], b);
  });
  TokenChoice choice{likely(chosen), {}};
  std::transform(ids.begin(), end, std::back_inserter(choice.top), likely);
  return choice;
}

}  // namespace polyspan
