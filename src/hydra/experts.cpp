#include "hydra/experts.h"

#include <vector>

#include "hydra/batched_experts.h"
#include "hydra/precision.h"

namespace polyspan {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The chunks that chose each expert: rows of the flattened chunks, and rows of the flattened (chunk, choice) pairs.
struct Group {
  int64_t expert;
  torch::Tensor chunks, choices;
};

std::vector<Group> group_by_expert(const torch::Tensor& experts, int64_t n_experts) {
  const torch::Tensor host = experts.to(torch::kCPU).contiguous();
  const int64_t n_active = host.size(-1);
  std::vector<std::vector<int64_t>> choices(static_cast<size_t>(n_experts));
  for (int64_t i = 0; i < host.numel(); ++i) choices[static_cast<size_t>(host.data_ptr<int64_t>()[i])].push_back(i);
  std::vector<int64_t> by_expert;
  for (const std::vector<int64_t>& of : choices) by_expert.insert(by_expert.end(), of.begin(), of.end());
  const torch::Tensor rows = torch::tensor(by_expert, torch::kInt64).to(experts.device());  // one copy for all experts
  std::vector<Group> groups;
  int64_t begin = 0;
  for (int64_t expert = 0; expert < n_experts; ++expert) {
    const int64_t end = begin + std::ssize(choices[static_cast<size_t>(expert)]);
    if (end == begin) continue;
    groups.push_back({expert, rows.slice(0, begin, end).div(n_active, "floor"), rows.slice(0, begin, end)});
    begin = end;
  }
  return groups;
}

// A product a chunk, [n, L, d_in] x W^T: one large product could be cut differently when another chunk joins, and a
// token's bits would then depend on later tokens.
torch::Tensor chunk_linear(const torch::Tensor& x, const torch::Tensor& weight) {
  if (Bf16Products::are_on(x.device().type()) && weight.scalar_type() != torch::kBFloat16)  // before there are n of it
    return chunk_linear(x, weight.to(torch::kBFloat16));
  return torch::bmm(x, weight.t().unsqueeze(0).expand({x.size(0), weight.size(1), weight.size(0)}));
}

class GroupedExperts : public torch::autograd::Function<GroupedExperts> {
 public:
  // x [n_chunks, L, d_model], experts and weights [n_chunks, n_active].
  static torch::Tensor forward(AutogradContext* context, torch::Tensor x, torch::Tensor experts, torch::Tensor weights,
                               torch::Tensor gate, torch::Tensor up, torch::Tensor down) {
    context->save_for_backward({x, experts, weights, gate, up, down});
    context->saved_data["bf16"] = Bf16Products::are_on(x.device().type());
    torch::Tensor y = torch::zeros_like(x);
    for (const Group& group : group_by_expert(experts, gate.size(0))) {
      const torch::Tensor in = x.index_select(0, group.chunks);
      const torch::Tensor h = torch::silu(chunk_linear(in, gate[group.expert])) * chunk_linear(in, up[group.expert]);
      const torch::Tensor weight = weights.reshape({-1}).index_select(0, group.choices).view({-1, 1, 1});
      y.index_add_(0, group.chunks, chunk_linear(h, down[group.expert]) * weight);
    }
    return y;
  }

  // Computes the hidden values again: kept are the inputs alone.
  static variable_list backward(AutogradContext* context, variable_list d_out) {
    const variable_list saved = context->get_saved_variables();
    const Bf16Products as_forward(saved[0].device().type(), context->saved_data["bf16"].toBool());
    const torch::Tensor &x = saved[0], &experts = saved[1], &weights = saved[2], &gate = saved[3], &up = saved[4],
                        &down = saved[5];
    const torch::Tensor dy = d_out[0].contiguous();
    torch::Tensor dx = torch::zeros_like(x), d_weights = torch::zeros_like(weights).reshape({-1});
    torch::Tensor d_gate = torch::zeros_like(gate), d_up = torch::zeros_like(up), d_down = torch::zeros_like(down);
    for (const Group& group : group_by_expert(experts, gate.size(0))) {
      const int64_t e = group.expert;
      const torch::Tensor in = x.index_select(0, group.chunks).flatten(0, 1);  // [n * L, d_model]
      const torch::Tensor d_y = dy.index_select(0, group.chunks);              // [n, L, d_model]
      const torch::Tensor weight = weights.reshape({-1}).index_select(0, group.choices).view({-1, 1, 1});
      const torch::Tensor g = in.mm(gate[e].t()), u = in.mm(up[e].t()), silu = torch::silu(g), h = silu * u;
      // Without the weight, dh gives the weight's own gradient: (W h) . d_y = h . (W^T d_y), one product less.
      torch::Tensor dh = d_y.flatten(0, 1).mm(down[e]);
      d_weights.index_copy_(0, group.choices, (h * dh).view({d_y.size(0), -1}).sum(1).to(d_weights.dtype()));
      d_down[e] = (d_y * weight).flatten(0, 1).t().mm(h);
      dh = (dh.view({d_y.size(0), d_y.size(1), -1}) * weight).flatten(0, 1);
      const torch::Tensor du = dh * silu, dg = at::silu_backward(dh * u, g);
      d_up[e] = du.t().mm(in);
      d_gate[e] = dg.t().mm(in);
      dx.index_add_(0, group.chunks, (dg.mm(gate[e]) + du.mm(up[e])).view(d_y.sizes()).to(dx.dtype()));
    }
    return {dx, torch::Tensor(), d_weights.view(weights.sizes()), d_gate, d_up, d_down};
  }
};

}  // namespace

Routing route(const HydraConfig& c, const BlockParameters& w, const torch::Tensor& summary, const torch::Tensor& noise,
              const std::function<torch::Tensor(const torch::Tensor&)>& mean_over_processes) {
  const Bf16Products off(summary.device().type(), false);
  torch::Tensor logits = torch::linear(summary, w["moe_router.weight"]);  // [n_seqs, n_chunks, n_experts]
  Routing routing;
  routing.z_loss = logits.logsumexp(-1).square().mean();
  if (noise.defined()) logits = logits + noise;
  const torch::Tensor probabilities = torch::softmax(logits, -1);
  const auto [best, experts] = probabilities.topk(c.n_active_experts, -1);
  routing.experts = experts;
  routing.weights = best / best.sum(-1, /*keepdim=*/true);
  routing.use = torch::one_hot(experts, c.n_experts).to(summary.dtype()).mean(at::IntArrayRef({0, 1, 2}));
  if (mean_over_processes) routing.use = mean_over_processes(routing.use);
  routing.balance_loss =
      static_cast<double>(c.n_experts) * (routing.use * probabilities.mean(at::IntArrayRef({0, 1}))).sum();
  return routing;
}

torch::Tensor grouped_experts(const torch::Tensor& x, const torch::Tensor& experts, const torch::Tensor& weights,
                              const torch::Tensor& gate, const torch::Tensor& up, const torch::Tensor& down) {
  if (batched_experts_take(x, gate))
    return batched_experts(x.flatten(0, 1), experts.flatten(0, 1), weights.flatten(0, 1), gate, up, down)
        .view(x.sizes());
  return GroupedExperts::apply(x.flatten(0, 1).contiguous(), experts.flatten(0, 1), weights.flatten(0, 1), gate, up,
                               down)
      .view(x.sizes());
}

}  // namespace polyspan
