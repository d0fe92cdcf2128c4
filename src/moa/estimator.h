// moa/estimator.h: how the influence of a head's keys becomes the loss that a span costs (docs/compress.md).
#pragma once

#include <string_view>

namespace polyspan {

enum class Estimator {
  kSpan,      // mean over samples of the positive part of the signed change, plus squares (default)
  kSpanAbs,   // sum over rows of |effect of removing the whole set|
  kPairwise,  // sum over rows and removed keys of |effect of removing that key alone| (the paper)
};

std::string_view estimator_name(Estimator estimator);
// "span", "span-abs", "pairwise"; throws Error (kUsage) for anything else.
Estimator estimator_by_name(std::string_view name);

}  // namespace polyspan
