#include "core/error.h"

#include <cstdio>
#include <cstdlib>

namespace polyspan {

void check_failed(const char* condition, const char* file, int line, const std::string& message) {
  std::fprintf(stderr, "polyspan: internal error: %s:%d: %s%s%s\n", file, line, condition, message.empty() ? "" : ": ",
               message.c_str());
  std::abort();
}

}  // namespace polyspan
