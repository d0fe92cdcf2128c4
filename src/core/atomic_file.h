// core/atomic_file.h: a file that appears under its name only when it is complete.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>

namespace polyspan {

// Writes to a file beside `path`; commit() brings it to disk and renames it over `path`. Without commit() it is
// removed. A symbolic link is followed, so that the link stays. Errors are kIo and name `path`.
class AtomicFile {
 public:
  // Throws when the folder is missing or not writable, or when `path` is there and is no regular file.
  explicit AtomicFile(const std::filesystem::path& path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void append(std::span<const std::byte> bytes);
  void commit();

 private:
  [[noreturn]] void fail(const char* action, int error) const;
  std::filesystem::path path_;    // as the caller named it
  std::filesystem::path target_;  // after following a link
  std::filesystem::path temporary_;
  int fd_ = -1;
};

}  // namespace polyspan
