#include <algorithm>
#include <cmath>
#include <vector>

#include "ops/span_gradient.h"

namespace polyspan {
namespace {

double kept(double removed) { return std::max(1 - removed, static_cast<double>(kLeastKeptShare)); }

}  // namespace

// Straight from the definitions: each row's scores whole, each candidate's removed or added keys one by one.
void span_gradient_reference(const GradientShape& s, const float* k, const float* v, const SpanGradientArgs& args) {
  const int64_t n_rep = s.n_heads / s.n_kv_heads, n_candidates = std::ssize(args.candidates), d = s.head_dim;
  std::vector<double> dk(static_cast<size_t>(s.n_tokens * s.n_kv_heads * d)), dv(dk.size());
  for (int64_t row = 0; row < s.n_tokens; ++row)
    for (int64_t head = 0; head < s.n_heads; ++head) {
      const auto [span, n_sink] = args.spans[head];
      const float *q = args.q + (row * s.n_heads + head) * d, *d_out = args.d_out + (row * s.n_heads + head) * d;
      const auto key_at = [&](int64_t key) { return (key * s.n_kv_heads + head / n_rep) * d; };
      std::vector<double> score, weight, d_a;
      double total = 0, d_row = 0;
      for (int64_t key = 0; key <= row; ++key) {
        double dot = 0, gradient = 0;
        for (int64_t i = 0; i < d; ++i) {
          dot += static_cast<double>(q[i]) * static_cast<double>(k[key_at(key) + i]);
          gradient += static_cast<double>(d_out[i]) * static_cast<double>(v[key_at(key) + i]);
        }
        score.push_back(dot), d_a.push_back(gradient);
        if (key < n_sink || row - key < span) total += std::exp(dot);
      }
      for (int64_t key = 0; key <= row; ++key) {
        weight.push_back(std::exp(score[static_cast<size_t>(key)]) / total);
        if (key < n_sink || row - key < span) d_row += weight.back() * d_a[static_cast<size_t>(key)];
      }
      if (args.dq != nullptr) {
        std::vector<double> dq(static_cast<size_t>(d));
        for (int64_t key = 0; key <= row; ++key) {
          if (key >= n_sink && row - key >= span) continue;
          const double a = weight[static_cast<size_t>(key)], ds = a * (d_a[static_cast<size_t>(key)] - d_row);
          for (int64_t i = 0; i < d; ++i) {
            dq[static_cast<size_t>(i)] += ds * static_cast<double>(k[key_at(key) + i]);
            dk[static_cast<size_t>(key_at(key) + i)] += ds * static_cast<double>(q[i]);
            dv[static_cast<size_t>(key_at(key) + i)] += a * static_cast<double>(d_out[i]);
          }
        }
        for (int64_t i = 0; i < d; ++i)
          args.dq[(row * s.n_heads + head) * d + i] = static_cast<float>(dq[static_cast<size_t>(i)]);
      }
      for (int64_t c = 0; c < n_candidates; ++c) {
        double m = 0, g = 0, pairs = 0;
        const int64_t candidate = args.candidates[static_cast<size_t>(c)];
        for (int64_t key = n_sink; key <= row; ++key) {
          const double a = weight[static_cast<size_t>(key)], gradient = d_a[static_cast<size_t>(key)];
          const bool removed = row - key >= candidate && row - key < span,
                     added = row - key < candidate && row - key >= span;
          if (!removed && !added) continue;
          m += a, g += a * gradient;
          if (removed) pairs += std::abs(a * (gradient - d_row) / kept(a));
        }
        const double effect = candidate < span ? (m * d_row - g) / kept(m) : (g - m * d_row) / (1 + m);
        args.span[head * n_candidates + c] += effect;
        args.span_abs[head * n_candidates + c] += std::abs(effect);
        args.span_square[head * n_candidates + c] += effect * effect;
        args.pairwise[head * n_candidates + c] += pairs;
      }
    }
  if (args.dq == nullptr) return;
  for (size_t i = 0; i < dk.size(); ++i) args.dk[i] = static_cast<float>(dk[i]), args.dv[i] = static_cast<float>(dv[i]);
}

}  // namespace polyspan
