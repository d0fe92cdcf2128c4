// model/model.h: a language model: tokens in, hidden states and logits out, with a cache for each sequence.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "core/progress.h"
#include "io/gguf.h"
#include "model/config.h"
#include "model/kv_cache.h"
#include "model/span_profiler.h"
#include "model/token_rule.h"
#include "ops/context.h"

namespace polyspan {

// New tokens of one sequence in a batch: rows [first_row, first_row + n_rows) of the batch's tokens, at the positions
// that follow the cache's.
struct BatchSequence {
  KvCache* cache = nullptr;
  int64_t first_row = 0, n_rows = 0;
  TokenRule rule = {};  // of the token after its last row, where the model chooses it itself
};

// The inputs of all layers for one sequence's tokens, where a model runs that can begin at a later one.
class LayerInputs {
 public:
  virtual ~LayerInputs() = default;
};

struct Batch {
  std::span<const int32_t> tokens;           // [n_tokens], ids within the vocabulary
  std::span<const BatchSequence> sequences;  // cover the rows in order, each cache once
  // Of a batch of one sequence. first_layer 0: every layer's input is kept there. Else the pass begins at that layer, with
  // what a pass over the same tokens kept; the caches of the layers below are left as they are.
  LayerInputs* inputs = nullptr;
  int64_t first_layer = 0;
};

// Not thread-safe: one forward at a time.
class Model {
 public:
  virtual ~Model() = default;

  // Picks the architecture by general.architecture. Throws Error (kUnsupported naming the known ones, or what is wrong
  // with the file). `context` must outlive the model.
  static std::unique_ptr<Model> load(std::unique_ptr<GgufFile> file, OpContext& context, Progress& progress);

  // A cache where this model computes. Throws Error (kOutOfMemory) with the bytes needed and available.
  virtual KvCache make_cache(KvLayout layout) const { return KvCache(std::move(layout)); }

  // For Batch::inputs, of a sequence of up to n_tokens. Null: every pass of this model begins at the first layer. Throws
  // Error (kOutOfMemory).
  virtual std::unique_ptr<LayerInputs> make_layer_inputs(int64_t n_tokens) const {
    static_cast<void>(n_tokens);
    return nullptr;
  }
  // Runs all layers over the batch, writes the caches and advances them. REQUIRES: n_tokens <= max_batch_tokens(), every
  // cache has room. The hidden states stay valid until the next call.
  virtual void forward(const Batch& batch) = 0;
  // Logits [rows.size(), vocab_size] of some rows of the last batch.
  virtual void logits(std::span<const int64_t> rows, float* out) = 0;
  static constexpr int64_t kScoredRows = 32;  // whose logits are in memory at once: 6 MB for a vocabulary of 49k
  // score_target() of targets[i] among the logits of rows[i].
  virtual std::vector<TargetScore> scores(std::span<const int64_t> rows, std::span<const int32_t> targets);
  // The token after each of these rows, each the last of its sequence, by the sequence's rule, where the model chooses it
  // itself (on a GPU: no logits travel). False: it does not, ask for logits.
  virtual bool chosen_tokens(std::span<const int64_t> rows, int32_t* out) {
    static_cast<void>(rows), static_cast<void>(out);
    return false;
  }

  // From the next chunk on, a Hydra model leaves a path whose multiplier is below this out (model/hydra.h); 0, the default:
  // none. Throws Error: kUsage outside [0, 2], kUnsupported where there are no such paths.
  virtual void skip_paths_below(double multiplier);

  // For the search of spans. Throws Error (kOutOfMemory); the model must outlive it.
  virtual std::unique_ptr<SpanProfiler> make_span_profiler(Progress& progress) = 0;

  virtual std::string_view device() const { return "cpu"; }
  virtual int64_t max_batch_tokens() const = 0;
  virtual int64_t weight_bytes() const = 0;
  // Bytes a decode step reads besides the cache (weights): for the roof.
  virtual int64_t bytes_per_token() const = 0;

  const ModelConfig& config() const { return config_; }
  const GgufFile& file() const { return *file_; }

 protected:
  Model(std::unique_ptr<GgufFile> file, ModelConfig config) : file_(std::move(file)), config_(std::move(config)) {}
  std::unique_ptr<GgufFile> file_;
  ModelConfig config_;
};

// One architecture: its name in GGUF files, how its configuration is read, how a model is made. To add one, write a file
// that defines an Architecture and name it in the list of architectures.cpp.
struct Architecture {
  std::string_view name;
  ModelConfig (*read_config)(const GgufFile& file);
  std::unique_ptr<Model> (*make)(std::unique_ptr<GgufFile> file, ModelConfig config, OpContext& context,
                                 Progress& progress);
};
std::span<const Architecture* const> architectures();
// Throws Error (kUnsupported) that names the known ones.
const Architecture& find_architecture(const GgufFile& file);
// The configuration alone: what `inspect` needs.
ModelConfig read_config(const GgufFile& file);

}  // namespace polyspan
