#include "hydra/scan.h"

#include <vector>

#include "core/error.h"
#include "hydra/precision.h"

namespace polyspan {
namespace {

using torch::indexing::None;
using torch::indexing::Slice;

torch::Tensor initial_state(const ScanInput& in) {
  if (in.state.defined()) return in.state;
  return torch::zeros({in.x.size(0), in.x.size(2), in.x.size(3), in.B.size(2)}, in.x.options());
}

// a [..., L] -> [..., L, L]: entry (i, j) is exp(a_{j+1} + ... + a_i) for j <= i, 0 above the diagonal. The sums are
// differences of sums in double: in float32 a slow decay after fast ones would lose its digits.
torch::Tensor segment_decays(const torch::Tensor& a) {
  const torch::Tensor sums = a.to(torch::kFloat64).cumsum(-1);
  const torch::Tensor later = torch::ones({a.size(-1), a.size(-1)}, a.options().dtype(torch::kBool)).triu(1);
  return (sums.unsqueeze(-1) - sums.unsqueeze(-2))
      .to(a.scalar_type())
      .masked_fill(later, -std::numeric_limits<double>::infinity())
      .exp();
}

torch::Tensor pad_tokens(const torch::Tensor& x, int64_t n) {
  if (n == 0) return x;
  std::vector<int64_t> shape = x.sizes().vec();
  shape[1] = n;
  return torch::cat({x, torch::zeros(shape, x.options())}, 1);
}

// The states in front of each chunk, [n_seqs, n_chunks, n_heads, head_dim * d_state], and after the last one.
struct PassedStates {
  torch::Tensor before, last;
};

// log_decay [n_seqs, n_chunks, n_heads] of whole chunks; added [n_seqs, n_chunks, n_heads, n]: what each leaves at its end;
// initial [n_seqs, n_heads, n]. Groups of chunks at once and the groups likewise: a few products of matrices instead of a
// step a chunk, whose record costs autograd more than the work (and a GPU a launch each).
PassedStates pass_states(const torch::Tensor& log_decay, const torch::Tensor& added, const torch::Tensor& initial) {
  constexpr int64_t kGroup = 16;
  const int64_t n_seqs = added.size(0), n_chunks = added.size(1), n_heads = added.size(2), n = added.size(3);
  if (n_chunks == 1)
    return {initial.unsqueeze(1), initial * log_decay.select(1, 0).exp().unsqueeze(-1) + added.select(1, 0)};
  const int64_t n_groups = (n_chunks + kGroup - 1) / kGroup, n_padded = n_groups * kGroup - n_chunks;
  // [n_seqs, n_groups, n_heads, kGroup(, n)]; padding neither decays nor adds
  const torch::Tensor a = pad_tokens(log_decay, n_padded).view({n_seqs, n_groups, kGroup, n_heads}).transpose(2, 3);
  const torch::Tensor e = pad_tokens(added, n_padded).view({n_seqs, n_groups, kGroup, n_heads, n}).transpose(2, 3);
  const torch::Tensor own = torch::matmul(segment_decays(a), e);  // after each chunk, from its group alone
  const torch::Tensor decay = a.cumsum(-1);
  const PassedStates groups = pass_states(decay.select(-1, kGroup - 1), own.select(-2, kGroup - 1), initial);
  const torch::Tensor after = (own + decay.exp().unsqueeze(-1) * groups.before.unsqueeze(-2))
                                  .transpose(2, 3)
                                  .reshape({n_seqs, n_groups * kGroup, n_heads, n});
  return {torch::cat({initial.unsqueeze(1), after.slice(1, 0, n_chunks - 1)}, 1), after.select(1, n_chunks - 1)};
}

// The backward of chunked_scan: runs the chunks again, this time recorded.
class ChunkedScan : public torch::autograd::Function<ChunkedScan> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context, torch::Tensor x,
                                                torch::Tensor dt, torch::Tensor A, torch::Tensor B, torch::Tensor C,
                                                torch::Tensor state, int64_t chunk_len) {
    context->save_for_backward({x, dt, A, B, C, state});
    context->saved_data["chunk_len"] = chunk_len;
    const ScanOutput out = chunked_scan_recorded({x, dt, A, B, C, state}, chunk_len);
    return {out.y, out.state};
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list d_out) {
    torch::autograd::variable_list inputs = context->get_saved_variables();
    for (torch::Tensor& input : inputs) input = input.detach().set_requires_grad(true);
    const torch::AutoGradMode record(true);
    const ScanOutput out = chunked_scan_recorded({inputs[0], inputs[1], inputs[2], inputs[3], inputs[4], inputs[5]},
                                                 context->saved_data["chunk_len"].toInt());
    torch::autograd::variable_list outputs = {out.y};
    torch::autograd::variable_list d_outputs = {d_out[0].defined() ? d_out[0] : torch::zeros_like(out.y)};
    if (d_out[1].defined()) outputs.push_back(out.state), d_outputs.push_back(d_out[1]);
    torch::autograd::variable_list grads =
        torch::autograd::grad(outputs, inputs, d_outputs, c10::nullopt, false, /*allow_unused=*/true);
    grads.emplace_back();  // of chunk_len
    return grads;
  }
};

}  // namespace

