// cuda/runtime.h: streams, memory, graphs and errors of a GPU as owning types. No CUDA header is needed to include it.
//
// What a launch gets wrong is our mistake and aborts (check_launch); no memory left, a lost device or a driver that is too
// old comes back as an Error from the call that notices.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

struct CUstream_st;
struct CUevent_st;
struct CUgraphExec_st;

namespace polyspan::cuda {

using StreamHandle = CUstream_st*;

// Of a GPU's compute capability. Ampere: cp.async and bf16 matrix instructions.
inline constexpr int kLeastMajor = 8;

// Throws Error unless `status` (a cudaError_t) is success; `what` says what was being done.
void check(int status, std::string_view what);
// After a launch of `kernel`.
void check_launch(const char* kernel);

struct DeviceProperties {
  std::string name;
  int major = 0, minor = 0, n_multiprocessors = 0;
  int64_t memory_bytes = 0, shared_bytes_per_block = 0;
};
// Makes the GPU current. Throws Error (kUnsupported) where there is none of that index or it is too old.
DeviceProperties select_device(int index);
int64_t free_device_bytes();
// Of the current GPU, asked for once: 90 is 9.0.
int compute_capability();
int n_multiprocessors();

class Stream {
 public:
  Stream();
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  StreamHandle get() const { return stream_; }
  void synchronize() const;

 private:
  StreamHandle stream_ = nullptr;
};

// Owns device memory, not cleared. Aligned to 256 bytes.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  // Throws Error (kOutOfMemory) naming `what`, the bytes needed and the bytes free.
  DeviceBuffer(int64_t bytes, std::string_view what);
  ~DeviceBuffer();
  DeviceBuffer(DeviceBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  std::byte* data() const { return data_; }
  int64_t size_bytes() const { return bytes_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

// Makes the buffer at least `bytes` large, as the constructor does; what it held is lost where it grows.
void grow(DeviceBuffer& buffer, int64_t bytes, std::string_view what, const Stream& stream);

// All stream-ordered; copies from or to memory that is not pinned return when that memory may be used again.
void copy_to_device(void* to, const void* from, int64_t bytes, const Stream& stream);
void copy_to_host(void* to, const void* from, int64_t bytes, const Stream& stream);
void copy_on_device(void* to, const void* from, int64_t bytes, const Stream& stream);
void fill_bytes(void* to, int value, int64_t bytes, const Stream& stream);

template <typename T>
DeviceBuffer to_device(std::span<const T> values, std::string_view what, const Stream& stream) {
  DeviceBuffer buffer(static_cast<int64_t>(values.size_bytes()), what);
  copy_to_device(buffer.data(), values.data(), static_cast<int64_t>(values.size_bytes()), stream);
  return buffer;
}
template <typename T>
std::vector<T> to_host(const void* from, int64_t n, const Stream& stream) {
  std::vector<T> values(static_cast<size_t>(n));
  copy_to_host(values.data(), from, n * static_cast<int64_t>(sizeof(T)), stream);
  stream.synchronize();
  return values;
}

// What `record` puts on the stream, as one launch.
class Graph {
 public:
  Graph() = default;
  Graph(const Stream& stream, const std::function<void()>& record);
  ~Graph();
  Graph(Graph&& other) noexcept : exec_(std::exchange(other.exec_, nullptr)) {}
  Graph& operator=(Graph&& other) noexcept {
    std::swap(exec_, other.exec_);
    return *this;
  }
  explicit operator bool() const { return exec_ != nullptr; }
  void launch(const Stream& stream) const;

 private:
  CUgraphExec_st* exec_ = nullptr;
};

// Milliseconds that the GPU spends on `work`.
class Timer {
 public:
  Timer();
  ~Timer();
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;
  double milliseconds(const Stream& stream, const std::function<void()>& work);

 private:
  CUevent_st *begin_ = nullptr, *end_ = nullptr;
};

}  // namespace polyspan::cuda
