#include "model/weights.h"

#include <string>

#include "core/error.h"

namespace polyspan {
namespace {

std::vector<float> read_vector(const GgufFile& file, const std::string& name, int64_t n) {
  const GgufTensor& tensor = file.get_tensor(name, std::vector<int64_t>{n});
  if (tensor.type != DType::kF32 && tensor.type != DType::kF16 && tensor.type != DType::kBF16)
    throw Error::bad_file(file.path(), "tensor ", name, " is ", dtype_name(tensor.type), "; wanted F32, F16 or BF16");
  std::vector<float> values(static_cast<size_t>(n));
  dequantize_row(tensor.type, tensor.data.data(), n, values.data());
  return values;
}

// A matrix to be packed: where it comes from and where its view goes.
struct PackJob {
  const GgufTensor* tensor;
  PackedMatrix* matrix;
  int64_t offset;
};

constexpr int64_t kAlignment = 4096;  // a matrix starts on a page

// Packs in slices and drops the file's pages behind: at most a few MB of the file are resident at a time.
void pack(const PackJob& job, std::byte* memory, const GgufFile& file, OpContext& context, Progress& progress,
          int64_t& done) {
  const PackedMatrix& m = *job.matrix;
  const int64_t file_row_bytes = row_bytes(m.type, m.d_in);
  const int64_t tiles_per_slice = std::max<int64_t>(1, (8 << 20) / (file_row_bytes * 16));
  for (int64_t first = 0; first < m.n_tiles(); first += tiles_per_slice) {
    const int64_t n = std::min(tiles_per_slice, m.n_tiles() - first);
    context.team().split(n, [&](int64_t begin, int64_t end, int) {
      pack_tiles(m.type, job.tensor->data.data(), m.d_out, m.d_in, first + begin, first + end, memory + job.offset);
    });
    const int64_t byte_begin = first * 16 * file_row_bytes;
    const int64_t byte_end =
        std::min<int64_t>((first + n) * 16 * file_row_bytes, static_cast<int64_t>(job.tensor->data.size()));
    file.mapping().release(
        job.tensor->data.subspan(static_cast<size_t>(byte_begin), static_cast<size_t>(byte_end - byte_begin)));
    done += byte_end - byte_begin;
    progress.update(done);
  }
}

}  // namespace

Weights Weights::load(const GgufFile& file, const ModelConfig& config, OpContext& context, Progress& progress) {
  Weights weights;
  std::vector<PackJob> jobs;
  int64_t bytes = 0, file_bytes = 0;
  const auto add = [&](const std::string& name, int64_t d_out, int64_t d_in, PackedMatrix& matrix) {
    const GgufTensor& tensor = file.get_tensor(name, std::vector<int64_t>{d_in, d_out});
    matrix = {tensor.type, d_out, d_in, nullptr};
    if (matrix.is_quantized() && d_in % 32 != 0)
      throw Error::bad_file(file.path(), "tensor ", name, " has rows of ", d_in, " ", dtype_name(tensor.type),
                            " values; wanted a multiple of 32");
    jobs.push_back({&tensor, &matrix, bytes});
    bytes += (packed_bytes(tensor.type, d_out, d_in) + kAlignment - 1) / kAlignment * kAlignment;
    file_bytes += static_cast<int64_t>(tensor.data.size());
  };

  const int64_t q_dim = config.n_heads * config.head_dim, kv_dim = config.n_kv_heads * config.head_dim;
  weights.layers.resize(static_cast<size_t>(config.n_layers));
  for (int64_t layer = 0; layer < config.n_layers; ++layer) {
    LayerWeights& w = weights.layers[static_cast<size_t>(layer)];
    const std::string prefix = "blk." + std::to_string(layer) + ".";
    w.attn_norm = read_vector(file, prefix + "attn_norm.weight", config.d_model);
    w.ffn_norm = read_vector(file, prefix + "ffn_norm.weight", config.d_model);
    add(prefix + "attn_q.weight", q_dim, config.d_model, w.q);
    add(prefix + "attn_k.weight", kv_dim, config.d_model, w.k);
    add(prefix + "attn_v.weight", kv_dim, config.d_model, w.v);
    add(prefix + "attn_output.weight", config.d_model, q_dim, w.attn_out);
    add(prefix + "ffn_gate.weight", config.d_ff, config.d_model, w.gate);
    add(prefix + "ffn_up.weight", config.d_ff, config.d_model, w.up);
    add(prefix + "ffn_down.weight", config.d_model, config.d_ff, w.down);
    if (config.qkv_bias) {
      w.q_bias = read_vector(file, prefix + "attn_q.bias", q_dim);
      w.k_bias = read_vector(file, prefix + "attn_k.bias", kv_dim);
      w.v_bias = read_vector(file, prefix + "attn_v.bias", kv_dim);
    }
  }
  weights.output_norm = read_vector(file, "output_norm.weight", config.d_model);
  const bool tied = file.find_tensor("output.weight") == nullptr;
  add(tied ? "token_embd.weight" : "output.weight", config.vocab_size, config.d_model, weights.output);
  if (!tied) weights.embedding_in_file_ = file.find_tensor("token_embd.weight");

  weights.memory_ = HugeBuffer(bytes, "the model's weights");
  progress.start("loading the model", file_bytes);
  int64_t done = 0;
  for (PackJob& job : jobs) {
    job.matrix->data = weights.memory_.data() + job.offset;
    pack(job, weights.memory_.data(), file, context, progress, done);
  }
  progress.finish();
  return weights;
}

void Weights::embedding(int64_t token, float* out) const {
  if (embedding_in_file_ == nullptr) return unpack_row(output, token, out);
  const int64_t d_model = embedding_in_file_->dims[0], bytes = row_bytes(embedding_in_file_->type, d_model);
  dequantize_row(embedding_in_file_->type, embedding_in_file_->data.data() + token * bytes, d_model, out);
}

}  // namespace polyspan
