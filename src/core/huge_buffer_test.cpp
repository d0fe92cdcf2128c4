#include "core/huge_buffer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "core/error.h"

namespace polyspan {
namespace {

TEST(HugeBuffer, IsZeroedAndAligned) {
  for (const int64_t bytes : {1, 63, 4096, 4097, (2 << 20) - 1, 2 << 20, 5 << 20}) {
    SCOPED_TRACE(bytes);
    const HugeBuffer buffer(bytes, "test");
    ASSERT_EQ(buffer.size_bytes(), bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 64, 0u);
    const std::span<uint8_t> all = buffer.as<uint8_t>();
    ASSERT_EQ(std::ssize(all), bytes);
    EXPECT_TRUE(std::all_of(all.begin(), all.end(), [](uint8_t byte) { return byte == 0; }));
    all.front() = all.back() = 1;  // both ends are ours
    EXPECT_EQ(std::ssize(buffer.as<float>()), bytes / 4);
  }
}

TEST(HugeBuffer, EmptyOnes) {
  const HugeBuffer none, zero(0, "test");
  for (const HugeBuffer* buffer : {&none, &zero}) {
    EXPECT_EQ(buffer->size_bytes(), 0);
    EXPECT_EQ(buffer->data(), nullptr);
    EXPECT_TRUE(buffer->as<int>().empty());
  }
}

TEST(HugeBuffer, Moves) {
  HugeBuffer a(100, "test");
  a.as<uint8_t>()[7] = 42;
  HugeBuffer b = std::move(a);
  EXPECT_EQ(b.as<uint8_t>()[7], 42);
  EXPECT_EQ(a.size_bytes(), 0);  // NOLINT: a moved-from buffer is empty
  HugeBuffer c(50, "test");
  c = std::move(b);
  EXPECT_EQ(c.size_bytes(), 100);
  EXPECT_EQ(c.as<uint8_t>()[7], 42);
}

TEST(HugeBuffer, TooLargeNamesWhatAndHowMuch) {
  const int64_t available = available_memory_bytes();
  EXPECT_GT(available, 0);
  for (const int64_t bytes : {int64_t{1} << 46, int64_t{1} << 62}) {
    try {
      HugeBuffer buffer(bytes, "the moon");
      FAIL() << "no error";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kOutOfMemory);
      const std::string message = error.what(),
                        start = "the moon needs " + std::to_string(bytes) + " bytes of memory; ";
      EXPECT_EQ(message.substr(0, start.size()), start);
      EXPECT_NE(message.find("available"), std::string::npos);
    }
  }
}

TEST(Memory, PeakFollowsWhatIsTouched) {
  constexpr int64_t kBytes = 64 << 20;
  const HugeBuffer buffer(kBytes, "test");
  const std::span<uint8_t> all = buffer.as<uint8_t>();
  for (size_t i = 0; i < all.size(); i += 4096) all[i] = 1;
  EXPECT_GE(peak_resident_bytes(), kBytes);
}

}  // namespace
}  // namespace polyspan
