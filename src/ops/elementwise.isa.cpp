// ops/elementwise.isa.cpp: the row operations of a transformer. Bound by reading the row (L1 or L2).
#include "ops/isa_tables.h"
#include "ops/simd.h"

namespace polyspan::POLYSPAN_ISA {

// out = x * weight / sqrt(mean(x^2) + eps). `out` may be x.
void rmsnorm_row(const float* x, const float* weight, int64_t n, float eps, float* out) {
  F32x16 squares = zero_f32();
  for (int64_t i = 0; i < n; i += kLanes) {
    const F32x16 v = n - i >= kLanes ? load(x + i) : load_first(x + i, n - i);
    squares = fma(v, v, squares);
  }
  const float mean = reduce_add(squares) / static_cast<float>(n) + eps;
  const F32x16 scale = broadcast(1.0f / __builtin_sqrtf(mean));
  for (int64_t i = 0; i < n; i += kLanes) {
    if (n - i >= kLanes) {
      store(out + i, load(x + i) * scale * load(weight + i));
    } else {
      store_first(out + i, load_first(x + i, n - i) * scale * load_first(weight + i, n - i), n - i);
    }
  }
}

void swiglu_row(const float* gate, const float* up, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t lanes = n - i >= kLanes ? kLanes : n - i;
    const F32x16 g = load_first(gate + i, lanes);
    store_first(out + i, g * sigmoid(g) * load_first(up + i, lanes), lanes);
  }
}

// With s = 1 / sqrt(mean(x^2) + eps) and y = s x w: d_x += s w d_y - x s^3 mean(x w d_y).
void rmsnorm_gradient_row(const float* x, const float* weight, const float* d_y, int64_t n, float eps, float* d_x) {
  F32x16 squares = zero_f32(), products = zero_f32();
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t lanes = n - i >= kLanes ? kLanes : n - i;
    const F32x16 v = load_first(x + i, lanes);
    squares = fma(v, v, squares);
    products = fma(v * load_first(weight + i, lanes), load_first(d_y + i, lanes), products);
  }
  const float count = static_cast<float>(n), s = 1.0f / __builtin_sqrtf(reduce_add(squares) / count + eps);
  const F32x16 scale = broadcast(s), along = broadcast(s * s * s * (reduce_add(products) / count));
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t lanes = n - i >= kLanes ? kLanes : n - i;
    const F32x16 across = scale * load_first(weight + i, lanes) * load_first(d_y + i, lanes);
    store_first(d_x + i, load_first(d_x + i, lanes) + (across - along * load_first(x + i, lanes)), lanes);
  }
}

// y = silu(gate) * up; d_gate and d_up may be gate and up.
void swiglu_gradient_row(const float* gate, const float* up, const float* d_y, int64_t n, float* d_gate, float* d_up) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t lanes = n - i >= kLanes ? kLanes : n - i;
    const F32x16 g = load_first(gate + i, lanes), u = load_first(up + i, lanes), d = load_first(d_y + i, lanes);
    const F32x16 s = sigmoid(g);
    store_first(d_up + i, d * g * s, lanes);
    store_first(d_gate + i, d * u * s * fma(g, broadcast(1.0f) - s, broadcast(1.0f)), lanes);
  }
}

void to_f16_row(const float* x, int64_t n, uint16_t* out) {
  const F32x16 largest = broadcast(65504.0f), smallest = broadcast(-65504.0f);
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t lanes = n - i >= kLanes ? kLanes : n - i;
    uint16_t last[kLanes];
    uint16_t* to = lanes == kLanes ? out + i : last;
    store_f16(to, max(min(load_first(x + i, lanes), largest), smallest));
    if (to == last) std::memcpy(out + i, last, static_cast<size_t>(lanes) * sizeof last[0]);
  }
}

void from_f16_row(const uint16_t* x, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t lanes = n - i >= kLanes ? kLanes : n - i;
    uint16_t last[kLanes] = {};
    if (lanes < kLanes) std::memcpy(last, x + i, static_cast<size_t>(lanes) * sizeof last[0]);
    store_first(out + i, load_f16(lanes == kLanes ? x + i : last), lanes);
  }
}

void add_row(const float* x, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t lanes = n - i >= kLanes ? kLanes : n - i;
    store_first(out + i, load_first(out + i, lanes) + load_first(x + i, lanes), lanes);
  }
}

// Plain loops: the compiler vectorises both pairings at every level.
void rope_row(const RopeRowArgs& args) {
  const int64_t n_pairs = args.n_pairs;
  const float scale = args.scale;
  const float* __restrict cos = args.cos;
  const float* __restrict sin = args.sin;
  for (int64_t head = 0; head < args.n_heads; ++head) {
    float* __restrict x = args.x + head * args.head_dim;
    if (args.interleaved) {
      for (int64_t i = 0; i < n_pairs; ++i) {
        const float a = x[2 * i], b = x[2 * i + 1];
        x[2 * i] = (a * cos[i] - b * sin[i]) * scale;
        x[2 * i + 1] = (a * sin[i] + b * cos[i]) * scale;
      }
    } else {
      float* __restrict y = x + n_pairs;
      for (int64_t i = 0; i < n_pairs; ++i) {
        const float a = x[i], b = y[i];
        x[i] = (a * cos[i] - b * sin[i]) * scale;
        y[i] = (a * sin[i] + b * cos[i]) * scale;
      }
    }
    for (int64_t i = 2 * n_pairs; i < args.head_dim; ++i) x[i] *= scale;
  }
}

float max_value(const float* x, int64_t n) {
  float best = x[0];
  int64_t i = 0;
  if (n >= kLanes) {
    F32x16 lanes = load(x);
    for (i = kLanes; i + kLanes <= n; i += kLanes) lanes = max(lanes, load(x + i));
    best = reduce_max(lanes);
  }
  for (; i < n; ++i) best = x[i] > best ? x[i] : best;
  return best;
}

double sum_exp(const float* x, int64_t n, float max_x) {
  double total = 0;
  constexpr int64_t kChunk = 1024;  // float sums of 64 terms a lane, then double
  for (int64_t begin = 0; begin < n; begin += kChunk) {
    const int64_t end = n - begin < kChunk ? n : begin + kChunk;
    F32x16 sum = zero_f32();
    for (int64_t i = begin; i < end; i += kLanes) {
      const int64_t lanes = end - i >= kLanes ? kLanes : end - i;
      sum = sum + keep_lanes(exp(load_first(x + i, lanes) - broadcast(max_x)), 0, lanes, 0.0f);
    }
    total += static_cast<double>(reduce_add(sum));
  }
  return total;
}

}  // namespace polyspan::POLYSPAN_ISA
