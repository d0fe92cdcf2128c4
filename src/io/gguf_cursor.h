// io/gguf_cursor.h: reads little-endian values from bytes, never past their end. Used by parse_gguf only.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

#include "core/error.h"

namespace polyspan {

static_assert(std::endian::native == std::endian::little, "GGUF files are read without swapping bytes");

class GgufCursor {
 public:
  GgufCursor(std::span<const std::byte> bytes, const std::filesystem::path& name) : bytes_(bytes), name_(name) {}

  size_t offset() const { return offset_; }
  size_t remaining() const { return bytes_.size() - offset_; }

  // What is being read from here on: for the message of a file that ends too early.
  void set_subject(std::string_view part, std::string_view of) {
    part_ = part;
    of_ = of;
  }
  std::string subject() const;

  template <typename T>
  T read() {
    need(sizeof(T));
    T value;
    std::memcpy(&value, bytes_.data() + offset_, sizeof(T));
    offset_ += sizeof(T);
    return value;
  }

  std::string_view read_string() {
    const uint64_t length = read<uint64_t>();
    need(length);
    const std::string_view text(reinterpret_cast<const char*>(bytes_.data()) + offset_, static_cast<size_t>(length));
    offset_ += static_cast<size_t>(length);
    return text;
  }

  // Throws unless n_bytes more are there.
  void need(uint64_t n_bytes) const {
    if (n_bytes > remaining()) fail_end(n_bytes);
  }

  // A bad file whose fault lies in the subject. `parts` says what was found and wanted.
  template <typename... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    throw Error::bad_file(name_, subject(), ": ", parts...);
  }

 private:
  [[noreturn]] void fail_end(uint64_t n_bytes) const;
  std::span<const std::byte> bytes_;
  const std::filesystem::path& name_;
  size_t offset_ = 0;
  std::string_view part_ = "header", of_;
};

}  // namespace polyspan
