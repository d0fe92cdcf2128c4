#include "model/transformer.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/error.h"
#include "model/transformer_profiler.h"

namespace polyspan {
namespace {

// Tokens of one forward pass. 512 rows keep the products at their roof; the activations stay in the L2 and L3 caches.
constexpr int64_t kMaxStepTokens = 512;

}  // namespace

Transformer::Transformer(std::unique_ptr<GgufFile> file, ModelConfig config, OpContext& context, Progress& progress)
    : Model(std::move(file), std::move(config)),
      context_(context),
      weights_(Weights::load(*file_, config_, context, progress)) {}

std::unique_ptr<SpanProfiler> Transformer::make_span_profiler(Progress& progress) {
  return std::make_unique<TransformerProfiler>(config_, weights_, context_, progress);
}

int64_t Transformer::max_batch_tokens() const { return kMaxStepTokens; }

void Transformer::reserve(int64_t n_tokens) {
  if (n_tokens <= act_.capacity) return;
  const auto floats = [&](int64_t width) { return static_cast<size_t>(n_tokens * width); };
  const int64_t q_dim = config_.n_heads * config_.head_dim, kv_dim = config_.n_kv_heads * config_.head_dim;
  act_.capacity = n_tokens;
  act_.x.resize(floats(config_.d_model));
  act_.normed.resize(floats(config_.d_model));
  act_.q.resize(floats(q_dim));
  act_.k.resize(floats(kv_dim));
  act_.v.resize(floats(kv_dim));
  act_.attention.resize(floats(q_dim));
  act_.ffn.resize(floats(config_.d_ff));
  act_.blocks.resize(floats(std::max({config_.d_model, q_dim, config_.d_ff})) / kBlockCols + 1);
}

void Transformer::norm(const std::vector<float>& weight, int64_t n_tokens) {
  const int64_t d = config_.d_model;
  context_.team().split(n_tokens, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t)
      kernels().rmsnorm_row(act_.x.data() + t * d, weight.data(), d, config_.norm_eps, act_.normed.data() + t * d);
  });
}

// The same activations as floats and, where they divide into blocks, quantised.
MatmulInput Transformer::input(const std::vector<float>& values, int64_t n_tokens, int64_t d_in) {
  return matmul_input(values.data(), n_tokens, d_in, act_.blocks, context_);
}

void Transformer::forward(const Batch& batch) {
  const int64_t n_tokens = static_cast<int64_t>(batch.tokens.size());
  POLYSPAN_CHECK(n_tokens >= 1 && n_tokens <= kMaxStepTokens);
  reserve(n_tokens);
  std::vector<int64_t> positions;
  for (const BatchSequence& sequence : batch.sequences) {
    POLYSPAN_CHECK(sequence.first_row == static_cast<int64_t>(positions.size()) && sequence.n_rows >= 1);
    POLYSPAN_CHECK(sequence.cache->n_tokens() + sequence.n_rows <= sequence.cache->max_tokens());
    for (int64_t i = 0; i < sequence.n_rows; ++i) positions.push_back(sequence.cache->n_tokens() + i);
  }
  POLYSPAN_CHECK(static_cast<int64_t>(positions.size()) == n_tokens);
  rope_table_.compute(config_.rope, positions);
  for (int64_t t = 0; t < n_tokens; ++t)
    weights_.embedding(batch.tokens[static_cast<size_t>(t)], act_.x.data() + t * config_.d_model);
  for (int64_t layer = 0; layer < config_.n_layers; ++layer) run_layer(layer, batch);
  for (const BatchSequence& sequence : batch.sequences) sequence.cache->advance(sequence.n_rows);
}

