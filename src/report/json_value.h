// report/json_value.h: reads a JSON file of a run directory and asks it for what it must hold. Whatever is not as it
// should be throws Error (kBadFile) that names the file, the place in it, what was found and what was wanted.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace polyspan::report {

// What integer() lets a count of tokens or samples be, where nothing narrower is known.
inline constexpr int64_t kMaxTokens = int64_t{1} << 31;

// A value of a file, and where it stands. The document must outlive it.
class JsonValue {
 public:
  JsonValue(const nlohmann::json& json, const std::filesystem::path& file, std::string place = "")
      : json_(&json), file_(&file), place_(std::move(place)) {}

  JsonValue at(std::string_view key) const;                   // of an object; it must be there
  std::optional<JsonValue> find(std::string_view key) const;  // of an object; absent where missing or null
  std::vector<JsonValue> items(size_t most) const;            // of an array

  double number(double least, double most) const;  // finite, within the bounds
  int64_t integer(int64_t least, int64_t most) const;
  uint64_t unsigned_integer() const;
  std::string text() const;  // at most 64 KiB
  bool boolean() const;
  std::vector<double> numbers(size_t most) const;  // an array of finite numbers
  std::vector<int64_t> integers(int64_t least, int64_t most_value, size_t most) const;
  std::vector<std::string> keys() const;  // of an object
  std::string dump() const;               // as JSON on one line, at most 200 bytes
  bool is_text() const { return json_->is_string(); }

  // Throws Error: "FILE: PLACE: found ..., wanted WANTED".
  [[noreturn]] void wrong(const std::string& wanted) const;
  const std::filesystem::path& file() const { return *file_; }

 private:
  const nlohmann::json* json_;
  const std::filesystem::path* file_;
  std::string place_;
};

// A file in memory.
struct JsonDocument {
  std::filesystem::path file;
  nlohmann::json json;
  JsonValue root() const { return {json, file}; }
};

// Throws Error: kIo where it cannot be read, kBadFile where it is no JSON, too large or nested too deeply. The values
// of the key `skipped` are read and dropped (large tables that are not asked for).
JsonDocument read_json(const std::filesystem::path& file, std::string_view skipped = "");
JsonDocument parse_json(std::string_view text, const std::filesystem::path& name, std::string_view skipped = "");
// read_json, and that `format_version` is kRunFormatVersion (moa/run_directory.h).
JsonDocument read_versioned(const std::filesystem::path& file, std::string_view skipped = "");

// The whole text of a file; throws Error where it cannot be read or is larger than 256 MiB.
std::string read_file(const std::filesystem::path& file);

}  // namespace polyspan::report
