#include "cuda/device.h"

#include <gtest/gtest.h>

#include "core/error.h"

namespace polyspan {
namespace {

TEST(Device, ReadsNames) {
  EXPECT_EQ(parse_device("auto"), (Device{DeviceKind::kAuto, 0}));
  EXPECT_EQ(parse_device("cpu"), (Device{DeviceKind::kCpu, 0}));
  EXPECT_EQ(parse_device("cuda"), (Device{DeviceKind::kCuda, 0}));
  EXPECT_EQ(parse_device("cuda:3"), (Device{DeviceKind::kCuda, 3}));
  for (const char* name : {"auto", "cpu", "cuda:0", "cuda:12"}) EXPECT_EQ(device_name(parse_device(name)), name);
}

TEST(Device, RefusesOtherNames) {
  for (const char* name : {"", "gpu", "CPU", "cuda:", "cuda:-1", "cuda:1x", "cuda:99999999999", "cuda 0", "cuda:0 "}) {
    try {
      parse_device(name);
      ADD_FAILURE() << name;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      EXPECT_NE(std::string(error.what()).find("\"" + std::string(name) + "\""), std::string::npos) << error.what();
      EXPECT_NE(std::string(error.what()).find("cuda:N"), std::string::npos) << error.what();
    }
  }
}

TEST(Device, SaysWhatIsMissing) {
  if (n_cuda_devices() > 0) GTEST_SKIP() << "this machine has a GPU";
  try {
    load_cuda_model(nullptr, 0, no_progress());
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUnsupported);
    EXPECT_NE(std::string(error.what()).find("--device cpu"), std::string::npos) << error.what();
  }
  EXPECT_FALSE(has_usable_gpu());
  ModelConfig config;
  EXPECT_EQ(resolve_device({DeviceKind::kAuto, 0}, config).kind, DeviceKind::kCpu);
}

}  // namespace
}  // namespace polyspan
