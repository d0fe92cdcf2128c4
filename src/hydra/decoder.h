// hydra/decoder.h: token by token with what a sequence keeps, in operations of LibTorch: what decode costs on a device on
// which the engine has no Hydra model. One sequence, no gradients.
#pragma once

#include <memory>

#include "hydra/language_model.h"
#include "recipe/train_config.h"

namespace polyspan {

class Decoder {
 public:
  virtual ~Decoder() = default;
  // token [1], int64 -> the logits after it, [1, vocab_size].
  virtual torch::Tensor step(const torch::Tensor& token) = 0;
  // Goes on as if n_tokens (a multiple of chunk_len) had been read, with zeros for what would be kept of them: what a step
  // costs does not depend on the values.
  virtual void pretend(int64_t n_tokens) = 0;
  virtual int64_t state_bytes() const = 0;
};

// `capacity`: tokens that the sequence may have; only a transformer's cache grows with it. Caches are bf16 where products
// are (Bf16Products, on while it steps). The model must outlive the decoder.
std::unique_ptr<Decoder> make_decoder(const TrainConfig& config, const LanguageModel& model, int64_t capacity);

// Keeps the matrices in bf16, as decode in bf16 reads them; not those of the workspace, which multiply in float32.
void store_matrices_in_bf16(Parameters& parameters);

}  // namespace polyspan
