// core/thread_team.h: a team of threads that spin between short parallel sections.
//
// A decode step of a small model is some 200 parallel sections of a few microseconds each: a task queue that sleeps and
// wakes would cost more than the work. Workers spin for about a millisecond after the last section, then sleep.
//
// Items are handed out one by one, and a section waits only for workers that have taken part in it: where the machine is
// busy and a worker does not get a core, the others do its share and go on. (Waiting for every worker made a step of
// SmolLM2-135M beside two compilers 50 times slower: 7 tokens/s instead of 380.)
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <vector>

namespace polyspan {

// Only one thread at a time may use a team. Bodies must not throw. What an item computes must not depend on which thread
// does it.
class ThreadTeam {
 public:
  // n_threads >= 1, the caller's included.
  explicit ThreadTeam(int n_threads);
  ~ThreadTeam();
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(item, thread) once for every item in [0, n), thread in [0, size()); returns when all have finished.
  template <typename Body>
  void each(int64_t n, Body&& body) {
    if (n <= 0) return;
    if (n == 1 || workers_.empty()) {
      for (int64_t item = 0; item < n; ++item) body(item, 0);
      return;
    }
    run_section([](void* context, int64_t item,
                   int thread) { (*static_cast<std::remove_reference_t<Body>*>(context))(item, thread); },
                const_cast<void*>(static_cast<const void*>(&body)), n);
  }

  // Splits [0, n) into contiguous parts, up to kPartsPerThread a thread: body(begin, end, thread).
  template <typename Body>
  void split(int64_t n, Body&& body) {
    const int64_t n_parts = n < kPartsPerThread * size() ? n : kPartsPerThread * size();
    each(workers_.empty() ? (n > 0 ? 1 : 0) : n_parts, [&](int64_t part, int thread) {
      const int64_t parts = workers_.empty() ? 1 : n_parts;
      body(n * part / parts, n * (part + 1) / parts, thread);
    });
  }

  static constexpr int64_t kPartsPerThread = 4;  // evens out threads that start late

 private:
  using Function = void (*)(void* context, int64_t item, int thread);
  void run_section(Function function, void* context, int64_t n);
  void take_items(int thread);
  void work(int thread);

  // Of the current section; written before it opens.
  Function function_ = nullptr;
  void* context_ = nullptr;
  int64_t n_items_ = 0;

  alignas(64) std::atomic<uint32_t> section_{0};  // counts sections: what workers wait for
  alignas(64) std::atomic<uint32_t> open_{0};     // the section that may be joined; 0: none
  alignas(64) std::atomic<int> n_inside_{0};      // workers that may be using function_ and context_
  alignas(64) std::atomic<int64_t> next_item_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

// Physical cores that this process may run on (its CPU affinity), at least 1.
int default_thread_count();

}  // namespace polyspan
