#include "recipe/export.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "core/quantize.h"
#include "io/byte_vocabulary.h"
#include "io/gguf.h"
#include "io/gguf_writer.h"
#include "io/safetensors.h"
#include "io/transformer_keys.h"
#include "recipe/prepare.h"
#include "recipe/train_config.h"

namespace polyspan {
namespace {

template <typename To, typename From>
std::vector<To> converted(const std::vector<From>& values) {
  return std::vector<To>(values.begin(), values.end());
}

// Every key "tokenizer.*" as the file has it.
void copy_tokenizer(const GgufFile& file, GgufWriter& writer) {
  for (const auto& [key, value] : file.metadata()) {
    if (!key.starts_with("tokenizer.")) continue;
    const std::string name(key);
    if (const auto* n = std::get_if<uint64_t>(&value)) writer.add_u32(name, static_cast<uint32_t>(*n));
    if (const auto* n = std::get_if<int64_t>(&value)) writer.add_i32(name, static_cast<int32_t>(*n));
    if (const auto* x = std::get_if<double>(&value)) writer.add_f32(name, static_cast<float>(*x));
    if (const auto* flag = std::get_if<bool>(&value)) writer.add_bool(name, *flag);
    if (const auto* text = std::get_if<std::string_view>(&value)) writer.add_string(name, std::string(*text));
    if (const auto* list = std::get_if<std::vector<int64_t>>(&value)) writer.add_i32s(name, converted<int32_t>(*list));
    if (const auto* list = std::get_if<std::vector<double>>(&value)) writer.add_f32s(name, converted<float>(*list));
    if (const auto* list = std::get_if<std::vector<std::string_view>>(&value))
      writer.add_strings(name, converted<std::string>(*list));
  }
}

void write_llama_config(const TransformerSizes& c, GgufWriter& writer) {
  writer.add_string("general.architecture", "llama");
  add_transformer_sizes("llama", c, writer);
  writer.add_f32("llama.rope.freq_base", static_cast<float>(c.rope_base));
  writer.add_f32("llama.attention.layer_norm_rms_epsilon", static_cast<float>(c.norm_eps));
}

}  // namespace

void export_run(const ExportOptions& options) {
  if (!can_quantize(options.type))
    throw Error::usage("export does not write ", dtype_name(options.type), "; wanted F32, F16, BF16, Q8_0 or Q4_0");
  const SafetensorsFile checkpoint = SafetensorsFile::open(options.run / "checkpoint.safetensors");
  const std::filesystem::path config_name = options.run / "config.toml";
  TrainConfig config = parse_train_config(checkpoint.get_metadata("config"), config_name);
  // Its relative paths were taken from the file it came from, which is not where the copy lies.
  const std::string tokenizer = !options.tokenizer.empty()                        ? options.tokenizer
                                : checkpoint.get_metadata("tokenizer") == "bytes" ? "bytes"
                                                                                  : "";
  if (tokenizer.empty())
    throw Error::usage("the run was trained on tokens of ", checkpoint.get_metadata("tokenizer"),
                       ": name the GGUF file of that tokenizer with --tokenizer");
  if (const std::string found = CorpusTokenizer(tokenizer).fingerprint(); found != checkpoint.get_metadata("tokenizer"))
    throw Error::bad_input("the tokenizer ", tokenizer, " is ", found, "; the run was trained on tokens of ",
                           checkpoint.get_metadata("tokenizer"));

  GgufWriter writer;
  if (config.architecture == "hydra")
    write_hydra_config(config.hydra, writer);
  else
    write_llama_config(config.transformer, writer);
  writer.add_string("general.name", options.run.filename().string() + ", step " + checkpoint.get_metadata("step"));
  if (tokenizer == "bytes")
    write_byte_tokenizer(config.vocab_size(), writer);
  else
    copy_tokenizer(GgufFile::open(tokenizer), writer);
  for (const TensorSpec& spec : config.tensors()) {
    const FloatTensor& tensor = checkpoint.get(spec.name, spec.shape);
    const int64_t row = spec.shape.back();
    const DType type = spec.is_matrix ? options.type : DType::kF32;
    if (row % dtype_info(type).block_len != 0)
      throw Error::bad_input("tensor ", spec.name, " has rows of ", row, ", no multiple of the ",
                             dtype_info(type).block_len, " values of a ", dtype_name(type), " block");
    writer.add_tensor(spec.name, type, std::vector<int64_t>(spec.shape.rbegin(), spec.shape.rend()),
                      [&tensor, row, type](std::span<std::byte> out) {
                        const int64_t bytes = row_bytes(type, row);
                        for (int64_t i = 0; i < std::ssize(tensor.values) / row; ++i)
                          quantize_row(type, tensor.values.data() + i * row, row, out.data() + i * bytes);
                      });
  }
  writer.write(options.out);
}

}  // namespace polyspan
