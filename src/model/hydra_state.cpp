#include "model/hydra_state.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"

namespace polyspan {

HydraStateLayout::HydraStateLayout(const HydraConfig& c)
    : HydraStateLayout(c, std::vector(static_cast<size_t>(c.n_attention_layers()),
                                      std::vector(static_cast<size_t>(c.n_kv_heads), c.window))) {}

HydraStateLayout::HydraStateLayout(const HydraConfig& c, const std::vector<std::vector<int64_t>>& spans) {
  const auto take = [&](HydraPart part, int64_t n) {
    const int64_t at = n_floats, padded = (n + 15) / 16 * 16;  // everything starts on a cache line
    n_floats += padded;
    part_bytes[part] += 4 * padded;
    return at;
  };
  using enum HydraPart;
  size_t n_attention = 0;
  for (int64_t layer = 0; layer < c.n_layers; ++layer) {
    HydraBlockState& b = blocks.emplace_back();
    b.chunk_sum = take(kController, c.d_model);
    b.last_mean = take(kController, c.d_model);
    b.decisions = take(kController, 3 + 2 * c.n_active_experts);
    if (c.has_diagonal_ssm()) b.scan = take(kSsm, c.d_model);
    if (c.has_mamba2()) {
      b.conv = take(kSsm, (c.d_conv - 1) * c.d_conv_channels());
      b.scan = take(kSsm, c.d_inner * c.d_state);
    }
    if (c.has_attention(layer)) {
      const std::vector<int64_t>& of_heads = spans.at(n_attention++);
      POLYSPAN_CHECK(std::ssize(of_heads) == c.n_kv_heads);
      std::map<int64_t, HydraFarTokens> far;
      for (const int64_t window : of_heads) {
        POLYSPAN_CHECK(window >= c.chunk_len && window <= c.window && window % c.chunk_len == 0);
        b.longest_window = std::max(b.longest_window, window);
        HydraHeadState& head = b.heads.emplace_back();
        head.window = window;
        head.near_keys = take(kAttention, window * c.head_dim);
        head.near_values = take(kAttention, window * c.head_dim);
        if (c.n_global == 0) continue;
        head.far_keys = take(kAttention, c.n_global * c.head_dim);
        head.far_values = take(kAttention, c.n_global * c.head_dim);
        HydraFarTokens& tokens = far[window];
        if (tokens.kv_heads.empty())
          tokens = {window, take(kAttention, c.n_global), take(kAttention, 2 * c.n_global), {}};
        tokens.kv_heads.push_back(std::ssize(b.heads) - 1);
        head.far_scores = tokens.scores, head.far_positions = tokens.positions;
      }
      for (auto& [window, tokens] : far) b.far.push_back(std::move(tokens));
      if (c.n_global > 0) b.near_scores = take(kAttention, b.longest_window);
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

int64_t n_far_tokens(const HydraConfig& c, int64_t window, int64_t chunk) {
  return std::clamp<int64_t>((chunk - window / c.chunk_len + 1) * c.chunk_len, 0, c.n_global);
}

void update_far_tokens(const HydraConfig& c, const HydraBlockState& b, int64_t chunk, float* state) {
  for (const HydraFarTokens& far : b.far) {
    const int64_t leaving = chunk - far.window / c.chunk_len;
    if (leaving < 0) continue;
    int64_t n = n_far_tokens(c, far.window, chunk - 1);
    float* const scores = state + far.scores;
    int64_t* const positions = reinterpret_cast<int64_t*>(state + far.positions);
    for (int64_t position = leaving * c.chunk_len; position < (leaving + 1) * c.chunk_len; ++position) {
      const float score = state[b.near_scores + position % b.longest_window];
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
      for (const int64_t kv_head : far.kv_heads) {
        const HydraHeadState& head = b.heads[static_cast<size_t>(kv_head)];
        const int64_t source = position % head.window * c.head_dim, target = to * c.head_dim;
        std::copy_n(state + head.near_keys + source, c.head_dim, state + head.far_keys + target);
        std::copy_n(state + head.near_values + source, c.head_dim, state + head.far_values + target);
      }
    }
  }
}

}  // namespace polyspan
