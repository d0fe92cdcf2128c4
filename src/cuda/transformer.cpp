#include "cuda/transformer.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "core/error.h"
#include "cuda/device.h"
#include "cuda/gradient.h"
#include "cuda/prefill_attention.h"
#include "cuda/span_profiler.h"

namespace polyspan::cuda {
namespace {

// Tokens of one forward pass: enough for the matrix products to reach their rate (and for decoding a quantised weight to be
// a small part of it).
constexpr int64_t kMaxBatchTokens = 2048;
constexpr int64_t kMostLogitRows = 32;
// From so many tokens on the FFN's largest rows are of 2 bytes a value: as f32 those of llama-3-8b take 55 MB for 483 tokens, more
// than L2 holds.
constexpr int64_t kLeastShortTokens = 128;

DType gate_up_form(std::span<const MatrixPart> parts, int64_t n_tokens) {
  const DType type = output_type(parts[0].w.type, n_tokens);
  const bool same = std::all_of(parts.begin(), parts.end(),
                                [&](const MatrixPart& part) { return output_type(part.w.type, n_tokens) == type; });
  return n_tokens >= kLeastShortTokens && same ? type : DType::kF32;
}

}  // namespace

CudaTransformer::CudaTransformer(std::unique_ptr<GgufFile> file, ModelConfig config, int device)
    : Model(std::move(file), std::move(config)),
      device_name_(device_name({DeviceKind::kCuda, device})),
      properties_(select_device(device)),
      products_(stream_) {
  const std::string problem = cuda_model_problem(config_);
  if (!problem.empty()) throw Error::unsupported("the model cannot run on a GPU: ", problem, "; use --device cpu");
}

std::unique_ptr<CudaTransformer> CudaTransformer::load(std::unique_ptr<GgufFile> file, ModelConfig config, int device,
                                                       Progress& progress) {
  std::unique_ptr<CudaTransformer> model(new CudaTransformer(std::move(file), std::move(config), device));
  model->load_weights(progress);
  model->start();
  return model;
}

std::unique_ptr<CudaTransformer> CudaTransformer::random(ModelConfig config, DType type, uint64_t seed, int device) {
  std::unique_ptr<CudaTransformer> model(new CudaTransformer(nullptr, std::move(config), device));
  model->fill_weights(type, seed);
  model->start();
  return model;
}

void CudaTransformer::start() {
  const std::vector<double> frequencies = rope_frequencies(config_.rope);
  frequencies_ = to_device(std::span<const double>(frequencies), "rotary frequencies", stream_);
  stream_.synchronize();
}

std::unique_ptr<SpanProfiler> CudaTransformer::make_span_profiler(Progress&) {
  return make_span_profiler(CudaProfilerOptions());
}

std::unique_ptr<SpanProfiler> CudaTransformer::make_span_profiler(const CudaProfilerOptions& options) const {
  return std::make_unique<CudaSpanProfiler>(
      ProfiledModel{config_, layers_, output_norm_, output_, embedding_, frequencies_.as<double>(), stream_}, options);
}

int64_t CudaTransformer::max_batch_tokens() const { return kMaxBatchTokens; }

int64_t CudaTransformer::working_bytes() const {
  int64_t bytes = Products::kBytes;
  for (const DeviceBuffer* buffer :
       {&frequencies_, &x_,           &f32_,           &f16_,           &bf16_,   &codes_, &scales_,
        &qkv_,         &q_,           &gate_up_,       &rope_,          &tokens_, &rows_,  &logits_,
        &chunk_,       &chunk_views_, &prefill_views_, &prefill_spans_, &views_,  &spans_, &positions_,
        &pieces_,      &block_begin_, &partials_,      &counters_,      &rules_,  &scores_})
    bytes += buffer->size_bytes();
  return bytes;
}

KvCache CudaTransformer::make_cache(KvLayout layout) const {
  auto buffer = std::make_shared<DeviceBuffer>(layout.bytes, layout.describe());
  std::byte* const data = buffer->data();
  return KvCache(std::move(layout), std::shared_ptr<std::byte>(std::move(buffer), data));
}

namespace {

struct KeptInputs final : LayerInputs {
  int64_t n_tokens = 0, d_model = 0;
  DeviceBuffer values;  // [n_layers][n_tokens][d_model]
  float* at(int64_t layer, int64_t token) const { return values.as<float>() + (layer * n_tokens + token) * d_model; }
};

}  // namespace

std::unique_ptr<LayerInputs> CudaTransformer::make_layer_inputs(int64_t n_tokens) const {
  auto inputs = std::make_unique<KeptInputs>();
  inputs->n_tokens = n_tokens, inputs->d_model = config_.d_model;
  inputs->values = DeviceBuffer(config_.n_layers * n_tokens * config_.d_model * 4,
                                "the layers' inputs of " + std::to_string(n_tokens) + " tokens");
  return inputs;
}

void CudaTransformer::reserve(int64_t n_tokens) {
  if (n_tokens <= capacity_) return;
  stream_.synchronize();  // nothing queued may use what is freed
  graphs_.clear();
  capacity_ = 0;
  const int64_t q_dim = config_.n_heads * config_.head_dim, kv_dim = config_.n_kv_heads * config_.head_dim;
  const int64_t widest = std::max({config_.d_model, q_dim, config_.d_ff});
  const auto take = [&](DeviceBuffer& buffer, int64_t bytes_per_token) {
    buffer = DeviceBuffer();
    buffer = DeviceBuffer(n_tokens * bytes_per_token, "the activations of " + std::to_string(n_tokens) + " tokens");
  };
  take(x_, config_.d_model * 4);
  take(f32_, widest * 4);
  take(f16_, widest * 2);
  take(bf16_, widest * 2);
  take(codes_, widest);
  take(scales_, (widest + 31) / 32 * 4);
  take(qkv_, (q_dim + 2 * kv_dim) * 4);
  take(q_, q_dim * 4);
  take(gate_up_, 2 * config_.d_ff * 4);
  take(rope_, config_.rope.n_dims / 2 * static_cast<int64_t>(sizeof(RopeTurn)));
  take(tokens_, 4);
  take(rows_, 4);
  take(rules_, static_cast<int64_t>(sizeof(TokenRule)));
  decode_rules_.clear();
  capacity_ = n_tokens;
}

CudaTransformer::Forms CudaTransformer::forms_of(std::span<const Part> parts, int64_t n_tokens) {
  Forms forms;
  for (const Part& part : parts) {
    const InputForm form = input_form(part.w.type, n_tokens);
    forms.f32 |= form == InputForm::kF32;
    forms.f16 |= form == InputForm::kF16;
    forms.bf16 |= form == InputForm::kBF16;
    forms.blocks |= form == InputForm::kBlocks;
  }
  return forms;
}

std::pair<ActivationType, void*> CudaTransformer::producer(const Forms& forms) const {
  if (!forms.f32 && !forms.blocks && forms.f16 != forms.bf16)
    return forms.f16 ? std::pair(ActivationType::kF16, static_cast<void*>(f16_.data()))
                     : std::pair(ActivationType::kBF16, static_cast<void*>(bf16_.data()));
  return {ActivationType::kF32, f32_.data()};
}

DeviceInput CudaTransformer::finish_input(const Forms& forms, int64_t n_tokens, int64_t d_in) {
  DeviceInput x{.n_tokens = n_tokens, .d_in = d_in};
  const bool made = producer(forms).first == ActivationType::kF32;  // the others are made of f32
  if (forms.f32) x.f32 = f32_.as<float>();
  if (forms.f16) {
    x.f16 = f16_.data();
    if (made) convert(f32_.as<float>(), n_tokens * d_in, ActivationType::kF16, f16_.data(), stream_);
  }
  if (forms.bf16) {
    x.bf16 = bf16_.data();
    if (made) convert(f32_.as<float>(), n_tokens * d_in, ActivationType::kBF16, bf16_.data(), stream_);
  }
  if (forms.blocks) {
    x.quantized = quantized_rows();
    quantize(f32_.as<float>(), n_tokens, d_in, x.quantized, stream_);
  }
  return x;
}

DeviceInput CudaTransformer::normed(const Forms& forms, const float* weight, const int32_t* rows, int64_t n_rows) {
  const int64_t d = config_.d_model;
  if (forms.only_blocks()) {
    rmsnorm(x_.as<float>(), rows, weight, n_rows, d, config_.norm_eps, quantized_rows(), stream_);
    return {.n_tokens = n_rows, .d_in = d, .quantized = quantized_rows()};
  }
  const auto [type, to] = producer(forms);
  rmsnorm(x_.as<float>(), rows, weight, n_rows, d, config_.norm_eps, type, to, stream_);
  return finish_input(forms, n_rows, d);
}

DeviceInput CudaTransformer::gated(const Forms& forms, DType gate_up_type, int64_t n_tokens) {
  const int64_t d = config_.d_ff;
  if (forms.only_blocks() && gate_up_type == DType::kF32) {
    swiglu(gate_up_.as<float>(), n_tokens, d, quantized_rows(), stream_);
    return {.n_tokens = n_tokens, .d_in = d, .quantized = quantized_rows()};
  }
  const auto [type, to] = producer(forms);
  swiglu(gate_up_type, gate_up_.data(), n_tokens, d, type, to, stream_);
  return finish_input(forms, n_tokens, d);
}

void CudaTransformer::multiply(std::span<const Part> parts, const DeviceInput& x, DType out_type, void* out,
                               int64_t out_stride, bool add) {
  for (const Part& part : parts)
    products_.multiply(part.w, x, out_type, static_cast<std::byte*>(out) + row_bytes(out_type, 1) * part.column,
                       out_stride, add);
}

// x += attention(norm(x)); x += ffn(norm(x)). x_: [n_tokens, d_model].
template <typename Attend>
void CudaTransformer::run_layer(int64_t layer, int64_t n_tokens, Attend attend) {
  const Layer& w = layers_[static_cast<size_t>(layer)];
  const int64_t d_model = config_.d_model, d_ff = config_.d_ff, q_dim = config_.n_heads * config_.head_dim;
  const int64_t qkv_dim = q_dim + 2 * config_.n_kv_heads * config_.head_dim;
  float* const x = x_.as<float>();

  multiply(w.qkv, normed(forms_of(w.qkv, n_tokens), w.attn_norm, nullptr, n_tokens), DType::kF32, qkv_.data(), qkv_dim,
           false);

  const Forms forms = forms_of(w.attn_out, n_tokens);
  const auto [type, to] = producer(forms);
  attend(layer, type, to);
  multiply(w.attn_out, finish_input(forms, n_tokens, q_dim), DType::kF32, x, d_model, true);

  const DType gate_up_type = gate_up_form(w.gate_up, n_tokens);
  multiply(w.gate_up, normed(forms_of(w.gate_up, n_tokens), w.ffn_norm, nullptr, n_tokens), gate_up_type,
           gate_up_.data(), 2 * d_ff, false);
  multiply(w.down, gated(forms_of(w.down, n_tokens), gate_up_type, n_tokens), DType::kF32, x, d_model, true);
}

void CudaTransformer::forward(const Batch& batch) {
  const int64_t n_tokens = static_cast<int64_t>(batch.tokens.size());
  POLYSPAN_CHECK(n_tokens >= 1 && n_tokens <= kMaxBatchTokens);
  int64_t row = 0;
  bool one_each = batch.inputs == nullptr;
  for (const BatchSequence& sequence : batch.sequences) {
    POLYSPAN_CHECK(sequence.first_row == row && sequence.n_rows >= 1 && sequence.cache->on_device());
    POLYSPAN_CHECK(sequence.cache->n_tokens() + sequence.n_rows <= sequence.cache->max_tokens());
    POLYSPAN_CHECK(sequence.cache->layout().type == batch.sequences[0].cache->layout().type);
    row += sequence.n_rows;
    one_each = one_each && sequence.n_rows == 1;
  }
  POLYSPAN_CHECK(row == n_tokens);
  reserve(n_tokens);
  last_rows_ = n_tokens;
  last_was_decode_ = one_each;
  last_rules_.clear();
  for (const BatchSequence& sequence : batch.sequences)
    last_rules_[sequence.first_row + sequence.n_rows - 1] = sequence.rule;
  copy_to_device(tokens_.data(), batch.tokens.data(), n_tokens * 4, stream_);
  if (one_each) {
    decode(batch);
  } else {
    prefill(batch);
  }
  for (const BatchSequence& sequence : batch.sequences) sequence.cache->advance(sequence.n_rows);
}

AppendArgs CudaTransformer::append_args(int64_t layer, int64_t n_tokens, KvType type) const {
  return {.type = type,
          .n_tokens = n_tokens,
          .n_heads = config_.n_heads,
          .n_kv_heads = config_.n_kv_heads,
          .head_dim = config_.head_dim,
          .qkv = qkv_.as<float>(),
          .bias = layers_[static_cast<size_t>(layer)].bias,
          .rope = rope_.as<RopeTurn>(),
          .n_pairs = config_.rope.n_dims / 2,
          .interleaved = config_.rope.pairing == RopePairing::kInterleaved,
          .q = q_.as<float>()};
}

void CudaTransformer::prefill(const Batch& batch) {
  const ModelConfig& c = config_;
  const int64_t n_tokens = static_cast<int64_t>(batch.tokens.size()),
                n_sequences = static_cast<int64_t>(batch.sequences.size());
  const KvType type = batch.sequences[0].cache->layout().type;
  const int64_t q_dim = c.n_heads * c.head_dim, qkv_dim = q_dim + 2 * c.n_kv_heads * c.head_dim,
                n_pairs = c.rope.n_dims / 2;

  // Tables: chunk storages [n_sequences][n_kv_heads]; rings [n_layers][n_sequences][n_kv_heads]; spans likewise.
  std::vector<KvHeadView> chunk_views, views;
  std::vector<int32_t> spans;
  int64_t chunk_bytes = 0;
  for (const BatchSequence& sequence : batch.sequences)
    chunk_bytes +=
        c.n_kv_heads * round_up_to(kv_storage_bytes(type, c.head_dim, round_up_to(sequence.n_rows, kTileSlots)), 256);
  grow(chunk_, chunk_bytes, "the keys of a prefill chunk", stream_);
  int64_t offset = 0;
  for (const BatchSequence& sequence : batch.sequences)
    for (int64_t kv_head = 0; kv_head < c.n_kv_heads; ++kv_head) {
      const int64_t capacity = round_up_to(sequence.n_rows, kTileSlots);
      chunk_views.push_back({chunk_.data() + offset, 0, 0, 0, static_cast<int32_t>(capacity)});
      offset += round_up_to(kv_storage_bytes(type, c.head_dim, capacity), 256);
    }
  for (int64_t layer = 0; layer < c.n_layers; ++layer)
    for (const BatchSequence& sequence : batch.sequences) {
      add_views(*sequence.cache, layer, views, spans);
    }
  const auto upload = [&](DeviceBuffer& buffer, const auto& values) {
    const int64_t bytes = static_cast<int64_t>(values.size() * sizeof(values[0]));
    grow(buffer, bytes, "the tables of a batch", stream_);
    copy_to_device(buffer.data(), values.data(), bytes, stream_);
  };
  upload(chunk_views_, chunk_views);
  upload(prefill_views_, views);
  upload(prefill_spans_, spans);

  const auto* const inputs = static_cast<const KeptInputs*>(batch.inputs);
  const int64_t first_token = batch.sequences[0].cache->n_tokens(), x_bytes = n_tokens * c.d_model * 4;
  POLYSPAN_CHECK(inputs == nullptr ? batch.first_layer == 0
                                   : n_sequences == 1 && first_token + n_tokens <= inputs->n_tokens);
  if (batch.first_layer == 0)
    embed(embedding_, tokens_.as<int32_t>(), n_tokens, x_.as<float>(), stream_);
  else
    copy_on_device(x_.data(), inputs->at(batch.first_layer, first_token), x_bytes, stream_);
  for (const BatchSequence& sequence : batch.sequences)
    rope_table(frequencies_.as<double>(), n_pairs, nullptr, sequence.cache->n_tokens(), sequence.n_rows,
               rope_.as<RopeTurn>() + sequence.first_row * n_pairs, stream_);
  for (int64_t index = batch.first_layer; index < c.n_layers; ++index) {
    if (inputs != nullptr && batch.first_layer == 0)
      copy_on_device(inputs->at(index, first_token), x_.data(), x_bytes, stream_);
    run_layer(index, n_tokens, [&](int64_t layer, ActivationType out_type, void* out) {
      for (int64_t s = 0; s < n_sequences; ++s) {
        const BatchSequence& sequence = batch.sequences[static_cast<size_t>(s)];
        const int64_t first = sequence.first_row, n = sequence.n_rows, position = sequence.cache->n_tokens();
        const KvHeadView* const chunk = chunk_views_.as<KvHeadView>() + s * c.n_kv_heads;
        const KvHeadView* const heads = prefill_views_.as<KvHeadView>() + (layer * n_sequences + s) * c.n_kv_heads;
        const int32_t* const head_spans = prefill_spans_.as<int32_t>() + (layer * n_sequences + s) * c.n_heads;
        float* const q = q_.as<float>() + first * q_dim;
        AppendArgs keys = append_args(layer, n, type);
        keys.qkv += first * qkv_dim, keys.rope += first * n_pairs, keys.q = q;
        keys.heads = chunk;
        append(keys, stream_);
        const int64_t out_bytes = out_type == ActivationType::kF32 ? 4 : 2;
        prefill_attention({.type = type,
                           .n_heads = c.n_heads,
                           .n_kv_heads = c.n_kv_heads,
                           .head_dim = c.head_dim,
                           .n_tokens = n,
                           .first_position = position,
                           .q = q,
                           .heads = heads,
                           .chunk = chunk,
                           .spans = head_spans,
                           .out_type = out_type,
                           .out = static_cast<std::byte*>(out) + first * q_dim * out_bytes},
                          stream_);
        keep_chunk(type, c.n_kv_heads, c.head_dim, chunk, heads, position, n, stream_);
      }
    });
  }
}

void CudaTransformer::compute_logits(const int32_t* rows, int64_t n) {
  multiply(output_, normed(forms_of(output_, n), output_norm_, rows, n), DType::kF32, logits_.data(),
           config_.vocab_size, false);
}

void CudaTransformer::logits(std::span<const int64_t> rows, float* out) {
  const int64_t n = static_cast<int64_t>(rows.size()), vocab = config_.vocab_size;
  POLYSPAN_CHECK(n >= 1);
  for (const int64_t row : rows) POLYSPAN_CHECK(row >= 0 && row < last_rows_);
  if (last_was_decode_) {
    for (int64_t i = 0; i < n; ++i)
      copy_to_host(out + i * vocab, logits_.as<float>() + rows[static_cast<size_t>(i)] * vocab, vocab * 4, stream_);
    return stream_.synchronize();
  }
  visit_logits(rows, [&](int64_t first, int64_t part) {
    copy_to_host(out + first * vocab, logits_.data(), part * vocab * 4, stream_);
    stream_.synchronize();
  });
}

std::vector<TargetScore> CudaTransformer::scores(std::span<const int64_t> rows, std::span<const int32_t> targets) {
  if (last_was_decode_) return Model::scores(rows, targets);
  std::vector<TargetScore> all;
  visit_logits(rows, [&](int64_t first, int64_t n) {
    grow(scores_, kMostLogitRows * static_cast<int64_t>(sizeof(TargetScore)), "scores", stream_);
    // rows_ has been read by then: the targets take its place.
    copy_to_device(rows_.data(), targets.data() + first, n * 4, stream_);
    score_targets(logits_.as<float>(), rows_.as<int32_t>(), n, config_.vocab_size, scores_.as<TargetScore>(), stream_);
    const std::vector<TargetScore> part = to_host<TargetScore>(scores_.data(), n, stream_);
    all.insert(all.end(), part.begin(), part.end());
  });
  return all;
}

template <typename Visit>
void CudaTransformer::visit_logits(std::span<const int64_t> rows, Visit visit) {
  const int64_t n = std::ssize(rows);
  if (logit_rows_ < std::min(n, kMostLogitRows)) {
    stream_.synchronize();
    graphs_.clear();
    logits_ = DeviceBuffer();
    logits_ = DeviceBuffer(std::min(n, kMostLogitRows) * config_.vocab_size * 4, "logits");
    logit_rows_ = std::min(n, kMostLogitRows);
  }
  for (int64_t first = 0; first < n; first += kMostLogitRows) {
    const int64_t part = std::min(kMostLogitRows, n - first);
    const std::vector<int32_t> wanted(rows.begin() + first, rows.begin() + first + part);
    copy_to_device(rows_.data(), wanted.data(), part * 4, stream_);
    compute_logits(rows_.as<int32_t>(), part);
    visit(first, part);
  }
}

bool CudaTransformer::chosen_tokens(std::span<const int64_t> rows, int32_t* out) {
  for (const int64_t row : rows) POLYSPAN_CHECK(last_rules_.contains(row));
  if (last_was_decode_) {
    const std::vector<int32_t> all = to_host<int32_t>(tokens_.data(), last_rows_, stream_);
    for (size_t i = 0; i < rows.size(); ++i) out[i] = all[static_cast<size_t>(rows[i])];
    return true;
  }
  std::vector<TokenRule> rules;
  for (const int64_t row : rows) rules.push_back(last_rules_.at(row));
  decode_rules_.clear();  // their place is taken
  visit_logits(rows, [&](int64_t first, int64_t n) {
    copy_to_device(rules_.data(), rules.data() + first, n * static_cast<int64_t>(sizeof(TokenRule)), stream_);
    // rows_ has been read by then: the tokens take its place.
    choose_tokens(logits_.as<float>(), n, config_.vocab_size, rules_.as<TokenRule>(), rows_.as<int32_t>(), nullptr,
                  stream_);
    copy_to_host(out + first, rows_.data(), n * 4, stream_);
    stream_.synchronize();
  });
  return true;
}

// Decode. -----------------------------------------------------------------------------------------------------------------

void CudaTransformer::add_views(KvCache& cache, int64_t layer, std::vector<KvHeadView>& views,
                                std::vector<int32_t>& spans) {
  const KvLayout& layout = cache.layout();
  for (int64_t kv_head = 0; kv_head < layout.n_kv_heads; ++kv_head) {
    const KvHeadLayout& h = layout.head(layer, kv_head);
    views.push_back({cache.storage(layer, kv_head), static_cast<int32_t>(h.n_sink), static_cast<int32_t>(h.sink_slots),
                     static_cast<int32_t>(h.ring_slots), static_cast<int32_t>(h.capacity())});
  }
  for (int64_t head = 0; head < layout.n_heads; ++head)
    spans.push_back(static_cast<int32_t>(layout.spans[static_cast<size_t>(layer * layout.n_heads + head)].span));
}

void CudaTransformer::reserve_decode(int64_t n_sequences, KvType type) {
  const ModelConfig& c = config_;
  const int32_t blocks = decode_attention_blocks(type, c.n_heads, c.n_kv_heads, c.head_dim, DecodeWidth::kBest);
  const int64_t rep_groups = (c.n_heads / c.n_kv_heads + 7) / 8;
  if (n_sequences <= decode_capacity_ && blocks == n_blocks_ && n_sequences <= logit_rows_) return;
  stream_.synchronize();
  graphs_.clear();
  decode_ids_.clear();
  work_until_.clear();
  const int64_t n = std::max(n_sequences, decode_capacity_);
  decode_capacity_ = 0;
  n_blocks_ = blocks;
  decode_pieces_ = most_decode_pieces(n * c.n_kv_heads, blocks);
  const auto take = [&](DeviceBuffer& buffer, int64_t bytes) {
    buffer = DeviceBuffer();
    buffer = DeviceBuffer(bytes, "the tables of " + std::to_string(n) + " sequences");
  };
  take(views_, c.n_layers * n * c.n_kv_heads * static_cast<int64_t>(sizeof(KvHeadView)));
  take(spans_, c.n_layers * n * c.n_heads * 4);
  take(positions_, n * 4);
  take(pieces_, c.n_layers * decode_pieces_ * static_cast<int64_t>(sizeof(DecodePiece)));
  take(block_begin_, c.n_layers * (blocks + 1) * 4);
  take(partials_, decode_pieces_ * decode_partial_floats(c.n_heads, c.n_kv_heads, c.head_dim) * 4);
  take(counters_, n * c.n_kv_heads * rep_groups * 4);
  fill_bytes(counters_.data(), 0, counters_.size_bytes(), stream_);
  if (logit_rows_ < n) {
    logit_rows_ = 0;
    take(logits_, n * c.vocab_size * 4);
    logit_rows_ = n;
  }
  decode_capacity_ = n;
}

void CudaTransformer::update_decode_tables(std::span<KvCache* const> caches) {
  constexpr int64_t kWorkSteps =
      256;  // the work lists serve so many steps: a few empty slots are cheaper than new lists
  const ModelConfig& c = config_;
  const int64_t n = static_cast<int64_t>(caches.size());
  std::vector<uint64_t> ids;
  std::vector<int64_t> n_tokens;
  for (const KvCache* cache : caches) {
    ids.push_back(cache->id());
    n_tokens.push_back(cache->n_tokens());
  }
  if (ids != decode_ids_) {
    std::vector<KvHeadView> views;
    std::vector<int32_t> spans;
    for (int64_t layer = 0; layer < c.n_layers; ++layer)
      for (KvCache* cache : caches) add_views(*cache, layer, views, spans);
    copy_to_device(views_.data(), views.data(), static_cast<int64_t>(views.size() * sizeof(KvHeadView)), stream_);
    copy_to_device(spans_.data(), spans.data(), static_cast<int64_t>(spans.size() * 4), stream_);
    decode_ids_ = ids;
    decode_tokens_.clear();
    work_until_.clear();
  }
  if (n_tokens != decode_tokens_) {
    const std::vector<int32_t> positions(n_tokens.begin(), n_tokens.end());
    copy_to_device(positions_.data(), positions.data(), n * 4, stream_);
    decode_tokens_ = n_tokens;
  }
  // Lists that were made for longer caches serve too, but read slots for nothing.
  bool fits = static_cast<int64_t>(work_until_.size()) == n;
  for (size_t s = 0; fits && s < n_tokens.size(); ++s)
    fits = n_tokens[s] < work_until_[s] && n_tokens[s] + 2 * kWorkSteps >= work_until_[s];
  if (fits) return;
  work_until_.clear();
  for (const KvCache* cache : caches)
    work_until_.push_back(std::min(cache->max_tokens(), round_up_to(cache->n_tokens() + 1, kWorkSteps)));
  const int32_t n_blocks = decode_blocks(n, caches[0]->layout().type);
  std::vector<int32_t> block_begin;
  std::vector<DecodePiece> pieces(static_cast<size_t>(c.n_layers * decode_pieces_));
  for (int64_t layer = 0; layer < c.n_layers; ++layer) {
    std::vector<int32_t> n_slots;
    for (size_t s = 0; s < caches.size(); ++s)
      for (int64_t kv_head = 0; kv_head < c.n_kv_heads; ++kv_head) {
        const KvHeadLayout& h = caches[s]->layout().head(layer, kv_head);
        const int64_t in_ring = work_until_[s] - h.n_sink;
        n_slots.push_back(
            static_cast<int32_t>(in_ring <= 0 ? work_until_[s] : h.sink_slots + std::min(h.ring_slots, in_ring)));
      }
    DecodeWork work = cut_decode_work(n_slots, c.n_kv_heads, n_blocks);
    work.block_begin.resize(static_cast<size_t>(n_blocks_) + 1, work.block_begin.back());
    POLYSPAN_CHECK(static_cast<int64_t>(work.pieces.size()) <= decode_pieces_);
    block_begin.insert(block_begin.end(), work.block_begin.begin(), work.block_begin.end());
    std::copy(work.pieces.begin(), work.pieces.end(), pieces.begin() + layer * decode_pieces_);
  }
  copy_to_device(block_begin_.data(), block_begin.data(), static_cast<int64_t>(block_begin.size() * 4), stream_);
  copy_to_device(pieces_.data(), pieces.data(), static_cast<int64_t>(pieces.size() * sizeof(DecodePiece)), stream_);
}

int32_t CudaTransformer::decode_blocks(int64_t n_sequences, KvType type) const {
  const ModelConfig& c = config_;
  const DecodeWidth width = decode_attention_width(type, n_sequences, c.n_heads, c.n_kv_heads);
  return std::min(n_blocks_, decode_attention_blocks(type, c.n_heads, c.n_kv_heads, c.head_dim, width));
}

void CudaTransformer::record_decode_step(int64_t n, KvType type) {
  const ModelConfig& c = config_;
  const int32_t n_blocks = decode_blocks(n, type);
  const int64_t n_pairs = c.rope.n_dims / 2;
  embed(embedding_, tokens_.as<int32_t>(), n, x_.as<float>(), stream_);
  rope_table(frequencies_.as<double>(), n_pairs, positions_.as<int32_t>(), 0, n, rope_.as<RopeTurn>(), stream_);
  for (int64_t index = 0; index < c.n_layers; ++index)
    run_layer(index, n, [&](int64_t layer, ActivationType out_type, void* out) {
      const KvHeadView* const heads = views_.as<KvHeadView>() + layer * n * c.n_kv_heads;
      AppendArgs keys = append_args(layer, n, type);
      keys.heads = heads, keys.positions = positions_.as<int32_t>();
      append(keys, stream_);
      decode_attention({.type = type,
                        .n_sequences = n,
                        .n_heads = c.n_heads,
                        .n_kv_heads = c.n_kv_heads,
                        .head_dim = c.head_dim,
                        .q = q_.as<float>(),
                        .heads = heads,
                        .spans = spans_.as<int32_t>() + layer * n * c.n_heads,
                        .positions = positions_.as<int32_t>(),
                        .block_begin = block_begin_.as<int32_t>() + layer * (n_blocks_ + 1),
                        .pieces = pieces_.as<DecodePiece>() + layer * decode_pieces_,
                        .n_blocks = n_blocks,
                        .partials = partials_.as<float>(),
                        .counters = counters_.as<int32_t>(),
                        .out_type = out_type,
                        .out = out},
                       stream_);
    });
  compute_logits(nullptr, n);
  choose_tokens(logits_.as<float>(), n, c.vocab_size, rules_.as<TokenRule>(), tokens_.as<int32_t>(),
                positions_.as<int32_t>(), stream_);
}

void CudaTransformer::queue_decode_step(std::span<KvCache* const> caches) {
  update_decode_tables(caches);
  const int64_t n = std::ssize(caches);
  const KvType type = caches[0]->layout().type;
  const auto key = std::pair(n, type);
  if (eager_steps_[key]++ == 0) {  // the first step of a size loads its kernels, which a recording must not
    record_decode_step(n, type);
  } else {
    Graph& graph = graphs_[key];
    if (!graph) graph = Graph(stream_, [&] { record_decode_step(n, type); });
    graph.launch(stream_);
  }
  for (int64_t& tokens : decode_tokens_) ++tokens;
}

void CudaTransformer::decode(const Batch& batch) {
  const KvType type = batch.sequences[0].cache->layout().type;
  std::vector<KvCache*> caches;
  for (const BatchSequence& sequence : batch.sequences) caches.push_back(sequence.cache);
  reserve_decode(static_cast<int64_t>(caches.size()), type);
  std::vector<TokenRule> rules;
  for (const BatchSequence& sequence : batch.sequences) rules.push_back(sequence.rule);
  if (rules != decode_rules_) {
    copy_to_device(rules_.data(), rules.data(), static_cast<int64_t>(rules.size() * sizeof(TokenRule)), stream_);
    decode_rules_ = rules;
  }
  queue_decode_step(caches);
}

void CudaTransformer::continue_decoding(std::span<KvCache* const> caches, int64_t n_steps) {
  POLYSPAN_CHECK(last_was_decode_ && static_cast<int64_t>(caches.size()) == last_rows_);
  for (int64_t step = 0; step < n_steps; ++step) {
    queue_decode_step(caches);
    for (KvCache* cache : caches) {
      POLYSPAN_CHECK(cache->n_tokens() < cache->max_tokens());
      cache->advance(1);
    }
  }
}

void CudaTransformer::fill_cache(KvCache& cache, int64_t n_tokens, uint64_t seed) {
  POLYSPAN_CHECK(cache.layout().type == KvType::kF16 || cache.layout().type == KvType::kBF16);
  const DType type = cache.layout().type == KvType::kF16 ? DType::kF16 : DType::kBF16;
  fill_random(type, cache.storage(0, 0), cache.bytes() / 2, 1.0f, seed, stream_);
  cache.advance(n_tokens);
}

}  // namespace polyspan::cuda
