#include "model/hydra_state.h"

#include <algorithm>
#include <cstring>

namespace polyspan {

HydraStateLayout::HydraStateLayout(const HydraConfig& c) {
  const auto take = [&](HydraPart part, int64_t n) {
    const int64_t at = n_floats, padded = (n + 15) / 16 * 16;  // everything starts on a cache line
    n_floats += padded;
    part_bytes[part] += 4 * padded;
    return at;
  };
  using enum HydraPart;
  for (int64_t layer = 0; layer < c.n_layers; ++layer) {
    HydraBlockState& b = blocks.emplace_back();
    b.chunk_sum = take(kController, c.d_model);
    b.last_mean = take(kController, c.d_model);
    b.decisions = take(kController, 3 + 2 * c.n_active_experts);
    if (c.has_ssm) {
      b.conv = take(kSsm, (c.d_conv - 1) * c.d_conv_channels());
      b.scan = take(kSsm, c.d_inner * c.d_state);
    }
    if (c.has_attention(layer)) {
      b.near_keys = take(kAttention, c.n_kv_heads * c.window * c.head_dim);
      b.near_values = take(kAttention, c.n_kv_heads * c.window * c.head_dim);
      if (c.n_global > 0) {
        b.near_scores = take(kAttention, c.window);
        b.far_keys = take(kAttention, c.n_kv_heads * c.n_global * c.head_dim);
        b.far_values = take(kAttention, c.n_kv_heads * c.n_global * c.head_dim);
        b.far_scores = take(kAttention, c.n_global);
        b.far_positions = take(kAttention, 2 * c.n_global);
      }
    }
    if (c.has_workspace(layer)) {
      b.slots = take(kWorkspace, c.n_slots * c.d_slot);
      b.slot_keys = take(kWorkspace, c.n_slots * c.slot_rank);
      b.slot_values = take(kWorkspace, c.n_slots * c.slot_rank);
      b.write_keys = take(kWorkspace, c.chunk_len * c.slot_rank);
      b.write_values = take(kWorkspace, c.chunk_len * c.d_slot);
    }
  }
}

int64_t n_far_tokens(const HydraConfig& c, int64_t chunk) {
  return std::clamp<int64_t>((chunk - c.window / c.chunk_len + 1) * c.chunk_len, 0, c.n_global);
}

void update_global_set(const HydraConfig& c, const HydraBlockState& b, int64_t chunk, float* state) {
  const int64_t leaving = chunk - c.window / c.chunk_len;
  if (leaving < 0 || c.n_global == 0) return;
  int64_t n = n_far_tokens(c, chunk - 1);
  float* const scores = state + b.far_scores;
  int64_t* const positions = reinterpret_cast<int64_t*>(state + b.far_positions);
  for (int64_t position = leaving * c.chunk_len; position < (leaving + 1) * c.chunk_len; ++position) {
    const int64_t from = position % c.window;
    const float score = state[b.near_scores + from];
    int64_t to = n;
    if (n < c.n_global) {
      ++n;
    } else {  // the worst: the lowest score, of equal ones the latest
      to = 0;
      for (int64_t i = 1; i < n; ++i)
        if (scores[i] < scores[to] || (scores[i] == scores[to] && positions[i] > positions[to])) to = i;
      if (!(score > scores[to])) continue;
    }
    scores[to] = score;
    positions[to] = position;
    for (int64_t kv_head = 0; kv_head < c.n_kv_heads; ++kv_head) {
      const int64_t source = (kv_head * c.window + from) * c.head_dim,
                    target = (kv_head * c.n_global + to) * c.head_dim;
      std::copy_n(state + b.near_keys + source, c.head_dim, state + b.far_keys + target);
      std::copy_n(state + b.near_values + source, c.head_dim, state + b.far_values + target);
    }
  }
}

}  // namespace polyspan
