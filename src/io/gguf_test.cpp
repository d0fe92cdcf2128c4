// The reader on files that the writer made, and on the same files cut, corrupted and lying about themselves.
#include "io/gguf.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "core/error.h"
#include "io/gguf_writer.h"

namespace polyspan {
namespace {

using Bytes = std::vector<std::byte>;

std::function<void(std::span<std::byte>)> filled_with(uint8_t value) {
  return [value](std::span<std::byte> out) { std::memset(out.data(), value, out.size()); };
}

// Every kind of value and two tensors: 64 x 3 of Q4_1 (120 bytes, padded to 128) and 5 of F32 (20, padded to 32).
GgufWriter small_writer() {
  GgufWriter writer;
  writer.add_string("general.architecture", "llama");
  writer.add_u32("a.u32", 4000000000u);
  writer.add_i32("a.i32", -7);
  writer.add_f32("a.f32", 0.5f);
  writer.add_bool("a.bool", true);
  writer.add_strings("a.strings", {"x", "", "two words"});
  writer.add_i32s("a.i32s", {1, -2, 3});
  writer.add_f32s("a.f32s", {0.25f, -8.0f});
  writer.add_strings("a.empty", {});
  writer.add_tensor("first", DType::kQ4_1, {64, 3}, filled_with(0x5a));
  writer.add_f32_tensor("second", {5}, {1, 2, 3, 4, 5});
  return writer;
}

GgufFile parse(const Bytes& bytes) { return GgufFile::from_bytes(bytes, "test"); }

// The Error that opening these bytes gives.
Error error_of(const Bytes& bytes) {
  try {
    parse(bytes);
  } catch (const Error& error) {
    return error;
  }
  return Error(ErrorKind::kUsage, "opened without an error");
}

// `action` must throw an Error of this kind whose message has `part`.
template <typename Action>
void expect_error(ErrorKind kind, const std::string& part, Action action) {
  SCOPED_TRACE("wanted: " + part);
  try {
    action();
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), kind) << error.what();
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
  }
}

void expect_bad(const Bytes& bytes, const std::string& part, ErrorKind kind = ErrorKind::kBadFile) {
  expect_error(kind, part, [&] { parse(bytes); });
}

// Where `text` first is in the file.
size_t position_of(const Bytes& bytes, std::string_view text) {
  return std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()).find(text);
}

template <typename T>
Bytes with_value(Bytes bytes, size_t offset, T value) {
  std::memcpy(bytes.data() + offset, &value, sizeof value);
  return bytes;
}

TEST(GgufFile, ReadsWhatTheWriterWrote) {
  const Bytes bytes = small_writer().to_bytes();
  const GgufFile file = parse(bytes);
  EXPECT_EQ(file.version(), 3u);
  EXPECT_EQ(file.file_bytes(), std::ssize(bytes));
  EXPECT_EQ(file.metadata().size(), 9u);
  EXPECT_EQ(file.get_string("general.architecture"), "llama");
  EXPECT_EQ(file.get_int("a.u32"), 4000000000);
  EXPECT_EQ(file.get_int("a.i32"), -7);
  EXPECT_EQ(file.get_float("a.f32"), 0.5);
  EXPECT_EQ(file.get_float("a.i32"), -7.0);
  EXPECT_EQ(file.find_bool("a.bool"), true);
  EXPECT_EQ(file.get_strings("a.strings"), (std::vector<std::string_view>{"x", "", "two words"}));
  EXPECT_EQ(file.find_ints("a.i32s"), (std::vector<int64_t>{1, -2, 3}));
  EXPECT_EQ(file.find_floats("a.f32s"), (std::vector<double>{0.25, -8}));
  EXPECT_TRUE(file.get_strings("a.empty").empty());

  ASSERT_EQ(file.tensors().size(), 2u);
  const int64_t dims[] = {64, 3};
  const GgufTensor& first = file.get_tensor("first", dims);
  EXPECT_EQ(&first, &file.tensors()[0]);
  EXPECT_EQ(first.type, DType::kQ4_1);
  EXPECT_EQ(first.n_values(), 192);
  EXPECT_EQ(first.shape_text(), "[64, 3]");
  EXPECT_EQ(first.data.size(), 120u);
  for (const std::byte byte : first.data) EXPECT_EQ(byte, std::byte{0x5a});
  const GgufTensor* second = file.find_tensor("second");
  ASSERT_NE(second, nullptr);
  std::vector<float> values(5);
  dequantize_row(second->type, second->data.data(), 5, values.data());
  EXPECT_EQ(values, (std::vector<float>{1, 2, 3, 4, 5}));
}

