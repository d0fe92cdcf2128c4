// hydra/fused_workspace.h: the workspace's loop over chunks in one kernel forward and one backward, on a GPU.
#pragma once

#include "hydra/torch.h"

namespace polyspan {

struct SlotWalk {
  torch::Tensor before;  // [n_seqs, n_chunks, n_slots, d_slot]
  torch::Tensor last;    // [n_seqs, n_slots, d_slot]
  torch::Tensor gates;   // as before; no gradient
};

// keys [n_seqs, n_chunks, chunk_len, d_slot or less]; values [n_seqs, n_chunks, chunk_len, 2 d_slot]: u's and their share of the
// gate; init [n_slots, d_slot].
bool fused_workspace_takes(const torch::Tensor& keys, const torch::Tensor& values, const torch::Tensor& init);
// keys [.., d_slot]: a slot's logits are its products with them; gate [d_slot, d_slot]: slots times it are their share of it.
SlotWalk fused_workspace(const torch::Tensor& keys, const torch::Tensor& values, const torch::Tensor& gate,
                         const torch::Tensor& init);

}  // namespace polyspan
