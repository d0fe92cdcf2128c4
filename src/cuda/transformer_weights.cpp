// The weights of cuda/transformer.h: one allocation, filled from the file or with random numbers.
#include <algorithm>
#include <cmath>
#include <string>

#include "core/error.h"
#include "cuda/transformer.h"
#include "model/weight_packer.h"

namespace polyspan::cuda {
namespace {

constexpr int64_t kMatrixAlignment = 256, kStagingBytes = 32 << 20;

int64_t aligned(int64_t bytes) { return round_up_to(bytes, kMatrixAlignment); }

// Copies a matrix of the file to rows [first_row, ...) of `w`, some rows at a time; the file's pages are dropped behind.
class Uploader {
 public:
  Uploader(const GgufFile& file, Progress& progress, const Stream& stream)
      : file_(file), progress_(progress), stream_(stream) {}

  void matrix(const GgufTensor& tensor, const DeviceMatrix& w, int64_t first_row, std::byte* target) {
    const int64_t n_rows = tensor.dims[1], file_row_bytes = row_bytes(tensor.type, w.d_in);
    const int64_t at_once = std::max<int64_t>(1, kStagingBytes / (std::max<int64_t>(file_row_bytes, 4 * w.d_in)));
    for (int64_t row = 0; row < n_rows; row += at_once) {
      const int64_t n = std::min(at_once, n_rows - row), bytes = n * file_row_bytes;
      const std::span<const std::byte> part =
          tensor.data.subspan(static_cast<size_t>(row * file_row_bytes), static_cast<size_t>(bytes));
      if (tensor.type == w.type && !has_device_blocks(w.type)) {
        copy_to_device(target + (first_row + row) * file_row_bytes, part.data(), bytes, stream_);
      } else if (tensor.type == w.type) {
        copy_to_device(staging(bytes), part.data(), bytes, stream_);
        sort_blocks(w.type, staging_.data(), n, first_row + row, w.d_out, w.d_in, target, stream_);
      } else {  // no kernel computes on these blocks: held as f16
        POLYSPAN_CHECK(w.type == DType::kF16);
        decoded_.resize(static_cast<size_t>(n * w.d_in));
        for (int64_t i = 0; i < n; ++i)
          dequantize_row(tensor.type, part.data() + i * file_row_bytes, w.d_in, decoded_.data() + i * w.d_in);
        copy_to_device(staging(n * w.d_in * 4), decoded_.data(), n * w.d_in * 4, stream_);
        convert(staging_.as<float>(), n * w.d_in, ActivationType::kF16, target + (first_row + row) * w.d_in * 2,
                stream_);
      }
      stream_.synchronize();
      file_.mapping().release(part);
      done_ += bytes;
      progress_.update(done_);
    }
  }

  void vector(const std::string& name, int64_t n, float* to) {
    const std::vector<float> values = read_floats(file_, name, {n});
    copy_to_device(to, values.data(), n * 4, stream_);
    stream_.synchronize();
  }

