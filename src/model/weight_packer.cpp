#include "model/weight_packer.h"

#include <algorithm>

#include "core/error.h"

namespace polyspan {
namespace {

constexpr int64_t kMatrixAlignment = 4096;  // a matrix starts on a page

}  // namespace

std::vector<float> read_floats(const GgufFile& file, const std::string& name, std::vector<int64_t> dims) {
  const GgufTensor& tensor = file.get_tensor(name, dims);
  if (tensor.type != DType::kF32 && tensor.type != DType::kF16 && tensor.type != DType::kBF16)
    throw Error::bad_file(file.path(), "tensor ", name, " is ", dtype_name(tensor.type), "; wanted F32, F16 or BF16");
  std::vector<float> values(static_cast<size_t>(tensor.n_values()));
  dequantize_row(tensor.type, tensor.data.data(), tensor.n_values(), values.data());
  return values;
}

void WeightPacker::add(const std::string& name, int64_t d_out, int64_t d_in, PackedMatrix& matrix) {
  add_rows(file_.get_tensor(name, std::vector<int64_t>{d_in, d_out}), 0, d_out, d_in, matrix);
}

void WeightPacker::add_stack(const std::string& name, int64_t d_out, int64_t d_in,
                             std::vector<PackedMatrix>& matrices) {
  const GgufTensor& tensor = file_.get_tensor(name, std::vector<int64_t>{d_in, d_out, std::ssize(matrices)});
  const int64_t bytes = static_cast<int64_t>(tensor.data.size()) / std::ssize(matrices);
  for (int64_t i = 0; i < std::ssize(matrices); ++i)
    add_rows(tensor, i * bytes, d_out, d_in, matrices[static_cast<size_t>(i)]);
}

void WeightPacker::add_rows(const GgufTensor& tensor, int64_t first_byte, int64_t d_out, int64_t d_in,
                            PackedMatrix& matrix) {
  matrix = {tensor.type, d_out, d_in, nullptr};
  if (matrix.is_quantized() && d_in % 32 != 0)
    throw Error::bad_file(file_.path(), "tensor ", tensor.name, " has rows of ", d_in, " ", dtype_name(tensor.type),
                          " values; wanted a multiple of 32");
  jobs_.push_back({&tensor, first_byte, &matrix, bytes_});
  bytes_ += (packed_bytes(tensor.type, d_out, d_in) + kMatrixAlignment - 1) / kMatrixAlignment * kMatrixAlignment;
  file_bytes_ += row_bytes(tensor.type, d_in) * d_out;
}

// Packs in slices and drops the file's pages behind: at most a few MB of the file are resident at a time.
void WeightPacker::pack_one(const Job& job, std::byte* memory, OpContext& context, Progress& progress,
                            int64_t& done) const {
  const PackedMatrix& m = *job.matrix;
  const int64_t file_row_bytes = row_bytes(m.type, m.d_in);
  const std::span<const std::byte> rows =
      job.tensor->data.subspan(static_cast<size_t>(job.first_byte), static_cast<size_t>(file_row_bytes * m.d_out));
  const int64_t tiles_per_slice = std::max<int64_t>(1, (8 << 20) / (file_row_bytes * 16));
  for (int64_t first = 0; first < m.n_tiles(); first += tiles_per_slice) {
    const int64_t n = std::min(tiles_per_slice, m.n_tiles() - first);
    context.team().split(n, [&](int64_t begin, int64_t end, int) {
      pack_tiles(m.type, rows.data(), m.d_out, m.d_in, first + begin, first + end, memory + job.offset);
    });
    const int64_t byte_begin = first * 16 * file_row_bytes;
    const int64_t byte_end = std::min<int64_t>((first + n) * 16 * file_row_bytes, std::ssize(rows));
    file_.mapping().release(rows.subspan(static_cast<size_t>(byte_begin), static_cast<size_t>(byte_end - byte_begin)));
    done += byte_end - byte_begin;
    progress.update(done);
  }
}

HugeBuffer WeightPacker::pack(OpContext& context, Progress& progress) {
  HugeBuffer memory(bytes_, "the model's weights");
  progress.start("loading the model", file_bytes_);
  int64_t done = 0;
  for (const Job& job : jobs_) {
    job.matrix->data = memory.data() + job.offset;
    pack_one(job, memory.data(), context, progress, done);
  }
  progress.finish();
  return memory;
}

}  // namespace polyspan
