// core/whole_progress.h: one progress for several pieces of work, of a total known before.
#pragma once

#include <cstdint>
#include <string_view>

#include "core/progress.h"

namespace polyspan {

// Each piece calls start() with its own total; what is shown is the share of the whole. `shown` must outlive it.
class WholeProgress final : public Progress {
 public:
  WholeProgress(Progress& shown, std::string_view what, int64_t total) : shown_(shown) { shown_.start(what, total); }
  void start(std::string_view, int64_t total) override {
    before_ += piece_;
    piece_ = total;
  }
  void update(int64_t done) override { shown_.update(before_ + done); }

 private:
  Progress& shown_;
  int64_t before_ = 0, piece_ = 0;
};

}  // namespace polyspan
