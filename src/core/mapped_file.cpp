#include "core/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <system_error>
#include <utility>

#include "core/error.h"

namespace polyspan {
namespace {

Error cannot(const char* action, const std::filesystem::path& path, int error) {
  return Error::io(path, action, ": ", std::generic_category().message(error));
}

// Closes on every way out; the mapping stays valid without the descriptor.
struct Descriptor {
  int fd;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
};

}  // namespace

MappedFile::MappedFile(const std::filesystem::path& path) : path_(path) {
  // O_NONBLOCK: opening a named pipe must not wait for a writer.
  const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (file.fd < 0) throw cannot("cannot open", path, errno);
  struct stat status = {};
  if (::fstat(file.fd, &status) != 0) throw cannot("cannot read its size", path, errno);
  if (!S_ISREG(status.st_mode))
    throw Error::io(path, "found ", S_ISDIR(status.st_mode) ? "a directory" : "no regular file", ", wanted a file");
  size_ = static_cast<size_t>(status.st_size);
  if (size_ == 0) return;
  void* data = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.fd, 0);
  if (data == MAP_FAILED) throw cannot("cannot map into memory", path, errno);
  data_ = static_cast<const std::byte*>(data);
  owned_ = true;
}

MappedFile MappedFile::of_memory(std::span<const std::byte> bytes, const std::filesystem::path& name) {
  MappedFile file;
  file.path_ = name;
  file.data_ = bytes.data();
  file.size_ = bytes.size();
  return file;
}

MappedFile::~MappedFile() {
  if (owned_) ::munmap(const_cast<std::byte*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      owned_(std::exchange(other.owned_, false)) {}

void MappedFile::release(std::span<const std::byte> part) const {
  if (!owned_ || part.empty()) return;
  POLYSPAN_CHECK(part.data() >= data_ && part.data() + part.size() <= data_ + size_, "release outside of the mapping");
  // Whole pages inside the part only: those at its ends are shared with the neighbours.
  const uintptr_t page_bytes = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(part.data()) + page_bytes - 1) / page_bytes * page_bytes;
  const uintptr_t end = reinterpret_cast<uintptr_t>(part.data() + part.size()) / page_bytes * page_bytes;
  // Advice: a refusal costs memory, not correctness.
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

}  // namespace polyspan
