// model/hydra_state.h: what a sequence of a Hydra model keeps: a fixed number of bytes, whatever its length.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "model/hydra_config.h"

namespace polyspan {

// What one KV head keeps, as offsets in floats from the state's start.
struct HydraHeadState {
  int64_t window = 0;                           // keys that it sees, the query's own included; a multiple of chunk_len
  int64_t near_keys = -1, near_values = -1;     // [window, head_dim]; position p in slot p % window
  int64_t far_keys = -1, far_values = -1;       // [n_global, head_dim]
  int64_t far_scores = -1, far_positions = -1;  // of its HydraFarTokens
};

// The global tokens of all KV heads of a block with the same window: the best of those that have begun to leave it.
struct HydraFarTokens {
  int64_t window = 0;
  int64_t scores = -1;            // [n_global]
  int64_t positions = -1;         // [n_global] int64: counted in floats from the start, 8-byte aligned
  std::vector<int64_t> kv_heads;  // ascending
};

// One block's part of the state, as offsets in floats from the state's start. -1: not there.
struct HydraBlockState {
  int64_t chunk_sum = -1, last_mean = -1;  // [d_model] each: normed states of this chunk so far; mean of the last
  int64_t decisions = -1;                  // of this chunk: [3] multipliers, path scales included; then, where there
                                           // are experts, [n_active_experts] weights and as many expert numbers
  int64_t conv = -1;                       // [d_conv - 1, d_conv_channels], the oldest first; of Mamba-2 alone
  int64_t scan = -1;                       // [n_ssm_heads, d_state, ssm_head_dim]; diagonal: [d_model]
  std::vector<HydraHeadState> heads;       // [n_kv_heads]
  std::vector<HydraFarTokens> far;         // one a window that its heads have; none where n_global is 0
  int64_t near_scores = -1;                // [longest_window]; position p in slot p % longest_window
  int64_t longest_window = 0;
  int64_t slots = -1;                          // [n_slots, d_slot]
  int64_t slot_keys = -1, slot_values = -1;    // [n_slots, slot_rank]: their projections for reading
  int64_t write_keys = -1, write_values = -1;  // [chunk_len, slot_rank], [chunk_len, d_slot]: of this chunk so far
};

struct HydraStateLayout {
  // spans: [n_attention_layers][n_kv_heads], each a multiple of chunk_len, at most the window of `config`.
  HydraStateLayout(const HydraConfig& config, const std::vector<std::vector<int64_t>>& spans);
  // Every head has the model's own window.
  explicit HydraStateLayout(const HydraConfig& config);
  std::vector<HydraBlockState> blocks;
  int64_t n_floats = 0;
  std::map<HydraPart, int64_t> part_bytes;  // of all blocks; their sum is bytes()
  int64_t bytes() const { return 4 * n_floats; }
};

// How many global tokens a head of this window has in `chunk`.
int64_t n_far_tokens(const HydraConfig& config, int64_t window, int64_t chunk);

// Brings the tokens of the chunk that begins to leave each window into its global tokens: called when `chunk` begins,
// before its first token is written. Keeps the n_global best scores, the earlier position where two are equal.
void update_far_tokens(const HydraConfig& config, const HydraBlockState& block, int64_t chunk, float* state);

}  // namespace polyspan
