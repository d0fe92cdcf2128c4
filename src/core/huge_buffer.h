// core/huge_buffer.h: large zeroed memory, backed by huge pages where the system grants them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <utility>

namespace polyspan {

// Owns `bytes` of zeroed memory aligned to 64 bytes or more. Pages are taken when first touched.
class HugeBuffer {
 public:
  HugeBuffer() = default;
  // Throws Error (kOutOfMemory) naming `what`, the bytes needed and the bytes available, before taking any.
  HugeBuffer(int64_t bytes, std::string_view what);
  ~HugeBuffer();
  HugeBuffer(HugeBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  HugeBuffer& operator=(HugeBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  std::byte* data() const { return data_; }
  int64_t size_bytes() const { return bytes_; }
  template <typename T>
  std::span<T> as() const {
    return {reinterpret_cast<T*>(data_), static_cast<size_t>(bytes_) / sizeof(T)};
  }

 private:
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

// Bytes that this process may still take: free and reclaimable memory, and what a cgroup limit leaves.
int64_t available_memory_bytes();
// Throws kOutOfMemory when `bytes` is more than what is available; the message names `what`.
void check_memory_available(int64_t bytes, std::string_view what);
// The largest resident set of this process so far, and the current one.
int64_t peak_resident_bytes();

}  // namespace polyspan
