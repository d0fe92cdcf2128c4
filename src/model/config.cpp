#include "model/config.h"

#include <algorithm>
#include <map>

#include "core/error.h"

namespace polyspan {
namespace {

// Sizes beyond any model of today: what is larger is a broken file.
constexpr int64_t kMaxLayers = 1024, kMaxHeads = 1024, kMaxHeadDim = 512, kMaxWidth = 1 << 20, kMaxVocab = 1 << 24,
                  kMaxContext = int64_t{1} << 31;

int64_t read_size(const GgufFile& file, const std::string& key, int64_t most) {
  const int64_t value = file.get_int(key);
  if (value < 1 || value > most)
    throw Error::bad_file(file.path(), "key ", key, " is ", value, "; it must be between 1 and ", most);
  return value;
}

void read_rope(const GgufFile& file, const std::string& arch, RopePairing pairing, ModelConfig& config) {
  RopeConfig& rope = config.rope;
  rope.pairing = pairing;
  rope.n_dims = file.find_int(arch + ".rope.dimension_count").value_or(config.head_dim);
  if (rope.n_dims < 2 || rope.n_dims > config.head_dim || rope.n_dims % 2 != 0)
    throw Error::bad_file(file.path(), "key ", arch, ".rope.dimension_count is ", rope.n_dims,
                          "; it must be even and at most the head dimension, ", config.head_dim);
  rope.base = file.find_float(arch + ".rope.freq_base").value_or(10000.0);
  if (!(rope.base > 0) || rope.base > 1e12)
    throw Error::bad_file(file.path(), "key ", arch, ".rope.freq_base is ", rope.base, "; it must be positive");
  const std::string type(file.find_string(arch + ".rope.scaling.type").value_or("none"));
  double factor = file.find_float(arch + ".rope.scaling.factor").value_or(0.0);
  if (factor == 0.0) factor = file.find_float(arch + ".rope.scale_linear").value_or(0.0);
  if (type == "linear" || (type == "none" && factor != 0.0 && !file.find(arch + ".rope.scaling.type"))) {
    if (factor == 0.0) factor = 1.0;
    if (!(factor >= 1e-3 && factor <= 1e6))
      throw Error::bad_file(file.path(), "key ", arch, ".rope.scaling.factor is ", factor, "; it must be positive");
    rope.linear_scale = factor;
  } else if (type != "none") {
    throw Error::unsupported(file.path().string(), ": RoPE scaling of type \"", type,
                             "\" is not supported (none, linear and frequency factors are)");
  }
  if (const GgufTensor* factors = file.find_tensor("rope_freqs.weight")) {
    if (factors->type != DType::kF32 || factors->dims.size() != 1 || factors->dims[0] != rope.n_dims / 2)
      throw Error::bad_file(file.path(), "tensor rope_freqs.weight is ", dtype_name(factors->type), " ",
                            factors->shape_text(), "; wanted F32 [", rope.n_dims / 2, "]");
    rope.frequency_factors.resize(static_cast<size_t>(rope.n_dims / 2));
    dequantize_row(DType::kF32, factors->data.data(), rope.n_dims / 2, rope.frequency_factors.data());
    for (float value : rope.frequency_factors)
      if (!(value > 0))
        throw Error::bad_file(file.path(), "tensor rope_freqs.weight holds ", value, "; factors are positive");
  }
}

}  // namespace

void describe_tensors(const GgufFile& file, ModelConfig& config) {
  std::map<DType, size_t> bytes;
  for (const GgufTensor& tensor : file.tensors()) {
    config.n_parameters += tensor.n_values();
    if (tensor.dims.size() > 1) bytes[tensor.type] += tensor.data.size();
  }
  DType best = DType::kF32;
  size_t most = 0;
  for (const auto& [type, n] : bytes)
    if (n > most) best = type, most = n;
  config.quantization = dtype_name(best);
}

HeadShape ModelConfig::head_shape() const {
  if (!hydra) return {n_layers, n_heads, n_kv_heads};
  // Without attention a dense plan of one layer stands for all plans: KvLayout takes no other.
  return {std::max(hydra->n_attention_layers(), int64_t{1}), n_heads, n_kv_heads, hydra->window, hydra->chunk_len};
}

SpanPlan ModelConfig::default_plan() const {
  if (sliding_window == 0) return SpanPlan::dense(head_shape());
  const SpanRule window{static_cast<double>(sliding_window), 0.0};
  return SpanPlan::from_rules(
      head_shape(), std::vector(static_cast<size_t>(n_layers), std::vector(static_cast<size_t>(n_kv_heads), window)),
      /*per_query_head=*/false, /*n_sink_tokens=*/0);
}

ModelConfig read_transformer_config(const GgufFile& file, RopePairing pairing) {
  ModelConfig config;
  config.architecture = file.get_string("general.architecture");
  const std::string& arch = config.architecture;
  config.name = file.find_string("general.name").value_or("");
  config.n_layers = read_size(file, arch + ".block_count", kMaxLayers);
  config.d_model = read_size(file, arch + ".embedding_length", kMaxWidth);
  config.d_ff = read_size(file, arch + ".feed_forward_length", kMaxWidth);
  config.n_heads = read_size(file, arch + ".attention.head_count", kMaxHeads);
  config.n_kv_heads = file.find(arch + ".attention.head_count_kv")
                          ? read_size(file, arch + ".attention.head_count_kv", kMaxHeads)
                          : config.n_heads;
  if (config.n_heads % config.n_kv_heads != 0)
    throw Error::bad_file(file.path(), arch, ".attention.head_count is ", config.n_heads, " and head_count_kv is ",
                          config.n_kv_heads, "; the first must be a multiple of the second");
  if (file.find(arch + ".attention.key_length")) {
    config.head_dim = read_size(file, arch + ".attention.key_length", kMaxHeadDim);
    const int64_t value_length = file.find_int(arch + ".attention.value_length").value_or(config.head_dim);
    if (value_length != config.head_dim)
      throw Error::unsupported(file.path().string(), ": values of ", value_length, " and keys of ", config.head_dim,
                               " dimensions a head: they must be equal");
  } else {
    if (config.d_model % config.n_heads != 0)
      throw Error::bad_file(file.path(), arch, ".embedding_length ", config.d_model,
                            " is not a multiple of head_count ", config.n_heads);
    config.head_dim = config.d_model / config.n_heads;
    if (config.head_dim > kMaxHeadDim)
      throw Error::bad_file(file.path(), "heads of ", config.head_dim, " dimensions; at most ", kMaxHeadDim,
                            " are supported");
  }
  config.context_length = read_size(file, arch + ".context_length", kMaxContext);
  const double eps = file.get_float(arch + ".attention.layer_norm_rms_epsilon");
  if (!(eps > 0 && eps < 1))
    throw Error::bad_file(file.path(), "key ", arch, ".attention.layer_norm_rms_epsilon is ", eps,
                          "; wanted a small positive number");
  config.norm_eps = static_cast<float>(eps);
  config.sliding_window = file.find_int(arch + ".attention.sliding_window").value_or(0);
  if (config.sliding_window < 0)
    throw Error::bad_file(file.path(), "key ", arch, ".attention.sliding_window is ", config.sliding_window,
                          "; it must not be negative");
  read_rope(file, arch, pairing, config);

  const GgufTensor* embedding = file.find_tensor("token_embd.weight");
  if (embedding == nullptr) throw Error::bad_file(file.path(), "tensor token_embd.weight is missing");
  if (embedding->dims.size() != 2 || embedding->dims[0] != config.d_model || embedding->dims[1] > kMaxVocab)
    throw Error::bad_file(file.path(), "tensor token_embd.weight is ", embedding->shape_text(), "; wanted [",
                          config.d_model, ", vocabulary]");
  config.vocab_size = embedding->dims[1];
  const std::optional<int64_t> declared = file.find_int(arch + ".vocab_size");
  if (declared && *declared != config.vocab_size)
    throw Error::bad_file(file.path(), "key ", arch, ".vocab_size is ", *declared, " but token_embd.weight has ",
                          config.vocab_size, " rows");
  describe_tensors(file, config);
  return config;
}

}  // namespace polyspan
