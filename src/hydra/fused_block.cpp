#include "hydra/fused_block.h"

#include "core/error.h"
#include "hydra/device_stream.h"

#ifdef POLYSPAN_HAS_HYDRA_KERNELS
#include "hydra/block_kernels.h"
#endif

namespace polyspan {

torch::Tensor add_paths_plain(const torch::Tensor& x, const std::vector<Path>& paths, const torch::Tensor& multipliers,
                              int64_t chunk_len) {
  torch::Tensor y = x;
  for (const Path& path : paths) {
    if (path.multiplier < 0) {
      y = y + (path.share == 1.0 ? path.value : path.value * path.share);
      continue;
    }
    const torch::Tensor by_token =
        multipliers.select(-1, path.multiplier).repeat_interleave(chunk_len, 1).unsqueeze(-1);
    y = y + path.value * (path.share == 1.0 ? by_token : by_token * path.share);
  }
  return y;
}

#ifndef POLYSPAN_HAS_HYDRA_KERNELS
torch::Tensor add_paths(const torch::Tensor& x, const std::vector<Path>& paths, const torch::Tensor& multipliers,
                        int64_t chunk_len) {
  return add_paths_plain(x, paths, multipliers, chunk_len);
}
bool fused_norm_takes(const torch::Tensor&, const torch::Tensor&) { return false; }
torch::Tensor fused_norm(const torch::Tensor&, const torch::Tensor&, double) { POLYSPAN_CHECK(false); }
bool fused_rope_takes(const torch::Tensor&) { return false; }
torch::Tensor fused_rope(const torch::Tensor&, double) { POLYSPAN_CHECK(false); }
bool fused_swiglu_takes(const torch::Tensor&) { return false; }
torch::Tensor fused_swiglu(const torch::Tensor&, const torch::Tensor&, const torch::Tensor&) { POLYSPAN_CHECK(false); }
SwigluGradients fused_swiglu_backward(const torch::Tensor&, const torch::Tensor&, const torch::Tensor&,
                                      const torch::Tensor&) {
  POLYSPAN_CHECK(false);
}
#else
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

class FusedNorm : public torch::autograd::Function<FusedNorm> {
 public:
  static torch::Tensor forward(AutogradContext* context, torch::Tensor x_, torch::Tensor weight, double eps) {
    const torch::Tensor x = x_.contiguous(), y = torch::empty_like(x);
    const int64_t d = x.size(-1), n = x.numel() / d;
    const torch::Tensor scale = torch::empty({n}, x.options());
    const DeviceStream stream(x.device());
    hydra::norm_forward(floats_of(x), floats_of(weight), static_cast<float>(eps), n, d, floats_of(y), floats_of(scale),
                        stream.handle());
    context->save_for_backward({x, weight, scale});
    return y;
  }
  static variable_list backward(AutogradContext* context, variable_list d_out) {
    const variable_list saved = context->get_saved_variables();
    const torch::Tensor &x = saved[0], dy = d_out[0].contiguous(), dx = torch::empty_like(x);
    const int64_t d = x.size(-1), n = x.numel() / d;
    const torch::Tensor d_weight = torch::empty({hydra::norm_partial_rows(n), d}, x.options());
    const DeviceStream stream(x.device());
    hydra::norm_backward(floats_of(x), floats_of(saved[1]), floats_of(saved[2]), floats_of(dy), n, d, floats_of(dx),
                         floats_of(d_weight), stream.handle());
    return {dx, d_weight.sum(0), torch::Tensor()};
  }
};

class FusedRope : public torch::autograd::Function<FusedRope> {
 public:
  static torch::Tensor rotated(const torch::Tensor& in, double base, bool back) {
    const torch::Tensor x = in.contiguous(), y = torch::empty_like(x);
    const DeviceStream stream(x.device());
    hydra::rope(x.data_ptr(), is_bf16(x), x.size(0) * x.size(1), x.size(1), x.size(2), x.size(3), base, back,
                y.data_ptr(), stream.handle());
    return y;
  }
  static torch::Tensor forward(AutogradContext* context, torch::Tensor x, double base) {
    context->saved_data["base"] = base;
    return rotated(x, base, false);
  }
  static variable_list backward(AutogradContext* context, variable_list d_out) {
    return {rotated(d_out[0], context->saved_data["base"].toDouble(), true), torch::Tensor()};
  }
};

class FusedPathSum : public torch::autograd::Function<FusedPathSum> {
 public:
  static torch::Tensor forward(AutogradContext* context, torch::Tensor x_, torch::Tensor multipliers_,
                               int64_t chunk_len, std::vector<int64_t> which, std::vector<double> share,
                               at::TensorList values) {
    const torch::Tensor x = x_.contiguous(), multipliers = multipliers_.contiguous(), y = torch::empty_like(x);
    variable_list saved = {multipliers};
    for (const torch::Tensor& value : values) saved.push_back(value.contiguous());
    context->save_for_backward(saved);
    context->saved_data["chunk_len"] = chunk_len;
    context->saved_data["which"] = which;
    context->saved_data["share"] = share;
    const DeviceStream stream(x.device());
    hydra::path_sum_forward(sum_of(saved, chunk_len, which, share), floats_of(x), floats_of(multipliers), floats_of(y),
                            stream.handle());
    return y;
  }
  static variable_list backward(AutogradContext* context, variable_list d_out) {
    const variable_list saved = context->get_saved_variables();
    const std::vector<int64_t> which = context->saved_data["which"].toIntVector();
    const torch::Tensor dy = d_out[0].contiguous(), d_multipliers = torch::empty_like(saved[0]);
    variable_list grads = {dy, d_multipliers, {}, {}, {}};
    std::vector<void*> d_paths;
    for (size_t i = 1; i < saved.size(); ++i) {
      grads.push_back(torch::empty_like(saved[i]));
      d_paths.push_back(grads.back().data_ptr());
    }
    const DeviceStream stream(dy.device());
    hydra::path_sum_backward(
        sum_of(saved, context->saved_data["chunk_len"].toInt(), which, context->saved_data["share"].toDoubleVector()),
        floats_of(saved[0]), floats_of(dy), d_paths.data(), floats_of(d_multipliers), stream.handle());
    return grads;
  }

