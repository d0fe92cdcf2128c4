#include "hydra/transformer_model.h"

#include <cmath>

#include "hydra/sparse_attention.h"

namespace polyspan {
namespace {

// q, k, v [n_seqs, n_heads, n_tokens, head_dim], causal, with all scores made: [n_seqs, n_heads, n_tokens, n_tokens].
torch::Tensor naive_attention(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v) {
  const int64_t n_tokens = q.size(2);
  const torch::Tensor later = torch::ones({n_tokens, n_tokens}, q.options().dtype(torch::kBool)).triu(1);
  const torch::Tensor scores = torch::matmul(q, k.transpose(-1, -2)) / std::sqrt(static_cast<double>(q.size(3)));
  return torch::matmul(torch::softmax(scores.masked_fill(later, -std::numeric_limits<double>::infinity()), -1), v);
}

// The same. LibTorch 2 brings flash attention (on a GPU for bf16 alone); 1.13 has none.
torch::Tensor causal_attention(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v) {
#if TORCH_VERSION_MAJOR >= 2
  return at::scaled_dot_product_attention(q.to(v.dtype()), k.to(v.dtype()), v, c10::nullopt, 0.0, /*is_causal=*/true);
#else
  return naive_attention(q, k, v);
#endif
}

}  // namespace

TransformerModel::TransformerModel(TransformerSizes sizes, uint64_t seed, const torch::TensorOptions& options)
    : LanguageModel(Parameters(transformer_tensors(sizes), seed, options)), sizes_(sizes) {}

torch::Tensor TransformerModel::attention(const BlockParameters& w, const torch::Tensor& x) const {
  const int64_t n_seqs = x.size(0), n_tokens = x.size(1);
  const auto heads = [&](const char* name, int64_t n) {
    return torch::linear(x, w[name]).view({n_seqs, n_tokens, n, sizes_.head_dim});
  };
  const torch::Tensor q = rope(heads("attn_q.weight", sizes_.n_heads), sizes_.rope_base).transpose(1, 2);
  const auto repeated = [&](const torch::Tensor& kv) {
    return kv.repeat_interleave(sizes_.n_heads / sizes_.n_kv_heads, 2).transpose(1, 2);
  };
  const torch::Tensor k = repeated(rope(heads("attn_k.weight", sizes_.n_kv_heads), sizes_.rope_base));
  const torch::Tensor v = repeated(heads("attn_v.weight", sizes_.n_kv_heads));
  const torch::Tensor out = (sizes_.naive_attention ? naive_attention(q, k, v) : causal_attention(q, k, v))
                                .transpose(1, 2)
                                .reshape({n_seqs, n_tokens, sizes_.n_heads * sizes_.head_dim});
  return torch::linear(out, w["attn_output.weight"]);
}

ForwardOutput TransformerModel::forward(const torch::Tensor& tokens, const StageSwitches& switches) {
  torch::Tensor x = torch::embedding(parameters_["token_embd.weight"], tokens);
  for (int64_t layer = 0; layer < sizes_.n_layers; ++layer) {
    const BlockParameters w(parameters_, layer);
    if (switches.share_of(HydraPart::kAttention) > 0)
      x = x +
          attention(w, rms_norm(x, w["attn_norm.weight"], sizes_.norm_eps)) * switches.share_of(HydraPart::kAttention);
    if (switches.share_of(HydraPart::kFfn) > 0) {
      const torch::Tensor n = rms_norm(x, w["ffn_norm.weight"], sizes_.norm_eps);
      const torch::Tensor h =
          torch::silu(torch::linear(n, w["ffn_gate.weight"])) * torch::linear(n, w["ffn_up.weight"]);
      x = x + torch::linear(h, w["ffn_down.weight"]) * switches.share_of(HydraPart::kFfn);
    }
  }
  ForwardOutput out;
  out.logits = output_logits(parameters_, x, sizes_.norm_eps);
  return out;
}

}  // namespace polyspan
