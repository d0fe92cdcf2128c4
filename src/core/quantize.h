// core/quantize.h: floats to the number types that a model may be exported in.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"

namespace polyspan {

// F32, F16, BF16, Q8_0 and Q4_0: the other formats are read, not written.
bool can_quantize(DType type);
// Encodes n_values into row_bytes(type, n_values) bytes. Q8_0: scale = largest / 127. Q4_0: scale = largest (by magnitude,
// with its sign) / -8, as ggml does. REQUIRES: can_quantize(type); n_values % block_len == 0.
void quantize_row(DType type, const float* values, int64_t n_values, std::byte* out);

}  // namespace polyspan
