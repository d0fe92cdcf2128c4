// core/progress.h: how long work tells how far it is. The library calls it; only the command line prints.
#pragma once

#include <cstdint>
#include <string_view>

namespace polyspan {

class Progress {
 public:
  virtual ~Progress() = default;
  // A new piece of work of `total` units (tokens, bytes, samples) begins.
  virtual void start(std::string_view /*what*/, int64_t /*total*/) {}
  // `done` of the total are finished. Called from one thread; may be called often.
  virtual void update(int64_t /*done*/) {}
  virtual void finish() {}
};

// Says nothing.
inline Progress& no_progress() {
  static Progress silent;
  return silent;
}

}  // namespace polyspan
