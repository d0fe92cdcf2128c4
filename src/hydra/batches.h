// hydra/batches.h: which tokens a step trains on. A function of the seed and the step alone: a resumed run needs no more.
#pragma once

#include "hydra/torch.h"

#include "recipe/token_file.h"

namespace polyspan {

struct TokenBatch {
  torch::Tensor inputs, targets;  // [n_seqs, n_tokens], int64
  torch::Tensor mask;             // the same shape, 1 where the target counts
  TokenBatch to(const torch::Device& device) const { return {inputs.to(device), targets.to(device), mask.to(device)}; }
};

// Cross-entropy summed over the targets that count. logits [n_seqs, n_tokens, vocab_size], float32 or bf16.
torch::Tensor summed_cross_entropy(const torch::Tensor& logits, const TokenBatch& batch);

// Throws Error (kBadInput) where the file cannot give sequences of `length`: too short, or examples of another length.
void check_length(const TokenFile& file, int64_t length);
// Windows at random places of running text, or random examples.
// Sequences [first, last) of the n_seqs of the step's batch.
TokenBatch train_batch(const TokenFile& file, int64_t n_seqs, int64_t length, uint64_t seed, int64_t step,
                       int64_t first, int64_t last);
// Sequences [first, first + n_seqs) of n_eval, spread evenly over the file.
TokenBatch eval_batch(const TokenFile& file, int64_t first, int64_t n_seqs, int64_t n_eval, int64_t length);
// How many different sequences of `length` there are for evaluation.
int64_t n_eval_sequences(const TokenFile& file, int64_t length);

}  // namespace polyspan
