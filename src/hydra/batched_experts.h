// hydra/batched_experts.h: grouped_experts of experts.h with one product for all experts, where LibTorch has grouped products
// (2.9 and later), in bf16. Which chunks go to which expert stays on the device: nothing waits for the host.
#pragma once

#include "hydra/torch.h"

namespace polyspan {

// x [n_chunks, chunk_len, d_model] where the kernels are (hydra/device_stream.h), with products in bf16, and sizes that the products take.
bool batched_experts_take(const torch::Tensor& x, const torch::Tensor& gate);

// experts, weights [n_chunks, n_active] -> [n_chunks, chunk_len, d_model], bf16. A row's sums do not depend on the other
// rows. REQUIRES: batched_experts_take(x, gate), or what the tests do on a CPU.
torch::Tensor batched_experts(const torch::Tensor& x, const torch::Tensor& experts, const torch::Tensor& weights,
                              const torch::Tensor& gate, const torch::Tensor& up, const torch::Tensor& down);

}  // namespace polyspan
