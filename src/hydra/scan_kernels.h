// hydra/scan_kernels.h: the scan of hydra/ssm_kernels.h.
#pragma once

#include "hydra/ssm_kernels.h"

namespace polyspan::hydra {

// From xbc, dt and sums: added, before, y.
void scan_forward(const SsmSizes& sizes, const SsmWeights& weights, const SsmActivations& a, Stream stream);
// From d_y: added, after, d_x, d_bc, d_dt, d_a_log, d_d.
void scan_backward(const SsmSizes& sizes, const SsmWeights& weights, const SsmActivations& a, const SsmGradients& g,
                   Stream stream);

}  // namespace polyspan::hydra
