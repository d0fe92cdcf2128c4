// model/kv_cache.h: the span cache of one sequence: for each layer and KV head the sink tokens and a ring of the last
// `span` tokens, no more. Keys are stored after RoPE at their true positions.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/huge_buffer.h"
#include "model/config.h"
#include "model/hydra_state.h"
#include "ops/kernels.h"
#include "ops/span_attention.h"
#include "plan/span_plan.h"

namespace polyspan {

std::string_view kv_type_name(KvType type);
// "f16", "bf16", "q8", "f8"; throws Error (kUsage) for anything else.
KvType kv_type_by_name(std::string_view name);

// Where one KV head's slots are: [0, sink_slots) hold positions 0, 1, ...; position p >= n_sink is in ring slot
// sink_slots + (p - n_sink) % ring_slots.
struct KvHeadLayout {
  int64_t n_sink = 0;      // sink positions kept
  int64_t sink_slots = 0;  // n_sink rounded up to 16
  int64_t ring_slots = 0;  // min(span, planned length - n_sink) rounded up to 16
  int64_t offset = 0;      // bytes into the cache's memory
  int64_t capacity() const { return sink_slots + ring_slots; }
  int64_t slot(int64_t position) const {
    return position < n_sink ? position : sink_slots + (position - n_sink) % ring_slots;
  }
};

// The layout of all heads for one planned length: what `inspect` prints before anything is allocated.
struct KvLayout {
  // Throws Error (kUnsupported) for a plan with spans where the model has no attention.
  KvLayout(const ModelConfig& config, const SpanPlan& plan, int64_t planned_length, KvType type);
  KvType type;
  int64_t planned_length, n_layers, n_heads, n_kv_heads, head_dim;
  int64_t bytes = 0;
  std::vector<KvHeadLayout> heads;                // [n_layers * n_kv_heads]
  std::vector<AttentionSpan> spans;               // [n_layers * n_heads]
  std::shared_ptr<const HydraStateLayout> state;  // of a Hydra model, in place of the two above
  std::string describe() const;                   // "a f16 KV cache for 4096 tokens"
  const KvHeadLayout& head(int64_t layer, int64_t kv_head) const {
    return heads[static_cast<size_t>(layer * n_kv_heads + kv_head)];
  }
  const AttentionSpan* head_spans(int64_t layer, int64_t kv_head) const {
    return spans.data() + layer * n_heads + kv_head * (n_heads / n_kv_heads);
  }
};

class KvCache {
 public:
  // Throws Error: kOutOfMemory with the bytes needed and available, kUnsupported for f8, which a GPU alone has.
  explicit KvCache(KvLayout layout);
  // In memory of another device, layout.bytes of it: made by the model that runs there (Model::make_cache).
  KvCache(KvLayout layout, std::shared_ptr<std::byte> device_memory);

  const KvLayout& layout() const { return layout_; }
  int64_t n_tokens() const { return n_tokens_; }  // positions [0, n_tokens) are in (as far as the spans keep them)
  int64_t max_tokens() const { return layout_.planned_length; }
  int64_t bytes() const { return layout_.bytes; }
  void advance(int64_t n) { n_tokens_ += n; }
  void clear() { n_tokens_ = 0; }
  bool on_device() const { return device_memory_ != nullptr; }
  uint64_t id() const { return id_; }  // no other cache of this process has it

  std::byte* storage(int64_t layer, int64_t kv_head) {
    return (on_device() ? device_memory_.get() : memory_.data()) + layout_.head(layer, kv_head).offset;
  }
  // A recurrent model's state, layout().bytes of it; the model makes it anew where n_tokens() is 0.
  std::byte* state() { return memory_.data(); }
  // The whole of a sequence's memory, and that put back: a saved prompt, a branch. Exact. REQUIRES: of an equal layout, not on_device().
  std::span<const std::byte> saved() const { return {memory_.data(), static_cast<size_t>(layout_.bytes)}; }
  void restore(std::span<const std::byte> saved, int64_t n_tokens);
  // Whether n tokens from `position` on can be written before they attend: nothing that their queries may see is lost.
  bool can_write_first(int64_t layer, int64_t kv_head, int64_t position, int64_t n) const;
  // Adds the runs of this head's kept positions [max(0, oldest visible to first_query), n_positions) to `head`.
  void add_runs(int64_t layer, int64_t kv_head, int64_t first_query, int64_t n_positions, AttentionHead& head);

 private:
  KvLayout layout_;
  HugeBuffer memory_;
  std::shared_ptr<std::byte> device_memory_;
  uint64_t id_;
  int64_t n_tokens_ = 0;
};

// Copies one slot between two storages of the same type.
void copy_kv_slot(KvType type, int64_t head_dim_padded, const std::byte* from, int64_t from_capacity, int64_t from_slot,
                  std::byte* to, int64_t to_capacity, int64_t to_slot);

}  // namespace polyspan
