#include "core/atomic_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <string>
#include <string_view>
#include <system_error>

#include "core/error.h"
#include "core/mapped_file.h"

namespace polyspan {
namespace fs = std::filesystem;
namespace {

// Beside the target, since a rename works only inside one file system. The name tells processes and threads apart.
fs::path temporary_beside(const fs::path& target) {
  static std::atomic<uint64_t> n_made{0};
  fs::path name = target;
  name += ".tmp-" + std::to_string(::getpid()) + "-" + std::to_string(n_made.fetch_add(1));
  return name;
}

}  // namespace

AtomicFile::AtomicFile(const fs::path& path) : path_(path), target_(path) {
  std::error_code error;
  for (int n_links = 0; fs::is_symlink(target_, error); ++n_links) {  // also a link whose file is not there yet
    constexpr int kMaxLinks = 40;                                     // Linux's own limit: links may run in a circle
    const fs::path next = fs::read_symlink(target_, error);
    if (n_links == kMaxLinks || error) fail("cannot follow the symbolic link", error ? error.value() : ELOOP);
    target_ = target_.parent_path() / next;
  }
  const fs::file_status status = fs::status(target_, error);
  // A rename would replace a device such as /dev/null by a plain file.
  if (fs::exists(status) && !fs::is_regular_file(status))
    throw Error::io(path_, "found ", fs::is_directory(status) ? "a directory" : "no regular file",
                    ", wanted a file to write or none");
  temporary_ = temporary_beside(target_);
  // A file of this name can only be left over from a crashed process that had our id.
  fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0666);
  if (fd_ < 0) fail("cannot create a file beside it", errno);
}

AtomicFile::~AtomicFile() {
  if (fd_ >= 0) ::close(fd_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void AtomicFile::fail(const char* action, int error) const {
  throw Error::io(path_, action, ": ", std::generic_category().message(error));
}

void AtomicFile::append(std::span<const std::byte> bytes) {
  POLYSPAN_CHECK(fd_ >= 0, "append after commit");
  constexpr size_t kMaxWriteBytes = size_t{1} << 30;  // write() takes at most 2 GiB - 4 KiB at once
  while (!bytes.empty()) {
    const ssize_t n_written = ::write(fd_, bytes.data(), std::min(bytes.size(), kMaxWriteBytes));
    if (n_written < 0 && errno == EINTR) continue;
    if (n_written <= 0) fail("cannot write", n_written < 0 ? errno : ENOSPC);
    bytes = bytes.subspan(static_cast<size_t>(n_written));
  }
}

void AtomicFile::commit() {
  POLYSPAN_CHECK(fd_ >= 0, "a second commit");
  if (::fsync(fd_) != 0) fail("cannot bring it to disk", errno);
  const int closed = ::close(fd_);
  fd_ = -1;
  if (closed != 0) fail("cannot close", errno);
  if (::rename(temporary_.c_str(), target_.c_str()) != 0) fail("cannot rename a file to it", errno);
  temporary_.clear();
  // Without this a power failure may lose the new name; some file systems refuse it, and the file is there anyway.
  const fs::path folder = target_.has_parent_path() ? target_.parent_path() : fs::path(".");
  const int folder_fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder_fd < 0) return;
  ::fsync(folder_fd);
  ::close(folder_fd);
}

void write_file_atomically(const fs::path& path, std::span<const std::byte> contents) {
  AtomicFile file(path);
  file.append(contents);
  file.commit();
}

void write_file_atomically(const fs::path& path, std::string_view contents) {
  write_file_atomically(path, std::as_bytes(std::span(contents)));
}

}  // namespace polyspan
