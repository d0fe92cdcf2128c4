#include "hydra/ssm.h"

#include "hydra/diagonal_ssm.h"
#include "hydra/fused_ssm.h"
#include "hydra/precision.h"
#include "hydra/scan.h"

namespace polyspan {
namespace {

// Depthwise, causal: y_t = sum_i w_i x_{t - d_conv + 1 + i} + bias. `past` [n_seqs, d_conv - 1, channels].
torch::Tensor causal_conv(const torch::Tensor& x, const torch::Tensor& past, const torch::Tensor& weight,
                          const torch::Tensor& bias) {
  const int64_t d_conv = weight.size(1), n_tokens = x.size(1);
  const torch::Tensor padded = torch::cat({past, not_bf16(x)}, 1);
  torch::Tensor y = bias;
  for (int64_t i = 0; i < d_conv; ++i) y = torch::addcmul(y, padded.slice(1, i, i + n_tokens), weight.select(1, i));
  return y;
}

}  // namespace

torch::Tensor ssm_middle(const HydraConfig& c, const BlockParameters& w, const torch::Tensor& projected,
                         SsmState* state) {
  const int64_t n_seqs = projected.size(0), n_tokens = projected.size(1), n_heads = c.n_ssm_heads();
  const std::vector<torch::Tensor> in = projected.split_with_sizes({c.d_inner, c.d_conv_channels(), n_heads}, -1);
  const torch::Tensor& z = in[0];
  torch::Tensor past = state != nullptr ? state->conv : torch::Tensor();
  if (!past.defined()) past = torch::zeros({n_seqs, c.d_conv - 1, c.d_conv_channels()}, w["ssm_conv.weight"].options());
  const torch::Tensor conv = torch::silu(causal_conv(in[1], past, w["ssm_conv.weight"], w["ssm_conv.bias"]));
  const std::vector<torch::Tensor> xbc = conv.split_with_sizes({c.d_inner, c.d_state, c.d_state}, -1);
  const torch::Tensor u = xbc[0].reshape({n_seqs, n_tokens, n_heads, c.ssm_head_dim});
  const torch::Tensor dt = torch::softplus(in[2] + w["ssm_dt.bias"]);

  const ScanInput input{u, dt, -w["ssm_a_log"].exp(), xbc[1], xbc[2], state != nullptr ? state->scan : torch::Tensor()};
  const ScanOutput scan = n_tokens == 1 ? recurrent_scan(input) : chunked_scan(input, c.chunk_len);
  if (state != nullptr) {
    state->scan = scan.state;
    const torch::Tensor all = torch::cat({past, in[1]}, 1);
    state->conv = all.slice(1, all.size(1) - (c.d_conv - 1));
  }
  const torch::Tensor y = (scan.y + u * w["ssm_d"].unsqueeze(-1)).reshape({n_seqs, n_tokens, c.d_inner});
  return rms_norm(y * torch::silu(z), w["ssm_norm.weight"], c.norm_eps);
}

torch::Tensor ssm(const HydraConfig& c, const BlockParameters& w, const torch::Tensor& x, SsmState* state) {
  if (c.ssm_kind == SsmKind::kDiagonal) return diagonal_ssm(w, x, state);
  const torch::Tensor in = torch::linear(x, w["ssm_in.weight"]);
  return torch::linear(state == nullptr && fused_ssm_takes(c, in) ? fused_ssm(c, w, in) : ssm_middle(c, w, in, state),
                       w["ssm_out.weight"]);
}

}  // namespace polyspan
