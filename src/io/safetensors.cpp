#include "io/safetensors.h"

#include <cstring>
#include <nlohmann/json.hpp>

#include "core/atomic_file.h"
#include "core/error.h"

namespace polyspan {
namespace {

using Json = nlohmann::ordered_json;
constexpr uint64_t kMostHeader = uint64_t{100} << 20;  // the format's own limit

std::string shape_text(std::span<const int64_t> shape) {
  std::string text = "[";
  for (const int64_t n : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(n);
  return text + "]";
}

}  // namespace

SafetensorsFile SafetensorsFile::open(const std::filesystem::path& path) {
  SafetensorsFile out{MappedFile(path)};
  const std::span<const std::byte> bytes = out.file_.bytes();
  uint64_t header_bytes = 0;
  if (bytes.size() >= 8) std::memcpy(&header_bytes, bytes.data(), 8);
  if (bytes.size() < 8 || header_bytes > kMostHeader || header_bytes > bytes.size() - 8 || header_bytes % 4 != 0)
    throw Error::bad_file(path, "this is no safetensors file, or it is truncated: ", bytes.size(),
                          " bytes, a header of ", header_bytes);
  const char* const text = reinterpret_cast<const char*>(bytes.data()) + 8;
  const Json header = Json::parse(text, text + header_bytes, nullptr, /*allow_exceptions=*/false);
  if (!header.is_object()) throw Error::bad_file(path, "the header is no JSON object");
  const uint64_t data_bytes = bytes.size() - 8 - header_bytes;
  try {
    for (const auto& [name, entry] : header.items()) {
      if (name == "__metadata__") {
        for (const auto& [key, value] : entry.items()) out.metadata_[key] = value.get<std::string>();
        continue;
      }
      const std::string type = entry.at("dtype");
      if (type != "F32") throw Error::bad_file(path, "tensor ", name, " is ", type, "; wanted F32");
      const std::vector<int64_t> shape = entry.at("shape");
      const std::vector<uint64_t> range = entry.at("data_offsets");
      uint64_t n = 1;
      bool fits = range.size() == 2 && range[0] <= range[1] && range[1] <= data_bytes && range[0] % 4 == 0;
      for (const int64_t size : shape) {
        fits = fits && size >= 1 && n <= data_bytes / static_cast<uint64_t>(size);
        if (fits) n *= static_cast<uint64_t>(size);
      }
      if (!fits || range[1] - range[0] != 4 * n)
        throw Error::bad_file(path, "tensor ", name, " ", shape_text(shape), " does not fit the file's ", data_bytes,
                              " bytes of tensors; it is truncated or damaged");
      out.tensors_[name] = {shape, {reinterpret_cast<const float*>(bytes.data() + 8 + header_bytes + range[0]), n}};
    }
  } catch (const nlohmann::json::exception& error) {
    throw Error::bad_file(path, "the header: ", error.what());
  }
  return out;
}

const FloatTensor& SafetensorsFile::get(const std::string& name, std::span<const int64_t> shape) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) throw Error::bad_file(path(), "tensor ", name, " is missing");
  if (!std::equal(shape.begin(), shape.end(), found->second.shape.begin(), found->second.shape.end()))
    throw Error::bad_file(path(), "tensor ", name, " is ", shape_text(found->second.shape), "; wanted ",
                          shape_text(shape));
  return found->second;
}

const std::string& SafetensorsFile::get_metadata(const std::string& key) const {
  const auto found = metadata_.find(key);
  if (found == metadata_.end()) throw Error::bad_file(path(), "the key \"", key, "\" is missing in its metadata");
  return found->second;
}

void write_safetensors(const std::filesystem::path& path, const std::map<std::string, std::string>& metadata,
                       std::span<const NamedFloatTensor> tensors) {
  Json header = {{"__metadata__", metadata}};
  uint64_t offset = 0;
  for (const NamedFloatTensor& tensor : tensors) {
    const uint64_t n_bytes = 4 * tensor.tensor.values.size();
    header[tensor.name] = {
        {"dtype", "F32"}, {"shape", tensor.tensor.shape}, {"data_offsets", {offset, offset + n_bytes}}};
    offset += n_bytes;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t header_bytes = text.size();
  AtomicFile file(path);
  file.append(std::as_bytes(std::span(&header_bytes, 1)));
  file.append(std::as_bytes(std::span(text)));
  for (const NamedFloatTensor& tensor : tensors) file.append(std::as_bytes(tensor.tensor.values));
  file.commit();
}

}  // namespace polyspan
