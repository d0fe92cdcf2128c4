#include <algorithm>
#include <cmath>
#include <vector>

#include "ops/span_attention.h"

namespace polyspan {

void span_attention_reference(const SpanAttentionReferenceArgs& args, float* out) {
  const int64_t n_rep = args.n_heads / args.n_kv_heads, d = args.head_dim;
  for (int64_t query = 0; query < args.n_queries; ++query)
    for (int64_t head = 0; head < args.n_heads; ++head) {
      const int64_t position = args.first_position + query, kv_head = head / n_rep;
      const float* q = args.q + (query * args.n_heads + head) * d;
      std::vector<double> scores, sum(static_cast<size_t>(d), 0.0);
      std::vector<int64_t> keys;
      for (int64_t key = 0; key <= position; ++key) {
        const AttentionSpan& span = args.spans[head];
        if (key >= span.n_sink_tokens && position - key >= span.span) continue;
        const float* k = args.k + (key * args.n_kv_heads + kv_head) * d;
        double dot = 0;
        for (int64_t i = 0; i < d; ++i) dot += static_cast<double>(q[i]) * static_cast<double>(k[i]);
        scores.push_back(dot / std::sqrt(static_cast<double>(d)));
        keys.push_back(key);
      }
      const double largest = *std::max_element(scores.begin(), scores.end());
      double total = 0;
      for (size_t i = 0; i < keys.size(); ++i) {
        const double weight = std::exp(scores[i] - largest);
        total += weight;
        const float* v = args.v + (keys[i] * args.n_kv_heads + kv_head) * d;
        for (int64_t j = 0; j < d; ++j) sum[static_cast<size_t>(j)] += weight * static_cast<double>(v[j]);
      }
      for (int64_t j = 0; j < d; ++j)
        out[(query * args.n_heads + head) * d + j] = static_cast<float>(sum[static_cast<size_t>(j)] / total);
    }
}

}  // namespace polyspan
