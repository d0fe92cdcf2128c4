#include "hydra/sparse_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.h"
#include "core/thread_team.h"
#include "hydra/precision.h"

namespace polyspan {

torch::Tensor rope(const torch::Tensor& in, double base) {
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

torch::Tensor global_sets(const torch::Tensor& scores, int64_t chunk_len, int64_t window, int64_t n_global) {
  // A run that has gone to NaN is stopped by its loss; sorting must survive until then.
  const torch::Tensor host =
      torch::nan_to_num(scores.detach().to(torch::kCPU).to(torch::kFloat64), -1e300).contiguous();
  const int64_t n_seqs = host.size(0), n_tokens = host.size(1), n_chunks = n_tokens / chunk_len,
                n_late = window / chunk_len;
  torch::Tensor sets = torch::full({n_seqs, n_chunks, n_global}, int64_t{-1}, torch::kInt64);
  // Not at::parallel_for: its loop is a header's, and serial in what is compiled without OpenMP.
  ThreadTeam team(n_seqs * n_tokens < 16384 ? 1 : static_cast<int>(std::min<int64_t>(n_seqs, at::get_num_threads())));
  team.each(n_seqs, [&](int64_t s, int) {
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

torch::Tensor sparse_attention(const HydraConfig& c, const BlockParameters& w, const torch::Tensor& x,
                               bool with_globals) {
  const int64_t n_seqs = x.size(0), n_tokens = x.size(1), len = c.chunk_len, n_chunks = n_tokens / len,
                n_rep = c.n_heads / c.n_kv_heads;
  POLYSPAN_CHECK(n_tokens % len == 0);
  const int64_t n_near = c.window + len;  // keys that some query of a chunk has in its window
  const double scale = 1.0 / std::sqrt(static_cast<double>(c.head_dim)),
               never = -std::numeric_limits<double>::infinity();
  const auto heads = [&](const char* name, int64_t n) {
    return torch::linear(x, w[name]).view({n_seqs, n_tokens, n, c.head_dim});
  };
  const torch::Tensor q = rope(heads("attn_q.weight", c.n_heads), c.rope_base) * scale;
  const torch::Tensor k = rope(heads("attn_k.weight", c.n_kv_heads), c.rope_base),
                      v = heads("attn_v.weight", c.n_kv_heads);

  // The window: for each chunk its own keys and the c.window before it, [n_seqs, n_chunks, n_kv_heads, n_near, head_dim].
  const torch::Tensor before = torch::zeros({n_seqs, c.window, c.n_kv_heads, c.head_dim}, x.options());
  const auto near = [&](const torch::Tensor& all) {
    return torch::cat({before, all}, 1).unfold(1, n_near, len).transpose(-1, -2);
  };
  const torch::Tensor grouped = q.view({n_seqs, n_chunks, len, c.n_kv_heads, n_rep, c.head_dim})
                                    .permute({0, 1, 3, 4, 2, 5})
                                    .reshape({n_seqs, n_chunks, c.n_kv_heads, n_rep * len, c.head_dim});
  // [n_seqs, n_chunks, n_kv_heads, n_rep, len, ...]: query heads of a group share the keys
  const auto products = [&](const torch::Tensor& keys) {
    return torch::matmul(grouped, keys.transpose(-1, -2)).view({n_seqs, n_chunks, c.n_kv_heads, n_rep, len, -1});
  };
  const torch::TensorOptions index = x.options().dtype(torch::kInt64);
  const torch::Tensor query_at = torch::arange(n_tokens, index).view({n_chunks, len, 1});
  const torch::Tensor near_at =
      torch::arange(n_chunks, index).view({n_chunks, 1, 1}) * len - c.window + torch::arange(n_near, index);
  const torch::Tensor seen = (near_at >= 0) & (near_at <= query_at) & (query_at - near_at < c.window);
  torch::Tensor logits = not_bf16(products(near(k))).masked_fill(seen.logical_not().unsqueeze(1).unsqueeze(1), never);

  torch::Tensor far_values;
  if (with_globals && c.n_global > 0) {
    const torch::Tensor scores =
        not_bf16(torch::matmul(x, w["attn_score.weight"])) + w["attn_score.bias"];  // [n_seqs, n_tokens]
    const torch::Tensor set = global_sets(scores, len, c.window, c.n_global);       // [n_seqs, n_chunks, n_global]
    const torch::Tensor at = set.clamp_min(0).view({n_seqs, n_chunks * c.n_global});
    const torch::Tensor rows = (at + torch::arange(n_seqs, index).unsqueeze(-1) * n_tokens).flatten();
    const auto chosen = [&](const torch::Tensor& all) {  // in float32: a popular token's gradient is a sum of many
      return not_bf16(all)
          .reshape({n_seqs * n_tokens, c.n_kv_heads * c.head_dim})
          .index_select(0, rows)
          .view({n_seqs, n_chunks, c.n_global, c.n_kv_heads, c.head_dim})
          .transpose(2, 3);
    };
    const torch::Tensor far = set.unsqueeze(2);  // [n_seqs, n_chunks, 1, n_global]
    const torch::Tensor usable = (far >= 0) & (query_at.unsqueeze(0) - far >= c.window);
    const torch::Tensor far_bias = scores.gather(1, at).view({n_seqs, n_chunks, 1, c.n_global});
    const torch::Tensor bias =
        far_bias.expand({n_seqs, n_chunks, len, c.n_global}).masked_fill(usable.logical_not(), never);
    logits = torch::cat({logits, products(chosen(k)) + bias.unsqueeze(2).unsqueeze(2)}, -1);
    far_values = chosen(v);
  }

  // One softmax over both.
  const torch::Tensor weights = torch::softmax(logits, -1).view({n_seqs, n_chunks, c.n_kv_heads, n_rep * len, -1});
  torch::Tensor sum = torch::matmul(weights.slice(-1, 0, n_near), near(v));
  if (far_values.defined()) sum = sum + torch::matmul(weights.slice(-1, n_near), far_values);
  const torch::Tensor out = sum.view({n_seqs, n_chunks, c.n_kv_heads, n_rep, len, c.head_dim})
                                .permute({0, 1, 4, 2, 3, 5})
                                .reshape({n_seqs, n_tokens, c.n_heads * c.head_dim});
  return torch::linear(out, w["attn_output.weight"]);
}

}  // namespace polyspan