 private:
  // saved: the multipliers, then the paths.
  static hydra::PathSum sum_of(const variable_list& saved, int64_t chunk_len, const std::vector<int64_t>& which,
                               const std::vector<double>& share) {
    hydra::PathSum sum{};
    sum.n_paths = static_cast<int>(which.size());
    for (size_t i = 0; i < which.size(); ++i) {
      sum.paths[i] = saved[i + 1].data_ptr();
      sum.is_bf16[i] = is_bf16(saved[i + 1]);
      sum.multiplier[i] = static_cast<int>(which[i]);
      sum.share[i] = static_cast<float>(share[i]);
    }
    sum.n_chunks = saved[0].size(0) * saved[0].size(1);
    sum.chunk_len = chunk_len;
    sum.d = saved[1].size(-1);
    sum.n_multipliers = static_cast<int>(saved[0].size(2));
    return sum;
  }
};

}  // namespace

torch::Tensor add_paths(const torch::Tensor& x, const std::vector<Path>& paths, const torch::Tensor& multipliers,
                        int64_t chunk_len) {
  bool takes = DeviceStream::is_for(x.device()) && is_f32(x) && is_f32(multipliers) && x.size(-1) % 4 == 0 &&
               !paths.empty() && paths.size() <= hydra::kMostPaths;
  std::vector<int64_t> which;
  std::vector<double> share;
  variable_list values;
  for (const Path& path : paths) {
    takes = takes && (is_f32(path.value) || is_bf16(path.value));
    which.push_back(path.multiplier);
    share.push_back(path.share);
    values.push_back(path.value);
  }
  if (!takes) return add_paths_plain(x, paths, multipliers, chunk_len);
  return FusedPathSum::apply(x, multipliers, chunk_len, which, share, at::TensorList(values));
}

bool fused_norm_takes(const torch::Tensor& x, const torch::Tensor& weight) {
  return DeviceStream::is_for(x.device()) && is_f32(x) && is_f32(weight) && x.size(-1) % 4 == 0 &&
         x.size(-1) <= hydra::kMostNormed && x.numel() > 0;
}
torch::Tensor fused_norm(const torch::Tensor& x, const torch::Tensor& weight, double eps) {
  return FusedNorm::apply(x, weight, eps);
}

bool fused_rope_takes(const torch::Tensor& x) {
  return DeviceStream::is_for(x.device()) && (is_f32(x) || is_bf16(x)) && x.size(3) <= 512 && x.numel() > 0;
}
torch::Tensor fused_rope(const torch::Tensor& x, double base) { return FusedRope::apply(x, base); }

bool fused_swiglu_takes(const torch::Tensor& gate) {
  return DeviceStream::is_for(gate.device()) && is_bf16(gate) && gate.size(-1) % 4 == 0;
}
torch::Tensor fused_swiglu(const torch::Tensor& gate, const torch::Tensor& up, const torch::Tensor& factor) {
  const torch::Tensor h = torch::empty_like(gate);
  const DeviceStream stream(gate.device());
  hydra::swiglu_forward(bf16_of(gate), bf16_of(up), floats_of(factor), gate.size(0), gate.size(1), bf16_of(h),
                        stream.handle());
  return h;
}
SwigluGradients fused_swiglu_backward(const torch::Tensor& gate, const torch::Tensor& up, const torch::Tensor& factor,
                                      const torch::Tensor& d_h) {
  const SwigluGradients to{torch::empty_like(gate), torch::empty_like(up), torch::empty_like(gate),
                           torch::empty_like(factor)};
  const DeviceStream stream(gate.device());
  hydra::swiglu_backward(bf16_of(gate), bf16_of(up), floats_of(factor), bf16_of(d_h), gate.size(0), gate.size(1),
                         bf16_of(to.gate), bf16_of(to.up), bf16_of(to.h), floats_of(to.factor), stream.handle());
  return to;
}
#endif

}  // namespace polyspan
