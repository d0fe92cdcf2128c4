// ops/matmul.h: y = W x for packed weights, with the epilogues that a transformer needs.
//
// Quantised weights multiply activations quantised to 8 bits in blocks of 32 (the same scheme for one token and for
// many): the result of a token does not depend, to the bit, on the other tokens of the call or on the thread count.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ops/context.h"
#include "ops/kernels.h"
#include "ops/packed_matrix.h"

namespace polyspan {

// The same activations [n_tokens, d_in] as floats and quantised. `blocks` may be null when every weight is of a float
// type, `values` when every weight is quantised.
struct MatmulInput {
  const float* values = nullptr;
  const ActBlock* blocks = nullptr;
  int64_t n_tokens = 0;
  int64_t d_in = 0;
};

// out [n_tokens, >= d_out], token t at out + t * out_stride.
struct MatmulOutput {
  const PackedMatrix* weight = nullptr;
  const float* bias = nullptr;  // [d_out] or null
  float* out = nullptr;
  int64_t out_stride = 0;
  Epilogue epilogue = Epilogue::kStore;  // kStore or kAdd
};

// All outputs in one parallel section. REQUIRES: no output overlaps another or the input.
void matmul(const MatmulInput& x, std::span<const MatmulOutput> outputs, OpContext& context);
// out [n_tokens, d_ff] = silu(gate x) * (up x).
void matmul_swiglu(const MatmulInput& x, const PackedMatrix& gate, const PackedMatrix& up, float* out,
                   OpContext& context);

// Quantises [n_tokens, d_in] to [n_tokens, d_in / 32] blocks. REQUIRES: d_in % 32 == 0.
void quantize_activations(const float* x, int64_t n_tokens, int64_t d_in, ActBlock* out, OpContext& context);

// x [n_tokens, d_in] as an input of products: quantised into `blocks` (grown where too small) if it divides into blocks.
MatmulInput matmul_input(const float* x, int64_t n_tokens, int64_t d_in, std::vector<ActBlock>& blocks,
                         OpContext& context);

// Plain loops, sums in double, over the file's dequantised rows and (for quantised types) the same 8-bit activations.
void matmul_reference(DType type, const std::byte* rows, int64_t d_out, const MatmulInput& x, float* out);

}  // namespace polyspan
