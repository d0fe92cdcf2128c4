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
  // token [1], int64 -> the logits after it, [1, vocab_size]; valid until the next step.
  virtual torch::Tensor step(const torch::Tensor& token) = 0;
  // Goes on as if n_tokens (a multiple of chunk_len) had been read, with zeros for what would be kept of them: what a step
  // costs does not depend on the values.
  virtual void pretend(int64_t n_tokens) = 0;
  virtual int64_t state_bytes() const = 0;
  // Kernels and copies of a step, the mean of those that were replayed; 0 where none was.
  virtual double launches_per_step() const = 0;
};

struct DecoderOptions {
  int64_t capacity = 0;  // tokens that the sequence may have; only a transformer's cache grows with it
  // Records each kind of step (Hydra: those that begin and end a chunk, and the others) when it comes for the second time, and
  // replays it from then on. Where DeviceGraph::is_for the device.
  bool graphs = false;
};

// Caches are bf16 where products are (Bf16Products, which may not change while it steps). The model must outlive the decoder.
std::unique_ptr<Decoder> make_decoder(const TrainConfig& config, const LanguageModel& model,
                                      const DecoderOptions& options);

// Keeps the matrices in bf16, as decode in bf16 reads them; not those of the workspace, which multiply in float32.
void store_matrices_in_bf16(Parameters& parameters);

}  // namespace polyspan
