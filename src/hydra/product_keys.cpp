#include "hydra/product_keys.h"

#include "hydra/device_stream.h"
#include "hydra/precision.h"
#ifdef POLYSPAN_HAS_HYDRA_KERNELS
#include "hydra/choice_kernels.h"
#endif

namespace polyspan {

namespace {

struct Choice {
  torch::Tensor indices, sums;  // [n, pkm_heads, pkm_top]: the best pairs of sub-keys, and their scores
};

Choice best_pairs(const HydraConfig& c, const torch::Tensor& scores) {
  const int64_t n = scores.size(0);
#ifdef POLYSPAN_HAS_HYDRA_KERNELS
  if (DeviceStream::is_for(scores.device()) && scores.scalar_type() == torch::kFloat32 && c.pkm_top <= 32) {
    const torch::Tensor read = scores.detach().contiguous();
    const torch::Tensor indices = torch::empty({n, c.pkm_heads, c.pkm_top}, scores.options().dtype(torch::kInt64));
    const DeviceStream stream(scores.device());
    hydra::best_pairs(static_cast<const float*>(read.data_ptr()), n * c.pkm_heads, c.n_sub_keys, c.pkm_top,
                      static_cast<int64_t*>(indices.data_ptr()), stream.handle());
    return {indices, scores.select(2, 0).gather(-1, indices.div(c.n_sub_keys, "floor")) +
                         scores.select(2, 1).gather(-1, indices.remainder(c.n_sub_keys))};
  }
#endif
  const int64_t n_pairs = c.pkm_top * c.pkm_top;
  const auto [best, key] = scores.topk(c.pkm_top, -1);
  const auto half_of = [](const torch::Tensor& t, int64_t which) { return t.select(2, which); };
  const torch::Tensor sums =
      (half_of(best, 0).unsqueeze(-1) + half_of(best, 1).unsqueeze(-2)).view({n, c.pkm_heads, n_pairs});
  const torch::Tensor pairs =
      (half_of(key, 0).unsqueeze(-1) * c.n_sub_keys + half_of(key, 1).unsqueeze(-2)).view({n, c.pkm_heads, n_pairs});
  const auto [top, at] = sums.topk(c.pkm_top, -1);
  return {pairs.gather(-1, at), top};
}

}  // namespace

MemoryOutput product_keys(const HydraConfig& c, const BlockParameters& w, const torch::Tensor& x) {
  const int64_t n = x.size(0) * x.size(1), half = c.d_pkm_query / 2;
  const torch::Tensor flat = x.reshape({n, c.d_model});
  const torch::Tensor q = rms_norm(torch::linear(flat, w["pkm_query.weight"]).view({n, c.pkm_heads, c.d_pkm_query}),
                                   w["pkm_query_norm.weight"], c.norm_eps);
  // [n, pkm_heads, 2, n_sub_keys] and the best of each half; never in bf16, where many scores would be equal
  const auto score = [&] {
    const Bf16Products off(x.device().type(), false);
    return torch::einsum("nhsd,hskd->nhsk", {q.view({n, c.pkm_heads, 2, half}), w["pkm_keys"]});
  };
  const torch::Tensor scores = score();
  const Choice choice = best_pairs(c, scores);
  const torch::Tensor indices = choice.indices.view({n, c.pkm_heads * c.pkm_top});
  const torch::Tensor weights = torch::softmax(choice.sums, -1).reshape({n, c.pkm_heads * c.pkm_top});

  // A bag of values a token, its heads summed; the gradient of the values is sparse.
  const int64_t n_read = c.pkm_heads * c.pkm_top;
  const torch::Tensor offsets = torch::arange(n, indices.options()) * n_read;
  const torch::Tensor read =
      std::get<0>(torch::embedding_bag(w["pkm_values"], indices.reshape({-1}), offsets, /*scale_grad_by_freq=*/false,
                                       /*mode=sum*/ 0, /*sparse=*/true, weights.reshape({-1})));
  const torch::Tensor gate =
      torch::sigmoid(torch::matmul(flat, w["pkm_gate.weight"]) + w["pkm_gate.bias"]).unsqueeze(-1);
  return {(torch::linear(read, w["pkm_out.weight"]) * gate).view(x.sizes()), indices.detach(), gate.detach().mean()};
}

}  // namespace polyspan