TEST(GgufFile, AFileOnDiskEqualsItsBytes) {
  const std::filesystem::path path =
      std::filesystem::path(testing::TempDir()) / ("polyspan-gguf-test-" + std::to_string(::getpid()));
  small_writer().write(path);
  {
    GgufFile opened = GgufFile::open(path);
    const GgufFile file = std::move(opened);  // views must survive a move
    const std::span<const std::byte> mapped = file.mapping().bytes();
    EXPECT_EQ(Bytes(mapped.begin(), mapped.end()), small_writer().to_bytes());
    EXPECT_EQ(file.get_string("general.architecture"), "llama");
    EXPECT_EQ(file.find_tensor("second")->data.size(), 20u);
    EXPECT_EQ(file.path(), path);
  }
  std::filesystem::remove(path);
  expect_error(ErrorKind::kIo, "cannot open", [&] { GgufFile::open(path); });
}

TEST(GgufFile, VersionTwoIsTheSame) {
  const Bytes bytes = with_value<uint32_t>(small_writer().to_bytes(), 4, 2);
  EXPECT_EQ(parse(bytes).get_int("a.i32"), -7);
}

TEST(GgufFile, AbsentKeysAndTensors) {
  const Bytes bytes = small_writer().to_bytes();
  const GgufFile file = parse(bytes);
  EXPECT_EQ(file.find("none"), nullptr);
  EXPECT_EQ(file.find_int("none"), std::nullopt);
  EXPECT_EQ(file.find_float("none"), std::nullopt);
  EXPECT_EQ(file.find_bool("none"), std::nullopt);
  EXPECT_EQ(file.find_string("none"), std::nullopt);
  EXPECT_EQ(file.find_ints("none"), std::nullopt);
  EXPECT_EQ(file.find_floats("none"), std::nullopt);
  EXPECT_EQ(file.find_strings("none"), std::nullopt);
  EXPECT_EQ(file.find_tensor("none"), nullptr);
  const ErrorKind kind = ErrorKind::kBadFile;
  expect_error(kind, "test: found no key \"none\", wanted an integer", [&] { (void)file.get_int("none"); });
  expect_error(kind, "found no key \"none\", wanted a number", [&] { (void)file.get_float("none"); });
  expect_error(kind, "found no key \"none\", wanted a string", [&] { (void)file.get_string("none"); });
  expect_error(kind, "found no key \"none\", wanted an array of strings", [&] { (void)file.get_strings("none"); });
  const int64_t dims[] = {64, 4};
  expect_error(kind, "found no tensor \"none\", wanted one of shape [64, 4]", [&] { file.get_tensor("none", dims); });
  expect_error(kind, "tensor \"first\": found shape [64, 3], wanted [64, 4]", [&] { file.get_tensor("first", dims); });
  expect_error(kind, "tensor \"second\": found shape [5], wanted [64, 4]", [&] { file.get_tensor("second", dims); });
}

// Every accessor on every key: it gives a value for its own type and an error that names both for any other.
TEST(GgufFile, WrongTypesAreErrors) {
  const Bytes bytes = small_writer().to_bytes();
  const GgufFile file = parse(bytes);
  const std::string ints = " a.u32 a.i32 ", numbers = " a.u32 a.i32 a.f32 ";
  struct Accessor {
    std::string fits;  // the keys that it reads, a space around each
    std::string wanted;
    std::function<void(std::string_view)> read;
  };
  const Accessor accessors[] = {
      {ints, "wanted an integer", [&](std::string_view key) { (void)file.get_int(key); }},
      {numbers, "wanted a number", [&](std::string_view key) { (void)file.get_float(key); }},
      {" a.bool ", "wanted a boolean", [&](std::string_view key) { (void)file.find_bool(key); }},
      {" general.architecture ", "wanted a string", [&](std::string_view key) { (void)file.get_string(key); }},
      {" a.i32s ", "wanted an array of integers", [&](std::string_view key) { (void)file.find_ints(key); }},
      {" a.f32s ", "wanted an array of floats", [&](std::string_view key) { (void)file.find_floats(key); }},
      {" a.strings a.empty ", "wanted an array of strings", [&](std::string_view key) { (void)file.get_strings(key); }},
  };
  for (const Accessor& accessor : accessors) {
    for (const auto& entry : file.metadata()) {
      const std::string_view key = entry.first;
      SCOPED_TRACE(testing::Message() << key << ": " << accessor.wanted);
      if (accessor.fits.find(' ' + std::string(key) + ' ') != std::string::npos) {
        EXPECT_NO_THROW(accessor.read(key));
      } else {
        expect_error(ErrorKind::kBadFile, accessor.wanted, [&] { accessor.read(key); });
      }
    }
  }
}

