#include "hydra/diagonal_ssm.h"

#include "hydra/precision.h"

namespace polyspan {
namespace {

torch::Tensor group_sums(const torch::Tensor& log_decay, const torch::Tensor& added, const torch::Tensor& initial) {
  constexpr int64_t kGroup = 16;
  const int64_t n_seqs = added.size(0), n_tokens = added.size(1), n_channels = added.size(2),
                n_groups = (n_tokens + kGroup - 1) / kGroup, n_padded = n_groups * kGroup - n_tokens;
  const auto grouped = [&](const torch::Tensor& x) {  // padding neither decays nor adds
    return torch::constant_pad_nd(x, {0, 0, 0, n_padded}).view({n_seqs, n_groups, kGroup, n_channels});
  };
  const torch::Tensor log_decays = grouped(log_decay).cumsum(2);
  const torch::Tensor decay = grouped(log_decay).exp(), own = grouped(added).clone();  // own: from the group alone
  for (int64_t i = 1; i < kGroup; ++i) own.select(2, i).addcmul_(decay.select(2, i), own.select(2, i - 1));
  torch::Tensor before = initial.unsqueeze(1);  // each group
  if (n_groups > 1) {
    const torch::Tensor after = group_sums(log_decays.select(2, kGroup - 1), own.select(2, kGroup - 1), initial);
    before = torch::cat({before, after.slice(1, 0, n_groups - 1)}, 1);
  }
  return (own + log_decays.exp() * before.unsqueeze(2)).view({n_seqs, -1, n_channels}).slice(1, 0, n_tokens);
}

// Backward: with g_t all of the gradient by s_t, g_t = d_t + exp(log_decay_{t+1}) g_{t+1}, which is the same sum from the end.
class DecayedSums : public torch::autograd::Function<DecayedSums> {
 public:
  static torch::Tensor forward(torch::autograd::AutogradContext* context, torch::Tensor log_decay, torch::Tensor added,
                               torch::Tensor initial) {
    const torch::Tensor sums = group_sums(log_decay, added, initial);
    context->save_for_backward({log_decay, initial, sums});
    return sums;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list d_sums) {
    const torch::autograd::variable_list saved = context->get_saved_variables();
    const torch::Tensor &log_decay = saved[0], &initial = saved[1], &sums = saved[2];
    const torch::Tensor next = torch::cat({log_decay.slice(1, 1), torch::zeros_like(log_decay.slice(1, 0, 1))}, 1);
    const torch::Tensor d_added = group_sums(next.flip(1), d_sums[0].flip(1), torch::zeros_like(initial)).flip(1);
    const torch::Tensor before = torch::cat({initial.unsqueeze(1), sums.slice(1, 0, sums.size(1) - 1)}, 1);
    const torch::Tensor decayed = d_added * log_decay.exp();
    return {decayed * before, d_added, decayed.select(1, 0)};
  }
};

}  // namespace

torch::Tensor decayed_sums(const torch::Tensor& log_decay, const torch::Tensor& added, const torch::Tensor& initial) {
  return DecayedSums::apply(log_decay, added, initial);
}

torch::Tensor decayed_sums_by_token(const torch::Tensor& log_decay, const torch::Tensor& added,
                                    const torch::Tensor& initial) {
  std::vector<torch::Tensor> sums;
  torch::Tensor s = initial;
  for (int64_t t = 0; t < added.size(1); ++t) {
    s = log_decay.select(1, t).exp() * s + added.select(1, t);
    sums.push_back(s);
  }
  return torch::stack(sums, 1);
}

torch::Tensor diagonal_ssm(const BlockParameters& w, const torch::Tensor& x, SsmState* state) {
  const std::vector<torch::Tensor> in = not_bf16(torch::linear(x, w["ssm_in.weight"])).chunk(4, -1);
  const torch::Tensor &delta = in[0], &B = in[1], &C = in[2], &U = in[3];
  const torch::Tensor log_alpha = -torch::softplus(delta) * w["ssm_lambda_log"].exp();
  torch::Tensor initial = state != nullptr ? state->scan : torch::Tensor();
  if (!initial.defined()) initial = torch::zeros({x.size(0), x.size(2)}, delta.options());
  const torch::Tensor after =
      x.size(1) == 1 ? decayed_sums_by_token(log_alpha, B * U, initial) : decayed_sums(log_alpha, B * U, initial);
  const torch::Tensor s = torch::cat({initial.unsqueeze(1), after.slice(1, 0, x.size(1) - 1)}, 1);
  if (state != nullptr) state->scan = after.select(1, x.size(1) - 1);
  return C * s + not_bf16(torch::linear(x, w["ssm_skip.weight"]));
}

}  // namespace polyspan
