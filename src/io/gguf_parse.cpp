#include "io/gguf_parse.h"

#include <algorithm>
#include <array>
#include <bit>
#include <numeric>
#include <optional>
#include <type_traits>
#include <utility>

#include "core/error.h"
#include "io/gguf_cursor.h"
#include "io/gguf_value_type.h"

namespace polyspan {
namespace {
using namespace gguf_value_type;

// Limits no model comes near (the largest vocabularies have 3e5 tokens, the largest models some 5,000 tensors). With
// them a file cannot make the reader hold much more than its own size.
constexpr uint64_t kMaxKeys = uint64_t{1} << 16;
constexpr uint64_t kMaxTensors = uint64_t{1} << 16;
constexpr uint64_t kMaxArrayLen = uint64_t{1} << 24;         // of one array
constexpr uint64_t kMaxArrayElements = uint64_t{1} << 26;    // of all arrays together
constexpr uint64_t kMaxNameBytes = 65535;                    // of a key (the format's limit) or a tensor's name
constexpr uint64_t kMaxValues = uint64_t{1} << 60;           // of a tensor: bytes still fit an int64_t
constexpr uint64_t kMinKeyBytes = 8 + 1 + 4 + 1;             // length, one character, type, the least value
constexpr uint64_t kMinTensorBytes = 8 + 1 + 4 + 8 + 4 + 8;  // length, one character, n_dims, a dim, type, offset
constexpr uint64_t kMinAlignment = 8;                        // the format's: makes every tensor safe to read as floats
constexpr uint64_t kMaxAlignment = uint64_t{1} << 20;
constexpr uint64_t kDefaultAlignment = 32;

bool read_bool(GgufCursor& cursor) {
  const int byte = cursor.read<uint8_t>();
  if (byte > 1) cursor.fail("found a boolean of value ", byte, " before byte ", cursor.offset(), ", wanted 0 or 1");
  return byte == 1;
}

// Counts what all arrays of the file hold together.
struct ArrayBudget {
  uint64_t n_elements = 0;
};

template <typename T>
int64_t read_integer(GgufCursor& cursor) {
  const T value = cursor.read<T>();
  if constexpr (std::is_same_v<T, uint64_t>)
    if (value > static_cast<uint64_t>(INT64_MAX)) cursor.fail("found ", value, ", wanted at most 2^63 - 1");
  return static_cast<int64_t>(value);
}

template <typename Element, typename Read>
std::vector<Element> read_elements(GgufCursor& cursor, uint64_t length, size_t element_bytes, Read read) {
  cursor.need(length * element_bytes);  // length <= kMaxArrayLen: no overflow
  std::vector<Element> elements;
  elements.reserve(static_cast<size_t>(length));
  for (uint64_t i = 0; i < length; ++i) elements.push_back(read(cursor));
  return elements;
}

template <typename T>
std::vector<int64_t> read_integers(GgufCursor& cursor, uint64_t length) {
  return read_elements<int64_t>(cursor, length, sizeof(T), read_integer<T>);
}

template <typename T>
std::vector<double> read_floats(GgufCursor& cursor, uint64_t length) {
  return read_elements<double>(cursor, length, sizeof(T), [](GgufCursor& c) { return double{c.read<T>()}; });
}

GgufValue read_array(GgufCursor& cursor, ArrayBudget& budget) {
  const uint32_t type = cursor.read<uint32_t>();
  const uint64_t length = cursor.read<uint64_t>();
  if (type == kArray) cursor.fail("found an array of arrays, wanted an array of numbers, booleans or strings");
  if (length > kMaxArrayLen) cursor.fail("found an array of ", length, " elements, wanted at most ", kMaxArrayLen);
  budget.n_elements += length;
  if (budget.n_elements > kMaxArrayElements)
    cursor.fail("found arrays of ", budget.n_elements, " elements so far, wanted at most ", kMaxArrayElements);
  switch (type) {
    case kU8: return read_integers<uint8_t>(cursor, length);
    case kI8: return read_integers<int8_t>(cursor, length);
    case kU16: return read_integers<uint16_t>(cursor, length);
    case kI16: return read_integers<int16_t>(cursor, length);
    case kU32: return read_integers<uint32_t>(cursor, length);
    case kI32: return read_integers<int32_t>(cursor, length);
    case kU64: return read_integers<uint64_t>(cursor, length);
    case kI64: return read_integers<int64_t>(cursor, length);
    case kF32: return read_floats<float>(cursor, length);
    case kF64: return read_floats<double>(cursor, length);
    case kBool: return read_elements<bool>(cursor, length, 1, read_bool);
    case kString:  // every string has at least its length
      return read_elements<std::string_view>(cursor, length, 8, [](GgufCursor& c) { return c.read_string(); });
    default: cursor.fail("found an array of value type ", type, ", wanted a type of 0 to 12");
  }
}

GgufValue read_value(GgufCursor& cursor, ArrayBudget& budget) {
  const uint32_t type = cursor.read<uint32_t>();
  switch (type) {
    case kU8: return uint64_t{cursor.read<uint8_t>()};
    case kU16: return uint64_t{cursor.read<uint16_t>()};
    case kU32: return uint64_t{cursor.read<uint32_t>()};
    case kU64: return cursor.read<uint64_t>();
    case kI8: return int64_t{cursor.read<int8_t>()};
    case kI16: return int64_t{cursor.read<int16_t>()};
    case kI32: return int64_t{cursor.read<int32_t>()};
    case kI64: return cursor.read<int64_t>();
    case kF32: return double{cursor.read<float>()};
    case kF64: return cursor.read<double>();
    case kBool: return read_bool(cursor);
    case kString: return cursor.read_string();
    case kArray: return read_array(cursor, budget);
    default: cursor.fail("found value type ", type, ", wanted a type of 0 to 12");
  }
}

std::string_view read_name(GgufCursor& cursor) {
  const std::string_view name = cursor.read_string();
  if (name.empty() || name.size() > kMaxNameBytes)
    cursor.fail("found a name of ", name.size(), " bytes before byte ", cursor.offset(), ", wanted 1 to ",
                kMaxNameBytes);
  return name;
}

void read_metadata(GgufCursor& cursor, uint64_t n_keys, std::map<std::string_view, GgufValue>& metadata) {
  ArrayBudget budget;
  for (uint64_t i = 0; i < n_keys; ++i) {
    cursor.set_subject("metadata key", {});
    const std::string_view key = read_name(cursor);
    cursor.set_subject("key", key);
    const auto [place, is_new] = metadata.try_emplace(key);
    if (!is_new) cursor.fail("found it twice, wanted it once");
    place->second = read_value(cursor, budget);
  }
}

uint64_t alignment_of(const GgufContents& contents, GgufCursor& cursor) {
  const auto found = contents.metadata.find("general.alignment");
  if (found == contents.metadata.end()) return kDefaultAlignment;
  cursor.set_subject("key", found->first);
  const uint64_t* alignment = std::get_if<uint64_t>(&found->second);
  if (!alignment) cursor.fail("found another type, wanted an unsigned integer");
  if (!std::has_single_bit(*alignment) || *alignment < kMinAlignment || *alignment > kMaxAlignment)
    cursor.fail("found ", *alignment, ", wanted a power of two from ", kMinAlignment, " to ", kMaxAlignment);
  return *alignment;
}

// A tensor's entry; where its bytes are is known only after the last entry.
struct TensorInfo {
  GgufTensor tensor;
  uint64_t offset = 0;  // from the start of the tensor data
  uint64_t n_bytes = 0;
};

TensorInfo read_tensor_info(GgufCursor& cursor, uint64_t alignment, const std::filesystem::path& name) {
  TensorInfo info;
  GgufTensor& tensor = info.tensor;
  cursor.set_subject("tensor entry", {});
  tensor.name = read_name(cursor);
  cursor.set_subject("tensor", tensor.name);

  const uint32_t n_dims = cursor.read<uint32_t>();
  if (n_dims < 1 || n_dims > 4) cursor.fail("found ", n_dims, " dimensions, wanted 1 to 4");
  uint64_t n_values = 1;
  for (uint32_t i = 0; i < n_dims; ++i) {
    const uint64_t dim = cursor.read<uint64_t>();
    if (dim < 1) cursor.fail("found a dimension of 0, wanted at least 1");
    if (dim > kMaxValues / n_values) cursor.fail("found dimensions of more than 2^60 values together");
    n_values *= dim;
    tensor.dims.push_back(static_cast<int64_t>(dim));
  }

  const uint32_t type_id = cursor.read<uint32_t>();
  const std::optional<DTypeInfo> type = find_dtype(type_id);
  if (!type)
    throw Error::unsupported(name.string(), ": ", cursor.subject(), " has type ", gguf_type_name(type_id),
                             ", wanted one that this program computes on: ", dtype_names());
  if (tensor.dims[0] % type->block_len != 0)
    cursor.fail("found rows of ", tensor.dims[0], " values of type ", type->name, ", wanted a multiple of ",
                type->block_len);
  tensor.type = type->type;
  info.n_bytes = n_values / static_cast<uint64_t>(type->block_len) * static_cast<uint64_t>(type->block_bytes);

  info.offset = cursor.read<uint64_t>();
  if (info.offset % alignment != 0) cursor.fail("found offset ", info.offset, ", wanted a multiple of ", alignment);
  return info;
}

// Sets every tensor's data, after checking that it lies in the file and overlaps no other.
void place_tensors(std::vector<TensorInfo>& infos, uint64_t alignment, std::span<const std::byte> bytes,
                   GgufCursor& cursor) {
  const uint64_t data_start = (cursor.offset() + alignment - 1) / alignment * alignment;
  for (TensorInfo& info : infos) {
    cursor.set_subject("tensor", info.tensor.name);
    // Compared without sums that could overflow: n_bytes <= 2^62, the rest by the file's size.
    const bool starts_inside = data_start <= bytes.size() && info.offset <= bytes.size() - data_start;
    if (!starts_inside || info.n_bytes > bytes.size() - data_start - info.offset)
      cursor.fail("the file ends at byte ", bytes.size(), ", it needs ", info.n_bytes, " bytes from byte ", data_start,
                  " + ", info.offset);
    info.tensor.data = bytes.subspan(static_cast<size_t>(data_start + info.offset), static_cast<size_t>(info.n_bytes));
  }

  std::vector<size_t> by_offset(infos.size());
  std::iota(by_offset.begin(), by_offset.end(), size_t{0});
  std::sort(by_offset.begin(), by_offset.end(), [&](size_t a, size_t b) { return infos[a].offset < infos[b].offset; });
  for (size_t i = 1; i < by_offset.size(); ++i) {
    const TensorInfo &before = infos[by_offset[i - 1]], &after = infos[by_offset[i]];
    if (after.offset - before.offset >= before.n_bytes) continue;
    cursor.set_subject("tensor", after.tensor.name);
    cursor.fail("found it at offset ", after.offset, ", inside tensor ", quoted(before.tensor.name), " (",
                before.n_bytes, " bytes from offset ", before.offset, ")");
  }
}

uint32_t read_version(GgufCursor& cursor, const std::filesystem::path& name) {
  cursor.set_subject("GGUF header", {});
  const auto magic = cursor.read<std::array<char, 4>>();
  if (const std::string_view found(magic.data(), magic.size()); found != "GGUF")
    throw Error::bad_file(name, "found ", quoted(found), " as its first four bytes, wanted \"GGUF\"");
  const uint32_t version = cursor.read<uint32_t>();
  if (version == 2 || version == 3) return version;
  if (version != 0 && (version & 0xffff) == 0)  // 2 or 3 with its bytes swapped
    throw Error::unsupported(name.string(), ": found a big-endian GGUF file, wanted a little-endian one");
  throw Error::unsupported(name.string(), ": found GGUF version ", version, ", wanted 2 or 3");
}

uint64_t read_count(GgufCursor& cursor, std::string_view what, uint64_t max_count) {
  const uint64_t count = cursor.read<uint64_t>();
  if (count > max_count) cursor.fail("found ", count, " ", what, ", wanted at most ", max_count);
  return count;
}

// Things of at least min_bytes each: the rest of the file must be able to hold them.
void check_count_fits(const GgufCursor& cursor, std::string_view what, uint64_t count, uint64_t min_bytes) {
  if (count * min_bytes > cursor.remaining())  // count <= kMaxTensors: no overflow
    cursor.fail("found ", count, " ", what, ", but only ", cursor.remaining(), " bytes follow");
}

}  // namespace

std::string quoted(std::string_view text) {
  constexpr size_t kMaxShownBytes = 64;
  std::string out = "\"";
  for (const char c : text.substr(0, kMaxShownBytes)) out += c >= 0x20 && c < 0x7f ? c : '?';
  return out + (text.size() > kMaxShownBytes ? "...\"" : "\"");
}

std::string GgufCursor::subject() const {
  return of_.empty() ? std::string(part_) : std::string(part_) + " " + quoted(of_);
}

void GgufCursor::fail_end(uint64_t n_bytes) const {
  fail("the file ends at byte ", bytes_.size(), ", ", n_bytes, " bytes are needed from byte ", offset_);
}

GgufContents parse_gguf(std::span<const std::byte> bytes, const std::filesystem::path& name) {
  GgufContents contents;
  GgufCursor cursor(bytes, name);
  contents.version = read_version(cursor, name);
  const uint64_t n_tensors = read_count(cursor, "tensors", kMaxTensors);
  const uint64_t n_keys = read_count(cursor, "metadata keys", kMaxKeys);
  check_count_fits(cursor, "tensors", n_tensors, kMinTensorBytes);
  check_count_fits(cursor, "metadata keys", n_keys, kMinKeyBytes);
  read_metadata(cursor, n_keys, contents.metadata);
  const uint64_t alignment = alignment_of(contents, cursor);

  std::vector<TensorInfo> infos;
  cursor.set_subject("tensor entries", {});
  check_count_fits(cursor, "tensors", n_tensors, kMinTensorBytes);
  infos.reserve(static_cast<size_t>(n_tensors));
  for (uint64_t i = 0; i < n_tensors; ++i) {
    infos.push_back(read_tensor_info(cursor, alignment, name));
    if (!contents.tensor_index.emplace(infos.back().tensor.name, infos.size() - 1).second)
      cursor.fail("found it twice, wanted it once");
  }
  place_tensors(infos, alignment, bytes, cursor);
  contents.tensors.reserve(infos.size());
  for (TensorInfo& info : infos) contents.tensors.push_back(std::move(info.tensor));
  return contents;
}

}  // namespace polyspan