TEST(GgufFile, CutAtEveryByte) {
  const Bytes whole = small_writer().to_bytes();
  const size_t data_start = whole.size() - 128 - 32;
  const size_t needed = data_start + 128 + 20;  // all but the padding of the last tensor
  for (size_t n_bytes = 0; n_bytes <= whole.size(); ++n_bytes) {
    SCOPED_TRACE(testing::Message() << "cut at byte " << n_bytes << " of " << whole.size());
    const Bytes cut(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(n_bytes));
    if (n_bytes >= needed) {
      EXPECT_NO_THROW(parse(cut));
      continue;
    }
    const Error error = error_of(cut);
    EXPECT_EQ(error.kind(), ErrorKind::kBadFile) << error.what();
    const std::string found = n_bytes < data_start ? " bytes " : "the file ends at byte " + std::to_string(n_bytes);
    EXPECT_NE(std::string(error.what()).find(found), std::string::npos) << error.what();
  }
  const auto cut_to = [&](size_t n_bytes) {
    return Bytes(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(n_bytes));
  };
  const std::string start = std::to_string(data_start);
  expect_bad(cut_to(data_start + 100), "tensor \"first\": the file ends at byte " + std::to_string(data_start + 100) +
                                           ", it needs 120 bytes from byte " + start + " + 0");
  expect_bad(cut_to(needed - 1), "tensor \"second\": the file ends at byte " + std::to_string(needed - 1) +
                                     ", it needs 20 bytes from byte " + start + " + 128");
}

// Whatever the bytes are: an Error or a file whose parts can all be used.
void open_and_use(const Bytes& bytes) {
  try {
    const GgufFile file = parse(bytes);
    for (const GgufTensor& tensor : file.tensors()) {
      ASSERT_GE(tensor.data.data(), bytes.data());
      ASSERT_LE(tensor.data.data() + tensor.data.size(), bytes.data() + bytes.size());
      std::vector<float> row(static_cast<size_t>(tensor.dims[0]));
      dequantize_row(tensor.type, tensor.data.data(), tensor.dims[0], row.data());
    }
  } catch (const Error& error) {
    ASSERT_FALSE(std::string(error.what()).empty());
  }
}

TEST(GgufFile, BitFlipsNeverCrash) {
  const Bytes whole = small_writer().to_bytes();
  for (size_t bit = 0; bit < whole.size() * 8; ++bit) {  // each bit alone
    SCOPED_TRACE(testing::Message() << "bit " << bit);
    Bytes bytes = whole;
    bytes[bit / 8] ^= std::byte{1} << (bit % 8);
    open_and_use(bytes);
    if (testing::Test::HasFatalFailure()) return;
  }
  for (uint32_t seed = 0; seed < 3000; ++seed) {  // and some together
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 random(seed);
    Bytes bytes = whole;
    for (uint32_t i = 0; i <= seed % 8; ++i) bytes[random() % bytes.size()] = static_cast<std::byte>(random());
    open_and_use(bytes);
    if (testing::Test::HasFatalFailure()) return;
  }
}