ScanOutput chunked_scan(const ScanInput& in, int64_t chunk_len) {
  const Bf16Products off(in.x.device().type(), false);
  const torch::autograd::variable_list out =
      ChunkedScan::apply(in.x, in.dt, in.A, in.B, in.C, initial_state(in), chunk_len);
  return {out[0], out[1]};
}

ScanOutput chunked_scan_recorded(const ScanInput& in, int64_t len) {
  const int64_t n_seqs = in.x.size(0), n_tokens = in.x.size(1), n_heads = in.x.size(2), head_dim = in.x.size(3),
                d_state = in.B.size(2);
  const int64_t n_padded = (len - n_tokens % len) % len, n_chunks = (n_tokens + n_padded) / len;
  // [n_seqs, n_chunks, n_heads, L(, head_dim)]; padding has dt = 0 and so leaves the state alone
  const torch::Tensor dt = pad_tokens(in.dt, n_padded).view({n_seqs, n_chunks, len, n_heads}).transpose(2, 3);
  const torch::Tensor x = pad_tokens(in.x, n_padded).view({n_seqs, n_chunks, len, n_heads, head_dim}).transpose(2, 3);
  const torch::Tensor B = pad_tokens(in.B, n_padded).view({n_seqs, n_chunks, len, d_state});
  const torch::Tensor C = pad_tokens(in.C, n_padded).view({n_seqs, n_chunks, len, d_state});
  const torch::Tensor dt_x = x * dt.unsqueeze(-1);
  const torch::Tensor a = dt * in.A.view({n_heads, 1});

  // Within each chunk.
  const torch::Tensor decay = segment_decays(a);                                    // [n_seqs, n_chunks, n_heads, L, L]
  const torch::Tensor scores = torch::matmul(C, B.transpose(-1, -2)).unsqueeze(2);  // [n_seqs, n_chunks, 1, L, L]
  torch::Tensor y = torch::matmul(scores * decay, dt_x);  // [n_seqs, n_chunks, n_heads, L, head_dim]

  // What each chunk adds to the state at its end, and the states in front of the chunks.
  const torch::Tensor to_end = decay.select(-2, len - 1);  // [n_seqs, n_chunks, n_heads, L]
  const torch::Tensor added = torch::matmul((dt_x * to_end.unsqueeze(-1)).transpose(-1, -2), B.unsqueeze(2));
  const torch::Tensor from_start = a.cumsum(-1).exp();  // [n_seqs, n_chunks, n_heads, L]
  const PassedStates passed =
      pass_states(a.sum(-1), added.flatten(3), initial_state(in).view({n_seqs, n_heads, head_dim * d_state}));
  const torch::Tensor states = passed.before.view({n_seqs, n_chunks, n_heads, head_dim, d_state});
  y = y + torch::matmul(C.unsqueeze(2), states.transpose(-1, -2)) * from_start.unsqueeze(-1);
  y = y.transpose(2, 3).reshape({n_seqs, n_chunks * len, n_heads, head_dim});
  return {n_padded == 0 ? y : y.slice(1, 0, n_tokens), passed.last.view({n_seqs, n_heads, head_dim, d_state})};
}

ScanOutput recurrent_scan(const ScanInput& in) {
  const Bf16Products off(in.x.device().type(), false);
  torch::Tensor state = initial_state(in);
  std::vector<torch::Tensor> y;
  for (int64_t t = 0; t < in.x.size(1); ++t) {
    const torch::Tensor dt = in.dt.select(1, t);  // [n_seqs, n_heads]
    const torch::Tensor decay = (dt * in.A).exp().unsqueeze(-1).unsqueeze(-1);
    const torch::Tensor dt_x = in.x.select(1, t) * dt.unsqueeze(-1);  // [n_seqs, n_heads, head_dim]
    state = state * decay + dt_x.unsqueeze(-1) * in.B.select(1, t).unsqueeze(1).unsqueeze(1);
    y.push_back(torch::matmul(state, in.C.select(1, t).unsqueeze(1).unsqueeze(-1)).squeeze(-1));
  }
  return {torch::stack(y, 1), state};
}

}  // namespace polyspan
