// model/hydra.h: the Hydra language model in the engine (arXiv 2508.15099; docs/hydra.md has the equations and the state).
//
// Products with weights run over all tokens of a step at once; what follows the sequence runs over parts of it that lie
// within one chunk. Each token goes through the same operations in the same order however a prompt is cut, so prefill
// equals decode to the bit. The state-space recurrence keeps rows of the state in registers while a part's tokens pass.
//
// A path whose multiplier is 0 in a chunk is not computed there. What it keeps for later chunks is written as ever (states,
// keys and values, slots): the result is that of the multiplier 0, to the bit. Left out are: of the state space its gate z,
// norm and output product; of attention and workspace the queries, the reading and the output products; the experts.
#pragma once

#include <memory>
#include <vector>

#include "model/hydra_state.h"
#include "model/hydra_weights.h"
#include "model/model.h"
#include "ops/matmul.h"
#include "ops/rope.h"

namespace polyspan {

class HydraEngineModel final : public Model {
 public:
  HydraEngineModel(std::unique_ptr<GgufFile> file, ModelConfig config, OpContext& context, Progress& progress);

  void forward(const Batch& batch) override;
  void logits(std::span<const int64_t> rows, float* out) override;
  void skip_paths_below(double multiplier) override;
  std::unique_ptr<SpanProfiler> make_span_profiler(Progress& progress) override;
  int64_t max_batch_tokens() const override;
  int64_t weight_bytes() const override { return weights_.bytes(); }
  int64_t bytes_per_token() const override;

 private:
  // Consecutive tokens of one sequence within one chunk: rows [row, row + n) of the batch.
  struct Part {
    const HydraStateLayout* layout;
    float* state;
    int64_t row, n, position;
    int64_t decisions;  // of its chunk: index into decisions_, see decide()
    const HydraBlockState& block(int64_t layer) const { return layout->blocks[static_cast<size_t>(layer)]; }
    bool begins_chunk(int64_t chunk_len) const { return position % chunk_len == 0; }
    bool ends_chunk(int64_t chunk_len) const { return (position + n) % chunk_len == 0; }
  };
  struct RowRun {
    int64_t begin, n;
  };
  // Working memory, [n_tokens, ...] each; grows with the largest step.
  struct Activations {
    std::vector<float> x, normed, path;        // [d_model]
    std::vector<float> ssm_in, conv, scanned;  // [d_ssm_in], [d_conv_channels], [d_inner]; diagonal: ssm_in [4 d_model]
    std::vector<float> dt, decay;              // [n_ssm_heads]
    std::vector<float> q, k, v, attention;
    std::vector<float> read_q, write_k, write_v, read;
    std::vector<float> ffn;
    std::vector<float> pkm_q, pkm_read;
    std::vector<ActBlock> normed_blocks;  // normed, quantised
    std::vector<ActBlock> blocks;         // the input of the next product, quantised
  };

  void begin_sequence(const HydraStateLayout& layout, float* state);
  void decide(const HydraBlockWeights& w, const HydraBlockState& b, const Part& part);
  void run_ssm(const HydraBlockWeights& w, int64_t layer);
  void run_diagonal_ssm(const HydraBlockWeights& w, int64_t layer);
  void run_attention(const HydraBlockWeights& w, int64_t layer);
  void attend_head(const HydraBlockState& b, const Part& part, int64_t kv_head, int thread);
  void run_workspace(const HydraBlockWeights& w, int64_t layer);
  void write_slots(const HydraBlockWeights& w, const HydraBlockState& b, float* state);
  void project_slots(const HydraBlockWeights& w, const HydraBlockState& b, float* state);
  void run_experts(const HydraBlockWeights& w);
  void run_memory(const HydraBlockWeights& w);
  // x += multiplier * path, each row with its part's multiplier.
  void add_path(int64_t which);
  float multiplier(const Part& part, int64_t which) const {
    return decisions_[static_cast<size_t>(part.decisions + which)];
  }
  // The rows whose multiplier of a path is not 0, as runs.
  std::vector<RowRun> used_rows(int64_t which) const;
  // Products of the normed states: of all rows, and those that only `used` rows need.
  void multiply_normed(std::vector<MatmulOutput> of_all, std::span<const MatmulOutput> of_used,
                       std::span<const RowRun> used);
  // act_.path = weight * values [n_tokens, d_in], the `used` rows; then add_path.
  void project_path(int64_t which, const std::vector<float>& values, const PackedMatrix& weight,
                    std::span<const RowRun> used);
  void end_part(const HydraBlockState& b, const Part& part);

  void norm(const float* x, const std::vector<float>& weight, int64_t n, int64_t d, float* out);
  int64_t n_rows() const { return parts_.back().row + parts_.back().n; }
  MatmulInput normed(int64_t row, int64_t n_tokens) const;
  MatmulInput input(const float* values, int64_t n_tokens, int64_t d_in);
  void multiply(const MatmulInput& x, const PackedMatrix& weight, float* out);

  const HydraConfig hydra_;
  double skip_below_ = 0;
  OpContext& context_;
  HydraWeights weights_;
  Activations act_;
  RopeTable rope_table_;
  std::vector<Part> parts_;       // of the current step
  std::vector<float> decisions_;  // of the current block, for each part: multipliers [3], expert weights and experts
};

}  // namespace polyspan
