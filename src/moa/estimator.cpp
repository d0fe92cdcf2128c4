#include "moa/estimator.h"

#include <array>

#include "core/error.h"

namespace polyspan {
namespace {

constexpr std::array<std::string_view, 3> kNames = {"span", "span-abs", "pairwise"};

}  // namespace

std::string_view estimator_name(Estimator estimator) { return kNames[static_cast<size_t>(estimator)]; }

Estimator estimator_by_name(std::string_view name) {
  for (size_t i = 0; i < kNames.size(); ++i)
    if (kNames[i] == name) return static_cast<Estimator>(i);
  throw Error::usage("unknown influence estimator \"", name, "\" (known: span, span-abs, pairwise)");
}

}  // namespace polyspan
