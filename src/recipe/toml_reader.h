// recipe/toml_reader.h: tables of a TOML file whose every key must be known.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <set>
#include <string>
#include <vector>

namespace polyspan {

// One table ("[model]", an element of "[[stage]]"). Read each key that there may be, then call check_unknown(). Errors are
// kBadInput and name the file, the key with its table and, where it is known, the line.
class TomlTable {
 public:
  // Throws Error (kBadFile) with the line where it is no TOML.
  static TomlTable parse(const std::string& text, const std::filesystem::path& name);
  TomlTable(const TomlTable&) = default;
  TomlTable(TomlTable&&) = default;
  ~TomlTable();

  // Each leaves `value` alone where the key is absent. A number outside [least, most] or a wrong type is an error.
  void read(const char* key, int64_t& value, int64_t least, int64_t most);
  void read(const char* key, double& value, double least, double most);
  void read(const char* key, bool& value);
  void read(const char* key, std::string& value);
  void read(const char* key, std::vector<int64_t>& value);
  void read(const char* key, std::vector<std::string>& value);
  bool has(const char* key) const;
  TomlTable table(const char* key);                // empty where it is absent
  std::vector<TomlTable> tables(const char* key);  // of [[key]]

  // A key that nobody asked for is an error that suggests the nearest known one.
  void check_unknown() const;
  std::string where(const char* key) const;  // "FILE:LINE: [table] key"

 private:
  struct Node;
  TomlTable(std::shared_ptr<const Node> node, std::filesystem::path file, std::string name);
  std::shared_ptr<const Node> node_;
  std::filesystem::path file_;
  std::string name_;  // "model", "stage 2"; "" for the whole file
  std::set<std::string> known_;
};

// The name in `known` that is nearest to `name` by edits, "" if none is near.
std::string nearest_name(const std::string& name, const std::set<std::string>& known);

}  // namespace polyspan
