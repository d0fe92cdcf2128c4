#include "hydra/batched_experts.h"

#include "core/error.h"
#include "hydra/device_stream.h"
#include "hydra/fused_block.h"
#include "hydra/precision.h"

namespace polyspan {

#if TORCH_VERSION_MAJOR > 2 || (TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 9)
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The (chunk, choice) pairs, ordered by expert.
struct Order {
  torch::Tensor chunks;  // [n_pairs]: the chunk of each
  torch::Tensor place;   // [n_pairs]: where a pair stands in the order
  torch::Tensor pairs;   // [n_pairs]: which pair stands there
  torch::Tensor ends;    // [n_experts], int32: rows up to and with each expert's
};

Order order_by_expert(const torch::Tensor& experts, int64_t n_experts, int64_t chunk_len) {
  const torch::Tensor of_pair = experts.flatten();
  Order order;
  order.pairs = of_pair.argsort(/*stable=*/true, /*dim=*/-1, /*descending=*/false);
  order.place = torch::empty_like(order.pairs)
                    .scatter_(0, order.pairs, torch::arange(order.pairs.numel(), order.pairs.options()));
  order.chunks = order.pairs.div(experts.size(1), "floor");
  const torch::Tensor counts =
      (of_pair.unsqueeze(1) == torch::arange(n_experts, of_pair.options())).sum(0, /*keepdim=*/false, torch::kInt32);
  order.ends = (counts.cumsum(0) * chunk_len).to(torch::kInt32);
  return order;
}

// Rows of each expert's chunks times its own matrix: x [n, d_in], w [n_experts, d_out, d_in] -> [n, d_out].
torch::Tensor by_expert(const torch::Tensor& x, const torch::Tensor& w, const torch::Tensor& ends) {
  return at::_grouped_mm(x, w.transpose(-2, -1), ends);
}
// The gradient of w: d_y [n, d_out], x [n, d_in] -> [n_experts, d_out, d_in].
torch::Tensor of_weight(const torch::Tensor& d_y, const torch::Tensor& x, const torch::Tensor& ends) {
  const torch::Tensor grad = at::_grouped_mm(d_y.t(), x, ends), begins = torch::cat({ends.slice(0, 0, 1) * 0, ends});
  const torch::Tensor used = (begins.slice(0, 1) > begins.slice(0, 0, -1)).view({-1, 1, 1});
  return torch::where(used, grad, torch::zeros({}, grad.options())).to(torch::kFloat32);
}

torch::Tensor gated(const torch::Tensor& gate, const torch::Tensor& up, const torch::Tensor& factor) {
  if (fused_swiglu_takes(gate)) return fused_swiglu(gate, up, factor);
  return (torch::silu(gate.to(torch::kFloat32)) * up * factor.unsqueeze(-1)).to(gate.scalar_type());
}
SwigluGradients gated_backward(const torch::Tensor& gate, const torch::Tensor& up, const torch::Tensor& factor,
                               const torch::Tensor& d_h) {
  if (fused_swiglu_takes(gate)) return fused_swiglu_backward(gate, up, factor, d_h);
  const torch::Tensor g = gate.to(torch::kFloat32), s = torch::silu(g), f = factor.unsqueeze(-1), dh = d_h * f;
  const auto type = gate.scalar_type();
  return {at::silu_backward(dh * up, g).to(type), (dh * s).to(type), (s * up * f).to(type), (s * up * d_h).sum(-1)};
}

class BatchedExperts : public torch::autograd::Function<BatchedExperts> {
 public:
  static torch::Tensor forward(AutogradContext* context, torch::Tensor x_, torch::Tensor experts, torch::Tensor weights,
                               torch::Tensor gate_, torch::Tensor up_, torch::Tensor down_) {
    const torch::Tensor x = x_.to(torch::kBFloat16), gate = gate_.to(torch::kBFloat16), up = up_.to(torch::kBFloat16),
                        down = down_.to(torch::kBFloat16);
    const int64_t n_chunks = x.size(0), len = x.size(1), d = x.size(2), n_active = experts.size(1);
    const Order order = order_by_expert(experts, gate.size(0), len);
    const torch::Tensor in = x.index_select(0, order.chunks).flatten(0, 1);
    const torch::Tensor factor = weights.flatten().index_select(0, order.pairs).repeat_interleave(len);
    const torch::Tensor h = gated(by_expert(in, gate, order.ends), by_expert(in, up, order.ends), factor);
    const torch::Tensor y = by_expert(h, down, order.ends).view({n_chunks * n_active, len, d});
    context->save_for_backward({x, weights, gate, up, down, order.chunks, order.place, order.pairs, order.ends});
    return y.index_select(0, order.place).view({n_chunks, n_active, len, d}).sum(1);
  }

  // Computes the hidden values again: kept are the inputs alone.
  static variable_list backward(AutogradContext* context, variable_list d_out) {
    const variable_list saved = context->get_saved_variables();
    const torch::Tensor &x = saved[0], &weights = saved[1], &gate = saved[2], &up = saved[3], &down = saved[4];
    const Order order{saved[5], saved[6], saved[7], saved[8]};
    const int64_t n_chunks = x.size(0), len = x.size(1), d = x.size(2), n_active = weights.size(1);
    const torch::Tensor in = x.index_select(0, order.chunks).flatten(0, 1);
    const torch::Tensor d_y = d_out[0].to(torch::kBFloat16).index_select(0, order.chunks).flatten(0, 1);
    const torch::Tensor factor = weights.flatten().index_select(0, order.pairs).repeat_interleave(len);
    const torch::Tensor d_h = by_expert(d_y, down.transpose(-2, -1), order.ends);
    const SwigluGradients to =
        gated_backward(by_expert(in, gate, order.ends), by_expert(in, up, order.ends), factor, d_h);
    const torch::Tensor d_in =
        (by_expert(to.gate, gate.transpose(-2, -1), order.ends) + by_expert(to.up, up.transpose(-2, -1), order.ends))
            .view({n_chunks * n_active, len, d});
    const torch::Tensor d_x = d_in.index_select(0, order.place).view({n_chunks, n_active, len, d}).sum(1);
    const torch::Tensor d_weights =
        to.factor.view({n_chunks * n_active, len}).sum(1).index_select(0, order.place).view(weights.sizes());
    return {d_x,
            torch::Tensor(),
            d_weights,
            of_weight(to.gate, in, order.ends),
            of_weight(to.up, in, order.ends),
            of_weight(d_y, to.h, order.ends)};
  }
};

}  // namespace

bool batched_experts_take(const torch::Tensor& x, const torch::Tensor& gate) {
  return DeviceStream::is_for(x.device()) && Bf16Products::are_on(x.device().type()) && gate.size(1) % 8 == 0 &&
         gate.size(2) % 8 == 0;
}
torch::Tensor batched_experts(const torch::Tensor& x, const torch::Tensor& experts, const torch::Tensor& weights,
                              const torch::Tensor& gate, const torch::Tensor& up, const torch::Tensor& down) {
  return BatchedExperts::apply(x, experts, weights, gate, up, down);
}
#else
bool batched_experts_take(const torch::Tensor&, const torch::Tensor&) { return false; }
torch::Tensor batched_experts(const torch::Tensor&, const torch::Tensor&, const torch::Tensor&, const torch::Tensor&,
                              const torch::Tensor&, const torch::Tensor&) {
  POLYSPAN_CHECK(false);
}
#endif

}  // namespace polyspan
