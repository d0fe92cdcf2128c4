// ops/softmax_row.isa.h: the online softmax of one row over a tile of 64 keys (FlashAttention, arXiv 2205.14135).
#pragma once

#include "ops/simd.h"

namespace polyspan::POLYSPAN_ISA {

// Softmax step of one row over 64 scores; scales out and the row's sum.
POLYSPAN_INLINE void softmax_row(float* scores, float* max_so_far, float* sum, float* out, int64_t head_dim) {
  F32x16 s[4], largest = load(scores);
  for (int i = 0; i < 4; ++i) s[i] = load(scores + 16 * i);
  for (int i = 1; i < 4; ++i) largest = max(largest, s[i]);
  const float old_max = *max_so_far, tile_max = reduce_max(largest);
  const float new_max = tile_max > old_max ? tile_max : old_max;
  if (new_max == -__builtin_inff()) {
    for (int i = 0; i < 4; ++i) store(scores + 16 * i, zero_f32());
    return;
  }
  F32x16 total = zero_f32();
  for (int i = 0; i < 4; ++i) {
    s[i] = exp(s[i] - broadcast(new_max));
    total = total + s[i];
    store(scores + 16 * i, s[i]);
  }
  if (new_max != old_max) {
    const F32x16 correction = exp(broadcast(old_max - new_max));
    float lanes[16];
    store(lanes, correction);
    *sum *= lanes[0];
    for (int64_t i = 0; i < head_dim; i += kLanes) store(out + i, load(out + i) * correction);
    *max_so_far = new_max;
  }
  *sum += reduce_add(total);
}

}  // namespace polyspan::POLYSPAN_ISA