// x += attention(norm(x)); x += ffn(norm(x)). act_.x: [n_tokens, d_model].
void Transformer::run_layer(int64_t layer, const Batch& batch) {
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const int64_t n_tokens = static_cast<int64_t>(batch.tokens.size()), d_model = config_.d_model, d_ff = config_.d_ff;
  const int64_t q_dim = config_.n_heads * config_.head_dim, kv_dim = config_.n_kv_heads * config_.head_dim;
  const auto bias = [](const std::vector<float>& values) { return values.empty() ? nullptr : values.data(); };

  norm(w.attn_norm, n_tokens);
  const MatmulOutput qkv[] = {{&w.q, bias(w.q_bias), act_.q.data(), q_dim, Epilogue::kStore},
                              {&w.k, bias(w.k_bias), act_.k.data(), kv_dim, Epilogue::kStore},
                              {&w.v, bias(w.v_bias), act_.v.data(), kv_dim, Epilogue::kStore}};
  matmul(input(act_.normed, n_tokens, d_model), qkv, context_);
  const float scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim));
  apply_rope(config_.rope, rope_table_, act_.q.data(), n_tokens, q_dim, config_.n_heads, config_.head_dim, scale,
             context_);
  apply_rope(config_.rope, rope_table_, act_.k.data(), n_tokens, kv_dim, config_.n_kv_heads, config_.head_dim, 1.0f,
             context_);
  attend(layer, batch);
  const MatmulOutput attn_out[] = {{&w.attn_out, nullptr, act_.x.data(), d_model, Epilogue::kAdd}};
  matmul(input(act_.attention, n_tokens, q_dim), attn_out, context_);

  norm(w.ffn_norm, n_tokens);
  matmul_swiglu(input(act_.normed, n_tokens, d_model), w.gate, w.up, act_.ffn.data(), context_);
  const MatmulOutput down[] = {{&w.down, nullptr, act_.x.data(), d_model, Epilogue::kAdd}};
  matmul(input(act_.ffn, n_tokens, d_ff), down, context_);
}

