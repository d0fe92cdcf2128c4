// core/error.h: the one exception of the library, and checks for our own mistakes.
//
// What a user, a file, the network or the machine can cause throws Error: its message names what was found, where, and
// what was wanted. What only a bug of ours can cause is POLYSPAN_CHECK, kept in release builds. Only main() exits.
#pragma once

#include <filesystem>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

namespace polyspan {

enum class ErrorKind {
  kUsage,        // a wrong option or argument (exit status 2)
  kBadFile,      // a file that is not what it should be
  kBadInput,     // a prompt, plan or request that cannot be served
  kUnsupported,  // well-formed, but not something this build can do
  kOutOfMemory,  // more memory asked for than there is
  kIo,           // the operating system refused
};

// Everything after `kind` and the place is streamed into the message.
class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  ErrorKind kind() const { return kind_; }

  template <typename... Parts>
  static Error usage(const Parts&... parts) {
    return {ErrorKind::kUsage, join(parts...)};
  }
  template <typename... Parts>
  static Error bad_file(const std::filesystem::path& file, const Parts&... parts) {
    return {ErrorKind::kBadFile, join(file.string(), ": ", parts...)};
  }
  template <typename... Parts>
  static Error bad_input(const Parts&... parts) {
    return {ErrorKind::kBadInput, join(parts...)};
  }
  template <typename... Parts>
  static Error unsupported(const Parts&... parts) {
    return {ErrorKind::kUnsupported, join(parts...)};
  }
  template <typename... Parts>
  static Error out_of_memory(const Parts&... parts) {
    return {ErrorKind::kOutOfMemory, join(parts...)};
  }
  template <typename... Parts>
  static Error io(const std::filesystem::path& file, const Parts&... parts) {
    return {ErrorKind::kIo, join(file.string(), ": ", parts...)};
  }

 private:
  template <typename... Parts>
  static std::string join(const Parts&... parts) {
    std::ostringstream out;
    (out << ... << parts);
    return out.str();
  }
  ErrorKind kind_;
};

[[noreturn]] void check_failed(const char* condition, const char* file, int line, const std::string& message);

}  // namespace polyspan

// A condition that only a bug of ours can break. The optional arguments are one string expression.
#define POLYSPAN_CHECK(condition, ...)                                                         \
  do {                                                                                         \
    if (!(condition)) ::polyspan::check_failed(#condition, __FILE__, __LINE__, {__VA_ARGS__}); \
  } while (0)
#ifdef NDEBUG
#define POLYSPAN_DCHECK(condition, ...) ((void)0)
#else
#define POLYSPAN_DCHECK(condition, ...) POLYSPAN_CHECK(condition __VA_OPT__(, ) __VA_ARGS__)
#endif
