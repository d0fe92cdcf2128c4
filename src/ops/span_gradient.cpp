#include "ops/span_gradient.h"

#include <algorithm>
#include <cstring>

#include "core/dtype.h"
#include "core/error.h"
#include "ops/isa.h"

namespace polyspan {
namespace {

constexpr int64_t kTile = kPrefillKeyTile;

// About 96 rows an item, as in prefill: a tile of keys pays for its loads.
int64_t queries_per_block(int64_t n_rep) { return std::max<int64_t>(8, 96 / n_rep); }

// Items of one KV head in the backward pass: each has its own sums of dk and dv, added up in order afterwards.
int64_t parts_of(int64_t n_kv_heads) { return std::clamp<int64_t>(24 / n_kv_heads, 2, 8); }

int64_t padded_tokens(const GradientShape& s) { return round_up_to(s.n_tokens, kTile); }

// One item's rows, gathered and padded with zeros: [n_rows][d].
struct Block {
  int64_t first_query, n_queries;
};

void gather(const float* from, const GradientShape& s, int64_t kv_head, const Block& block, int64_t d, float* to) {
  const int64_t n_rep = s.n_heads / s.n_kv_heads, n_rows = block.n_queries * n_rep,
                n_padded = round_up_to(n_rows, kPrefillRowBlock);
  for (int64_t row = 0; row < n_padded; ++row, to += d) {
    const int64_t filled = row < n_rows ? s.head_dim : 0;
    const int64_t at = ((block.first_query + row / n_rep) * s.n_heads + kv_head * n_rep + row % n_rep) * s.head_dim;
    if (filled > 0) std::memcpy(to, from + at, sizeof(float) * static_cast<size_t>(filled));
    std::fill(to + filled, to + d, 0.0f);
  }
}

void scatter(const float* from, const GradientShape& s, int64_t kv_head, const Block& block, int64_t d, float* to) {
  const int64_t n_rep = s.n_heads / s.n_kv_heads;
  for (int64_t row = 0; row < block.n_queries * n_rep; ++row, from += d) {
    const int64_t at = ((block.first_query + row / n_rep) * s.n_heads + kv_head * n_rep + row % n_rep) * s.head_dim;
    std::memcpy(to + at, from, sizeof(float) * static_cast<size_t>(s.head_dim));
  }
}

}  // namespace

int64_t SpanGradient::bytes_needed(const GradientShape& s) {
  const int64_t matrix = padded_tokens(s) * kv_head_dim_padded(s.head_dim) * static_cast<int64_t>(sizeof(float));
  return matrix * s.n_kv_heads * (4 + 2 * parts_of(s.n_kv_heads));
}

SpanGradient::SpanGradient(const GradientShape& shape)
    : shape_(shape),
      n_rep_(shape.n_heads / shape.n_kv_heads),
      d_(kv_head_dim_padded(shape.head_dim)),
      n_padded_(padded_tokens(shape)),
      n_parts_(parts_of(shape.n_kv_heads)),
      memory_(bytes_needed(shape), "the keys and gradients of a profile") {
  POLYSPAN_CHECK(shape.n_tokens >= 1 && shape.n_heads % shape.n_kv_heads == 0 && shape.head_dim >= 1 &&
                 shape.head_dim <= 512);
  const int64_t all = shape.n_kv_heads * n_padded_ * d_;
  keys_ = memory_.as<float>().data();
  keys_t_ = keys_ + all;
  values_ = keys_t_ + all;
  values_t_ = values_ + all;
  parts_ = values_t_ + all;
}

float* SpanGradient::part(int64_t kv_head, int64_t index, bool values) const {
  return parts_ + ((kv_head * n_parts_ + index) * 2 + (values ? 1 : 0)) * n_padded_ * d_;
}

void SpanGradient::set_keys(const float* k, const float* v, OpContext& context) {
  const int64_t n_tiles = n_padded_ / kTile;
  const bool rounds = current_isa() == IsaLevel::kAvx512Bf16;  // as the products of the gradients do
  context.team().each(shape_.n_kv_heads * n_tiles, [&](int64_t item, int) {
    const int64_t kv_head = item / n_tiles, base = item % n_tiles * kTile, at = kv_head * n_padded_ * d_ + base * d_;
    const auto fill = [&](const float* from, bool round, float* rows, float* columns) {
      std::fill_n(rows, kTile * d_, 0.0f);
      for (int64_t i = 0; i < std::min(kTile, shape_.n_tokens - base); ++i)
        std::memcpy(rows + i * d_, from + ((base + i) * shape_.n_kv_heads + kv_head) * shape_.head_dim,
                    sizeof(float) * static_cast<size_t>(shape_.head_dim));
      if (round) std::transform(rows, rows + kTile * d_, rows, [](float x) { return bf16_to_f32(f32_to_bf16(x)); });
      for (int64_t channel = 0; channel < d_; ++channel)
        for (int64_t i = 0; i < kTile; ++i) columns[channel * kTile + i] = rows[i * d_ + channel];
    };
    fill(k, false, keys_ + at, keys_t_ + at);
    fill(v, rounds, values_ + at, values_t_ + at);
  });
}

void SpanGradient::forward(const float* q, const AttentionSpan* spans, float* out, float* log_sum, OpContext& context) {
  const int64_t per_block = queries_per_block(n_rep_), n_blocks = (shape_.n_tokens + per_block - 1) / per_block;
  const int64_t n_rows = round_up_to(per_block * n_rep_, kPrefillRowBlock);
  context.reserve_scratch(static_cast<int64_t>(sizeof(float)) *
                          (n_rows * (2 * d_ + 1) + whole_attention_scratch_floats(n_rows)));
  context.team().each(n_blocks * shape_.n_kv_heads, [&](int64_t item, int thread) {
    const int64_t kv_head = item % shape_.n_kv_heads,
                  first = (n_blocks - 1 - item / shape_.n_kv_heads) * per_block;  // long ones first
    const Block block{first, std::min(per_block, shape_.n_tokens - first)};
    float* q_rows = reinterpret_cast<float*>(context.scratch(thread));
    float *out_rows = q_rows + n_rows * d_, *log_rows = out_rows + n_rows * d_, *scratch = log_rows + n_rows;
    gather(q, shape_, kv_head, block, d_, q_rows);
    const int64_t at = kv_head * n_padded_ * d_;
    kernels().whole_attention({d_, n_rep_, block.n_queries, first, q_rows, spans + kv_head * n_rep_, keys_t_ + at,
                               values_ + at, out_rows, log_rows, scratch});
    scatter(out_rows, shape_, kv_head, block, d_, out);
    for (int64_t row = 0; row < block.n_queries * n_rep_; ++row)
      log_sum[(first + row / n_rep_) * shape_.n_heads + kv_head * n_rep_ + row % n_rep_] = log_rows[row];
  });
}

void SpanGradient::backward(const SpanGradientArgs& args, OpContext& context) {
  const int64_t n_candidates = std::ssize(args.candidates), per_block = queries_per_block(n_rep_);
  const int64_t n_blocks = (shape_.n_tokens + per_block - 1) / per_block,
                n_rows = round_up_to(per_block * n_rep_, kPrefillRowBlock);
  const bool gradient = args.dq != nullptr;
  POLYSPAN_CHECK((args.dk != nullptr) == gradient && (args.dv != nullptr) == gradient);
  context.reserve_scratch(static_cast<int64_t>(sizeof(float)) *
                          (n_rows * (4 * d_ + 1) + attention_gradient_scratch_floats(n_rows, d_, n_candidates)));
  // Effects of every item by itself, added up in order: [items][4][n_rep, n_candidates].
  const int64_t n_items = shape_.n_kv_heads * n_parts_, per_item = 4 * n_rep_ * n_candidates;
  std::vector<double> effects(static_cast<size_t>(n_items * per_item), 0.0);
  context.team().each(n_items, [&](int64_t item, int thread) {
    const int64_t kv_head = item % shape_.n_kv_heads, index = item / shape_.n_kv_heads, at = kv_head * n_padded_ * d_;
    float *dk = nullptr, *dv = nullptr;
    if (gradient) {
      dk = part(kv_head, index, false), dv = part(kv_head, index, true);
      std::fill_n(dk, 2 * n_padded_ * d_, 0.0f);
    }
    double* sums = effects.data() + item * per_item;
    float* q_rows = reinterpret_cast<float*>(context.scratch(thread));
    float *out_rows = q_rows + n_rows * d_, *d_out_rows = out_rows + n_rows * d_, *dq_rows = d_out_rows + n_rows * d_;
    float *log_rows = dq_rows + n_rows * d_, *scratch = log_rows + n_rows;
    for (int64_t b = index; b < n_blocks; b += n_parts_) {
      const Block block{b * per_block, std::min(per_block, shape_.n_tokens - b * per_block)};
      gather(args.d_out, shape_, kv_head, block, d_, d_out_rows);
      // The last layers of a sample whose loss lies on a few tokens: rows that nothing depends on.
      if (std::all_of(d_out_rows, d_out_rows + n_rows * d_, [](float x) { return x == 0.0f; })) {
        if (gradient) std::fill_n(dq_rows, n_rows * d_, 0.0f), scatter(dq_rows, shape_, kv_head, block, d_, args.dq);
        continue;
      }
      gather(args.q, shape_, kv_head, block, d_, q_rows);
      gather(args.out, shape_, kv_head, block, d_, out_rows);
      for (int64_t row = 0; row < block.n_queries * n_rep_; ++row)
        log_rows[row] =
            args.log_sum[(block.first_query + row / n_rep_) * shape_.n_heads + kv_head * n_rep_ + row % n_rep_];
      kernels().attention_gradient(
          {.forward = {d_, n_rep_, block.n_queries, block.first_query, q_rows, args.spans + kv_head * n_rep_,
                       keys_t_ + at, values_ + at, out_rows, log_rows, scratch},
           .d_out = d_out_rows,
           .keys = keys_ + at,
           .values_t = values_t_ + at,
           .dq = gradient ? dq_rows : nullptr,
           .dk = dk,
           .dv = dv,
           .candidates = args.candidates.data(),
           .n_candidates = n_candidates,
           .span = sums,
           .span_abs = sums + n_rep_ * n_candidates,
           .span_square = sums + 2 * n_rep_ * n_candidates,
           .pairwise = sums + 3 * n_rep_ * n_candidates});
      if (gradient) scatter(dq_rows, shape_, kv_head, block, d_, args.dq);
    }
  });
  for (int64_t item = 0; item < n_items; ++item) {
    const int64_t to = item % shape_.n_kv_heads * n_rep_ * n_candidates;
    const double* sums = effects.data() + item * per_item;
    for (int64_t i = 0; i < n_rep_ * n_candidates; ++i) {
      args.span[to + i] += sums[i];
      args.span_abs[to + i] += sums[n_rep_ * n_candidates + i];
      args.span_square[to + i] += sums[2 * n_rep_ * n_candidates + i];
      args.pairwise[to + i] += sums[3 * n_rep_ * n_candidates + i];
    }
  }
  if (!gradient) return;
  context.team().split(shape_.n_tokens, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t)
      for (int64_t kv_head = 0; kv_head < shape_.n_kv_heads; ++kv_head)
        for (const bool values : {false, true}) {
          float* to = (values ? args.dv : args.dk) + (t * shape_.n_kv_heads + kv_head) * shape_.head_dim;
          std::fill_n(to, shape_.head_dim, 0.0f);
          for (int64_t index = 0; index < n_parts_; ++index) {
            const float* from = part(kv_head, index, values) + t * d_;
            for (int64_t i = 0; i < shape_.head_dim; ++i) to[i] += from[i];
          }
        }
  });
}

}  // namespace polyspan
