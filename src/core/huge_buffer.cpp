#include "core/huge_buffer.h"

#include <sys/mman.h>
#include <sys/resource.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

#include "core/error.h"

namespace polyspan {
namespace {

constexpr int64_t kHugePageBytes = 2 << 20;

// The number after `key` in a /proc-style file, or nullopt's stand-in -1.
int64_t read_field(const char* path, const std::string& key) {
  std::ifstream file(path);
  std::string word;
  while (file >> word)
    if (word == key) {
      int64_t value = -1;
      return file >> value ? value : -1;
    }
  return -1;
}

int64_t read_number(const char* path) {
  std::ifstream file(path);
  int64_t value = -1;
  return file >> value ? value : -1;  // "max" fails to parse: no limit
}

}  // namespace

HugeBuffer::HugeBuffer(int64_t bytes, std::string_view what) {
  POLYSPAN_CHECK(bytes >= 0);
  if (bytes == 0) return;
  check_memory_available(bytes, what);
  void* memory = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw Error::out_of_memory(what, ": the system refused ", bytes, " bytes");
  if (bytes >= kHugePageBytes) madvise(memory, static_cast<size_t>(bytes), MADV_HUGEPAGE);
  data_ = static_cast<std::byte*>(memory);
  bytes_ = bytes;
}

HugeBuffer::~HugeBuffer() {
  if (data_ != nullptr) munmap(data_, static_cast<size_t>(bytes_));
}

int64_t available_memory_bytes() {
  const int64_t available_kib = read_field("/proc/meminfo", "MemAvailable:");
  int64_t available = available_kib < 0 ? std::numeric_limits<int64_t>::max() : available_kib * 1024;
  const int64_t limit = read_number("/sys/fs/cgroup/memory.max"), used = read_number("/sys/fs/cgroup/memory.current");
  if (limit >= 0 && used >= 0) available = std::min(available, std::max<int64_t>(0, limit - used));
  rlimit address_space{};
  if (getrlimit(RLIMIT_AS, &address_space) == 0 && address_space.rlim_cur != RLIM_INFINITY)
    available = std::min(available, static_cast<int64_t>(address_space.rlim_cur));
  return available;
}

void check_memory_available(int64_t bytes, std::string_view what) {
  const int64_t available = available_memory_bytes();
  if (bytes > available)
    throw Error::out_of_memory(what, " needs ", bytes, " bytes of memory; ", available, " are available");
}

int64_t peak_resident_bytes() {
  const int64_t kib = read_field("/proc/self/status", "VmHWM:");
  return kib < 0 ? 0 : kib * 1024;
}

}  // namespace polyspan
