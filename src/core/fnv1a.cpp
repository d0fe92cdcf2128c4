#include "core/fnv1a.h"

#include <cstdio>

namespace polyspan {

std::string Fnv1a::hex() const {
  char text[20];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(value_));
  return text;
}

}  // namespace polyspan
