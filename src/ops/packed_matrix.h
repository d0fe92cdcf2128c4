// ops/packed_matrix.h: a weight matrix repacked for the matrix kernels (ops/packed_layout.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "core/dtype.h"

namespace polyspan {

// A view of packed tiles: W [d_out, d_in] of y = W x. The memory belongs to whoever packed it (model/weights).
struct PackedMatrix {
  DType type = DType::kF32;
  int64_t d_out = 0;
  int64_t d_in = 0;
  const std::byte* data = nullptr;

  int64_t n_tiles() const { return (d_out + 15) / 16; }
  int64_t tile_bytes() const;
  const std::byte* tile(int64_t index) const { return data + index * tile_bytes(); }
  bool is_quantized() const;
};

// Views of rows [0, n) and [n, d_out). REQUIRES: n is a multiple of 16.
PackedMatrix first_rows(const PackedMatrix& matrix, int64_t n);
PackedMatrix rows_from(const PackedMatrix& matrix, int64_t n);

// Bytes of a packed matrix; rows are padded to a multiple of 16. REQUIRES: d_in is a multiple of the type's block_len
// (and of 32 for quantised types).
int64_t packed_bytes(DType type, int64_t d_out, int64_t d_in);

// Packs tiles [first_tile, last_tile) from rows in file layout into `out` (the start of the whole matrix). Rows past
// d_out become zeros. `rows` holds the whole matrix.
void pack_tiles(DType type, const std::byte* rows, int64_t d_out, int64_t d_in, int64_t first_tile, int64_t last_tile,
                std::byte* out);

// Decodes one row [d_in] to floats, the same values as dequantize_row of the file's row.
void unpack_row(const PackedMatrix& matrix, int64_t row, float* out);

}  // namespace polyspan
