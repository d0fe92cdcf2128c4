// model/transposed_weights.h: the weights as the backward pass multiplies by them: dX = dY W is a product with W
// transposed. Quantised weights (and f16, bf16) are requantised to Q8_0 along their outputs, F32 stays F32.
//
// This is a second copy of the weights, 8.5 bits each (SmolLM2-135M: 143 MB). It exists only while a model is profiled.
#pragma once

#include <vector>

#include "core/huge_buffer.h"
#include "core/progress.h"
#include "model/weights.h"
#include "ops/context.h"

namespace polyspan {

struct TransposedLayer {
  PackedMatrix q, k, v, attn_out, gate, up, down;  // each [d_in, d_out] of the matrix of that name
};

class TransposedWeights {
 public:
  // Throws Error (kOutOfMemory) before anything is allocated.
  TransposedWeights(const Weights& weights, OpContext& context, Progress& progress);
  static int64_t bytes_needed(const Weights& weights);

  std::vector<TransposedLayer> layers;
  PackedMatrix output;  // [d_model, vocab_size]

 private:
  HugeBuffer memory_;
};

}  // namespace polyspan
