// hydra/workspace_kernels.h: the loop over chunks of the workspace (hydra/workspace.h) in one kernel. A slot's way through the
// chunks depends on no other slot: a block takes a few slots of a sequence and walks, nothing waits between blocks.
#pragma once

#include "hydra/ssm_kernels.h"

namespace polyspan::hydra {

// All float32. "values" are two in a row: of the slots, and their share of the gate. "keys" are what slots are multiplied
// with: logits = slot . key.
struct WorkspaceSizes {
  int64_t n_seqs, n_chunks, chunk_len, n_slots, d_slot;
  bool supported() const;  // all multiples of 4, chunk_len at most 64, d_slot at most 1,024
};
struct WorkspaceInput {
  const float* keys_t;  // [n_seqs, n_chunks, d_slot, chunk_len]
  const float* values;  // [n_seqs, n_chunks, chunk_len, 2 d_slot]
  const float* gate;    // [d_slot, d_slot]: slots times it are their share of the gate
  const float* init;    // [n_slots, d_slot]
};
// Of each chunk and slot, [n_seqs, n_chunks, n_slots, ...].
struct WorkspaceTrace {
  float* before;     // [d_slot]: the slots in front of the chunk
  float* attention;  // [chunk_len]
  float* found;      // [d_slot]: u
  float* gates;      // [d_slot]: z
};
// last [n_seqs, n_slots, d_slot].
void workspace_forward(const WorkspaceSizes& sizes, const WorkspaceInput& in, const WorkspaceTrace& trace, float* last,
                       Stream stream);
struct WorkspaceGradients {
  const float *keys, *values_t, *gate_t;  // transposes of the input: [.., chunk_len, d_slot], [.., 2 d_slot, chunk_len]
  const float *d_before, *d_last;         // given
  float* d_found;   // [n_seqs, n_chunks, n_slots, 2 d_slot]: of u, and of what the gate is the sigmoid of
  float* d_logits;  // as attention
  float* d_init;    // [n_seqs, n_slots, d_slot]
};
void workspace_backward(const WorkspaceSizes& sizes, const WorkspaceTrace& trace, const WorkspaceGradients& g,
                        Stream stream);

}  // namespace polyspan::hydra