 private:
  std::byte* staging(int64_t bytes) {
    if (staging_.size_bytes() < bytes) staging_ = DeviceBuffer(bytes, "loading the model");
    return staging_.data();
  }
  const GgufFile& file_;
  Progress& progress_;
  const Stream& stream_;
  DeviceBuffer staging_;
  std::vector<float> decoded_;
  int64_t done_ = 0;
};

// A matrix to be loaded: which rows of which matrix on the GPU.
struct MatrixJob {
  const GgufTensor* tensor;
  DeviceMatrix w;  // data is null
  int64_t offset;  // of w in the weights
  int64_t first_row;
};

}  // namespace

void CudaTransformer::load_weights(Progress& progress) {
  const ModelConfig& c = config_;
  const int64_t q_dim = c.n_heads * c.head_dim, kv_dim = c.n_kv_heads * c.head_dim;
  std::vector<MatrixJob> jobs;
  int64_t bytes = 0, file_bytes = 0;
  struct Named {
    std::string name;
    int64_t d_out;
  };
  // Matrices with the same input, in the order of their outputs: one matrix where their types are equal.
  const auto add = [&](const std::vector<Named>& names, int64_t d_in, std::vector<Part>& parts) {
    std::vector<const GgufTensor*> tensors;
    bool same = true;
    int64_t all_rows = 0;
    for (const Named& named : names) {
      tensors.push_back(&file_->get_tensor(named.name, std::vector<int64_t>{d_in, named.d_out}));
      same = same && device_type(tensors.back()->type) == device_type(tensors[0]->type);
      all_rows += named.d_out;
      file_bytes += static_cast<int64_t>(tensors.back()->data.size());
      if (has_device_blocks(tensors.back()->type) && d_in % 32 != 0)
        throw Error::bad_file(file_->path(), "tensor ", named.name, " has rows of ", d_in, " ",
                              dtype_name(tensors.back()->type), " values; wanted a multiple of 32");
    }
    int64_t column = 0;
    for (size_t i = 0; i < names.size(); ++i) {
      const DType type = device_type(tensors[i]->type);
      if (i == 0 || !same) {
        const int64_t rows = same ? all_rows : names[i].d_out;
        parts.push_back({{type, rows, d_in, nullptr}, column});
        jobs.push_back({tensors[i], parts.back().w, bytes, 0});
        bytes += aligned(device_matrix_bytes(type, rows, d_in));
      } else {
        jobs.push_back({tensors[i], parts.back().w, jobs.back().offset, column});
      }
      column += names[i].d_out;
    }
  };

  std::vector<std::pair<const float**, int64_t>> vectors;  // pointer, offset
  const auto add_vector = [&](const float*& pointer, int64_t n) {
    vectors.push_back({&pointer, bytes});
    bytes += aligned(n * 4);
  };
  layers_.resize(static_cast<size_t>(c.n_layers));
  for (int64_t layer = 0; layer < c.n_layers; ++layer) {
    Layer& w = layers_[static_cast<size_t>(layer)];
    const std::string prefix = "blk." + std::to_string(layer) + ".";
    add({{prefix + "attn_q.weight", q_dim}, {prefix + "attn_k.weight", kv_dim}, {prefix + "attn_v.weight", kv_dim}},
        c.d_model, w.qkv);
    add({{prefix + "attn_output.weight", c.d_model}}, q_dim, w.attn_out);
    add({{prefix + "ffn_gate.weight", c.d_ff}, {prefix + "ffn_up.weight", c.d_ff}}, c.d_model, w.gate_up);
    add({{prefix + "ffn_down.weight", c.d_model}}, c.d_ff, w.down);
    add_vector(w.attn_norm, c.d_model);
    add_vector(w.ffn_norm, c.d_model);
    if (c.qkv_bias) add_vector(w.bias, q_dim + 2 * kv_dim);
  }
  add_vector(output_norm_, c.d_model);
  const bool tied = file_->find_tensor("output.weight") == nullptr;
  add({{tied ? "token_embd.weight" : "output.weight", c.vocab_size}}, c.d_model, output_);
  std::vector<Part> embedding;
  const int64_t before_embedding = bytes;
  if (!tied) add({{"token_embd.weight", c.vocab_size}}, c.d_model, embedding);
  embedding_only_bytes_ = bytes - before_embedding;

  weights_ = DeviceBuffer(bytes, "the model's weights");
  const auto place = [&](std::vector<Part>& parts, size_t& job) {
    for (Part& part : parts) {
      while (jobs[job].first_row != 0) ++job;
      part.w.data = weights_.data() + jobs[job++].offset;
    }
    while (job < jobs.size() && jobs[job].first_row != 0) ++job;
  };
  size_t job = 0;
  for (Layer& w : layers_)
    for (std::vector<Part>* parts : {&w.qkv, &w.attn_out, &w.gate_up, &w.down}) place(*parts, job);
  place(output_, job);
  place(embedding, job);
  embedding_ = tied ? output_[0].w : embedding[0].w;
  for (const auto& [pointer, offset] : vectors) *pointer = reinterpret_cast<const float*>(weights_.data() + offset);

  progress.start("loading the model", file_bytes);
  Uploader upload(*file_, progress, stream_);
  for (const MatrixJob& j : jobs) upload.matrix(*j.tensor, j.w, j.first_row, weights_.data() + j.offset);
  const auto writable = [](const float* pointer) { return const_cast<float*>(pointer); };
  for (int64_t layer = 0; layer < c.n_layers; ++layer) {
    const Layer& w = layers_[static_cast<size_t>(layer)];
    const std::string prefix = "blk." + std::to_string(layer) + ".";
    upload.vector(prefix + "attn_norm.weight", c.d_model, writable(w.attn_norm));
    upload.vector(prefix + "ffn_norm.weight", c.d_model, writable(w.ffn_norm));
    if (!c.qkv_bias) continue;
    upload.vector(prefix + "attn_q.bias", q_dim, writable(w.bias));
    upload.vector(prefix + "attn_k.bias", kv_dim, writable(w.bias) + q_dim);
    upload.vector(prefix + "attn_v.bias", kv_dim, writable(w.bias) + q_dim + kv_dim);
  }
  upload.vector("output_norm.weight", c.d_model, writable(output_norm_));
  progress.finish();
}

void CudaTransformer::fill_weights(DType type, uint64_t seed) {
  const ModelConfig& c = config_;
  const int64_t q_dim = c.n_heads * c.head_dim, kv_dim = c.n_kv_heads * c.head_dim;
  POLYSPAN_CHECK(!c.qkv_bias && !has_device_blocks(type));
  const int64_t layer_values = (q_dim + 2 * kv_dim) * c.d_model + c.d_model * q_dim + 3 * c.d_ff * c.d_model;
  const int64_t element = row_bytes(type, 1), norm_bytes = aligned(c.d_model * 4);
  const int64_t matrix_bytes = aligned((c.n_layers * layer_values + 2 * c.vocab_size * c.d_model) * element);
  weights_ = DeviceBuffer(matrix_bytes + norm_bytes, "the random weights");
  fill_random(type, weights_.data(), matrix_bytes / element, 0.02f, seed, stream_);
  const std::vector<float> ones(static_cast<size_t>(c.d_model), 1.0f);
  float* const norm = reinterpret_cast<float*>(weights_.data() + matrix_bytes);
  copy_to_device(norm, ones.data(), c.d_model * 4, stream_);
  int64_t at = 0;
  const auto take = [&](int64_t d_out, int64_t d_in) {
    const DeviceMatrix w{type, d_out, d_in, weights_.data() + at * element};
    at += d_out * d_in;
    return std::vector<Part>{{w, 0}};
  };
  layers_.resize(static_cast<size_t>(c.n_layers));
  for (Layer& w : layers_) {
    w.qkv = take(q_dim + 2 * kv_dim, c.d_model);
    w.attn_out = take(c.d_model, q_dim);
    w.gate_up = take(2 * c.d_ff, c.d_model);
    w.down = take(c.d_model, c.d_ff);
    w.attn_norm = w.ffn_norm = norm;
  }
  output_ = take(c.vocab_size, c.d_model);
  output_norm_ = norm;
  embedding_ = take(c.vocab_size, c.d_model)[0].w;
  embedding_only_bytes_ = c.vocab_size * c.d_model * element;
  stream_.synchronize();
}

}  // namespace polyspan::cuda
