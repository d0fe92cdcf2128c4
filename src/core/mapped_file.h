// core/mapped_file.h: a file mapped read-only into memory.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string_view>

namespace polyspan {

class MappedFile {
 public:
  // Throws Error (kIo) when the file is missing, is no regular file, or cannot be mapped. An empty file maps to no
  // bytes.
  explicit MappedFile(const std::filesystem::path& path);
  // Bytes that are in memory already, under a name for messages. `bytes` must outlive it; release() does nothing.
  static MappedFile of_memory(std::span<const std::byte> bytes, const std::filesystem::path& name);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&&) = delete;
  MappedFile(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  std::string_view text() const { return {reinterpret_cast<const char*>(data_), size_}; }  // the same bytes
  const std::filesystem::path& path() const { return path_; }

  // Tells the system that this part of the mapping is not needed again soon: its pages leave the process (they stay
  // readable and are read again from the file). `part` must lie inside bytes().
  void release(std::span<const std::byte> part) const;

 private:
  MappedFile() = default;
  std::filesystem::path path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
  bool owned_ = false;  // data_ is a mapping of ours
};

// Writes `contents` to a file beside `path` and renames it over `path`, so that a reader never sees half a file. For
// contents too large for memory: core/atomic_file.h.
void write_file_atomically(const std::filesystem::path& path, std::span<const std::byte> contents);
void write_file_atomically(const std::filesystem::path& path, std::string_view contents);

}  // namespace polyspan
