// cuda/tile_product.h: products of quantised weights with some tokens by the matrix instructions.
#pragma once

#include "cuda/weights.h"

namespace polyspan::cuda {

// out [n_tokens, out_stride] = x W^T, or += ; x [n_tokens, d_in] of f16, W of blocks. A warp decodes 16 rows to f16 in the
// order in which the instructions need them, each value once for all of up to 32 tokens; sums are f32. Up to 8 warps share
// a row's values and add up in a fixed order, so that results repeat to the bit. Bound by reading the weights up to 16 tokens,
// then by reading x from L1.
void multiply_tiles(const DeviceMatrix& w, const void* x, int64_t n_tokens, float* out, int64_t out_stride, bool add,
                    const Stream& stream);

}  // namespace polyspan::cuda
