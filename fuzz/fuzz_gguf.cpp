// Any bytes read as a GGUF file: refused with an Error, or a file of which every part can be used.
// `fuzz_gguf --write-seeds=FOLDER` writes a small valid file of every weight type as a first corpus.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"
#include "io/gguf.h"
#include "io/random_model.h"

namespace {

using namespace polyspan;

void read_every_way(const GgufFile& file, std::string_view key) {
  const auto attempt = [](auto read) {
    try {
      (void)read();
    } catch (const Error&) {
    }
  };
  attempt([&] { return file.find_int(key); });
  attempt([&] { return file.find_float(key); });
  attempt([&] { return file.find_bool(key); });
  attempt([&] { return file.find_string(key); });
  attempt([&] { return file.find_ints(key); });
  attempt([&] { return file.find_floats(key); });
  attempt([&] { return file.get_strings(key); });
}

void read_values(const GgufTensor& tensor) {
  const DTypeInfo& info = dtype_info(tensor.type);
  POLYSPAN_CHECK(tensor.n_values() / info.block_len * info.block_bytes == std::ssize(tensor.data));
  // The first and the last block: the address sanitizer sees whether they lie in the input.
  std::vector<float> block(static_cast<size_t>(info.block_len));
  dequantize_row(tensor.type, tensor.data.data(), info.block_len, block.data());
  const std::byte* last = tensor.data.data() + tensor.data.size() - info.block_bytes;
  dequantize_row(tensor.type, last, info.block_len, block.data());
}

void write_seeds(const std::filesystem::path& folder) {
  std::filesystem::create_directories(folder);
  for (const DTypeInfo& info : all_dtypes()) {
    GgufWriter writer;  // the metadata of each kind and one row: a few hundred bytes
    writer.add_string("general.architecture", "llama");
    writer.add_u32("general.alignment", 32);
    writer.add_i32("i", -1);
    writer.add_f32("f", 0.5f);
    writer.add_bool("b", true);
    writer.add_strings("ss", {"a", "bc"});
    writer.add_i32s("is", {1, 2});
    writer.add_f32s("fs", {1, 2});
    writer.add_tensor("w", info.type, {info.block_len, 2},
                      [&](std::span<std::byte> out) { fill_random_blocks(info.type, 1.0f, /*seed=*/1, out); });
    writer.add_f32_tensor("n", {1}, {1});
    writer.write(folder / (std::string(info.name) + ".gguf"));
  }
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  for (int i = 1; i < *argc; ++i) {
    const std::string_view argument = (*argv)[i], option = "--write-seeds=";
    if (!argument.starts_with(option)) continue;
    try {
      write_seeds(argument.substr(option.size()));
    } catch (const std::exception& error) {
      std::cerr << error.what() << "\n";
      std::exit(1);
    }
    std::exit(0);
  }
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const GgufFile file = GgufFile::from_bytes(std::as_bytes(std::span(data, size)), "fuzz");
    for (const auto& [key, value] : file.metadata()) read_every_way(file, key);
    for (const GgufTensor& tensor : file.tensors()) {
      read_values(tensor);
      POLYSPAN_CHECK(&file.get_tensor(tensor.name, tensor.dims) == &tensor);
    }
  } catch (const Error&) {
  }
  return 0;
}
