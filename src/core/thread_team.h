// core/thread_team.h: a team of threads that spin between short parallel sections.
//
// A decode step of a small model is some 200 parallel sections of a few microseconds each: a task queue that sleeps and
// wakes would cost more than the work. Workers spin for about a millisecond after the last section, then sleep.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

namespace polyspan {

// Only one thread at a time may use a team. Bodies must not throw.
class ThreadTeam {
 public:
  // n_threads >= 1, the caller's included.
  explicit ThreadTeam(int n_threads);
  ~ThreadTeam();
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(thread) once on every thread, thread in [0, size()); returns when all have finished.
  template <typename Body>
  void run(Body&& body) {
    if (workers_.empty()) {
      body(0);
      return;
    }
    start([](void* context, int thread) { (*static_cast<std::remove_reference_t<Body>*>(context))(thread); }, &body);
    body(0);
    wait();
  }

  // Splits [0, n) into one contiguous part a thread: body(begin, end). For work that is even and memory-bound.
  template <typename Body>
  void split(int64_t n, Body&& body) {
    if (n <= 0) return;
    if (n == 1 || workers_.empty()) {
      body(int64_t{0}, n);
      return;
    }
    run([&](int thread) {
      const int64_t begin = n * thread / size(), end = n * (thread + 1) / size();
      if (begin < end) body(begin, end);
    });
  }

  // Hands out items one by one: body(item, thread). For uneven work; an item's result must not depend on who does it.
  template <typename Body>
  void each(int64_t n, Body&& body) {
    if (n <= 0) return;
    if (n == 1 || workers_.empty()) {
      for (int64_t item = 0; item < n; ++item) body(item, 0);
      return;
    }
    next_item_.store(0, std::memory_order_relaxed);
    run([&](int thread) {
      for (;;) {
        const int64_t item = next_item_.fetch_add(1, std::memory_order_relaxed);
        if (item >= n) break;
        body(item, thread);
      }
    });
  }

 private:
  using Function = void (*)(void* context, int thread);
  void start(Function function, void* context);
  void wait();
  void work(int thread);

  Function function_ = nullptr;
  void* context_ = nullptr;
  alignas(64) std::atomic<uint32_t> section_{0};  // counts sections; odd/even has no meaning
  alignas(64) std::atomic<int> n_running_{0};
  alignas(64) std::atomic<int64_t> next_item_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

// Physical cores that this process may run on (its CPU affinity), at least 1.
int default_thread_count();

}  // namespace polyspan