TEST(GgufFile, MagicAndVersion) {
  const Bytes bytes = small_writer().to_bytes();
  expect_bad({}, "the file ends at byte 0");
  expect_bad(with_value(bytes, 0, 'X'), "found \"XGUF\" as its first four bytes, wanted \"GGUF\"");
  expect_bad(with_value(bytes, 0, '\n'), "found \"?GUF\"");
  expect_bad(with_value<uint32_t>(bytes, 4, 1), "found GGUF version 1, wanted 2 or 3", ErrorKind::kUnsupported);
  expect_bad(with_value<uint32_t>(bytes, 4, 4), "found GGUF version 4", ErrorKind::kUnsupported);
  expect_bad(with_value<uint32_t>(bytes, 4, 0), "found GGUF version 0", ErrorKind::kUnsupported);
  for (const uint32_t version : {2u, 3u})
    expect_bad(with_value<uint32_t>(bytes, 4, version << 24), "big-endian", ErrorKind::kUnsupported);
}

TEST(GgufFile, AbsurdCountsAndLengths) {
  const Bytes bytes = small_writer().to_bytes();
  for (const uint64_t absurd : {uint64_t{1} << 16, uint64_t{1} << 32, uint64_t{1} << 60, ~uint64_t{0}}) {
    SCOPED_TRACE(absurd);
    expect_bad(with_value(bytes, 8, absurd), " tensors, ");
    expect_bad(with_value(bytes, 16, absurd), " metadata keys, ");
    expect_bad(with_value(bytes, 24, absurd), "metadata key: ");  // the first key's length
    // Of the string of general.architecture, and of the array of strings and its first string.
    expect_bad(with_value(bytes, position_of(bytes, "llama") - 8, absurd),
               "key \"general.architecture\": the file ends");
    const size_t strings = position_of(bytes, "a.strings") + 9;
    expect_bad(with_value(bytes, strings + 8, absurd), "key \"a.strings\"");
    expect_bad(with_value(bytes, strings + 16, absurd), "key \"a.strings\": the file ends");
    expect_bad(with_value(bytes, position_of(bytes, "a.i32s") + 6 + 8, absurd), "key \"a.i32s\"");
  }
  // Past a limit that no file size can excuse; and within it, but more than the file holds.
  const size_t array = position_of(bytes, "a.i32s") + 6 + 4;
  expect_bad(with_value<uint64_t>(bytes, 8, 65537), "found 65537 tensors, wanted at most 65536");
  expect_bad(with_value<uint64_t>(bytes, 16, 65537), "found 65537 metadata keys, wanted at most 65536");
  expect_bad(with_value<uint64_t>(bytes, array + 4, (1 << 24) + 1),
             "found an array of 16777217 elements, wanted at most");
  expect_bad(with_value<uint64_t>(bytes, array + 4, 1 << 24), "67108864 bytes are needed");
  expect_bad(with_value<uint64_t>(bytes, 8, 60), "found 60 tensors, but only ");
  expect_bad(with_value<uint64_t>(bytes, 16, 8), "");   // a key fewer than there are
  expect_bad(with_value<uint64_t>(bytes, 16, 10), "");  // and one more
  expect_bad(with_value<uint64_t>(bytes, 24, 0), "found a name of 0 bytes");
}

TEST(GgufFile, BadMetadata) {
  const Bytes bytes = small_writer().to_bytes();
  const auto type_at = [&](std::string_view key) { return position_of(bytes, key) + key.size(); };
  for (const uint32_t type : {13u, 255u, 0xffffffffu}) {
    const std::string text = std::to_string(type);
    expect_bad(with_value(bytes, type_at("a.i32"), type), "found value type " + text);
    expect_bad(with_value(bytes, type_at("a.i32s") + 4, type), "found an array of value type " + text);
  }
  expect_bad(with_value<uint32_t>(bytes, type_at("a.i32s") + 4, 9), "key \"a.i32s\": found an array of arrays");
  expect_bad(with_value<uint8_t>(bytes, type_at("a.bool") + 4, 2), "key \"a.bool\": found a boolean of value 2");
  expect_bad(with_value(bytes, position_of(bytes, "a.i32"), std::array{'a', '.', 'u', '3', '2'}),
             "key \"a.u32\": found it twice");
  for (const char odd : {'\n', '\0', '\x7f', '\xff'})  // a name as it may stand in a message
    expect_bad(with_value(with_value<uint32_t>(bytes, type_at("a.i32"), 99), position_of(bytes, "a.i32"), odd),
               "key \"?.i32\"");
}

