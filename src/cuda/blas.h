// cuda/blas.h: matrix products from cuBLAS, which is loaded when the first Blas is made.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "cuda/runtime.h"

struct cublasContext;

namespace polyspan::cuda {

enum class Precision { kF32, kTf32 };  // of the factors of f32 products; sums are f32

// C [n_rows, n_columns] = A B, or += , for each of n_batch: A [n_rows, n_inner], B [n_inner, n_columns], each in memory as
// named or as its transpose; rows in memory are `stride` floats apart, matrices of a batch `step`.
struct BatchProduct {
  struct Factor {
    const float* data = nullptr;
    int64_t stride = 0, step = 0;
    bool transposed = false;
  };
  int64_t n_batch = 1, n_rows = 0, n_columns = 0, n_inner = 0;
  Factor a = {}, b = {};
  float* c = nullptr;
  int64_t c_stride = 0, c_step = 0;
  bool add = false;
};

class Blas {
 public:
  // Throws Error (kUnsupported) when cuBLAS 12 or 13 is not found on this machine.
  explicit Blas(const Stream& stream);
  ~Blas();
  Blas(const Blas&) = delete;
  Blas& operator=(const Blas&) = delete;

  // out [n_tokens, out_stride] = x [n_tokens, d_in] W^T (+ out when `add`), W [d_out, d_in]; W and x of `type` (F32, F16 or
  // BF16), sums in f32, out in F32 or `type` (in F16, infinite where it holds no such value).
  void multiply(DType type, const void* w, const void* x, int64_t n_tokens, int64_t d_out, int64_t d_in, DType out_type,
                void* out, int64_t out_stride, bool add) const;
  void multiply(const BatchProduct& product, Precision precision) const;

  static constexpr int64_t kWorkspaceBytes = 32 << 20;

 private:
  cublasContext* handle_ = nullptr;
  DeviceBuffer workspace_;  // its own: cuBLAS would allocate one, which a graph's recording forbids
};

}  // namespace polyspan::cuda
