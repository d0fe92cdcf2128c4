// cuda/weights.h: weight matrices in GPU memory and their products.
//
// Quantised matrices keep the file's bytes, sorted into planes that can be read in vectors of 16 bytes (each plane
// [d_out][...], one behind the other):
//   Q8_0: codes [d_in], f16 scales [d_in / 32]
//   Q4_0: nibbles [d_in / 2], f16 scales         Q4_1: nibbles, (f16 scale, f16 minimum)
//   Q4_K: nibbles, headers of 16 bytes [d_in / 256] (d, dmin, 12 bytes of scales and minima)
//   Q6_K: lower bits [d_in / 2], upper bits [d_in / 4], int8 scales [d_in / 16], f16 d [d_in / 256]
// Other quantised types are held as f16. F32, F16 and BF16 are as in the file.
#pragma once

#include <cstdint>
#include <vector>

#include "core/dtype.h"
#include "cuda/blas.h"
#include "cuda/runtime.h"

namespace polyspan::cuda {

struct DeviceMatrix {
  DType type = DType::kF32;
  int64_t d_out = 0, d_in = 0;
  const std::byte* data = nullptr;
};

// A product's matrix and the first column of its output.
struct MatrixPart {
  DeviceMatrix w;
  int64_t column;
};
struct DeviceLayer {
  const float *attn_norm = nullptr, *ffn_norm = nullptr;  // [d_model]
  const float* bias = nullptr;                            // [(n_heads + 2 * n_kv_heads) * head_dim] or null
  std::vector<MatrixPart> qkv, attn_out, gate_up, down;   // qkv and gate_up: one matrix where the types are equal
};

// Whether the GPU computes on the blocks of this type (else it is held as f16).
bool has_device_blocks(DType type);
// The type that a matrix of the file has on the GPU, and its bytes there.
inline DType device_type(DType file_type) {
  const bool is_float = file_type == DType::kF32 || file_type == DType::kF16 || file_type == DType::kBF16;
  return is_float || has_device_blocks(file_type) ? file_type : DType::kF16;
}
inline int64_t device_matrix_bytes(DType file_type, int64_t d_out, int64_t d_in) {
  return d_out * row_bytes(device_type(file_type), d_in);
}

// Sorts n_rows rows of blocks in file layout (in GPU memory) into rows [first_row, ...) of the planes at `planes`, which
// are those of a matrix [d_out, d_in].
void sort_blocks(DType type, const std::byte* rows, int64_t n_rows, int64_t first_row, int64_t d_out, int64_t d_in,
                 std::byte* planes, const Stream& stream);

// Rows [first_row, first_row + n_rows) of a matrix of blocks as f16 [n_rows, d_in].
void dequantize(const DeviceMatrix& w, int64_t first_row, int64_t n_rows, void* out, const Stream& stream);

// The same of a matrix of any type, as f32.
void decode(const DeviceMatrix& w, int64_t first_row, int64_t n_rows, float* out, const Stream& stream);

// Rows of values as quantize_activations (ops/matmul.h) makes them: codes [n_tokens, d], scales [n_tokens, d / 32].
struct QuantizedRows {
  int8_t* codes = nullptr;
  float* scales = nullptr;
};

// The activations of a product in the forms that its weights need; others may be null.
struct DeviceInput {
  int64_t n_tokens = 0, d_in = 0;
  const float* f32 = nullptr;  // [n_tokens, d_in]
  const void* f16 = nullptr;
  const void* bf16 = nullptr;
  QuantizedRows quantized = {};
};

// Tokens up to which weights are multiplied by our own kernels, which read each weight once: one or two by plain
// multiply-adds (of blocks in integers), more by the matrix instructions where the weights are blocks (cuda/tile_product.h).
// With more of them cuBLAS wins (blocks are then decoded to f16, some rows at a time).
inline constexpr int64_t kMostVectorTokens = 2, kMostTileTokens = 96;
inline constexpr int64_t kDequantizeBytes = 64 << 20;  // of decoded rows at a time

enum class InputForm { kF32, kF16, kBF16, kBlocks };
// The form of input that multiply() reads.
InputForm input_form(DType device_type, int64_t n_tokens);
// The shortest type in which multiply() can write.
DType output_type(DType device_type, int64_t n_tokens);

class Products {
 public:
  Products(const Stream& stream) : stream_(stream), blas_(stream), decoded_(kDequantizeBytes, "decoded weights") {}
  // out [n_tokens, out_stride] = x W^T, or += . Out is F32, or where output_type() allows it the type that this gives.
  void multiply(const DeviceMatrix& w, const DeviceInput& x, DType out_type, void* out, int64_t out_stride,
                bool add) const;
  static constexpr int64_t kBytes = Blas::kWorkspaceBytes + kDequantizeBytes;

 private:
  const Stream& stream_;
  Blas blas_;
  DeviceBuffer decoded_;
};

}  // namespace polyspan::cuda
