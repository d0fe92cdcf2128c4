#include "io/gguf_writer.h"

#include <bit>
#include <cstring>
#include <string_view>
#include <type_traits>
#include <utility>

#include "core/atomic_file.h"
#include "core/error.h"
#include "io/gguf_value_type.h"

namespace polyspan {
namespace {
using namespace gguf_value_type;

static_assert(std::endian::native == std::endian::little, "GGUF files are written without swapping bytes");

constexpr size_t kAlignment = 32;  // the format's default: then no general.alignment is needed
constexpr uint32_t kVersion = 3;

template <typename T>
void put(std::string& out, T value) {
  static_assert(std::is_arithmetic_v<T>);
  char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));
  out.append(bytes, sizeof(T));
}

void put_text(std::string& out, std::string_view text) {
  put<uint64_t>(out, text.size());
  out += text;
}

void put_key(std::string& out, std::string_view key, ValueType type) {
  put_text(out, key);
  put<uint32_t>(out, type);
}

void put_array_start(std::string& out, std::string_view key, ValueType element_type, size_t length) {
  put_key(out, key, kArray);
  put<uint32_t>(out, element_type);
  put<uint64_t>(out, length);
}

size_t padded(size_t n_bytes) { return (n_bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

void GgufWriter::add_u32(const std::string& key, uint32_t value) {
  put_key(metadata_, key, kU32);
  put(metadata_, value);
  ++n_metadata_;
}

void GgufWriter::add_i32(const std::string& key, int32_t value) {
  put_key(metadata_, key, kI32);
  put(metadata_, value);
  ++n_metadata_;
}

void GgufWriter::add_f32(const std::string& key, float value) {
  put_key(metadata_, key, kF32);
  put(metadata_, value);
  ++n_metadata_;
}

void GgufWriter::add_bool(const std::string& key, bool value) {
  put_key(metadata_, key, kBool);
  put<uint8_t>(metadata_, value ? 1 : 0);
  ++n_metadata_;
}

void GgufWriter::add_string(const std::string& key, const std::string& value) {
  put_key(metadata_, key, kString);
  put_text(metadata_, value);
  ++n_metadata_;
}

void GgufWriter::add_strings(const std::string& key, const std::vector<std::string>& values) {
  put_array_start(metadata_, key, kString, values.size());
  for (const std::string& value : values) put_text(metadata_, value);
  ++n_metadata_;
}

void GgufWriter::add_i32s(const std::string& key, const std::vector<int32_t>& values) {
  put_array_start(metadata_, key, kI32, values.size());
  for (const int32_t value : values) put(metadata_, value);
  ++n_metadata_;
}

void GgufWriter::add_f32s(const std::string& key, const std::vector<float>& values) {
  put_array_start(metadata_, key, kF32, values.size());
  for (const float value : values) put(metadata_, value);
  ++n_metadata_;
}

void GgufWriter::add_tensor(const std::string& name, DType type, const std::vector<int64_t>& dims,
                            std::function<void(std::span<std::byte>)> produce) {
  POLYSPAN_CHECK(dims.size() >= 1 && dims.size() <= 4, name);
  POLYSPAN_CHECK(dims[0] % dtype_info(type).block_len == 0, name);
  int64_t n_bytes = row_bytes(type, dims[0]);
  for (size_t i = 0; i < dims.size(); ++i) {
    POLYSPAN_CHECK(dims[i] >= 1, name);
    if (i > 0) n_bytes *= dims[i];
  }
  tensors_.push_back({name, type, dims, n_bytes, std::move(produce)});
}

void GgufWriter::add_f32_tensor(const std::string& name, const std::vector<int64_t>& dims, std::vector<float> values) {
  int64_t n_values = 1;
  for (const int64_t dim : dims) n_values *= dim;
  POLYSPAN_CHECK(n_values == std::ssize(values), name);
  add_tensor(name, DType::kF32, dims, [values = std::move(values)](std::span<std::byte> out) {
    std::memcpy(out.data(), values.data(), out.size());
  });
}

std::string GgufWriter::header() const {
  std::string out = "GGUF";
  put(out, kVersion);
  put<uint64_t>(out, tensors_.size());
  put(out, n_metadata_);
  out += metadata_;
  uint64_t offset = 0;  // from the start of the tensor data
  for (const Tensor& tensor : tensors_) {
    put_text(out, tensor.name);
    put<uint32_t>(out, static_cast<uint32_t>(tensor.dims.size()));
    for (const int64_t dim : tensor.dims) put<uint64_t>(out, static_cast<uint64_t>(dim));
    put<uint32_t>(out, static_cast<uint32_t>(tensor.type));
    put<uint64_t>(out, offset);
    offset += padded(static_cast<size_t>(tensor.n_bytes));
  }
  out.resize(padded(out.size()));
  return out;
}

void GgufWriter::write(const std::filesystem::path& path) const {
  AtomicFile file(path);
  const std::string start = header();
  file.append(std::as_bytes(std::span(start)));
  for (const Tensor& tensor : tensors_) {  // one tensor in memory at a time
    std::vector<std::byte> bytes(padded(static_cast<size_t>(tensor.n_bytes)));
    tensor.produce(std::span(bytes).first(static_cast<size_t>(tensor.n_bytes)));
    file.append(bytes);
  }
  file.commit();
}

std::vector<std::byte> GgufWriter::to_bytes() const {
  const std::string start = header();
  const std::span<const std::byte> start_bytes = std::as_bytes(std::span(start));
  std::vector<std::byte> out(start_bytes.begin(), start_bytes.end());
  for (const Tensor& tensor : tensors_) {
    const size_t first = out.size();
    out.resize(first + padded(static_cast<size_t>(tensor.n_bytes)));
    tensor.produce(std::span(out).subspan(first, static_cast<size_t>(tensor.n_bytes)));
  }
  return out;
}

}  // namespace polyspan
