#include "hydra/cpu_threads.h"

#include <ATen/Parallel.h>
#include <ATen/ThreadLocalState.h>
#include <dlfcn.h>

#include <algorithm>
#include <atomic>

namespace polyspan {
namespace {

// OpenBLAS's threads, where it is what LibTorch multiplies with; else nothing. (MKL follows LibTorch's.)
struct OpenBlas {
  int (*threads)() = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "openblas_get_num_threads"));
  void (*set_threads)(int) = reinterpret_cast<void (*)(int)>(dlsym(RTLD_DEFAULT, "openblas_set_num_threads"));
  bool is_there() const { return threads != nullptr && set_threads != nullptr; }
};

const OpenBlas& open_blas() {
  static const OpenBlas found;
  return found;
}

class OneBlasThread {
 public:
  OneBlasThread() : before_(open_blas().is_there() ? open_blas().threads() : 1) {
    if (before_ > 1) open_blas().set_threads(1);
  }
  ~OneBlasThread() {
    if (before_ > 1) open_blas().set_threads(before_);
  }
  OneBlasThread(const OneBlasThread&) = delete;
  OneBlasThread& operator=(const OneBlasThread&) = delete;

 private:
  int before_;
};

}  // namespace

void set_cpu_threads(int n) {
  at::set_num_threads(n);
  if (open_blas().is_there()) open_blas().set_threads(n);
}

void for_each_part(torch::DeviceType device, int64_t n, const std::function<void(int64_t)>& part) {
  if (device != torch::kCPU || n == 1 || at::get_num_threads() == 1 || at::in_parallel_region()) {
    for (int64_t i = 0; i < n; ++i) part(i);
    return;
  }
  const OneBlasThread one;
  const at::ThreadLocalState callers;
  std::atomic<int64_t> next{0};  // one by one: parts differ, and a busy machine delays threads
  at::parallel_for(0, std::min<int64_t>(n, at::get_num_threads()), 1, [&](int64_t, int64_t) {
    const at::ThreadLocalStateGuard as_caller(callers);
    for (int64_t i = next++; i < n; i = next++) part(i);
  });
}

}  // namespace polyspan
