#include "model/transposed_weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/dtype.h"

namespace polyspan {
namespace {

constexpr int64_t kBlock = 32;       // values of a Q8_0 block
constexpr int64_t kBlockBytes = 34;  // f16 scale, then 32 codes
constexpr int64_t kAlignment = 4096;

DType transposed_type(const PackedMatrix& m) {
  return m.type == DType::kF32 || m.d_out % kBlock != 0 ? DType::kF32 : DType::kQ8_0;
}
int64_t aligned_bytes(const PackedMatrix& m) {
  return (packed_bytes(transposed_type(m), m.d_in, m.d_out) + kAlignment - 1) / kAlignment * kAlignment;
}

void quantize_q8_0(const float (&values)[kBlock], std::byte* out) {
  float largest = 0;
  for (const float value : values) largest = std::max(largest, std::abs(value));
  const uint16_t scale_bits = f32_to_f16(largest / 127.0f);
  const float scale = f16_to_f32(scale_bits), inverse = scale > 0 ? 1.0f / scale : 0.0f;
  std::memcpy(out, &scale_bits, sizeof scale_bits);
  for (int64_t i = 0; i < kBlock; ++i)
    out[2 + i] =
        static_cast<std::byte>(static_cast<int8_t>(std::clamp(std::nearbyint(values[i] * inverse), -127.0f, 127.0f)));
}

// Rows [32 * block, ...) of the matrix become column block `block` of the transposed one, in file layout.
void transpose_block(const PackedMatrix& from, int64_t block, std::byte* rows) {
  const bool quantized = transposed_type(from) == DType::kQ8_0;
  const int64_t first = block * kBlock, n = std::min(kBlock, from.d_out - first),
                row_stride = row_bytes(transposed_type(from), from.d_out);
  std::vector<float> values(static_cast<size_t>(n * from.d_in));
  for (int64_t i = 0; i < n; ++i) unpack_row(from, first + i, values.data() + i * from.d_in);
  for (int64_t column = 0; column < from.d_in; ++column) {
    float of_column[kBlock] = {};
    for (int64_t i = 0; i < n; ++i) of_column[i] = values[static_cast<size_t>(i * from.d_in + column)];
    if (quantized) {
      quantize_q8_0(of_column, rows + column * row_stride + block * kBlockBytes);
    } else {
      std::memcpy(rows + column * row_stride + first * 4, of_column, static_cast<size_t>(n) * 4);
    }
  }
}

template <typename Visit>
void for_each_matrix(const Weights& weights, std::vector<TransposedLayer>& layers, PackedMatrix& output, Visit visit) {
  layers.resize(weights.layers.size());
  for (size_t layer = 0; layer < layers.size(); ++layer) {
    const LayerWeights& w = weights.layers[layer];
    TransposedLayer& t = layers[layer];
    visit(w.q, t.q), visit(w.k, t.k), visit(w.v, t.v), visit(w.attn_out, t.attn_out);
    visit(w.gate, t.gate), visit(w.up, t.up), visit(w.down, t.down);
  }
  visit(weights.output, output);
}

}  // namespace

int64_t TransposedWeights::bytes_needed(const Weights& weights) {
  std::vector<TransposedLayer> layers;
  PackedMatrix output;
  int64_t bytes = 0;
  for_each_matrix(weights, layers, output,
                  [&](const PackedMatrix& from, PackedMatrix&) { bytes += aligned_bytes(from); });
  return bytes;
}

TransposedWeights::TransposedWeights(const Weights& weights, OpContext& context, Progress& progress)
    : memory_(bytes_needed(weights), "the transposed weights of the backward pass") {
  progress.start("transposing the weights", memory_.size_bytes());
  int64_t done = 0;
  std::vector<std::byte> rows;  // one matrix in file layout
  for_each_matrix(weights, layers, output, [&](const PackedMatrix& from, PackedMatrix& to) {
    to = {transposed_type(from), from.d_in, from.d_out, memory_.data() + done};
    rows.resize(static_cast<size_t>(to.d_out * row_bytes(to.type, to.d_in)));
    context.team().each((from.d_out + kBlock - 1) / kBlock,
                        [&](int64_t block, int) { transpose_block(from, block, rows.data()); });
    context.team().split(to.n_tiles(), [&](int64_t begin, int64_t end, int) {
      pack_tiles(to.type, rows.data(), to.d_out, to.d_in, begin, end, const_cast<std::byte*>(to.data));
    });
    progress.update(done += aligned_bytes(from));
  });
  progress.finish();
}

}  // namespace polyspan
