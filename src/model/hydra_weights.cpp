#include "model/hydra_weights.h"

#include <algorithm>
#include <cmath>
#include <tuple>

namespace polyspan {
namespace {

// [rows, columns] -> [columns, rows]
std::vector<float> transposed(const float* values, int64_t rows, int64_t columns) {
  std::vector<float> out(static_cast<size_t>(rows * columns));
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) out[static_cast<size_t>(j * rows + i)] = values[i * columns + j];
  return out;
}

}  // namespace

HydraWeights HydraWeights::load(const GgufFile& file, const HydraConfig& c, OpContext& context, Progress& progress) {
  HydraWeights weights;
  WeightPacker packer(file);
  weights.blocks.resize(static_cast<size_t>(c.n_layers));
  const int64_t d = c.d_model;
  for (int64_t layer = 0; layer < c.n_layers; ++layer) {
    HydraBlockWeights& w = weights.blocks[static_cast<size_t>(layer)];
    const std::string b = "blk." + std::to_string(layer) + ".";
    const auto floats = [&](const char* name, std::vector<int64_t> dims) {
      return read_floats(file, b + name, std::move(dims));
    };
    const auto matrix = [&](const char* name, int64_t d_out, int64_t d_in, PackedMatrix& to) {
      packer.add(b + name, d_out, d_in, to);
    };
    w.norm = floats("norm.weight", {d});
    w.path_scales = floats("path_scales", {3});
    w.controller_down = floats("controller_down.weight", {2 * d, c.controller_rank});
    w.controller_up = floats("controller_up.weight", {c.controller_rank, 3});
    w.controller_up_bias = floats("controller_up.bias", {3});
    if (c.has_diagonal_ssm()) {
      matrix("ssm_in.weight", 4 * d, d, w.ssm_in);
      matrix("ssm_skip.weight", d, d, w.ssm_skip);
      w.lambda = floats("ssm_lambda_log", {d});
      for (float& rate : w.lambda) rate = std::exp(rate);
    }
    if (c.has_mamba2()) {
      matrix("ssm_in.weight", c.d_ssm_in(), d, w.ssm_in);
      matrix("ssm_out.weight", d, c.d_inner, w.ssm_out);
      w.conv_weight =
          transposed(floats("ssm_conv.weight", {c.d_conv, c.d_conv_channels()}).data(), c.d_conv_channels(), c.d_conv);
      w.conv_bias = floats("ssm_conv.bias", {c.d_conv_channels()});
      w.dt_bias = floats("ssm_dt.bias", {c.n_ssm_heads()});
      w.A = floats("ssm_a_log", {c.n_ssm_heads()});
      for (float& a : w.A) a = -std::exp(a);
      w.ssm_d = floats("ssm_d", {c.n_ssm_heads()});
      w.ssm_norm = floats("ssm_norm.weight", {c.d_inner});
    }
    if (c.has_attention(layer)) {
      matrix("attn_q.weight", c.n_heads * c.head_dim, d, w.q);
      matrix("attn_k.weight", c.n_kv_heads * c.head_dim, d, w.k);
      matrix("attn_v.weight", c.n_kv_heads * c.head_dim, d, w.v);
      matrix("attn_output.weight", d, c.n_heads * c.head_dim, w.attn_out);
      if (c.n_global > 0) {
        w.score = floats("attn_score.weight", {d});
        w.score_bias = floats("attn_score.bias", {1})[0];
      }
    }
    if (c.has_workspace(layer)) {
      w.slots_init = floats("slots_init", {c.d_slot, c.n_slots});
      matrix("slots_read_q.weight", c.slot_rank, d, w.read_q);
      matrix("slots_read_k.weight", c.slot_rank, c.d_slot, w.read_k);
      matrix("slots_read_v.weight", c.slot_rank, c.d_slot, w.read_v);
      matrix("slots_read_out.weight", d, c.slot_rank, w.read_out);
      matrix("slots_write_q.weight", c.slot_rank, c.d_slot, w.write_q);
      matrix("slots_write_k.weight", c.slot_rank, d, w.write_k);
      matrix("slots_write_v.weight", c.d_slot, d, w.write_v);
      matrix("slots_gate.weight", c.d_slot, 2 * c.d_slot, w.slot_gate);
      w.slot_gate_bias = floats("slots_gate.bias", {c.d_slot});
    }
    if (c.has_moe(layer)) {
      w.router = floats("moe_router.weight", {2 * d, c.n_experts});
      for (auto [name, d_out, d_in, to] :
           {std::tuple{"moe_gate.weight", c.d_expert, d, &w.gate}, std::tuple{"moe_up.weight", c.d_expert, d, &w.up},
            std::tuple{"moe_down.weight", d, c.d_expert, &w.down}}) {
        to->resize(static_cast<size_t>(c.n_experts));
        packer.add_stack(b + name, d_out, d_in, *to);
      }
    }
    if (c.has_pkm(layer)) {
      const int64_t half = c.d_pkm_query / 2, n_tables = 2 * c.pkm_heads;
      matrix("pkm_query.weight", c.pkm_heads * c.d_pkm_query, d, w.pkm_query);
      matrix("pkm_out.weight", d, c.d_value, w.pkm_out);
      w.pkm_query_norm = floats("pkm_query_norm.weight", {c.d_pkm_query});
      w.pkm_gate = floats("pkm_gate.weight", {d});
      w.pkm_gate_bias = floats("pkm_gate.bias", {1})[0];
      const std::vector<float> keys = floats("pkm_keys", {half, c.n_sub_keys, 2, c.pkm_heads});
      for (int64_t table = 0; table < n_tables; ++table) {
        const std::vector<float> one = transposed(keys.data() + table * c.n_sub_keys * half, c.n_sub_keys, half);
        w.pkm_keys.insert(w.pkm_keys.end(), one.begin(), one.end());
      }
      w.pkm_values = &file.get_tensor(b + "pkm_values", std::vector<int64_t>{c.d_value, c.n_sub_keys * c.n_sub_keys});
    }
  }
  weights.output_norm = read_floats(file, "output_norm.weight", {d});
  packer.add("token_embd.weight", c.vocab_size, d, weights.output);
  weights.memory_ = packer.pack(context, progress);
  return weights;
}

}  // namespace polyspan
