#include "model/kept_layers.h"

#include <algorithm>

namespace polyspan {

int64_t KeptLayers::ffn_bytes(int64_t n) const {
  return n * (d_model_ * static_cast<int64_t>(sizeof(float)) + 2 * d_ff_ * static_cast<int64_t>(sizeof(uint16_t)));
}

int64_t KeptLayers::attention_bytes(int64_t n) const {
  return n * (q_dim_ + 2 * kv_dim_) * static_cast<int64_t>(sizeof(float));
}

KeptLayers::Counts KeptLayers::counts(int64_t n, int64_t budget) const {
  const int64_t n_ffn = std::min(n_ffn_layers_, budget / ffn_bytes(n));
  return {n_ffn, std::min(n_layers_, (budget - n_ffn * ffn_bytes(n)) / attention_bytes(n))};
}

int64_t KeptLayers::bytes_needed(int64_t n, int64_t budget) const {
  const Counts of = counts(n, budget);
  return of.n_ffn * ffn_bytes(n) + of.n_attention * attention_bytes(n);
}

void KeptLayers::reserve(int64_t n, int64_t budget) {
  if (memory_.size_bytes() != budget) {
    release();
    if (available_memory_bytes() < budget) return;
    memory_ = HugeBuffer(budget, "what is kept for the backward pass");
  }
  kept_ = counts(n, budget);
  n_tokens_ = n;
}

void KeptLayers::release() {
  kept_ = {};
  memory_ = HugeBuffer();
}

}  // namespace polyspan
