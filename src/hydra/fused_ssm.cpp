#include "hydra/fused_ssm.h"

#ifdef POLYSPAN_HAS_HYDRA_KERNELS
#include "hydra/device_stream.h"
#include "hydra/ssm_kernels.h"
#endif

namespace polyspan {

#ifndef POLYSPAN_HAS_HYDRA_KERNELS
bool fused_ssm_takes(const HydraConfig&, const torch::Tensor&) { return false; }
torch::Tensor fused_ssm(const HydraConfig&, const BlockParameters&, const torch::Tensor&) { return {}; }
bool ssm_step_takes(const HydraConfig&, const torch::Tensor&) { return false; }
torch::Tensor ssm_step(const HydraConfig&, const BlockParameters&, const torch::Tensor&, SsmState&) { return {}; }
#else
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

hydra::SsmSizes ssm_sizes_of(const HydraConfig& c, const torch::Tensor& in) {
  return {in.size(0), in.size(1), c.n_ssm_heads(), c.ssm_head_dim, c.d_state, c.d_conv};
}

// Tensors that the kernels write, of the device of `like`.
struct TensorMaker {
  const torch::Tensor& like;
  torch::Tensor bf16(at::IntArrayRef shape) const {
    return torch::empty(shape, like.options().dtype(torch::kBFloat16));
  }
  torch::Tensor f32(at::IntArrayRef shape) const { return torch::empty(shape, like.options().dtype(torch::kFloat32)); }
};

class FusedSsm : public torch::autograd::Function<FusedSsm> {
 public:
  static torch::Tensor forward(AutogradContext* context, torch::Tensor in, torch::Tensor conv, torch::Tensor conv_bias,
                               torch::Tensor dt_bias, torch::Tensor a_log, torch::Tensor d, torch::Tensor norm,
                               double eps, const HydraConfig& c) {
    const hydra::SsmSizes s = ssm_sizes_of(c, in);
    const TensorMaker make{in};
    const torch::Tensor xbc = make.bf16({s.all_tokens(), s.d_channels()}),
                        dt = make.f32({s.all_chunks(), s.n_heads, hydra::kScanChunk}), sums = torch::empty_like(dt),
                        before = make.bf16({s.all_chunks(), s.n_heads, s.head_dim, s.d_state}),
                        y = make.bf16({s.all_tokens(), s.d_inner()}), scale = make.f32({s.all_tokens()}),
                        out = make.bf16({s.n_seqs, s.n_tokens, s.d_inner()});
    const torch::Tensor added = make.f32(before.sizes());
    const DeviceStream stream(in.device());
    hydra::ssm_forward(s, weights_of({conv, conv_bias, dt_bias, a_log, d, norm}, eps),
                       activations_of({in, xbc, dt, sums, before, y, scale}, added, out), stream.handle());
    context->save_for_backward({in, conv, conv_bias, dt_bias, a_log, d, norm, xbc, dt, sums, before, y, scale});
    context->saved_data["eps"] = eps;
    context->saved_data["sizes"] = std::vector<int64_t>{s.n_heads, s.head_dim, s.d_state, s.d_conv};
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list d_outs) {
    const variable_list saved = context->get_saved_variables();
    const torch::Tensor& in = saved[0];
    const std::vector<int64_t> n = context->saved_data["sizes"].toIntVector();
    const hydra::SsmSizes s{in.size(0), in.size(1), n[0], n[1], n[2], n[3]};
    const TensorMaker make{in};
    const torch::Tensor d_out = d_outs[0].to(torch::kBFloat16).contiguous(), d_in = torch::empty_like(in),
                        d_y = make.bf16({s.all_tokens(), s.d_inner()}), d_x = make.bf16(d_y.sizes()),
                        after = torch::empty_like(saved[10]), added = make.f32(after.sizes()),
                        d_bc = make.f32({s.n_head_groups(), s.all_chunks() * hydra::kScanChunk, 2 * s.d_state}),
                        d_dt = torch::empty_like(saved[8]), d_norm = make.f32({hydra::ssm_norm_rows(s), s.d_inner()}),
                        d_conv = make.f32({hydra::ssm_conv_rows(s), s.d_conv + 1, s.d_channels()}),
                        of_heads = make.f32({3, s.all_chunks(), s.n_heads});  // a_log, D, the bias of dt
    hydra::SsmGradients g{};
    g.d_out = bf16_of(d_out), g.d_in = bf16_of(d_in), g.d_y = bf16_of(d_y), g.added = floats_of(added),
    g.after = bf16_of(after);
    g.d_x = bf16_of(d_x), g.d_bc = floats_of(d_bc), g.d_dt = floats_of(d_dt), g.d_norm = floats_of(d_norm),
    g.d_conv = floats_of(d_conv);
    g.d_a_log = floats_of(of_heads[0]), g.d_d = floats_of(of_heads[1]), g.d_dt_bias = floats_of(of_heads[2]);
    const DeviceStream stream(in.device());
    hydra::ssm_backward(s, weights_of({saved.begin() + 1, saved.begin() + 7}, context->saved_data["eps"].toDouble()),
                        activations_of({in, saved[7], saved[8], saved[9], saved[10], saved[11], saved[12]}, {}, {}), g,
                        stream.handle());
    const torch::Tensor conv = d_conv.sum(0), heads = of_heads.sum(1);
    return {d_in,           conv.slice(0, 0, s.d_conv).t(),
            conv[s.d_conv], heads[2],
            heads[0],       heads[1],
            d_norm.sum(0),  torch::Tensor(),
            torch::Tensor()};
  }

