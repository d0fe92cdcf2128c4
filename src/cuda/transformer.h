// cuda/transformer.h: the decoder of model/transformer.h on a GPU.
//
// A batch with one token a sequence is a decode step: one CUDA graph, recorded once for each batch size, from the
// embedding to the chosen token. Other batches run kernel by kernel. The host waits only where it reads tokens or logits.
// docs/cuda.md has the data flow and what takes memory.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cuda/decode_attention.h"
#include "cuda/elementwise.h"
#include "cuda/runtime.h"
#include "cuda/sample.h"
#include "cuda/weights.h"
#include "model/model.h"

namespace polyspan::cuda {

struct CudaProfilerOptions;

class CudaTransformer final : public Model {
 public:
  // Throws Error: kUnsupported, kBadFile, kOutOfMemory naming the bytes needed and free before anything is read.
  static std::unique_ptr<CudaTransformer> load(std::unique_ptr<GgufFile> file, ModelConfig config, int device,
                                               Progress& progress);
  // Random weights of `type` (F32, F16 or BF16), made on the GPU: for benchmarks. It has no file.
  static std::unique_ptr<CudaTransformer> random(ModelConfig config, DType type, uint64_t seed, int device);

  KvCache make_cache(KvLayout layout) const override;
  std::unique_ptr<LayerInputs> make_layer_inputs(int64_t n_tokens) const override;
  void forward(const Batch& batch) override;
  void logits(std::span<const int64_t> rows, float* out) override;
  std::vector<TargetScore> scores(std::span<const int64_t> rows, std::span<const int32_t> targets) override;
  bool chosen_tokens(std::span<const int64_t> rows, int32_t* out) override;
  std::unique_ptr<SpanProfiler> make_span_profiler(Progress& progress) override;
  std::unique_ptr<SpanProfiler> make_span_profiler(const CudaProfilerOptions& options) const;
  std::string_view device() const override { return device_name_; }
  int64_t max_batch_tokens() const override;
  int64_t weight_bytes() const override { return weights_.size_bytes(); }
  int64_t bytes_per_token() const override { return weights_.size_bytes() - embedding_only_bytes_; }
  // Of activations, tables and workspaces so far.
  int64_t working_bytes() const;

  // n_steps decode steps of the sequences of the last batch, which was a decode step: each with the tokens that the step
  // before chose, by the rules of that batch, always with its `uniform`. Returns when they are queued. REQUIRES: the caches
  // have room.
  void continue_decoding(std::span<KvCache* const> caches, int64_t n_steps);
  // Random keys and values and n_tokens positions, as if they had been computed: for benchmarks.
  void fill_cache(KvCache& cache, int64_t n_tokens, uint64_t seed);
  const Stream& stream() const { return stream_; }

 private:
  using Part = MatrixPart;
  using Layer = DeviceLayer;
  // Which forms of its input a product reads.
  struct Forms {
    bool f32 = false, f16 = false, bf16 = false, blocks = false;
    bool only_blocks() const { return blocks && !f32 && !f16 && !bf16; }
  };

  CudaTransformer(std::unique_ptr<GgufFile> file, ModelConfig config, int device);
  void load_weights(Progress& progress);
  void fill_weights(DType type, uint64_t seed);
  void start();

  void reserve(int64_t n_tokens);
  void reserve_decode(int64_t n_sequences, KvType type);
  static Forms forms_of(std::span<const Part> parts, int64_t n_tokens);
  // Where a producer of this input writes, and as what.
  std::pair<ActivationType, void*> producer(const Forms& forms) const;
  DeviceInput finish_input(const Forms& forms, int64_t n_tokens, int64_t d_in);
  // Inputs of products: rows of x normed; gates of gate_up_ times ups.
  DeviceInput normed(const Forms& forms, const float* weight, const int32_t* rows, int64_t n_rows);
  DeviceInput gated(const Forms& forms, DType gate_up_type, int64_t n_tokens);
  QuantizedRows quantized_rows() const { return {codes_.as<int8_t>(), scales_.as<float>()}; }
  void multiply(std::span<const Part> parts, const DeviceInput& x, DType out_type, void* out, int64_t out_stride,
                bool add);
  // One layer; attend(layer, out type, out) turns qkv_ into attention.
  template <typename Attend>
  void run_layer(int64_t layer, int64_t n_tokens, Attend attend);

  // Of the batch's first rows; `heads` and, in decoding, `positions` are left to the caller.
  AppendArgs append_args(int64_t layer, int64_t n_tokens, KvType type) const;
  void prefill(const Batch& batch);
  void decode(const Batch& batch);
  // Adds the views [n_kv_heads] and spans [n_heads] of one layer.
  static void add_views(KvCache& cache, int64_t layer, std::vector<KvHeadView>& views, std::vector<int32_t>& spans);
  int32_t decode_blocks(int64_t n_sequences, KvType type) const;  // of attention
  // What the GPU knows of the sequences of a decode step.
  void update_decode_tables(std::span<KvCache* const> caches);
  void queue_decode_step(std::span<KvCache* const> caches);
  void record_decode_step(int64_t n_sequences, KvType type);
  // The rows of x_ at `rows` (null: the first n) -> logits_ [n, vocab_size].
  void compute_logits(const int32_t* rows, int64_t n);
  // Of the last batch, which was no decode step: visit(first, n) with logits_ of rows [first, first + n).
  template <typename Visit>
  void visit_logits(std::span<const int64_t> rows, Visit visit);

  std::string device_name_;
  DeviceProperties properties_;
  Stream stream_;
  Products products_;
  DeviceBuffer weights_;
  int64_t embedding_only_bytes_ = 0;
  std::vector<Layer> layers_;
  const float* output_norm_ = nullptr;
  std::vector<Part> output_;
  DeviceMatrix embedding_;
  DeviceBuffer frequencies_;  // double [n_pairs]

  // Activations for up to capacity_ tokens.
  int64_t capacity_ = 0;
  DeviceBuffer x_, f32_, f16_, bf16_, codes_, scales_, qkv_, q_, gate_up_, rope_, tokens_, rows_, rules_;
  int64_t logit_rows_ = 0;
  DeviceBuffer logits_, scores_;  // of logit_rows_ rows
  // Prefill: the chunk's keys and values of one layer, and the tables of its sequences.
  DeviceBuffer chunk_, chunk_views_, prefill_views_, prefill_spans_;

  // Decode, for up to decode_capacity_ sequences.
  int64_t decode_capacity_ = 0, decode_pieces_ = 0;
  DeviceBuffer views_, spans_, positions_, pieces_, block_begin_, partials_, counters_;
  int32_t n_blocks_ = 0;                // of attention, at most
  std::vector<uint64_t> decode_ids_;    // whose tables are there
  std::vector<int64_t> decode_tokens_;  // their positions, as on the GPU
  std::vector<int64_t> work_until_;     // the work lists serve positions below
  std::vector<TokenRule> decode_rules_;
  std::map<std::pair<int64_t, KvType>, Graph> graphs_;
  std::map<std::pair<int64_t, KvType>, int64_t> eager_steps_;
  bool last_was_decode_ = false;
  std::map<int64_t, TokenRule> last_rules_;  // by the last row of the sequence
  int64_t last_rows_ = 0;
};

}  // namespace polyspan::cuda
