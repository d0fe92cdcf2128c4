#include "hydra/batches.h"

#include "core/error.h"
#include "eval/random_source.h"
#include "hydra/precision.h"

namespace polyspan {
namespace {

TokenBatch gather(const TokenFile& file, const std::vector<int64_t>& begins, int64_t length) {
  const int64_t n_seqs = std::ssize(begins);
  TokenBatch batch{torch::empty({n_seqs, length}, torch::kInt64), torch::empty({n_seqs, length}, torch::kInt64),
                   torch::ones({n_seqs, length})};
  for (int64_t s = 0; s < n_seqs; ++s) {
    for (int64_t t = 0; t < length; ++t) {
      const size_t at = static_cast<size_t>(begins[static_cast<size_t>(s)] + t);
      batch.inputs.data_ptr<int64_t>()[s * length + t] = file.tokens()[at];
      batch.targets.data_ptr<int64_t>()[s * length + t] = file.tokens()[at + 1];
      if (!file.mask().empty()) batch.mask.data_ptr<float>()[s * length + t] = file.mask()[at + 1];
    }
  }
  return batch;
}

}  // namespace

torch::Tensor summed_cross_entropy(const torch::Tensor& logits, const TokenBatch& batch) {
  const torch::Tensor each =
      torch::cross_entropy_loss(not_bf16(logits).flatten(0, 1), batch.targets.flatten(), {}, at::Reduction::None);
  return (each * batch.mask.flatten()).sum();
}

void check_length(const TokenFile& file, int64_t length) {
  const TokenFileInfo& info = file.info();
  if (info.example_length > 0 && info.example_length != length + 1)
    throw Error::bad_input(file.path().string(), " has examples of ", info.example_length - 1,
                           " tokens (and one more); a stage asks for ", length);
  if (info.n_tokens < length + 1)
    throw Error::bad_input(file.path().string(), " is too short: it has ", info.n_tokens, " tokens, a sequence of ",
                           length, " needs ", length + 1);
}

TokenBatch train_batch(const TokenFile& file, int64_t n_seqs, int64_t length, uint64_t seed, int64_t step,
                       int64_t first, int64_t last) {
  RandomSource random{seed, 0x6261746368, static_cast<uint64_t>(step)};
  std::vector<int64_t> begins;
  const int64_t example = file.info().example_length;
  for (int64_t i = 0; i < n_seqs; ++i)
    begins.push_back(example > 0 ? random.below(file.info().n_tokens / example) * example
                                 : random.below(file.info().n_tokens - length));
  return gather(file, {begins.begin() + first, begins.begin() + last}, length);
}

int64_t n_eval_sequences(const TokenFile& file, int64_t length) {
  return file.info().example_length > 0 ? file.info().n_tokens / file.info().example_length
                                        : (file.info().n_tokens - 1) / length;
}

TokenBatch eval_batch(const TokenFile& file, int64_t first, int64_t n_seqs, int64_t n_eval, int64_t length) {
  const int64_t n = n_eval_sequences(file, length),
                stride = file.info().example_length > 0 ? file.info().example_length : length;
  std::vector<int64_t> begins;
  for (int64_t i = first; i < first + n_seqs; ++i) begins.push_back(i * n / n_eval * stride);
  return gather(file, begins, length);
}

}  // namespace polyspan
