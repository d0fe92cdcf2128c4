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

void ThreadTeam::start(Function function, void* context) {
  function_ = function;
  context_ = context;
  n_running_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
  section_.fetch_add(1, std::memory_order_release);
  section_.notify_all();
}

void ThreadTeam::wait() {
  for (int spin = 0; n_running_.load(std::memory_order_acquire) != 0; ++spin) {
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
    function_(context_, thread);
    n_running_.fetch_sub(1, std::memory_order_release);
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
