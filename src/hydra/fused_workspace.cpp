#include "hydra/fused_workspace.h"

#include "core/error.h"
#include "hydra/device_stream.h"

#ifdef POLYSPAN_HAS_HYDRA_KERNELS
#include "hydra/workspace_kernels.h"
#endif

namespace polyspan {

#ifndef POLYSPAN_HAS_HYDRA_KERNELS
bool fused_workspace_takes(const torch::Tensor&, const torch::Tensor&, const torch::Tensor&) { return false; }
SlotWalk fused_workspace(const torch::Tensor&, const torch::Tensor&, const torch::Tensor&, const torch::Tensor&) {
  POLYSPAN_CHECK(false);
}
#else
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

hydra::WorkspaceSizes slot_sizes_of(const torch::Tensor& keys, const torch::Tensor& init) {
  return {keys.size(0), keys.size(1), keys.size(2), init.size(0), init.size(1)};
}

class FusedWorkspace : public torch::autograd::Function<FusedWorkspace> {
 public:
  static variable_list forward(AutogradContext* context, torch::Tensor keys, torch::Tensor values_, torch::Tensor gate_,
                               torch::Tensor init_) {
    const hydra::WorkspaceSizes s = slot_sizes_of(keys, init_);
    const torch::Tensor keys_t = keys.transpose(-1, -2).contiguous(), values = values_.contiguous(),
                        gate = gate_.contiguous(), init = init_.contiguous();
    const auto of_chunks = [&](int64_t n) {
      return torch::empty({s.n_seqs, s.n_chunks, s.n_slots, n}, init.options());
    };
    const torch::Tensor before = of_chunks(s.d_slot), attention = of_chunks(s.chunk_len), found = of_chunks(s.d_slot),
                        gates = of_chunks(s.d_slot),
                        last = torch::empty({s.n_seqs, s.n_slots, s.d_slot}, init.options());
    const DeviceStream stream(keys.device());
    hydra::workspace_forward(s, {floats_of(keys_t), floats_of(values), floats_of(gate), floats_of(init)},
                             {floats_of(before), floats_of(attention), floats_of(found), floats_of(gates)},
                             floats_of(last), stream.handle());
    context->save_for_backward({keys, values, gate, before, attention, found, gates});
    context->mark_non_differentiable({gates});
    return {before, last, gates};
  }

  static variable_list backward(AutogradContext* context, variable_list d_outs) {
    const variable_list saved = context->get_saved_variables();
    const torch::Tensor keys = saved[0].contiguous(), values_t = saved[1].transpose(-1, -2).contiguous(),
                        gate_t = saved[2].t().contiguous(), &before = saved[3], &attention = saved[4];
    const hydra::WorkspaceSizes s = slot_sizes_of(keys, before[0][0]);
    const torch::Tensor d_before = d_outs[0].defined() ? d_outs[0].contiguous() : torch::zeros_like(before);
    const torch::Tensor d_last =
        d_outs[1].defined() ? d_outs[1].contiguous() : torch::zeros({s.n_seqs, s.n_slots, s.d_slot}, before.options());
    const torch::Tensor d_found = torch::empty({s.n_seqs, s.n_chunks, s.n_slots, 2 * s.d_slot}, before.options()),
                        d_logits = torch::empty_like(attention), d_init = torch::empty_like(d_last);
    const DeviceStream stream(before.device());
    hydra::workspace_backward(s, {floats_of(before), floats_of(attention), floats_of(saved[5]), floats_of(saved[6])},
                              {floats_of(keys), floats_of(values_t), floats_of(gate_t), floats_of(d_before),
                               floats_of(d_last), floats_of(d_found), floats_of(d_logits), floats_of(d_init)},
                              stream.handle());
    // The rest are products over slots, or over chunks and sequences.
    const torch::Tensor of_gate = d_found.slice(-1, s.d_slot);
    return {torch::matmul(d_logits.transpose(-1, -2), before), torch::matmul(attention.transpose(-1, -2), d_found),
            torch::matmul(before.flatten(0, 2).t(), of_gate.flatten(0, 2)), d_init.sum(0)};
  }
};

}  // namespace

bool fused_workspace_takes(const torch::Tensor& keys, const torch::Tensor& values, const torch::Tensor& init) {
  const auto f32_there = [](const torch::Tensor& t) {
    return DeviceStream::is_for(t.device()) && t.scalar_type() == torch::kFloat32;
  };
  return f32_there(keys) && f32_there(values) && f32_there(init) && slot_sizes_of(keys, init).supported();
}

SlotWalk fused_workspace(const torch::Tensor& keys, const torch::Tensor& values, const torch::Tensor& gate,
                         const torch::Tensor& init) {
  const variable_list out = FusedWorkspace::apply(keys, values, gate, init);
  return {out[0], out[1], out[2]};
}
#endif

}  // namespace polyspan
