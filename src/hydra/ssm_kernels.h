// hydra/ssm_kernels.h: the middle of the state-space path on a GPU in a few kernels: what lies between its two products.
//
//   in = [z, x B C, dt] of each token     xbc = silu(conv(x B C) + bias), dt = softplus(dt + bias)
//   y = scan(xbc, dt) + D x               out = rmsnorm(y silu(z)) weight
// The mathematics is hydra/ssm.h's and hydra/scan.h's; they are the oracle. Activations are bf16, sums float32, decays are
// float32 from sums in double. The scan's chunks have kScanChunk tokens, whatever the model's chunk_len is; a sequence's
// last chunk may be shorter.
#pragma once

#include <cstdint>

namespace polyspan::hydra {

using Bf16 = uint16_t;  // the bits of a bf16
using Stream = void*;   // a cudaStream_t

inline constexpr int64_t kScanChunk = 64;

struct SsmSizes {
  int64_t n_seqs, n_tokens;  // of a sequence
  int64_t n_heads, head_dim, d_state, d_conv;
  constexpr int64_t d_inner() const { return n_heads * head_dim; }
  constexpr int64_t d_channels() const { return d_inner() + 2 * d_state; }
  constexpr int64_t d_in() const { return d_inner() + d_channels() + n_heads; }
  constexpr int64_t n_chunks() const { return (n_tokens + kScanChunk - 1) / kScanChunk; }  // of a sequence
  constexpr int64_t all_chunks() const { return n_seqs * n_chunks(); }
  constexpr int64_t all_tokens() const { return n_seqs * n_tokens; }
  // Blocks of heads that a chunk's work is split into, so that there is enough for a GPU when chunks are few.
  int64_t n_head_groups() const;
  // head_dim 32 or 64, d_state 64 or 128, d_conv <= 4, d_in a multiple of 4, d_inner at most 4,096, at most 2^20 tokens.
  bool supported() const;
};

// Weights, float32: conv [d_channels, d_conv], conv_bias [d_channels], dt_bias, a_log, d [n_heads], norm [d_inner].
struct SsmWeights {
  const float *conv, *conv_bias, *dt_bias, *a_log, *d, *norm;
  float eps;
};

// What the forward pass computes. `in` [all_tokens, d_in] is given; the rest is written.
struct SsmActivations {
  const Bf16* in;
  Bf16* xbc;         // [all_tokens, d_channels]
  float *dt, *sums;  // [all_chunks, n_heads, kScanChunk]: dt (0 behind the end), and sums of dt A within the chunk
  float* added;      // [all_chunks, n_heads, head_dim, d_state]: what a chunk adds; free to be reused afterwards
  Bf16* before;      // as added: the states in front of the chunks
  Bf16* y;           // [all_tokens, d_inner]: of the scan, D x included
  float* scale;      // [all_tokens]: 1 / rms
  Bf16* out;         // [all_tokens, d_inner]
};

// Gradients. `d_out` is given. Partial sums are for the caller to add up: over their first axis.
struct SsmGradients {
  const Bf16* d_out;     // [all_tokens, d_inner]
  Bf16* d_in;            // [all_tokens, d_in]
  Bf16* d_y;             // [all_tokens, d_inner]
  float* added;          // as SsmActivations::added: of the states behind the chunks, by their own chunk
  Bf16* after;           // as added: of the states behind the chunks, by all later ones
  Bf16* d_x;             // [all_tokens, d_inner]: behind the convolution
  float* d_bc;           // [n_head_groups, all_chunks * kScanChunk, 2 * d_state]: behind the convolution
  float* d_dt;           // [all_chunks, n_heads, kScanChunk]
  float* d_norm;         // [norm_rows, d_inner]
  float* d_conv;         // [conv_rows, d_conv + 1, d_channels]: weights, then the bias
  float *d_a_log, *d_d;  // [all_chunks, n_heads]
  float* d_dt_bias;      // [all_chunks, n_heads]
};
// Rows of the partial sums above.
int64_t ssm_norm_rows(const SsmSizes& sizes);
int64_t ssm_conv_rows(const SsmSizes& sizes);

// One token of one sequence, from state to state.
struct SsmStep {
  const Bf16* in;  // [d_in]
  float* conv;     // [d_conv - 1, d_channels]: the last inputs of the convolution; moved on
  float* scan;     // [n_heads, head_dim, d_state]: moved on
  float* xbc;      // [d_channels]: written
  float* y;        // [d_inner]: written: y silu(z), not normed yet
};
// REQUIRES: sizes of one token.
void ssm_step(const SsmSizes& sizes, const SsmWeights& weights, const SsmStep& step, Stream stream);

// The device of the calls that follow, of this thread.
void use_device(int index);

void ssm_forward(const SsmSizes& sizes, const SsmWeights& weights, const SsmActivations& a, Stream stream);
// REQUIRES: in, xbc, dt, sums, before, y, scale as ssm_forward left them.
void ssm_backward(const SsmSizes& sizes, const SsmWeights& weights, const SsmActivations& a, const SsmGradients& g,
                  Stream stream);

}  // namespace polyspan::hydra
