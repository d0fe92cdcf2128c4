// ops/recurrent.isa.cpp: what state-space layers need beside matrix products, one sequence at a time.
#include "ops/isa_tables.h"
#include "ops/simd.h"

namespace polyspan::POLYSPAN_ISA {
namespace {

constexpr int64_t kStateRows = 8;  // of d_state, kept in registers while the tokens pass

// Rows [first, first + n) of the state, 16 lanes of the head, over all tokens. y is added to.
template <int64_t kRows>
POLYSPAN_INLINE void scan_block(const ScanArgs& a, int64_t first, int64_t lane, int64_t lanes) {
  float* const state = a.state + first * a.head_dim + lane;
  F32x16 s[kRows];
  for (int64_t n = 0; n < kRows; ++n) s[n] = load_first(state + n * a.head_dim, lanes);
  for (int64_t t = 0; t < a.n_tokens; ++t) {
    const float* const b = a.B + t * a.bc_stride + first;
    const float* const c = a.C + t * a.bc_stride + first;
    float* const y = a.y + t * a.y_stride + lane;
    const F32x16 decay = broadcast(a.decay[t * a.dt_stride]);
    const F32x16 dt_x = load_first(a.x + t * a.x_stride + lane, lanes) * broadcast(a.dt[t * a.dt_stride]);
    F32x16 sum = load_first(y, lanes);
    for (int64_t n = 0; n < kRows; ++n) {
      s[n] = fma(s[n], decay, dt_x * broadcast(b[n]));
      sum = fma(s[n], broadcast(c[n]), sum);
    }
    store_first(y, sum, lanes);
  }
  for (int64_t n = 0; n < kRows; ++n) store_first(state + n * a.head_dim, s[n], lanes);
}

POLYSPAN_INLINE float dot(const float* a, const float* b, int64_t n) {
  F32x16 sum = zero_f32();
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t lanes = n - i >= kLanes ? kLanes : n - i;
    sum = fma(load_first(a + i, lanes), load_first(b + i, lanes), sum);
  }
  return reduce_add(sum);
}

}  // namespace

void scan_head(const ScanArgs& a) {
  for (int64_t lane = 0; lane < a.head_dim; lane += kLanes) {
    const int64_t lanes = a.head_dim - lane >= kLanes ? kLanes : a.head_dim - lane;
    for (int64_t t = 0; t < a.n_tokens; ++t)
      store_first(a.y + t * a.y_stride + lane, load_first(a.x + t * a.x_stride + lane, lanes) * broadcast(a.D), lanes);
    int64_t n = 0;
    for (; n + kStateRows <= a.d_state; n += kStateRows) scan_block<kStateRows>(a, n, lane, lanes);
    for (; n < a.d_state; ++n) scan_block<1>(a, n, lane, lanes);
  }
}

void conv_silu_row(const ConvRowArgs& a) {
  for (int64_t i = 0; i < a.n_channels; i += kLanes) {
    const int64_t lanes = a.n_channels - i >= kLanes ? kLanes : a.n_channels - i;
    F32x16 sum = load_first(a.bias + i, lanes);
    for (int64_t k = 0; k < a.d_conv; ++k)
      sum = fma(load_first(a.rows[k] + i, lanes), load_first(a.weight + k * a.n_channels + i, lanes), sum);
    store_first(a.out + i, sum * sigmoid(sum), lanes);
  }
}

void attend_row(const AttendRowArgs& a) {
  float most = -__builtin_inff();
  float* score = a.scratch;
  for (int64_t run = 0; run < a.n_runs; ++run) {
    const AttendRun& r = a.runs[run];
    for (int64_t key = 0; key < r.n_keys; ++key, ++score) {
      *score = dot(a.q, r.keys + key * a.head_dim, a.head_dim) + (r.bias != nullptr ? r.bias[key] : 0.0f);
      most = *score > most ? *score : most;
    }
  }
  const int64_t n = score - a.scratch;
  F32x16 sums = zero_f32();
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t lanes = n - i >= kLanes ? kLanes : n - i;
    const F32x16 w =
        keep_lanes(exp(max(load_first(a.scratch + i, lanes) - broadcast(most), broadcast(-87.0f))), 0, lanes, 0.0f);
    const F32x16 kept = keep_above(w, load_first(a.scratch + i, lanes), broadcast(-1e30f));  // -inf: not seen at all
    store_first(a.scratch + i, kept, lanes);
    sums = sums + kept;
  }
  const F32x16 scale = broadcast(1.0f / reduce_add(sums));
  for (int64_t i = 0; i < a.value_dim; i += kLanes) {
    const int64_t lanes = a.value_dim - i >= kLanes ? kLanes : a.value_dim - i;
    F32x16 out = zero_f32();
    const float* weight = a.scratch;
    for (int64_t run = 0; run < a.n_runs; ++run)
      for (int64_t key = 0; key < a.runs[run].n_keys; ++key, ++weight)
        out = fma(broadcast(*weight), load_first(a.runs[run].values + key * a.value_dim + i, lanes), out);
    store_first(a.out + i, out * scale, lanes);
  }
}

void add_scaled_row(const float* x, float scale, int64_t n, float* out) {
  const F32x16 s = broadcast(scale);
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t lanes = n - i >= kLanes ? kLanes : n - i;
    store_first(out + i, fma(load_first(x + i, lanes), s, load_first(out + i, lanes)), lanes);
  }
}

}  // namespace polyspan::POLYSPAN_ISA
