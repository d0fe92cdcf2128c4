#include "model/kv_cache.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>

#include "core/error.h"

namespace polyspan {

std::string_view kv_type_name(KvType type) {
  return type == KvType::kF16 ? "f16" : type == KvType::kBF16 ? "bf16" : type == KvType::kQ8 ? "q8" : "f8";
}

KvType kv_type_by_name(std::string_view name) {
  for (KvType type : {KvType::kF16, KvType::kBF16, KvType::kQ8, KvType::kF8})
    if (kv_type_name(type) == name) return type;
  throw Error::usage("cache type \"", name, "\" is not known; wanted f16, bf16, q8 or f8");
}

KvLayout::KvLayout(const ModelConfig& config, const SpanPlan& plan, int64_t length, KvType kv_type)
    : type(kv_type),
      planned_length(length),
      n_layers(config.n_layers),
      n_heads(config.n_heads),
      n_kv_heads(config.n_kv_heads),
      head_dim(config.head_dim) {
  POLYSPAN_CHECK(length >= 1);
  const SpanTable table = plan.spans(length);
  if (config.hydra) {
    if (!plan.is_dense() && config.hydra->n_attention_layers() == 0)
      throw Error::unsupported("this model has no attention: there are no heads for a plan");
    state = std::make_shared<const HydraStateLayout>(*config.hydra, table.kv_head_spans);
    bytes = state->bytes();
    return;
  }
  const int64_t d_padded = kv_head_dim_padded(head_dim);
  const int64_t window = config.sliding_window > 0 ? config.sliding_window : length;  // no head sees further
  for (int64_t layer = 0; layer < n_layers; ++layer) {
    for (int64_t head = 0; head < n_heads; ++head)
      spans.push_back({std::min(table.query_head_spans[static_cast<size_t>(layer)][static_cast<size_t>(head)], window),
                       table.n_sink_tokens});
    for (int64_t kv_head = 0; kv_head < n_kv_heads; ++kv_head) {
      KvHeadLayout h;
      h.n_sink = std::min(table.n_sink_tokens, length);
      h.sink_slots = round_up_to(h.n_sink, kTileSlots);
      const int64_t span =
          std::min(table.kv_head_spans[static_cast<size_t>(layer)][static_cast<size_t>(kv_head)], window);
      h.ring_slots = round_up_to(std::min(span, length - h.n_sink), kTileSlots);
      h.offset = bytes;
      bytes += round_up_to(kv_storage_bytes(type, d_padded, h.capacity()), 64);
      heads.push_back(h);
    }
  }
}

std::string KvLayout::describe() const {
  return "a " + std::string(kv_type_name(type)) + " KV cache for " + std::to_string(planned_length) + " tokens";
}

namespace {

uint64_t next_cache_id() {
  static std::atomic<uint64_t> next{1};
  return next++;
}

}  // namespace

KvCache::KvCache(KvLayout layout, std::shared_ptr<std::byte> device_memory)
    : layout_(std::move(layout)), device_memory_(std::move(device_memory)), id_(next_cache_id()) {
  POLYSPAN_CHECK(device_memory_ != nullptr);
}

KvCache::KvCache(KvLayout layout) : layout_(std::move(layout)), id_(next_cache_id()) {
  if (layout_.type == KvType::kF8)
    throw Error::unsupported("an f8 KV cache is for a GPU only: use --device cuda, or a cache of f16, bf16 or q8");
  memory_ = HugeBuffer(layout_.bytes, layout_.describe());
}

void KvCache::restore(std::span<const std::byte> saved, int64_t n_tokens) {
  POLYSPAN_CHECK(!on_device() && std::ssize(saved) == layout_.bytes && n_tokens >= 0 && n_tokens <= max_tokens());
  std::memcpy(memory_.data(), saved.data(), saved.size());
  n_tokens_ = n_tokens;
}

bool KvCache::can_write_first(int64_t layer, int64_t kv_head, int64_t position, int64_t n) const {
  const KvHeadLayout& h = layout_.head(layer, kv_head);
  return n == 1 || position + n - h.n_sink <= h.ring_slots;
}

void KvCache::add_runs(int64_t layer, int64_t kv_head, int64_t first_query, int64_t n_positions, AttentionHead& head) {
  const KvHeadLayout& h = layout_.head(layer, kv_head);
  const int64_t n_rep = layout_.n_heads / layout_.n_kv_heads;
  const AttentionSpan* spans = layout_.head_spans(layer, kv_head);
  int64_t longest = 0;
  for (int64_t r = 0; r < n_rep; ++r) longest = std::max(longest, spans[r].span);
  const std::byte* memory = storage(layer, kv_head);
  const auto add = [&](int64_t position, int64_t n) {
    if (n > 0) head.runs[static_cast<size_t>(head.n_runs++)] = {memory, h.capacity(), h.slot(position), position, n};
  };
  add(0, std::min(h.n_sink, n_positions));
  const int64_t oldest = std::max({h.n_sink, first_query - longest + 1, n_positions - h.ring_slots});
  if (oldest >= n_positions) return;
  const int64_t n = n_positions - oldest;
  const int64_t until_wrap = h.ring_slots - (oldest - h.n_sink) % h.ring_slots;
  add(oldest, std::min(n, until_wrap));
  add(oldest + until_wrap, n - until_wrap);
}

void copy_kv_slot(KvType type, int64_t d, const std::byte* from, int64_t from_capacity, int64_t from_slot,
                  std::byte* to, int64_t to_capacity, int64_t to_slot) {
  const int64_t tile_bytes = kv_tile_bytes(type, d);
  const int64_t from_lane = from_slot % kTileSlots, to_lane = to_slot % kTileSlots;
  const std::byte* k_from = from + from_slot / kTileSlots * tile_bytes;
  std::byte* k_to = to + to_slot / kTileSlots * tile_bytes;
  const std::byte* v_from = k_from + from_capacity / kTileSlots * tile_bytes;
  std::byte* v_to = k_to + to_capacity / kTileSlots * tile_bytes;
  if (type == KvType::kQ8) {
    for (int64_t quad = 0; quad < d / 4; ++quad)
      std::memcpy(k_to + quad * 64 + to_lane * 4, k_from + quad * 64 + from_lane * 4, 4);
    for (int64_t i = 0; i < d; ++i)
      v_to[(to_lane / 4 * d + i) * 4 + to_lane % 4] = v_from[(from_lane / 4 * d + i) * 4 + from_lane % 4];
    std::memcpy(k_to + 16 * d + 4 * to_lane, k_from + 16 * d + 4 * from_lane, 4);
    std::memcpy(v_to + 16 * d + 4 * to_lane, v_from + 16 * d + 4 * from_lane, 4);
    return;
  }
  for (int64_t i = 0; i < d; ++i) std::memcpy(k_to + i * 32 + 2 * to_lane, k_from + i * 32 + 2 * from_lane, 2);
  std::memcpy(v_to + 2 * to_lane * d, v_from + 2 * from_lane * d, static_cast<size_t>(2 * d));
}

}  // namespace polyspan
