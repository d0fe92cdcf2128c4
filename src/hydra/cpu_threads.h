// hydra/cpu_threads.h: the threads with which LibTorch computes on a CPU.
#pragma once

#include <functional>

#include "hydra/torch.h"

namespace polyspan {

// Of LibTorch's loops and of its products of matrices. The latter have threads of their own where they are OpenBLAS's (Debian's
// LibTorch), which at::set_num_threads does not reach. REQUIRES: n >= 1.
void set_cpu_threads(int n);

// Calls part(0) to part(n - 1): on a CPU several at once, each on one thread, products of matrices included; elsewhere in
// turn. Parts must not depend on each other. Precision and whether gradients are recorded are the caller's.
void for_each_part(torch::DeviceType device, int64_t n, const std::function<void(int64_t)>& part);

}  // namespace polyspan
