// Which error a status of CUDA becomes. Needs no GPU.
#include "cuda/runtime.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include "core/error.h"
#include "cuda/device.h"

namespace polyspan::cuda {
namespace {

void expect_error(int status, ErrorKind kind, const char* mention) {
  try {
    check(status, "making tea");
    ADD_FAILURE() << mention;
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), kind) << error.what();
    EXPECT_EQ(std::string(error.what()).rfind("making tea", 0), 0U) << error.what();
    EXPECT_NE(std::string(error.what()).find(mention), std::string::npos) << error.what();
  }
}

TEST(Runtime, NamesWhatWentWrong) {
  EXPECT_NO_THROW(check(cudaSuccess, "making tea"));
  expect_error(cudaErrorMemoryAllocation, ErrorKind::kOutOfMemory, " bytes");
  expect_error(cudaErrorInsufficientDriver, ErrorKind::kUnsupported, "--device cpu");
  expect_error(cudaErrorECCUncorrectable, ErrorKind::kIo, "ECC");
}

// A kernel can find no memory for its code, or a device that was lost before: neither may end a process that embeds us.
TEST(Runtime, ALaunchThatTheMachineFailsIsAnError) {
  if (n_cuda_devices() > 0) GTEST_SKIP() << "this machine has a GPU";
  DeviceProperties unused;
  EXPECT_THROW(unused = select_device(0), Error);
  void* memory = nullptr;
  ASSERT_NE(cudaMalloc(&memory, 1), cudaSuccess);  // leaves the status that check_launch reads
  EXPECT_THROW(check_launch("a_kernel"), Error);
}

TEST(Runtime, AMachineWithoutADriverSaysSo) {
  int driver = 0;
  if (cudaDriverGetVersion(&driver) == cudaSuccess && driver > 0) GTEST_SKIP() << "this machine has an NVIDIA driver";
  cudaGetLastError();
  try {
    select_device(3);
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "device cuda:3: no NVIDIA driver was found; use --device cpu");
  }
}

}  // namespace
}  // namespace polyspan::cuda
