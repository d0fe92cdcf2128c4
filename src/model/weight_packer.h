// model/weight_packer.h: packs matrices of a file for the kernels, into one memory, with all threads.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/huge_buffer.h"
#include "core/progress.h"
#include "io/gguf.h"
#include "ops/context.h"
#include "ops/packed_matrix.h"

namespace polyspan {

// First add() everything, then pack(): so that too little memory is found before any is taken.
class WeightPacker {
 public:
  explicit WeightPacker(const GgufFile& file) : file_(file) {}

  // Announces W [d_out, d_in]. `matrix` is filled by pack() and must stay where it is until then. Throws Error (kBadFile).
  void add(const std::string& name, int64_t d_out, int64_t d_in, PackedMatrix& matrix);
  // A tensor [matrices.size(), d_out, d_in]: one matrix for each expert.
  void add_stack(const std::string& name, int64_t d_out, int64_t d_in, std::vector<PackedMatrix>& matrices);

  // Throws Error (kOutOfMemory). Each file page is dropped as soon as it was packed.
  HugeBuffer pack(OpContext& context, Progress& progress);

 private:
  // A matrix to be packed: where its rows are in the file and where its view goes.
  struct Job {
    const GgufTensor* tensor;
    int64_t first_byte;
    PackedMatrix* matrix;
    int64_t offset;
  };
  void add_rows(const GgufTensor& tensor, int64_t first_byte, int64_t d_out, int64_t d_in, PackedMatrix& matrix);
  void pack_one(const Job& job, std::byte* memory, OpContext& context, Progress& progress, int64_t& done) const;

  const GgufFile& file_;
  std::vector<Job> jobs_;
  int64_t bytes_ = 0, file_bytes_ = 0;
};

// A vector or small tensor as floats: F32, F16 or BF16 in the file. `dims` as the file has them (the contiguous one first).
std::vector<float> read_floats(const GgufFile& file, const std::string& name, std::vector<int64_t> dims);

}  // namespace polyspan
