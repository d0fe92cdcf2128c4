#include "hydra/workspace.h"

#include <cmath>

#include "hydra/fused_workspace.h"
#include "hydra/precision.h"

namespace polyspan {
namespace {

torch::Tensor touched_share(const torch::Tensor& gates) { return (gates.mean(-1) > 0.1).to(gates.dtype()).mean(); }

// The loop over chunks in operations of LibTorch: fills `all` and `touched`, and leaves the last slots in `slots`.
void walk_chunks(const HydraConfig& c, const BlockParameters& w, const torch::Tensor& keys, const torch::Tensor& values,
                 int64_t truncate_chunks, torch::Tensor& all, torch::Tensor& slots, torch::Tensor& touched) {
  const torch::Tensor gate = w["slots_gate.weight"];
  const std::vector<torch::Tensor> k_of = keys.transpose(-1, -2).unbind(1), v_of = values.unbind(1);
  // Of the slots: queries, nothing (what u is added to), their share of the gate.
  const torch::Tensor from_slots =
      torch::cat(
          {w["slots_write_q.weight"], torch::zeros({c.d_slot, c.d_slot}, keys.options()), gate.slice(1, 0, c.d_slot)},
          0)
          .t();

  std::vector<torch::Tensor> before, gates;  // the slots in front of each chunk, and how far each chunk moves them
  for (int64_t chunk = 0; chunk < keys.size(1); ++chunk) {
    const size_t at = static_cast<size_t>(chunk);
    if (truncate_chunks > 0 && chunk > 0 && chunk % truncate_chunks == 0) slots = slots.detach();
    before.push_back(slots);
    const std::vector<torch::Tensor> of_slots =
        torch::matmul(slots, from_slots).split_with_sizes({c.slot_rank, 2 * c.d_slot}, -1);
    const torch::Tensor attention = torch::softmax(torch::bmm(of_slots[0], k_of[at]), -1);
    const std::vector<torch::Tensor> u = torch::baddbmm(of_slots[1], attention, v_of[at]).split(c.d_slot, -1);
    const torch::Tensor z = torch::sigmoid(u[1]);
    slots = torch::lerp(slots, u[0], z);
    gates.push_back(z.detach());
  }
  all = torch::stack(before, 1);
  touched = touched_share(torch::stack(gates, 1));
}

}  // namespace

WorkspaceOutput workspace(const HydraConfig& c, const BlockParameters& w, const torch::Tensor& x,
                          int64_t truncate_chunks) {
  const Bf16Products off(x.device().type(),
                         false);  // many small products in a row: rounding adds up, bf16 gains nothing
  const int64_t n_seqs = x.size(0), n_tokens = x.size(1), len = c.chunk_len, n_chunks = n_tokens / len;
  const double scale = 1.0 / std::sqrt(static_cast<double>(c.slot_rank));
  // The loop over chunks is what takes the time, a few small operations after another. What can be done for all chunks at
  // once is done in front of it: keys, values, and the values' share of the gate, W_u u + bias = sum attention (W_u v + bias).
  const torch::Tensor gate = w["slots_gate.weight"];  // [d_slot, slots and u]
  const torch::Tensor keys =
      torch::linear(x, w["slots_write_k.weight"]).view({n_seqs, n_chunks, len, c.slot_rank}) * scale;
  const torch::Tensor v = torch::linear(x, w["slots_write_v.weight"]);
  const torch::Tensor values = torch::cat({v, torch::linear(v, gate.slice(1, c.d_slot), w["slots_gate.bias"])}, -1);
  const torch::Tensor values_of = values.view({n_seqs, n_chunks, len, 2 * c.d_slot});
  torch::Tensor all, touched;  // the slots in front of each chunk, [n_seqs, n_chunks, n_slots, d_slot]
  torch::Tensor slots = w["slots_init"].expand({n_seqs, c.n_slots, c.d_slot});
  if (truncate_chunks == 0 && fused_workspace_takes(keys, values_of, w["slots_init"])) {
    // Queries need not be made: (W_q slot) . key = slot . (W_q^T key), for all chunks at once.
    const SlotWalk walk = fused_workspace(torch::matmul(keys, w["slots_write_q.weight"]), values_of,
                                          gate.slice(1, 0, c.d_slot).t(), w["slots_init"]);
    all = walk.before;
    slots = walk.last;
    touched = touched_share(walk.gates);
  } else {
    walk_chunks(c, w, keys, values_of, truncate_chunks, all, slots, touched);
  }

  const torch::Tensor q = torch::linear(x, w["slots_read_q.weight"]).view({n_seqs, n_chunks, len, c.slot_rank}) * scale;
  const torch::Tensor k = torch::linear(all, w["slots_read_k.weight"]),
                      read_v = torch::linear(all, w["slots_read_v.weight"]);
  const torch::Tensor read = torch::matmul(torch::softmax(torch::matmul(q, k.transpose(-1, -2)), -1), read_v);
  const torch::Tensor y = torch::linear(read.reshape({n_seqs, n_tokens, c.slot_rank}), w["slots_read_out.weight"]);
  return {y, slots, touched};
}

}  // namespace polyspan
