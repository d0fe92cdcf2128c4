// io/safetensors.h: safetensors files of float32 tensors: checkpoints that other programs read as well.
// Format: 8 bytes of header length, a JSON header, the tensors' bytes (github.com/huggingface/safetensors).
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "core/mapped_file.h"

namespace polyspan {

struct FloatTensor {
  std::vector<int64_t> shape;  // row-major
  std::span<const float> values;
};

class SafetensorsFile {
 public:
  // Checks every length and offset against the file. Throws Error: kIo, kBadFile (also for other types than F32).
  static SafetensorsFile open(const std::filesystem::path& path);
  const std::filesystem::path& path() const { return file_.path(); }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const std::map<std::string, FloatTensor>& tensors() const { return tensors_; }
  // Throws Error (kBadFile) where it is missing or of another shape.
  const FloatTensor& get(const std::string& name, std::span<const int64_t> shape) const;
  const std::string& get_metadata(const std::string& key) const;

 private:
  explicit SafetensorsFile(MappedFile file) : file_(std::move(file)) {}
  MappedFile file_;
  std::map<std::string, std::string> metadata_;
  std::map<std::string, FloatTensor> tensors_;
};

struct NamedFloatTensor {
  std::string name;
  FloatTensor tensor;
};
// Writes beside `path` and renames.
void write_safetensors(const std::filesystem::path& path, const std::map<std::string, std::string>& metadata,
                       std::span<const NamedFloatTensor> tensors);

}  // namespace polyspan
