#include "hydra/experts.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "hydra/batched_experts.h"
#include "hydra/cpu_threads.h"
#include "hydra/precision.h"

namespace polyspan {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The (chunk, choice) pairs, ordered by expert.
struct Grouping {
  struct Range {
    int64_t expert, begin, end;  // of the ordered pairs
  };
  std::vector<Range> experts;   // those that some chunk chose
  std::vector<Range> parts;     // the same in parts, for several threads of a CPU
  torch::Tensor pairs, chunks;  // [n_pairs]: which pair stands there, and its chunk

  // chosen [n_chunks, n_active]; `most` pairs make a part.
  Grouping(const torch::Tensor& chosen, int64_t n_experts, int64_t most) {
    if (!chosen.is_cpu() || at::get_num_threads() == 1) most = chosen.numel();
    const torch::Tensor host = chosen.to(torch::kCPU).contiguous();
    std::vector<std::vector<int64_t>> of(static_cast<size_t>(n_experts));
    for (int64_t i = 0; i < host.numel(); ++i) of[static_cast<size_t>(host.data_ptr<int64_t>()[i])].push_back(i);
    std::vector<int64_t> order;
    for (int64_t expert = 0; expert < n_experts; ++expert) {
      const std::vector<int64_t>& own = of[static_cast<size_t>(expert)];
      const int64_t begin = std::ssize(order), end = begin + std::ssize(own);
      order.insert(order.end(), own.begin(), own.end());
      if (end > begin) experts.push_back({expert, begin, end});
      for (int64_t i = begin; i < end; i += most) parts.push_back({expert, i, std::min(i + most, end)});
    }
    pairs = torch::tensor(order, torch::kInt64).to(chosen.device());  // one copy for all experts
    chunks = pairs.div(host.size(-1), "floor");
  }
};

// A product a chunk, [n, L, d_in] x W^T: one large product could be cut differently when another chunk joins, and a
// token's bits would then depend on later tokens.
torch::Tensor chunk_linear(const torch::Tensor& x, const torch::Tensor& weight) {
  if (Bf16Products::are_on(x.device().type()) && weight.scalar_type() != torch::kBFloat16)  // before there are n of it
    return chunk_linear(x, weight.to(torch::kBFloat16));
  return torch::bmm(x, weight.t().unsqueeze(0).expand({x.size(0), weight.size(1), weight.size(0)}));
}

// `keep_hidden`: for the backward; else it computes the hidden values again, two products in eleven.
class GroupedExperts : public torch::autograd::Function<GroupedExperts> {
 public:
  // x [n_chunks, L, d_model], experts and weights [n_chunks, n_active].
  static torch::Tensor forward(AutogradContext* context, torch::Tensor x, torch::Tensor experts, torch::Tensor weights,
                               torch::Tensor gate, torch::Tensor up, torch::Tensor down, bool keep_hidden) {
    context->saved_data["bf16"] = Bf16Products::are_on(x.device().type());
    const Grouping grouping(experts, gate.size(0), /*most=*/1);
    const torch::Tensor shares = weights.reshape({-1}).index_select(0, grouping.pairs).view({-1, 1, 1});
    const auto of_pairs_rows = [&](int64_t width) {
      return torch::empty({experts.numel(), x.size(1), width}, x.options());
    };
    const torch::Tensor of_pairs = of_pairs_rows(x.size(2));
    torch::Tensor g, u;
    if (keep_hidden) g = of_pairs_rows(gate.size(1)), u = torch::empty_like(g);
    for_each_part(x.device().type(), std::ssize(grouping.parts), [&](int64_t i) {
      const auto& [e, begin, end] = grouping.parts[static_cast<size_t>(i)];
      const torch::Tensor in = x.index_select(0, grouping.chunks.slice(0, begin, end));
      const torch::Tensor of_gate = chunk_linear(in, gate[e]), of_up = chunk_linear(in, up[e]);
      if (keep_hidden) g.slice(0, begin, end).copy_(of_gate), u.slice(0, begin, end).copy_(of_up);
      const torch::Tensor h = torch::silu(of_gate) * of_up;
      torch::Tensor to = of_pairs.slice(0, begin, end);
      at::mul_out(to, chunk_linear(h, down[e]), shares.slice(0, begin, end));
    });
    context->save_for_backward({x, experts, weights, gate, up, down, g, u});
    return torch::zeros_like(x).index_add_(0, grouping.chunks, of_pairs);
  }

