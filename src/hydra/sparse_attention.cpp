#include "hydra/sparse_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.h"
#include "hydra/cpu_threads.h"
#include "hydra/device_stream.h"
#include "hydra/fused_block.h"
#include "hydra/precision.h"
#ifdef POLYSPAN_HAS_HYDRA_KERNELS
#include "hydra/choice_kernels.h"
#endif

namespace polyspan {

torch::Tensor rope(const torch::Tensor& in, double base) {
  if (fused_rope_takes(in)) return fused_rope(in, base);
  const torch::Tensor x = not_bf16(in);
  const int64_t n_tokens = x.size(1), half = x.size(3) / 2;
  const torch::TensorOptions wide = x.options().dtype(torch::kFloat64);
  const torch::Tensor frequency = torch::pow(base, torch::arange(half, wide) / -static_cast<double>(half));
  const torch::Tensor angle = torch::arange(n_tokens, wide).unsqueeze(-1) * frequency;
  const torch::Tensor cos = angle.cos().to(x.dtype()).unsqueeze(1), sin = angle.sin().to(x.dtype()).unsqueeze(1);
  const torch::Tensor pairs = x.reshape({x.size(0), n_tokens, x.size(2), half, 2});
  const torch::Tensor a = pairs.select(-1, 0), b = pairs.select(-1, 1);
  return torch::stack({a * cos - b * sin, a * sin + b * cos}, -1).reshape(x.sizes());
}

#ifdef POLYSPAN_HAS_HYDRA_KERNELS
namespace {

torch::Tensor global_sets_by_kernel(const torch::Tensor& in, int64_t chunk_len, int64_t window, int64_t n_global) {
  const torch::Tensor scores = in.detach().contiguous();
  const int64_t n_seqs = scores.size(0), n_tokens = scores.size(1);
  const torch::Tensor sets =
      torch::empty({n_seqs, n_tokens / chunk_len, n_global}, scores.options().dtype(torch::kInt64));
  const DeviceStream stream(scores.device());
  hydra::global_sets(static_cast<const float*>(scores.data_ptr()), n_seqs, n_tokens, chunk_len, window, n_global,
                     static_cast<int64_t*>(sets.data_ptr()), stream.handle());
  return sets;
}

}  // namespace
#endif

torch::Tensor global_sets(const torch::Tensor& scores, int64_t chunk_len, int64_t window, int64_t n_global) {
#ifdef POLYSPAN_HAS_HYDRA_KERNELS
  if (DeviceStream::is_for(scores.device()) && scores.scalar_type() == torch::kFloat32)
    return global_sets_by_kernel(scores, chunk_len, window, n_global);
#endif
  // A run that has gone to NaN is stopped by its loss; sorting must survive until then.
  const torch::Tensor host =
      torch::nan_to_num(scores.detach().to(torch::kCPU).to(torch::kFloat64), -1e300).contiguous();
  const int64_t n_seqs = host.size(0), n_tokens = host.size(1), n_chunks = n_tokens / chunk_len,
                n_late = window / chunk_len;
  torch::Tensor sets = torch::full({n_seqs, n_chunks, n_global}, int64_t{-1}, torch::kInt64);
  for_each_part(torch::kCPU, n_seqs, [&](int64_t s) {
    const double* score = host.data_ptr<double>() + s * n_tokens;
    const auto better = [&](int64_t a, int64_t b) { return score[a] != score[b] ? score[a] > score[b] : a < b; };
    std::vector<int64_t> kept, order;  // `kept` ascends
    int64_t worst = -1;                // of a full set: most later tokens are turned away by it alone
    for (int64_t chunk = n_late; chunk < n_chunks; ++chunk) {
      for (int64_t i = 0; i < chunk_len; ++i)
        if (const int64_t token = (chunk - n_late) * chunk_len + i; worst < 0 || better(token, worst))
          kept.push_back(token);
      if (const auto n = std::ssize(kept); n > n_global || (worst < 0 && n == n_global)) {
        order = kept;
        std::nth_element(order.begin(), order.begin() + (n_global - 1), order.end(), better);
        worst = order[static_cast<size_t>(n_global - 1)];
        std::erase_if(kept, [&](int64_t token) { return better(worst, token); });
      }
      std::copy(kept.begin(), kept.end(), sets.data_ptr<int64_t>() + (s * n_chunks + chunk) * n_global);
    }
  });
  return sets.to(scores.device());
}

namespace {

// What both forms of the attention below start from.
struct Operands {
  const HydraConfig& c;
  int64_t n_seqs, n_tokens, n_chunks, n_rep, n_near;  // n_near: keys that some query of a chunk has in its window
  torch::Tensor q, k, v;                              // [n_seqs, n_tokens, n_heads or n_kv_heads, head_dim], rotated
  torch::Tensor scores, set;  // of the tokens; the chunks' global sets; undefined without globals

