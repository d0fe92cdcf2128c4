#include "hydra/workspace.h"

#include <cmath>

namespace polyspan {

WorkspaceOutput workspace(const HydraConfig& c, const BlockParameters& w, const torch::Tensor& x,
                          int64_t truncate_chunks) {
  const int64_t n_seqs = x.size(0), n_tokens = x.size(1), len = c.chunk_len, n_chunks = n_tokens / len;
  const double scale = 1.0 / std::sqrt(static_cast<double>(c.slot_rank));
  const torch::Tensor keys =
      torch::linear(x, w["slots_write_k.weight"]).view({n_seqs, n_chunks, len, c.slot_rank}) * scale;
  const torch::Tensor values = torch::linear(x, w["slots_write_v.weight"]).view({n_seqs, n_chunks, len, c.d_slot});

  std::vector<torch::Tensor> before;  // the slots in front of each chunk
  torch::Tensor slots = w["slots_init"].expand({n_seqs, c.n_slots, c.d_slot});
  torch::Tensor touched = torch::zeros({}, x.options());
  for (int64_t chunk = 0; chunk < n_chunks; ++chunk) {
    if (truncate_chunks > 0 && chunk > 0 && chunk % truncate_chunks == 0) slots = slots.detach();
    before.push_back(slots);
    const torch::Tensor q = torch::linear(slots, w["slots_write_q.weight"]);
    const torch::Tensor attention = torch::softmax(torch::matmul(q, keys.select(1, chunk).transpose(-1, -2)), -1);
    const torch::Tensor u = torch::matmul(attention, values.select(1, chunk));
    const torch::Tensor z =
        torch::sigmoid(torch::linear(torch::cat({slots, u}, -1), w["slots_gate.weight"]) + w["slots_gate.bias"]);
    slots = slots + z * (u - slots);
    touched = touched + (z.detach().mean(-1) > 0.1).to(x.dtype()).mean();
  }

  const torch::Tensor all = torch::stack(before, 1);  // [n_seqs, n_chunks, n_slots, d_slot]
  const torch::Tensor q = torch::linear(x, w["slots_read_q.weight"]).view({n_seqs, n_chunks, len, c.slot_rank}) * scale;
  const torch::Tensor k = torch::linear(all, w["slots_read_k.weight"]),
                      v = torch::linear(all, w["slots_read_v.weight"]);
  const torch::Tensor read = torch::matmul(torch::softmax(torch::matmul(q, k.transpose(-1, -2)), -1), v);
  const torch::Tensor y = torch::linear(read.reshape({n_seqs, n_tokens, c.slot_rank}), w["slots_read_out.weight"]);
  return {y, slots, touched / static_cast<double>(n_chunks)};
}

}  // namespace polyspan
