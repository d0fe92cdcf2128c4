#include "core/thread_team.h"

#include <sched.h>

#include <fstream>
#include <set>
#include <string>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace polyspan {
namespace {

constexpr int kSpins = 20000;  // about 0.3 to 1 ms of pause instructions

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

}  // namespace

ThreadTeam::ThreadTeam(int n_threads) {
  for (int thread = 1; thread < n_threads; ++thread) workers_.emplace_back([this, thread] { work(thread); });
}

ThreadTeam::~ThreadTeam() {
  stop_.store(true, std::memory_order_relaxed);
  section_.fetch_add(1, std::memory_order_release);
  section_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadTeam::take_items(int thread) {
  for (;;) {
    const int64_t item = next_item_.fetch_add(1, std::memory_order_relaxed);
    if (item >= n_items_) return;
    function_(context_, item, thread);
  }
}

// Closing before counting, and (in work) counting before looking whether it is open, both sequentially consistent: either
// the worker sees the section closed and stays out, or this thread sees the worker inside and waits for it.
void ThreadTeam::run_section(Function function, void* context, int64_t n) {
  function_ = function;
  context_ = context;
  n_items_ = n;
  next_item_.store(0, std::memory_order_relaxed);
  uint32_t section = section_.load(std::memory_order_relaxed) + 1;
  if (section == 0) section = 1;  // 0 means closed
  open_.store(section, std::memory_order_seq_cst);
  section_.store(section, std::memory_order_release);
  section_.notify_all();
  take_items(0);
  open_.store(0, std::memory_order_seq_cst);
  for (int spin = 0; n_inside_.load(std::memory_order_seq_cst) != 0; ++spin) {
    relax();
    if (spin > kSpins) sched_yield();
  }
}

void ThreadTeam::work(int thread) {
  uint32_t seen = 0;
  for (;;) {
    uint32_t section = section_.load(std::memory_order_acquire);
    for (int spin = 0; section == seen; ++spin) {
      if (spin < kSpins) {
        relax();
      } else {
        section_.wait(seen, std::memory_order_acquire);
      }
      section = section_.load(std::memory_order_acquire);
    }
    seen = section;
    if (stop_.load(std::memory_order_relaxed)) return;
    n_inside_.fetch_add(1, std::memory_order_seq_cst);
    // Whatever section is open now may be joined: its items are there to be taken.
    if (open_.load(std::memory_order_seq_cst) != 0) take_items(thread);
    n_inside_.fetch_sub(1, std::memory_order_release);
  }
}

int default_thread_count() {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return 1;
  std::set<std::pair<int, int>> cores;  // (package, core): hyper-threads of one core count once
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    const std::string folder = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
    int package = 0, core = cpu;
    std::ifstream(folder + "physical_package_id") >> package;
    std::ifstream(folder + "core_id") >> core;
    cores.emplace(package, core);
  }
  return cores.empty() ? 1 : static_cast<int>(cores.size());
}

}  // namespace polyspan
