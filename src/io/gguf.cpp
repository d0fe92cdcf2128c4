#include "io/gguf.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "core/error.h"
#include "io/gguf_parse.h"

namespace polyspan {
namespace {

std::string dims_text(std::span<const int64_t> dims) {
  std::string out = "[";
  for (size_t i = 0; i < dims.size(); ++i) out += (i ? ", " : "") + std::to_string(dims[i]);
  return out + "]";
}

// By the order of GgufValue's alternatives.
std::string_view type_text(const GgufValue& value) {
  constexpr std::string_view kNames[] = {"an unsigned integer",
                                         "an integer",
                                         "a float",
                                         "a boolean",
                                         "a string",
                                         "an array of integers",
                                         "an array of floats",
                                         "an array of booleans",
                                         "an array of strings"};
  static_assert(std::size(kNames) == std::variant_size_v<GgufValue>);
  return kNames[value.index()];
}

[[noreturn]] void fail_type(const GgufFile& file, std::string_view key, const GgufValue& found,
                            std::string_view wanted) {
  throw Error::bad_file(file.path(), "key ", quoted(key), ": found ", type_text(found), ", wanted ", wanted);
}

[[noreturn]] void fail_absent(const GgufFile& file, std::string_view key, std::string_view wanted) {
  throw Error::bad_file(file.path(), "found no key ", quoted(key), ", wanted ", wanted);
}

// The value of `key` when it is held as exactly T; throws for any other type.
template <typename T>
std::optional<T> find_as(const GgufFile& file, std::string_view key, std::string_view wanted) {
  const GgufValue* value = file.find(key);
  if (!value) return std::nullopt;
  if (const T* held = std::get_if<T>(value)) return *held;
  fail_type(file, key, *value, wanted);
}

}  // namespace

int64_t GgufTensor::n_values() const {
  int64_t n = 1;
  for (const int64_t dim : dims) n *= dim;
  return n;
}

std::string GgufTensor::shape_text() const { return dims_text(dims); }

GgufFile GgufFile::open(const std::filesystem::path& path) { return GgufFile(MappedFile(path)); }

GgufFile GgufFile::from_bytes(std::span<const std::byte> bytes, const std::filesystem::path& name) {
  return GgufFile(MappedFile::of_memory(bytes, name));
}

GgufFile::GgufFile(MappedFile file) : file_(std::move(file)) {
  GgufContents contents = parse_gguf(file_.bytes(), file_.path());
  version_ = contents.version;
  metadata_ = std::move(contents.metadata);
  tensors_ = std::move(contents.tensors);
  tensor_index_ = std::move(contents.tensor_index);
}

const GgufValue* GgufFile::find(std::string_view key) const {
  const auto found = metadata_.find(key);
  return found == metadata_.end() ? nullptr : &found->second;
}

std::optional<int64_t> GgufFile::find_int(std::string_view key) const {
  const GgufValue* value = find(key);
  if (!value) return std::nullopt;
  if (const int64_t* held = std::get_if<int64_t>(value)) return *held;
  const uint64_t* held = std::get_if<uint64_t>(value);
  if (!held) fail_type(*this, key, *value, "an integer");
  if (*held > static_cast<uint64_t>(INT64_MAX))
    throw Error::bad_file(path(), "key ", quoted(key), ": found ", *held, ", wanted at most 2^63 - 1");
  return static_cast<int64_t>(*held);
}

std::optional<double> GgufFile::find_float(std::string_view key) const {
  const GgufValue* value = find(key);
  if (!value) return std::nullopt;
  if (const double* held = std::get_if<double>(value)) return *held;
  if (const int64_t* held = std::get_if<int64_t>(value)) return static_cast<double>(*held);
  if (const uint64_t* held = std::get_if<uint64_t>(value)) return static_cast<double>(*held);
  fail_type(*this, key, *value, "a number");
}

std::optional<bool> GgufFile::find_bool(std::string_view key) const { return find_as<bool>(*this, key, "a boolean"); }

std::optional<std::string_view> GgufFile::find_string(std::string_view key) const {
  return find_as<std::string_view>(*this, key, "a string");
}

std::optional<std::vector<int64_t>> GgufFile::find_ints(std::string_view key) const {
  return find_as<std::vector<int64_t>>(*this, key, "an array of integers");
}

std::optional<std::vector<double>> GgufFile::find_floats(std::string_view key) const {
  return find_as<std::vector<double>>(*this, key, "an array of floats");
}

std::optional<std::vector<std::string_view>> GgufFile::find_strings(std::string_view key) const {
  return find_as<std::vector<std::string_view>>(*this, key, "an array of strings");
}

int64_t GgufFile::get_int(std::string_view key) const {
  if (const auto value = find_int(key)) return *value;
  fail_absent(*this, key, "an integer");
}

double GgufFile::get_float(std::string_view key) const {
  if (const auto value = find_float(key)) return *value;
  fail_absent(*this, key, "a number");
}

std::string_view GgufFile::get_string(std::string_view key) const {
  if (const auto value = find_string(key)) return *value;
  fail_absent(*this, key, "a string");
}

std::vector<std::string_view> GgufFile::get_strings(std::string_view key) const {
  if (auto value = find_strings(key)) return *std::move(value);
  fail_absent(*this, key, "an array of strings");
}

const GgufTensor* GgufFile::find_tensor(std::string_view name) const {
  const auto found = tensor_index_.find(name);
  return found == tensor_index_.end() ? nullptr : &tensors_[found->second];
}

const GgufTensor& GgufFile::get_tensor(std::string_view name, std::span<const int64_t> dims) const {
  const GgufTensor* tensor = find_tensor(name);
  if (!tensor)
    throw Error::bad_file(path(), "found no tensor ", quoted(name), ", wanted one of shape ", dims_text(dims));
  if (!std::equal(dims.begin(), dims.end(), tensor->dims.begin(), tensor->dims.end()))
    throw Error::bad_file(path(), "tensor ", quoted(name), ": found shape ", tensor->shape_text(), ", wanted ",
                          dims_text(dims));
  return *tensor;
}

}  // namespace polyspan
