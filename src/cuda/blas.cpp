#include "cuda/blas.h"

#include <cublas_v2.h>
#include <dlfcn.h>

#include <string>
#include <type_traits>

#include "core/error.h"

namespace polyspan::cuda {
namespace {

// cublas_api.h overloads the name.
using GemmEx = cublasStatus_t (*)(cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int, const void*,
                                  const void*, cudaDataType, int, const void*, cudaDataType, int, const void*, void*,
                                  cudaDataType, int, cublasComputeType_t, cublasGemmAlgo_t);
using GemmStridedBatchedEx = cublasStatus_t (*)(cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int,
                                                const void*, const void*, cudaDataType, int, long long, const void*,
                                                cudaDataType, int, long long, const void*, void*, cudaDataType, int,
                                                long long, int, cublasComputeType_t, cublasGemmAlgo_t);

// The entry points used, by the names that the library exports.
struct Library {
  decltype(&cublasCreate_v2) create = nullptr;
  decltype(&cublasDestroy_v2) destroy = nullptr;
  decltype(&cublasSetStream_v2) set_stream = nullptr;
  decltype(&cublasSetWorkspace_v2) set_workspace = nullptr;
  GemmEx gemm_ex = nullptr;
  GemmStridedBatchedEx gemm_strided_batched_ex = nullptr;
};

Library load_library() {
  void* handle = nullptr;
  std::string tried;
  for (const char* name : {"libcublas.so.13", "libcublas.so.12"}) {
    handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (handle != nullptr) break;
    const char* message = dlerror();
    tried += (tried.empty() ? "" : "; ") + std::string(message == nullptr ? name : message);
  }
  if (handle == nullptr)
    throw Error::unsupported("cuBLAS was not found (", tried, "); install it beside the driver, or use --device cpu");
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(handle, name));
    if (function == nullptr)
      throw Error::unsupported("cuBLAS has no ", name, ": its version does not fit; wanted 12 or 13");
  };
  Library library;
  find(library.create, "cublasCreate_v2");
  find(library.destroy, "cublasDestroy_v2");
  find(library.set_stream, "cublasSetStream_v2");
  find(library.set_workspace, "cublasSetWorkspace_v2");
  find(library.gemm_ex, "cublasGemmEx");
  find(library.gemm_strided_batched_ex, "cublasGemmStridedBatchedEx");
  return library;
}

const Library& library() {
  static const Library kLibrary = load_library();
  return kLibrary;
}

void check_blas(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  if (status == CUBLAS_STATUS_ALLOC_FAILED)
    throw Error::out_of_memory(what, ": cuBLAS found no GPU memory; ", free_device_bytes(), " bytes are free");
  throw Error(ErrorKind::kIo,
              std::string(what) + ": cuBLAS reports status " + std::to_string(static_cast<int>(status)));
}

cudaDataType_t data_type(DType type) {
  POLYSPAN_CHECK(type == DType::kF32 || type == DType::kF16 || type == DType::kBF16);
  return type == DType::kF32 ? CUDA_R_32F : type == DType::kF16 ? CUDA_R_16F : CUDA_R_16BF;
}

}  // namespace

Blas::Blas(const Stream& stream) : workspace_() {
  library();
  workspace_ = DeviceBuffer(kWorkspaceBytes, "the workspace of matrix products");
  check_blas(library().create(&handle_), "starting cuBLAS");
  check_blas(library().set_stream(handle_, stream.get()), "starting cuBLAS");
  check_blas(library().set_workspace(handle_, workspace_.data(), kWorkspaceBytes), "starting cuBLAS");
}

Blas::~Blas() {
  if (handle_ != nullptr) library().destroy(handle_);
}

void Blas::multiply(DType type, const void* w, const void* x, int64_t n_tokens, int64_t d_out, int64_t d_in,
                    DType out_type, void* out, int64_t out_stride, bool add) const {
  POLYSPAN_CHECK(out_type == DType::kF32 || out_type == type);
  // cuBLAS counts by columns: its C [d_out, n_tokens] is our out, its A [d_in, d_out] our W.
  const float alpha = 1.0f, beta = add ? 1.0f : 0.0f;
  const cudaDataType_t t = data_type(type);
  check_blas(library().gemm_ex(handle_, CUBLAS_OP_T, CUBLAS_OP_N, static_cast<int>(d_out), static_cast<int>(n_tokens),
                               static_cast<int>(d_in), &alpha, w, t, static_cast<int>(d_in), x, t,
                               static_cast<int>(d_in), &beta, out, data_type(out_type), static_cast<int>(out_stride),
                               CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
             "a matrix product");
}

void Blas::multiply(const BatchProduct& p, Precision precision) const {
  // By columns: C^T = B^T A^T, and what lies in memory by rows is the transpose already.
  const float alpha = 1.0f, beta = p.add ? 1.0f : 0.0f;
  const auto op = [](const BatchProduct::Factor& f) { return f.transposed ? CUBLAS_OP_T : CUBLAS_OP_N; };
  const auto narrow = [](int64_t value) { return static_cast<int>(value); };
  check_blas(
      library().gemm_strided_batched_ex(
          handle_, op(p.b), op(p.a), narrow(p.n_columns), narrow(p.n_rows), narrow(p.n_inner), &alpha, p.b.data,
          CUDA_R_32F, narrow(p.b.stride), p.b.step, p.a.data, CUDA_R_32F, narrow(p.a.stride), p.a.step, &beta, p.c,
          CUDA_R_32F, narrow(p.c_stride), p.c_step, narrow(p.n_batch),
          precision == Precision::kTf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
      "a batch of matrix products");
}

}  // namespace polyspan::cuda