TEST(GgufFile, IntegersThatDoNotFit) {
  Bytes bytes = small_writer().to_bytes();
  // The two floats of a.f32s become one uint64.
  const size_t array = position_of(bytes, "a.f32s") + 6;
  bytes = with_value<uint32_t>(bytes, array + 4, 10);
  bytes = with_value<uint64_t>(bytes, array + 8, 1);
  EXPECT_NO_THROW(parse(with_value<uint64_t>(bytes, array + 16, std::numeric_limits<int64_t>::max())));
  expect_bad(with_value(bytes, array + 16, ~uint64_t{0}), "key \"a.f32s\": found 18446744073709551615, wanted at most");
}

TEST(GgufFile, Alignment) {
  for (const uint32_t alignment : {0u, 1u, 4u, 8u, 24u, 32u, 33u, 64u, 1u << 20, 1u << 21, 1u << 31}) {
    SCOPED_TRACE(alignment);
    GgufWriter writer;
    writer.add_u32("general.alignment", alignment);
    Bytes bytes = writer.to_bytes();  // no tensors: any alignment that the format allows is right
    if (alignment == 8 || alignment == 32 || alignment == 64 || alignment == 1u << 20) {
      EXPECT_NO_THROW(parse(bytes));
    } else {
      expect_bad(bytes, "key \"general.alignment\": found " + std::to_string(alignment) + ", wanted a power of two");
    }
  }
  GgufWriter writer;
  writer.add_i32("general.alignment", 32);
  expect_bad(writer.to_bytes(), "key \"general.alignment\": found another type");
}

// The entry of tensor "first": name, n_dims, two dims, type, offset.
struct FirstEntry {
  size_t n_dims, dims, type, offset;
};
FirstEntry first_entry(const Bytes& bytes) {
  const size_t n_dims = position_of(bytes, "first") + 5;
  return {n_dims, n_dims + 4, n_dims + 20, n_dims + 24};
}

TEST(GgufFile, BadTensors) {
  const Bytes bytes = small_writer().to_bytes();
  const FirstEntry at = first_entry(bytes);
  const std::string first = "tensor \"first\": ";
  for (const uint32_t n_dims : {0u, 5u, 0xffffffffu})
    expect_bad(with_value(bytes, at.n_dims, n_dims), first + "found " + std::to_string(n_dims) + " dimensions");
  expect_bad(with_value<uint64_t>(bytes, at.dims + 8, 0), first + "found a dimension of 0");
  for (const uint64_t dim : {uint64_t{1} << 60, ~uint64_t{0}})
    expect_bad(with_value(bytes, at.dims + 8, dim), first + "found dimensions of more than 2^60 values");
  expect_bad(with_value<uint64_t>(bytes, at.dims + 8, uint64_t{1} << 54), first + "the file ends at byte");
  expect_bad(with_value<uint64_t>(bytes, at.dims, 48),
             first + "found rows of 48 values of type Q4_1, wanted a multiple");
  expect_bad(with_value<uint32_t>(bytes, at.type, 12), first + "found rows of 64 values of type Q4_K");
  for (const auto& [type, name] : {std::pair(16u, "IQ2_XXS"), std::pair(26u, "I32"), std::pair(99u, "type 99")})
    expect_bad(with_value(bytes, at.type, type), "tensor \"first\" has type " + std::string(name) + ", wanted one",
               ErrorKind::kUnsupported);
  for (const uint64_t offset : {uint64_t{1}, uint64_t{31}, uint64_t{33}})
    expect_bad(with_value(bytes, at.offset, offset),
               first + "found offset " + std::to_string(offset) + ", wanted a mul");
  for (const uint64_t offset : {uint64_t{192}, uint64_t{1} << 62, ~uint64_t{0} - 31})
    expect_bad(with_value(bytes, at.offset, offset), first + "the file ends at byte");
  for (const uint64_t offset : {uint64_t{0}, uint64_t{96}})  // second inside first
    expect_bad(with_value(bytes, position_of(bytes, "second") + 6 + 4 + 8 + 4, offset), ", inside tensor ");
  GgufWriter twice;
  twice.add_f32_tensor("same", {1}, {0});
  twice.add_f32_tensor("same", {1}, {0});
  expect_bad(twice.to_bytes(), "tensor \"same\": found it twice, wanted it once");
}

}  // namespace
}  // namespace polyspan
