// io/gguf_writer.h: writing GGUF version 3 files: tests, random-weight models of real shapes, export.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "core/dtype.h"

namespace polyspan {

class GgufWriter {
 public:
  // Keys must differ, as must tensors' names: the reader refuses a file that has one twice.
  void add_u32(const std::string& key, uint32_t value);
  void add_i32(const std::string& key, int32_t value);
  void add_f32(const std::string& key, float value);
  void add_bool(const std::string& key, bool value);
  void add_string(const std::string& key, const std::string& value);
  void add_strings(const std::string& key, const std::vector<std::string>& values);
  void add_i32s(const std::string& key, const std::vector<int32_t>& values);
  void add_f32s(const std::string& key, const std::vector<float>& values);

  // A tensor whose bytes are produced when the file is written (so that a large model is never held in memory).
  // dims[0] is the contiguous dimension. `produce` fills exactly the tensor's bytes (zero before); it is called once
  // for every file written. REQUIRES: 1 to 4 dims, each >= 1; dims[0] % block_len == 0.
  void add_tensor(const std::string& name, DType type, const std::vector<int64_t>& dims,
                  std::function<void(std::span<std::byte>)> produce);
  // A copy of `values`, stored as F32.
  void add_f32_tensor(const std::string& name, const std::vector<int64_t>& dims, std::vector<float> values);

  // Writes beside `path` and renames. Throws Error (kIo).
  void write(const std::filesystem::path& path) const;
  // The bytes of the whole file: for tests that cut and corrupt them.
  std::vector<std::byte> to_bytes() const;

 private:
  struct Tensor {
    std::string name;
    DType type;
    std::vector<int64_t> dims;
    int64_t n_bytes;
    std::function<void(std::span<std::byte>)> produce;
  };
  // Everything before the tensor data, padded to where that starts.
  std::string header() const;
  std::string metadata_;  // encoded key-value pairs
  uint64_t n_metadata_ = 0;
  std::vector<Tensor> tensors_;
};

}  // namespace polyspan
