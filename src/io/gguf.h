// io/gguf.h: reading GGUF files (versions 2 and 3, little endian), memory-mapped and checked before use.
//
// The whole header is validated when the file is opened: every count, length and offset is compared with the size of
// the file before anything is read or allocated for it. After that, metadata and tensors can be used without further
// checks. A tensor's data is aligned to general.alignment, which is at least 8.
// Format: github.com/ggml-org/ggml/blob/master/docs/gguf.md.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "core/dtype.h"
#include "core/mapped_file.h"

namespace polyspan {

// The value of one metadata key. Integers of every width are held as int64_t or uint64_t, floats as double.
// Arrays of arrays are refused (no model uses them).
using GgufValue = std::variant<uint64_t, int64_t, double, bool, std::string_view, std::vector<int64_t>,
                               std::vector<double>, std::vector<bool>, std::vector<std::string_view>>;

// A tensor of the file. dims as the file has them: dims[0] is the contiguous one (d_in of a weight), dims[1] counts
// rows.
struct GgufTensor {
  std::string_view name;
  DType type;
  std::vector<int64_t> dims;        // 1 to 4, each >= 1
  std::span<const std::byte> data;  // in the mapping; exactly the tensor's bytes
  int64_t n_values() const;
  std::string shape_text() const;  // "[576, 49152]"
};

class GgufFile {
 public:
  // Throws Error (kIo, kBadFile, kUnsupported). Messages name the key or tensor, the offset, what was found and wanted.
  static GgufFile open(const std::filesystem::path& path);
  // A file that is in memory already, under a name for messages. `bytes` must outlive it.
  static GgufFile from_bytes(std::span<const std::byte> bytes, const std::filesystem::path& name);

  const std::filesystem::path& path() const { return file_.path(); }
  uint32_t version() const { return version_; }
  int64_t file_bytes() const { return static_cast<int64_t>(file_.bytes().size()); }
  const MappedFile& mapping() const { return file_; }

  // Metadata. find_* give nullopt when the key is absent and throw Error::bad_file when it has another type or does not
  // fit; get_* also throw when it is absent. Strings point into the mapping.
  const GgufValue* find(std::string_view key) const;
  std::optional<int64_t> find_int(std::string_view key) const;
  std::optional<double> find_float(std::string_view key) const;  // accepts integers too
  std::optional<bool> find_bool(std::string_view key) const;
  std::optional<std::string_view> find_string(std::string_view key) const;
  std::optional<std::vector<int64_t>> find_ints(std::string_view key) const;
  std::optional<std::vector<double>> find_floats(std::string_view key) const;
  std::optional<std::vector<std::string_view>> find_strings(std::string_view key) const;
  int64_t get_int(std::string_view key) const;
  double get_float(std::string_view key) const;
  std::string_view get_string(std::string_view key) const;
  std::vector<std::string_view> get_strings(std::string_view key) const;
  const std::map<std::string_view, GgufValue>& metadata() const { return metadata_; }

  // Tensors, in file order.
  const std::vector<GgufTensor>& tensors() const { return tensors_; }
  const GgufTensor* find_tensor(std::string_view name) const;
  // Throws when the tensor is missing or its dims differ from `dims` (the message prints both).
  const GgufTensor& get_tensor(std::string_view name, std::span<const int64_t> dims) const;

 private:
  explicit GgufFile(MappedFile file);
  MappedFile file_;
  uint32_t version_ = 0;
  std::map<std::string_view, GgufValue> metadata_;
  std::vector<GgufTensor> tensors_;
  std::map<std::string_view, size_t> tensor_index_;
};

}  // namespace polyspan
