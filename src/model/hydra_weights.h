// model/hydra_weights.h: a Hydra model's weights for the engine: matrices packed, small tensors as floats, the values of
// the product-key memory left in the mapped file (a token needs a few rows).
#pragma once

#include <vector>

#include "model/hydra_config.h"
#include "model/weight_packer.h"

namespace polyspan {

struct HydraBlockWeights {
  std::vector<float> norm;         // [d_model]
  std::vector<float> path_scales;  // [3]
  std::vector<float> controller_down, controller_up, controller_up_bias;

  PackedMatrix ssm_in, ssm_out;
  PackedMatrix ssm_skip;                                      // diagonal: in place of ssm_out and all below
  std::vector<float> lambda;                                  // [d_model]
  std::vector<float> conv_weight;                             // [d_conv, d_conv_channels]: transposed
  std::vector<float> conv_bias, dt_bias, A, ssm_d, ssm_norm;  // A = -exp(a_log)

  PackedMatrix q, k, v, attn_out;
  std::vector<float> score;  // [d_model]
  float score_bias = 0;

  std::vector<float> slots_init;  // [n_slots, d_slot]
  PackedMatrix read_q, read_k, read_v, read_out, write_q, write_k, write_v, slot_gate;
  std::vector<float> slot_gate_bias;

  std::vector<float> router;                 // [n_experts, 2 d_model]
  std::vector<PackedMatrix> gate, up, down;  // [n_experts]

  PackedMatrix pkm_query, pkm_out;
  std::vector<float> pkm_query_norm, pkm_gate;
  std::vector<float> pkm_keys;  // [pkm_heads, 2, d_pkm_query / 2, n_sub_keys]: transposed
  float pkm_gate_bias = 0;
  const GgufTensor* pkm_values = nullptr;  // rows of d_value in the file
};

class HydraWeights {
 public:
  // Throws Error (kBadFile, kOutOfMemory).
  static HydraWeights load(const GgufFile& file, const HydraConfig& config, OpContext& context, Progress& progress);
  std::vector<HydraBlockWeights> blocks;
  std::vector<float> output_norm;
  PackedMatrix output;  // the embedding too: row `token`
  int64_t bytes() const { return memory_.size_bytes(); }

 private:
  HugeBuffer memory_;
};

}  // namespace polyspan
