// hydra/block_kernels.h: what a block does token by token, a kernel each where LibTorch takes several: norm, rotary
// embedding, SwiGLU, and the sum of a block's paths. Bound by memory, all of them. Pointers are a GPU's, rows contiguous.
#pragma once

#include "hydra/ssm_kernels.h"

namespace polyspan::hydra {

// y = x scale weight, scale = 1 / rms(x). x, y [n_rows, d], float32; scale [n_rows]. REQUIRES: d % 4 == 0, d <= 4,096.
void norm_forward(const float* x, const float* weight, float eps, int64_t n_rows, int64_t d, float* y, float* scale,
                  Stream stream);
// d_weight [norm_partial_rows(n_rows), d] is for the caller to add up.
void norm_backward(const float* x, const float* weight, const float* scale, const float* d_y, int64_t n_rows, int64_t d,
                   float* d_x, float* d_weight, Stream stream);
int64_t norm_partial_rows(int64_t n_rows);
inline constexpr int64_t kMostNormed = 4096;

// Rotates the pairs (2i, 2i + 1) of each head by position base^(-2i / head_dim), the position being the row modulo n_tokens;
// `back`: the other way, which is the gradient. x, y [n_rows, n_heads, head_dim], float32 or both bf16. Angles in double.
// REQUIRES: head_dim is even and at most 512.
void rope(const void* x, bool is_bf16, int64_t n_rows, int64_t n_tokens, int64_t n_heads, int64_t head_dim, double base,
          bool back, void* y, Stream stream);

// h = silu(gate) up factor: gate, up, h [n_rows, d], bf16; factor [n_rows]. REQUIRES: d % 4 == 0.
void swiglu_forward(const Bf16* gate, const Bf16* up, const float* factor, int64_t n_rows, int64_t d, Bf16* h,
                    Stream stream);
// From d_h: the gradients, and h again. d_factor [n_rows].
void swiglu_backward(const Bf16* gate, const Bf16* up, const float* factor, const Bf16* d_h, int64_t n_rows, int64_t d,
                     Bf16* d_gate, Bf16* d_up, Bf16* h, float* d_factor, Stream stream);

// y = x + sum_i path_i multiplier_i: each chunk of chunk_len rows has its multipliers, n_multipliers in a row.
inline constexpr int kMostPaths = 6;
struct PathSum {
  int n_paths;
  const void* paths[kMostPaths];  // [n_chunks * chunk_len, d], bf16 or float32
  bool is_bf16[kMostPaths];
  int multiplier[kMostPaths];  // which; -1: none
  float share[kMostPaths];     // a further factor
  int64_t n_chunks, chunk_len, d;
  int n_multipliers;
};
// x, y float32. REQUIRES: d % 4 == 0.
void path_sum_forward(const PathSum& sum, const float* x, const float* multipliers, float* y, Stream stream);
// d_paths in the paths' types; d_multipliers [n_chunks, n_multipliers].
void path_sum_backward(const PathSum& sum, const float* multipliers, const float* d_y, void* const* d_paths,
                       float* d_multipliers, Stream stream);

}  // namespace polyspan::hydra