 private:
  static hydra::SsmWeights weights_of(const variable_list& w, double eps) {
    return {floats_of(w[0]), floats_of(w[1]), floats_of(w[2]),        floats_of(w[3]),
            floats_of(w[4]), floats_of(w[5]), static_cast<float>(eps)};
  }
  static hydra::SsmActivations activations_of(const variable_list& a, const torch::Tensor& added,
                                              const torch::Tensor& out) {
    return {bf16_of(a[0]),
            bf16_of(a[1]),
            floats_of(a[2]),
            floats_of(a[3]),
            added.defined() ? floats_of(added) : nullptr,
            bf16_of(a[4]),
            bf16_of(a[5]),
            floats_of(a[6]),
            out.defined() ? bf16_of(out) : nullptr};
  }
};

}  // namespace

bool fused_ssm_takes(const HydraConfig& c, const torch::Tensor& in) {
  return DeviceStream::is_for(in.device()) && in.scalar_type() == torch::kBFloat16 && in.is_contiguous() &&
         ssm_sizes_of(c, in).supported();
}

torch::Tensor fused_ssm(const HydraConfig& c, const BlockParameters& w, const torch::Tensor& in) {
  return FusedSsm::apply(in, w["ssm_conv.weight"], w["ssm_conv.bias"], w["ssm_dt.bias"], w["ssm_a_log"], w["ssm_d"],
                         w["ssm_norm.weight"], c.norm_eps, c);
}

bool ssm_step_takes(const HydraConfig& c, const torch::Tensor& in) {
  return in.size(0) == 1 && in.size(1) == 1 && fused_ssm_takes(c, in);
}

torch::Tensor ssm_step(const HydraConfig& c, const BlockParameters& w, const torch::Tensor& in, SsmState& state) {
  const hydra::SsmSizes s = ssm_sizes_of(c, in);
  const TensorMaker make{in};
  const torch::Tensor xbc = make.f32({s.d_channels()}), y = make.f32({1, 1, s.d_inner()});
  const hydra::SsmWeights weights{floats_of(w["ssm_conv.weight"]), floats_of(w["ssm_conv.bias"]),
                                  floats_of(w["ssm_dt.bias"]),     floats_of(w["ssm_a_log"]),
                                  floats_of(w["ssm_d"]),           floats_of(w["ssm_norm.weight"]),
                                  static_cast<float>(c.norm_eps)};
  const DeviceStream stream(in.device());
  hydra::ssm_step(s, weights, {bf16_of(in), floats_of(state.conv), floats_of(state.scan), floats_of(xbc), floats_of(y)},
                  stream.handle());
  return rms_norm(y, w["ssm_norm.weight"], c.norm_eps);
}
#endif

}  // namespace polyspan