  Operands(const HydraConfig& config, const BlockParameters& w, const torch::Tensor& x, bool with_globals)
      : c(config),
        n_seqs(x.size(0)),
        n_tokens(x.size(1)),
        n_chunks(n_tokens / c.chunk_len),
        n_rep(c.n_heads / c.n_kv_heads),
        n_near(c.window + c.chunk_len) {
    POLYSPAN_CHECK(n_tokens % c.chunk_len == 0);
    const auto heads = [&](const char* name, int64_t n) {
      return torch::linear(x, w[name]).view({n_seqs, n_tokens, n, c.head_dim});
    };
    q = rope(heads("attn_q.weight", c.n_heads), c.rope_base);
    k = rope(heads("attn_k.weight", c.n_kv_heads), c.rope_base);
    v = heads("attn_v.weight", c.n_kv_heads);
    if (!with_globals || c.n_global == 0) return;
    scores = not_bf16(torch::matmul(x, w["attn_score.weight"])) + w["attn_score.bias"];
    set = global_sets(scores, c.chunk_len, c.window, c.n_global);
  }
  torch::TensorOptions index() const { return q.options().dtype(torch::kInt64); }
  torch::Tensor query_at() const { return torch::arange(n_tokens, index()).view({n_chunks, c.chunk_len, 1}); }
  // The queries that share keys together: [n_seqs, n_chunks, n_kv_heads, n_rep * chunk_len, head_dim].
  torch::Tensor queries() const {
    return q.view({n_seqs, n_chunks, c.chunk_len, c.n_kv_heads, n_rep, c.head_dim})
        .permute({0, 1, 3, 4, 2, 5})
        .reshape({n_seqs, n_chunks, c.n_kv_heads, n_rep * c.chunk_len, c.head_dim});
  }
  // For each chunk its own rows and the c.window before it: [n_seqs, n_chunks, n_kv_heads, n_near, head_dim].
  torch::Tensor near(const torch::Tensor& all) const {
    const torch::Tensor before = torch::zeros({n_seqs, c.window, c.n_kv_heads, c.head_dim}, all.options());
    return torch::cat({before, all}, 1).unfold(1, n_near, c.chunk_len).transpose(-1, -2);
  }
  torch::Tensor near_is_seen() const {  // [n_chunks, chunk_len, n_near]
    const torch::Tensor at = torch::arange(n_chunks, index()).view({n_chunks, 1, 1}) * c.chunk_len - c.window +
                             torch::arange(n_near, index());
    const torch::Tensor query = query_at();
    return (at >= 0) & (at <= query) & (query - at < c.window);
  }
  torch::Tensor global_positions() const { return set.clamp_min(0).view({n_seqs, n_chunks * c.n_global}); }
  // The rows of the global sets: [n_seqs, n_chunks, n_kv_heads, n_global, head_dim].
  torch::Tensor chosen(const torch::Tensor& all) const {
    const torch::Tensor rows = (global_positions() + torch::arange(n_seqs, index()).unsqueeze(-1) * n_tokens).flatten();
    return all.reshape({n_seqs * n_tokens, c.n_kv_heads * c.head_dim})
        .index_select(0, rows)
        .view({n_seqs, n_chunks, c.n_global, c.n_kv_heads, c.head_dim})
        .transpose(2, 3);
  }
  // What is added to the logits of the global set: [n_seqs, n_chunks, chunk_len, n_global].
  torch::Tensor global_bias(double never) const {
    const torch::Tensor far = set.unsqueeze(2);
    const torch::Tensor usable = (far >= 0) & (query_at().unsqueeze(0) - far >= c.window);
    return scores.gather(1, global_positions())
        .view({n_seqs, n_chunks, 1, c.n_global})
        .expand({n_seqs, n_chunks, c.chunk_len, c.n_global})
        .masked_fill(usable.logical_not(), never);
  }
  // [n_seqs, n_chunks, n_kv_heads, n_rep * chunk_len, head_dim] -> [n_seqs, n_tokens, n_heads * head_dim]
  torch::Tensor by_token(const torch::Tensor& out) const {
    return out.reshape({n_seqs, n_chunks, c.n_kv_heads, n_rep, c.chunk_len, c.head_dim})
        .permute({0, 1, 4, 2, 3, 5})
        .reshape({n_seqs, n_tokens, c.n_heads * c.head_dim});
  }
};

}  // namespace

torch::Tensor sparse_attention(const HydraConfig& c, const BlockParameters& w, const torch::Tensor& x,
                               bool with_globals) {
#ifdef POLYSPAN_HAS_FUSED_ATTENTION
  if (DeviceStream::is_for(x.device()) && Bf16Products::are_on(x.device().type()) && c.head_dim % 8 == 0 &&
      c.chunk_len % 16 == 0 && c.window % 16 == 0 && c.n_global % 16 == 0)
    return sparse_attention_fused(c, w, x, with_globals);
#endif
  const Operands o(c, w, x, with_globals);
  const double scale = 1.0 / std::sqrt(static_cast<double>(c.head_dim)),
               never = -std::numeric_limits<double>::infinity();
  const torch::Tensor queries = not_bf16(o.queries()) * scale;
  // [n_seqs, n_chunks, n_kv_heads, n_rep, chunk_len, ...]
  const auto products = [&](const torch::Tensor& keys) {
    return torch::matmul(queries, keys.transpose(-1, -2))
        .view({o.n_seqs, o.n_chunks, c.n_kv_heads, o.n_rep, c.chunk_len, -1});
  };
  torch::Tensor logits =
      not_bf16(products(o.near(o.k))).masked_fill(o.near_is_seen().logical_not().unsqueeze(1).unsqueeze(1), never);
  torch::Tensor far_values;
  if (o.set.defined()) {
    // In float32: a popular token's gradient is a sum of many.
    logits =
        torch::cat({logits, products(o.chosen(not_bf16(o.k))) + o.global_bias(never).unsqueeze(2).unsqueeze(2)}, -1);
    far_values = o.chosen(not_bf16(o.v));
  }
  // One softmax over both.
  const torch::Tensor weights =
      torch::softmax(logits, -1).view({o.n_seqs, o.n_chunks, c.n_kv_heads, o.n_rep * c.chunk_len, -1});
  torch::Tensor sum = torch::matmul(weights.slice(-1, 0, o.n_near), o.near(o.v));
  if (far_values.defined()) sum = sum + torch::matmul(weights.slice(-1, o.n_near), far_values);
  return torch::linear(o.by_token(sum), w["attn_output.weight"]);
}

#ifdef POLYSPAN_HAS_FUSED_ATTENTION
torch::Tensor sparse_attention_fused(const HydraConfig& c, const BlockParameters& w, const torch::Tensor& x,
                                     bool with_globals) {
  constexpr double kNever = -1e30;  // infinity less infinity would be no number where a whole tile of keys is masked
  const Operands o(c, w, x, with_globals);
  torch::Tensor keys = o.near(o.k.to(o.v.scalar_type())), values = o.near(o.v);
  torch::Tensor bias = torch::zeros({o.n_chunks, c.chunk_len, o.n_near}, o.v.options())
                           .masked_fill_(o.near_is_seen().logical_not(), kNever)
                           .unsqueeze(0)
                           .expand({o.n_seqs, o.n_chunks, c.chunk_len, o.n_near});
  if (o.set.defined()) {
    const auto chosen = [&](const torch::Tensor& all) {  // a popular token's gradient is a sum of many: not in bf16
      return o.chosen(at::GradMode::is_enabled() ? not_bf16(all) : all).to(o.v.scalar_type());
    };
    keys = torch::cat({keys, chosen(o.k)}, 3);
    values = torch::cat({values, chosen(o.v)}, 3);
    bias = torch::cat({bias, o.global_bias(kNever).to(o.v.scalar_type())}, -1);
  }
  const int64_t n = o.n_seqs * o.n_chunks, n_keys = bias.size(-1), n_rows = o.n_rep * c.chunk_len;
  const torch::Tensor q = o.queries().to(o.v.scalar_type()).flatten(0, 1), k = keys.flatten(0, 1),
                      v = values.flatten(0, 1);
  const torch::Tensor mask = bias.reshape({n, 1, c.chunk_len, n_keys})
                                 .expand({n, o.n_rep, c.chunk_len, n_keys})
                                 .reshape({n, 1, n_rows, n_keys})
                                 .expand({n, c.n_kv_heads, n_rows, n_keys});
  const torch::Tensor out =
      x.is_cuda() ? std::get<0>(at::_scaled_dot_product_efficient_attention(q, k, v, mask, at::GradMode::is_enabled()))
                  : at::scaled_dot_product_attention(q, k, v, mask);
  return torch::linear(o.by_token(out), w["attn_output.weight"]);
}
#endif

}  // namespace polyspan