  static variable_list backward(AutogradContext* context, variable_list d_out) {
    const variable_list saved = context->get_saved_variables();
    const torch::DeviceType device = saved[0].device().type();
    const Bf16Products as_forward(device, context->saved_data["bf16"].toBool());
    const torch::Tensor &x = saved[0], &experts = saved[1], &weights = saved[2], &gate = saved[3], &up = saved[4],
                        &down = saved[5], &kept_g = saved[6], &kept_u = saved[7];
    const torch::Tensor dy = d_out[0].contiguous();
    const Grouping grouping(experts, gate.size(0), /*most=*/4);
    const torch::Tensor shares = weights.reshape({-1}).index_select(0, grouping.pairs).view({-1, 1, 1});
    const int64_t n_pairs = experts.numel(), len = x.size(1), d_expert = gate.size(1);
    // Of the ordered pairs' rows: the hidden values and the gradients of what goes into them.
    const torch::Tensor h = torch::empty({n_pairs * len, d_expert}, x.options()), dg = torch::empty_like(h),
                        du = torch::empty_like(h), dx = torch::empty({n_pairs, len, x.size(2)}, x.options()),
                        d_shares = torch::empty({n_pairs}, weights.options());
    for_each_part(device, std::ssize(grouping.parts), [&](int64_t i) {
      const auto& [e, begin, end] = grouping.parts[static_cast<size_t>(i)];
      const int64_t n = end - begin;
      const torch::Tensor chunks = grouping.chunks.slice(0, begin, end);
      const torch::Tensor d_y = dy.index_select(0, chunks).flatten(0, 1);
      const auto own = [&](const torch::Tensor& t) { return t.slice(0, begin * len, end * len); };
      torch::Tensor to_h = own(h), to_dg = own(dg), to_du = own(du), to_dx = dx.slice(0, begin, end);
      const auto hidden = [&](const torch::Tensor& kept, const torch::Tensor& weight) {
        return kept.defined() ? own(kept.flatten(0, 1)) : x.index_select(0, chunks).flatten(0, 1).mm(weight[e].t());
      };
      const torch::Tensor g = hidden(kept_g, gate), u = hidden(kept_u, up), silu = torch::silu(g);
      at::mul_out(to_h, silu, u);
      // Without the share, dh gives the share's own gradient: (W h) . d_y = h . (W^T d_y), one product less.
      const torch::Tensor dh = d_y.mm(down[e]);
      d_shares.slice(0, begin, end).copy_((to_h * dh).view({n, -1}).sum(1));
      dh.view({n, len, d_expert}).mul_(shares.slice(0, begin, end));
      at::mul_out(to_du, dh, silu);
      at::silu_backward_out(to_dg, dh.mul_(u), g);
      at::add_out(to_dx, to_dg.mm(gate[e]).view(to_dx.sizes()), to_du.mm(up[e]).view(to_dx.sizes()));
    });

    torch::Tensor d_gate = torch::zeros_like(gate), d_up = torch::zeros_like(up), d_down = torch::zeros_like(down);
    for_each_part(device, 3 * std::ssize(grouping.experts), [&](int64_t i) {
      const auto& [e, begin, end] = grouping.experts[static_cast<size_t>(i / 3)];
      const torch::Tensor chunks = grouping.chunks.slice(0, begin, end);
      const auto own = [first = begin * len, last = end * len](const torch::Tensor& t) {
        return t.slice(0, first, last);
      };
      if (i % 3 == 0) d_gate[e] = own(dg).t().mm(x.index_select(0, chunks).flatten(0, 1));
      if (i % 3 == 1) d_up[e] = own(du).t().mm(x.index_select(0, chunks).flatten(0, 1));
      if (i % 3 == 2)
        d_down[e] = (dy.index_select(0, chunks) * shares.slice(0, begin, end)).flatten(0, 1).t().mm(own(h));
    });
    return {torch::zeros_like(x).index_add_(0, grouping.chunks, dx),
            torch::Tensor(),
            torch::empty_like(d_shares).index_copy_(0, grouping.pairs, d_shares).view(weights.sizes()),
            d_gate,
            d_up,
            d_down,
            torch::Tensor()};
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
  const bool keep_hidden = x.is_cpu() && at::GradMode::is_enabled();  // a GPU's memory is dearer
  return GroupedExperts::apply(x.flatten(0, 1).contiguous(), experts.flatten(0, 1), weights.flatten(0, 1), gate, up,
                               down, keep_hidden)
      .view(x.sizes());
}

}  // namespace polyspan
