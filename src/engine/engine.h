// engine/engine.h: a loaded model with its tokenizer, sequences with their caches, and steps over several of them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/progress.h"
#include "cuda/device.h"
#include "model/model.h"
#include "text/chat_format.h"
#include "text/tokenizer.h"

namespace polyspan {

// One conversation or document: its tokens and its cache. Belongs to the engine's model.
class Sequence {
 public:
  explicit Sequence(KvCache cache) : cache_(std::move(cache)) {}
  KvCache& cache() { return cache_; }
  const KvCache& cache() const { return cache_; }
  // Tokens whose keys are in the cache (as far as the spans keep them).
  const std::vector<TokenId>& tokens() const { return tokens_; }
  int64_t n_tokens() const { return cache_.n_tokens(); }
  int64_t room() const { return cache_.max_tokens() - cache_.n_tokens(); }

 private:
  friend class Engine;
  KvCache cache_;
  std::vector<TokenId> tokens_;
};

// New tokens for one sequence of a step.
struct StepRequest {
  Sequence* sequence = nullptr;
  std::span<const TokenId> tokens;  // at least one; at most the sequence's room
  float* logits = nullptr;          // [vocab_size] after the last token, or null
  TokenId* chosen = nullptr;        // the next token by `rule`, or null; without logits, none leave a GPU for it
  TokenRule rule = {};
};

class Engine {
 public:
  // Throws Error: what the file, the tokenizer or the machine's memory do not allow.
  static std::unique_ptr<Engine> load(const std::filesystem::path& model, int n_threads,
                                      Progress& progress = no_progress(), const Device& device = {DeviceKind::kCpu, 0});

  const ModelConfig& config() const { return model_->config(); }
  Model& model() { return *model_; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  // The file's chat format. Throws Error (kUnsupported) when it has no template or one that is not known.
  const ChatFormat& chat_format() const;
  bool has_chat_format() const { return chat_format_.has_value(); }
  int n_threads() const { return context_.n_threads(); }

  // A sequence that may grow to planned_length tokens (prompt and answer together): fixes its spans and takes its cache.
  // Throws Error: kBadInput where planned_length is beyond the model's context, kOutOfMemory.
  std::unique_ptr<Sequence> new_sequence(const SpanPlan& plan, int64_t planned_length, KvType type) const;

  // Computes all requests, in forward passes of at most model().max_batch_tokens() tokens; several sequences share a
  // pass. A sequence's result does not depend on the others. `progress` is told the tokens done. Throws Error (kBadInput)
  // before anything is computed. REQUIRES: each sequence once; caches of one element type.
  void step(std::span<const StepRequest> requests, Progress& progress = no_progress());

  // Calls visit(first, logits [n, vocab_size], n) for the logits after each of `tokens` [visit_from, end), some rows at a
  // time (they are never all in memory).
  void score(Sequence& sequence, std::span<const TokenId> tokens, int64_t visit_from,
             const std::function<void(int64_t first, std::span<const float> logits, int64_t n)>& visit,
             Progress& progress = no_progress());

  // One score a target (ascending positions >= 1 of `tokens`, which are the sequence's first). `inputs`, of the model's
  // make_layer_inputs or null: with first_layer 0 they are kept there; else the layers from first_layer on are computed, as
  // if the sequence's plan were below them the one of the pass that kept.
  std::vector<TargetScore> score_targets(Sequence& sequence, std::span<const TokenId> tokens,
                                         std::span<const int64_t> targets, LayerInputs* inputs = nullptr,
                                         int64_t first_layer = 0);

 private:
  explicit Engine(int n_threads) : context_(n_threads) {}
  // Runs tokens that were checked through the model in passes; visit(begin, end) after the one over tokens [begin, end).
  void read(Sequence& sequence, std::span<const TokenId> tokens, LayerInputs* inputs, int64_t first_layer,
            const std::function<void(int64_t begin, int64_t end)>& visit);
  // Logits and tokens that requests[which[i]] asked for, after row rows[i] of the last forward pass.
  void read_results(std::span<const StepRequest> requests, std::span<const size_t> which,
                    std::span<const int64_t> rows);
  OpContext context_;
  std::vector<float> logits_;  // of rows that share a pass, or of which only the best token is wanted
  std::unique_ptr<Model> model_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::optional<ChatFormat> chat_format_;
  std::string chat_format_problem_;
};

}  // namespace polyspan