void Transformer::attend(int64_t layer, const Batch& batch) {
  const int64_t n_kv_heads = config_.n_kv_heads, d_padded = kv_head_dim_padded(config_.head_dim);
  const int64_t n_sequences = static_cast<int64_t>(batch.sequences.size()), n_heads_total = n_sequences * n_kv_heads;
  const KvType type = batch.sequences[0].cache->layout().type;
  heads_.assign(static_cast<size_t>(n_heads_total), {});
  attention_sequences_.clear();
  int64_t chunk_slots = 0;  // of one KV head, all sequences
  for (const BatchSequence& sequence : batch.sequences) chunk_slots += round_up_to(sequence.n_rows, kTileSlots);

  // Where each head's new keys go: straight into its ring, or beside it first.
  int64_t first_chunk_slot = 0;
  for (int64_t s = 0; s < n_sequences; ++s) {
    const BatchSequence& sequence = batch.sequences[static_cast<size_t>(s)];
    POLYSPAN_CHECK(sequence.cache->layout().type == type);
    const int64_t first = sequence.cache->n_tokens(), n = sequence.n_rows, capacity = round_up_to(n, kTileSlots);
    for (int64_t kv_head = 0; kv_head < n_kv_heads; ++kv_head) {
      AttentionHead& head = heads_[static_cast<size_t>(s * n_kv_heads + kv_head)];
      head.spans = sequence.cache->layout().head_spans(layer, kv_head);
      if (sequence.cache->can_write_first(layer, kv_head, first, n)) {
        sequence.cache->add_runs(layer, kv_head, first, first + n, head);
      } else {
        const int64_t bytes = kv_storage_bytes(type, d_padded, chunk_slots) * n_kv_heads;
        if (chunk_.size_bytes() < bytes) chunk_ = HugeBuffer(bytes, "the keys of a prefill chunk");
        std::byte* storage =
            chunk_.data() + kv_storage_bytes(type, d_padded, first_chunk_slot * n_kv_heads + kv_head * capacity);
        sequence.cache->add_runs(layer, kv_head, first, first, head);
        head.runs[static_cast<size_t>(head.n_runs++)] = {storage, capacity, 0, first, n};
      }
    }
    attention_sequences_.push_back({sequence.first_row, n, first, heads_.data() + s * n_kv_heads});
    first_chunk_slot += capacity;
  }
  const auto chunk_run = [&](const AttentionHead& head) -> const KvRun* {
    const KvRun& last = head.runs[static_cast<size_t>(head.n_runs - 1)];
    const bool inside =
        chunk_.data() != nullptr && last.storage >= chunk_.data() && last.storage < chunk_.data() + chunk_.size_bytes();
    return inside ? &last : nullptr;
  };
  const auto for_each_head = [&](auto body) {
    const auto run_head = [&](int64_t index, int) {
      const BatchSequence& sequence = batch.sequences[static_cast<size_t>(index / n_kv_heads)];
      body(sequence, index % n_kv_heads, heads_[static_cast<size_t>(index)]);
    };
    if (batch.tokens.size() == 1) {  // a few hundred stores: not worth a parallel section
      for (int64_t index = 0; index < n_heads_total; ++index) run_head(index, 0);
    } else {
      context_.team().each(n_heads_total, run_head);
    }
  };

  for_each_head([&](const BatchSequence& sequence, int64_t kv_head, const AttentionHead& head) {
    const KvRun* chunk = chunk_run(head);
    const KvHeadLayout& layout = sequence.cache->layout().head(layer, kv_head);
    if (chunk != nullptr && sequence.n_rows % kTileSlots != 0) {
      // The last tiles have slots that nothing is written to. What another chunk left there may be NaN when read as this
      // one's numbers, and a weight of 0 does not hide that.
      const int64_t tile_bytes = kv_tile_bytes(type, d_padded), n_tiles = chunk->capacity / kTileSlots;
      std::byte* storage = const_cast<std::byte*>(chunk->storage);
      std::memset(storage + (n_tiles - 1) * tile_bytes, 0, static_cast<size_t>(tile_bytes));
      std::memset(storage + (2 * n_tiles - 1) * tile_bytes, 0, static_cast<size_t>(tile_bytes));
    }
    for (int64_t i = 0; i < sequence.n_rows; ++i) {
      const int64_t at = ((sequence.first_row + i) * n_kv_heads + kv_head) * config_.head_dim;
      const int64_t slot = chunk != nullptr ? i : layout.slot(sequence.cache->n_tokens() + i);
      std::byte* storage =
          chunk != nullptr ? const_cast<std::byte*>(chunk->storage) : sequence.cache->storage(layer, kv_head);
      kernels().write_kv_slot(type, act_.k.data() + at, act_.v.data() + at, config_.head_dim, d_padded,
                              chunk != nullptr ? chunk->capacity : layout.capacity(), slot, storage);
    }
  });

  attention_.run(
      {type, config_.n_heads, n_kv_heads, config_.head_dim, act_.q.data(), act_.attention.data(), attention_sequences_},
      context_);

  for_each_head([&](const BatchSequence& sequence, int64_t kv_head, const AttentionHead& head) {
    const KvRun* chunk = chunk_run(head);
    if (chunk == nullptr) return;
    const KvHeadLayout& layout = sequence.cache->layout().head(layer, kv_head);
    const int64_t end = chunk->first_position + chunk->n_keys;
    for (int64_t i = 0; i < chunk->n_keys; ++i) {
      const int64_t position = chunk->first_position + i;
      if (position >= layout.n_sink && position < end - layout.ring_slots) continue;  // overwritten within this chunk
      copy_kv_slot(type, d_padded, chunk->storage, chunk->capacity, i, sequence.cache->storage(layer, kv_head),
                   layout.capacity(), layout.slot(position));
    }
  });
}

void Transformer::logits(std::span<const int64_t> rows, float* out) {
  const int64_t n = static_cast<int64_t>(rows.size()), d = config_.d_model;
  POLYSPAN_CHECK(n >= 1 && n <= act_.capacity);
  for (int64_t i = 0; i < n; ++i)
    kernels().rmsnorm_row(act_.x.data() + rows[static_cast<size_t>(i)] * d, weights_.output_norm.data(), d,
                          config_.norm_eps, act_.normed.data() + i * d);
  const MatmulOutput output[] = {{&weights_.output, nullptr, out, config_.vocab_size, Epilogue::kStore}};
  matmul(input(act_.normed, n, d), output, context_);
}

std::unique_ptr<Model> make_transformer(std::unique_ptr<GgufFile> file, ModelConfig config, OpContext& context,
                                        Progress& progress) {
  return std::make_unique<Transformer>(std::move(file), std::move(config), context, progress);
}

}  // namespace polyspan
