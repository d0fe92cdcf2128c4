// ops/context.h: what every op needs to run: the threads and one scratch memory for each of them.
#pragma once

#include <cstddef>
#include <vector>

#include "core/huge_buffer.h"
#include "core/thread_team.h"

namespace polyspan {

class OpContext {
 public:
  explicit OpContext(int n_threads) : team_(n_threads), scratch_(static_cast<size_t>(n_threads)) {}

  ThreadTeam& team() { return team_; }
  int n_threads() const { return team_.size(); }

  // Makes every thread's scratch at least `bytes` large. Call outside parallel sections.
  void reserve_scratch(int64_t bytes) {
    for (HugeBuffer& buffer : scratch_)
      if (buffer.size_bytes() < bytes) buffer = HugeBuffer(bytes, "working memory");
  }
  std::byte* scratch(int thread) const { return scratch_[static_cast<size_t>(thread)].data(); }

 private:
  ThreadTeam team_;
  std::vector<HugeBuffer> scratch_;
};

}  // namespace polyspan
