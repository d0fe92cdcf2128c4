// plan/span_plan.h: a plan gives each head of each layer its rule, and a rule gives it a span for an input length.
// Source: MoA (arXiv 2406.14909) section 3.1; the project's conventions: sink, block, KV-head plans, density.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace polyspan {

inline constexpr int64_t kDefaultSinkTokens = 64;
inline constexpr int64_t kBlockTokens = 64;  // the smallest span

// span(N) = clamp(alpha + beta * N, kBlockTokens, N) tokens (N where N < kBlockTokens), rounded down to a whole token.
struct SpanRule {
  double alpha = 0;  // tokens; may be negative
  double beta = 1;   // in [0, 1]
  int64_t span(int64_t planned_length) const;
  bool operator==(const SpanRule&) const = default;
};
inline constexpr SpanRule kDenseRule{0, 1};

// The heads of a model that a plan must fit.
struct HeadShape {
  int64_t n_layers = 0;  // that have attention
  int64_t n_heads = 0;
  int64_t n_kv_heads = 0;
  // Where every head has a window, whatever the input's length (Hydra): a plan's length is then this window, its spans are
  // whole steps of it, and there are no sink tokens. 0: no window.
  int64_t window = 0;
  int64_t span_step = 1;

  int64_t plan_length(int64_t length) const { return window > 0 ? window : length; }
  int64_t default_sink() const { return window > 0 ? 0 : kDefaultSinkTokens; }
  // Of a head with this rule, in tokens. Rounded down to a whole step, at least one.
  int64_t span(const SpanRule& rule, int64_t planned_length) const;
};

// Spans in tokens for one planned length: [n_layers][n_kv_heads] (what a KV head's cache must keep: the longest span of
// its group) and [n_layers][n_heads] (what each query head may see of it).
struct SpanTable {
  int64_t planned_length = 0;
  int64_t n_sink_tokens = kDefaultSinkTokens;
  std::vector<std::vector<int64_t>> kv_head_spans;
  std::vector<std::vector<int64_t>> query_head_spans;
  // Whether every query head of every group has the span of its KV head.
  bool per_kv_head() const;
};

class SpanPlan {
 public:
  // Every head dense.
  static SpanPlan dense(const HeadShape& shape);
  // The StreamingLLM-like plan of one density for all heads: sink + span = density * N, so that the *density* (sink
  // included) is `density` at every length. REQUIRES (else Error kBadInput): 0 < density <= 1.
  static SpanPlan uniform(const HeadShape& shape, double density);
  static SpanPlan uniform(const HeadShape& shape, double density, int64_t n_sink_tokens);
  // `spec` is "dense", "uniform:DENSITY" or the path of a plan file; checks that the plan fits `shape`.
  static SpanPlan from_spec(const std::string& spec, const HeadShape& shape);
  // Reads a plan file: JSON with alphas and betas [layers][query heads or KV heads], and optional further keys (format
  // in docs/plans.md). `shape` may be absent (inspect): n_kv_heads then comes from the file, else equals the entries a
  // layer.
  static SpanPlan load(const std::filesystem::path& path, const std::optional<HeadShape>& shape);
  static SpanPlan parse(std::string_view json, const std::filesystem::path& name,
                        const std::optional<HeadShape>& shape);
  void save(const std::filesystem::path& path) const;
  std::string to_json() const;

  const HeadShape& shape() const { return shape_; }
  int64_t n_sink_tokens() const { return n_sink_tokens_; }
  bool is_dense() const;
  // True when the file gives one rule a query head (then kv spans are the group's longest).
  bool per_query_head() const { return per_query_head_; }
  const SpanRule& rule(int64_t layer, int64_t head_or_kv_head) const;  // entry of the file's own granularity
  int64_t rules_per_layer() const { return per_query_head_ ? shape_.n_heads : shape_.n_kv_heads; }

  SpanTable spans(int64_t planned_length) const;

  // KV tokens kept / KV tokens of the dense cache over all KV heads, sink included, at a length (moa.md section 1).
  double density(int64_t length) const;
  // The same without the sink: the longest span of each group alone.
  double density_without_sink(int64_t length) const;
  // Whether the plan says how many sink tokens it was made for; a file of the published form does not, and the engine
  // then keeps kDefaultSinkTokens.
  bool names_sink() const { return names_sink_; }
  // The published figure: mean over the file's entries of min(N, span) / N, without sink and without GQA grouping.
  double mean_relative_span(int64_t length) const;

  // Optional keys of the file, kept on save.
  struct Info {
    std::string model_name, model_fingerprint, created_by, influence;
    std::optional<double> density;
    std::vector<int64_t> lengths;
  };
  const Info& info() const { return info_; }
  void set_info(Info info) { info_ = std::move(info); }
  // Builds a plan from rules: [n_layers][n_heads] or [n_layers][n_kv_heads].
  static SpanPlan from_rules(const HeadShape& shape, std::vector<std::vector<SpanRule>> rules, bool per_query_head,
                             int64_t n_sink_tokens);
  static SpanPlan from_rules(const HeadShape& shape, std::vector<std::vector<SpanRule>> rules, bool per_query_head) {
    return from_rules(shape, std::move(rules), per_query_head, shape.default_sink());
  }

 private:
  HeadShape shape_;
  int64_t n_sink_tokens_ = kDefaultSinkTokens;
  bool per_query_head_ = false;
  bool names_sink_ = true;
  std::vector<std::vector<SpanRule>> rules_;
  Info info_;
};

}  // namespace polyspan
