// hydra/experts.h: experts that serve whole chunks (chunk-level mixture of experts, arXiv 2508.15099).
//
// The router sees a chunk's causal summary (hydra/controller.h) and picks n_active_experts SwiGLU experts for all of the
// chunk's tokens. Chunks are gathered by expert: an expert that no chunk chose is neither read nor multiplied.
#pragma once

#include <functional>

#include "hydra/parameters.h"

namespace polyspan {

struct Routing {
  torch::Tensor experts;       // [n_seqs, n_chunks, n_active], int64
  torch::Tensor weights;       // the same shape, renormalised over the active experts
  torch::Tensor balance_loss;  // Switch (arXiv 2101.03961, eq. 4): E sum_i f_i P_i, f divided by n_active; 1 when even
  torch::Tensor z_loss;        // ST-MoE (arXiv 2202.08906, eq. 5): mean of (log sum exp of the logits)^2
  torch::Tensor use;           // [n_experts], share of the choices; no gradient
};

// `mean_over_processes` (language_model.h) makes `use` that of the whole batch; the balance loss is then this process's
// share of the batch's times the number of processes.
// summary [n_seqs, n_chunks, 2 d_model]; `noise` (undefined: none), of the logits' shape, is added to the logits.
Routing route(const HydraConfig& config, const BlockParameters& w, const torch::Tensor& summary,
              const torch::Tensor& noise,
              const std::function<torch::Tensor(const torch::Tensor&)>& mean_over_processes = {});

// sum_k weights_k expert_k(x) for x [n_seqs, n_chunks, chunk_len, d_model].
// gate, up [n_experts, d_expert, d_model]; down [n_experts, d_model, d_expert].
torch::Tensor grouped_experts(const torch::Tensor& x, const torch::Tensor& experts, const torch::Tensor& weights,
                              const torch::Tensor& gate, const torch::Tensor& up, const torch::Tensor& down);

}  // namespace polyspan
