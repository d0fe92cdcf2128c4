#include "plan/span_plan.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <utility>

#include "core/error.h"
#include "core/mapped_file.h"
#include "plan/plan_file.h"

namespace polyspan {
namespace {

// The longest input that a rule is ever asked about: a rule whose span is negative even there is a mistake.
constexpr double kLongestLength = 1ll << 31;

bool is_negative_everywhere(const SpanRule& rule) { return rule.alpha + rule.beta * kLongestLength < 0; }

// Whether the rule hides no key at any length: the sink covers what alpha takes away.
bool is_dense_rule(const SpanRule& rule, int64_t n_sink_tokens) {
  return rule.beta >= 1 && rule.alpha >= -static_cast<double>(n_sink_tokens);
}

void check_shape(const HeadShape& shape) {
  POLYSPAN_CHECK(shape.window == 0 || (shape.span_step >= 1 && shape.window % shape.span_step == 0),
                 "a window's steps");
  if (shape.n_layers < 1 || shape.n_heads < 1 || shape.n_kv_heads < 1 || shape.n_heads % shape.n_kv_heads != 0)
    throw Error::bad_input("a plan for ", shape.n_layers, " layers of ", shape.n_heads, " heads and ", shape.n_kv_heads,
                           " KV heads: wanted at least one of each, and a whole number of heads for each KV head");
}

void check_length(int64_t length) {
  if (length < 1) throw Error::bad_input("a plan was asked for its spans at length ", length, ", wanted at least 1");
}

std::vector<std::vector<SpanRule>> same_rule(const HeadShape& shape, const SpanRule& rule) {
  const std::vector<SpanRule> row(static_cast<size_t>(shape.n_kv_heads), rule);
  return std::vector<std::vector<SpanRule>>(static_cast<size_t>(shape.n_layers), row);
}

// The number behind "uniform:".
double parse_density(std::string_view text) {
  double density = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), density);
  if (error != std::errc() || end != text.data() + text.size())
    throw Error::bad_input("plan \"uniform:", text.substr(0, 40), "\": wanted a density, as in uniform:0.5");
  return density;
}

// Throws unless alphas and betas have the same rows, all of one length, which is returned.
int64_t check_table(const PlanFile& file, const std::filesystem::path& name) {
  const size_t n_layers = file.alphas.size();
  if (n_layers == 0) throw Error::bad_file(name, "alphas: found no layers, wanted at least one");
  if (file.betas.size() != n_layers)
    throw Error::bad_file(name, "betas: found ", file.betas.size(), " layers, wanted ", n_layers, " as in alphas");
  const size_t n_entries = file.alphas[0].size();
  if (n_entries == 0) throw Error::bad_file(name, "alphas, layer 0: found no heads, wanted at least one");
  for (size_t layer = 0; layer < n_layers; ++layer)
    for (const auto* table : {&file.alphas, &file.betas})
      if ((*table)[layer].size() != n_entries)
        throw Error::bad_file(name, table == &file.alphas ? "alphas" : "betas", ", layer ", layer, ": found ",
                              (*table)[layer].size(), " heads, wanted ", n_entries, " as in alphas, layer 0");
  return static_cast<int64_t>(n_entries);
}

void check_equal(const std::filesystem::path& name, const char* what, int64_t found, int64_t wanted) {
  if (found != wanted) throw Error::bad_file(name, what, ": found ", found, ", wanted ", wanted, " as the model has");
}

// Heads with windows have spans by KV head, and no sink.
void check_windows(const PlanFile& file, int64_t n_entries, const std::filesystem::path& name, const HeadShape& shape) {
  if (n_entries != shape.n_kv_heads)
    throw Error::bad_file(name, "alphas, layer 0: found ", n_entries, " heads, wanted ", shape.n_kv_heads,
                          ": heads with windows have spans by KV head");
  if (file.n_sink_tokens.value_or(0) > 0)
    throw Error::bad_file(name, "sink: found ", *file.n_sink_tokens,
                          ", wanted 0: heads with windows keep global tokens in place of the first ones");
}

// The heads that the plan is for: the model's where there is one (the file must fit it), else what the file says.
HeadShape fit_shape(const PlanFile& file, int64_t n_entries, const std::filesystem::path& name,
                    const std::optional<HeadShape>& model) {
  const auto n_layers = static_cast<int64_t>(file.alphas.size());
  if (model) {
    if (n_layers != model->n_layers)
      throw Error::bad_file(name, "found rules for ", n_layers, " layers, wanted ", model->n_layers,
                            model->window > 0 ? ", one for each block with attention" : " as the model has");
    if (file.window) check_equal(name, "window", *file.window, model->window);
    if (file.n_heads) check_equal(name, "n_heads", *file.n_heads, model->n_heads);
    if (file.n_kv_heads) check_equal(name, "n_kv_heads", *file.n_kv_heads, model->n_kv_heads);
    if (n_entries != model->n_heads && n_entries != model->n_kv_heads)
      throw Error::bad_file(name, "alphas, layer 0: found ", n_entries, " heads, wanted ", model->n_heads,
                            " (query heads of the model) or ", model->n_kv_heads, " (its KV heads)");
    return *model;
  }
  const int64_t n_kv_heads = file.n_kv_heads.value_or(n_entries);
  const int64_t n_heads = file.n_heads.value_or(std::max(n_entries, n_kv_heads));
  if (n_heads % n_kv_heads != 0 || (n_entries != n_heads && n_entries != n_kv_heads))
    throw Error::bad_file(name, "alphas, layer 0: found ", n_entries, " heads, wanted ", n_heads, " (n_heads) or ",
                          n_kv_heads, " (n_kv_heads), the first a multiple of the second");
  if (n_layers * n_heads > kMaxPlanRules)
    throw Error::bad_file(name, "found ", n_layers, " layers of ", n_heads, " heads, wanted at most ", kMaxPlanRules,
                          " heads in all");
  HeadShape shape{n_layers, n_heads, n_kv_heads};
  shape.window = file.window.value_or(0), shape.span_step = file.span_step.value_or(1);
  if (shape.window % shape.span_step != 0)
    throw Error::bad_file(name, "window: found ", shape.window, ", wanted a multiple of span_step, ", shape.span_step);
  return shape;
}

}  // namespace

int64_t SpanRule::span(int64_t planned_length) const {
  const auto length = static_cast<double>(planned_length);
  // Clamped before it becomes an integer: alpha may be larger than any int64_t.
  const double span = std::clamp(std::floor(alpha + beta * length), static_cast<double>(kBlockTokens),
                                 std::max(length, static_cast<double>(kBlockTokens)));
  return std::min(static_cast<int64_t>(span), planned_length);
}

int64_t HeadShape::span(const SpanRule& rule, int64_t planned_length) const {
  const int64_t span = rule.span(plan_length(planned_length));
  return window > 0 ? std::max(span / span_step, int64_t{1}) * span_step : span;
}

bool SpanTable::per_kv_head() const {
  for (size_t layer = 0; layer < kv_head_spans.size(); ++layer) {
    const size_t group = query_head_spans[layer].size() / kv_head_spans[layer].size();
    for (size_t head = 0; head < query_head_spans[layer].size(); ++head)
      if (query_head_spans[layer][head] != kv_head_spans[layer][head / group]) return false;
  }
  return true;
}

SpanPlan SpanPlan::dense(const HeadShape& shape) {
  check_shape(shape);
  return from_rules(shape, same_rule(shape, kDenseRule), /*per_query_head=*/false);
}

SpanPlan SpanPlan::uniform(const HeadShape& shape, double density) {
  return uniform(shape, density, shape.default_sink());
}

SpanPlan SpanPlan::uniform(const HeadShape& shape, double density, int64_t n_sink_tokens) {
  check_shape(shape);
  if (!(density > 0 && density <= 1))
    throw Error::bad_input("plan uniform:", density, ": wanted a density above 0, at most 1");
  const SpanRule rule = density == 1 ? kDenseRule : SpanRule{-static_cast<double>(n_sink_tokens), density};
  SpanPlan plan = from_rules(shape, same_rule(shape, rule), /*per_query_head=*/false, n_sink_tokens);
  plan.info_.density = density;
  return plan;
}

SpanPlan SpanPlan::from_spec(const std::string& spec, const HeadShape& shape) {
  constexpr std::string_view kUniform = "uniform:";
  if (spec == "dense") return dense(shape);
  if (spec.starts_with(kUniform)) return uniform(shape, parse_density(std::string_view(spec).substr(kUniform.size())));
  return load(spec, shape);
}

SpanPlan SpanPlan::load(const std::filesystem::path& path, const std::optional<HeadShape>& shape) {
  return parse(MappedFile(path).text(), path, shape);
}

SpanPlan SpanPlan::parse(std::string_view json, const std::filesystem::path& name,
                         const std::optional<HeadShape>& shape) {
  PlanFile file = read_plan_file(json, name);
  const int64_t n_entries = check_table(file, name);
  const HeadShape fitted = fit_shape(file, n_entries, name, shape);
  if (fitted.window > 0) check_windows(file, n_entries, name, fitted);
  std::vector<std::vector<SpanRule>> rules(file.alphas.size());
  for (size_t layer = 0; layer < rules.size(); ++layer)
    for (size_t head = 0; head < file.alphas[layer].size(); ++head) {
      const SpanRule rule{file.alphas[layer][head], file.betas[layer][head]};
      if (is_negative_everywhere(rule))
        throw Error::bad_file(name, "layer ", layer, ", head ", head, ": found alpha ", rule.alpha, " with beta ",
                              rule.beta, ", a negative span at every length, wanted a positive one");
      rules[layer].push_back(rule);
    }
  const bool per_query_head = n_entries != fitted.n_kv_heads;
  SpanPlan plan =
      from_rules(fitted, std::move(rules), per_query_head, file.n_sink_tokens.value_or(fitted.default_sink()));
  plan.names_sink_ = file.n_sink_tokens.has_value() || fitted.window > 0;
  plan.info_ = std::move(file.info);
  return plan;
}

SpanPlan SpanPlan::from_rules(const HeadShape& shape, std::vector<std::vector<SpanRule>> rules, bool per_query_head,
                              int64_t n_sink_tokens) {
  check_shape(shape);
  if (n_sink_tokens < 0 || n_sink_tokens > kMaxSinkTokens)
    throw Error::bad_input("a plan with ", n_sink_tokens, " sink tokens: wanted 0 to ", kMaxSinkTokens);
  SpanPlan plan;
  plan.shape_ = shape;
  plan.n_sink_tokens_ = n_sink_tokens;
  plan.per_query_head_ = per_query_head && shape.n_heads != shape.n_kv_heads;
  POLYSPAN_CHECK(static_cast<int64_t>(rules.size()) == shape.n_layers, "rules of a plan: one row a layer");
  for (const auto& row : rules) {
    POLYSPAN_CHECK(static_cast<int64_t>(row.size()) == plan.rules_per_layer(), "rules of a plan: one entry a head");
    for (const SpanRule& rule : row)
      POLYSPAN_CHECK(std::isfinite(rule.alpha) && rule.beta >= 0 && rule.beta <= 1, "a rule of a plan");
  }
  plan.rules_ = std::move(rules);
  return plan;
}

std::string SpanPlan::to_json() const {
  PlanFile file;
  file.n_sink_tokens = n_sink_tokens_;
  file.n_heads = shape_.n_heads;
  file.n_kv_heads = shape_.n_kv_heads;
  if (shape_.window > 0) file.window = shape_.window, file.span_step = shape_.span_step;
  file.info = info_;
  for (const auto& row : rules_) {
    auto& alphas = file.alphas.emplace_back();
    auto& betas = file.betas.emplace_back();
    for (const SpanRule& rule : row) {
      alphas.push_back(rule.alpha);
      betas.push_back(rule.beta);
    }
  }
  return write_plan_file(file);
}

void SpanPlan::save(const std::filesystem::path& path) const {
  write_file_atomically(path, std::string_view(to_json()));
}

bool SpanPlan::is_dense() const {
  return std::all_of(rules_.begin(), rules_.end(), [this](const auto& row) {
    return std::all_of(row.begin(), row.end(),
                       [this](const auto& rule) { return is_dense_rule(rule, n_sink_tokens_); });
  });
}

const SpanRule& SpanPlan::rule(int64_t layer, int64_t head_or_kv_head) const {
  POLYSPAN_CHECK(layer >= 0 && layer < shape_.n_layers && head_or_kv_head >= 0 && head_or_kv_head < rules_per_layer(),
                 "a rule outside the plan");
  return rules_[static_cast<size_t>(layer)][static_cast<size_t>(head_or_kv_head)];
}

SpanTable SpanPlan::spans(int64_t planned_length) const {
  check_length(planned_length);
  SpanTable table{
      .planned_length = planned_length, .n_sink_tokens = n_sink_tokens_, .kv_head_spans = {}, .query_head_spans = {}};
  const auto n_heads = static_cast<size_t>(shape_.n_heads);
  const auto n_kv_heads = static_cast<size_t>(shape_.n_kv_heads);
  const size_t group = n_heads / n_kv_heads;  // query heads of a KV head; they are neighbours
  for (const auto& row : rules_) {
    auto& query_spans = table.query_head_spans.emplace_back(n_heads);
    auto& kv_spans = table.kv_head_spans.emplace_back(n_kv_heads, 0);
    for (size_t head = 0; head < n_heads; ++head) {
      const size_t kv_head = head / group;
      query_spans[head] = shape_.span(row[per_query_head_ ? head : kv_head], planned_length);
      kv_spans[kv_head] = std::max(kv_spans[kv_head], query_spans[head]);
    }
  }
  return table;
}

double SpanPlan::density(int64_t length) const {
  const int64_t whole = shape_.plan_length(length);
  double kept = 0;  // KV tokens over all KV heads
  for (const auto& row : spans(length).kv_head_spans)
    for (const int64_t span : row) kept += static_cast<double>(std::min(whole, n_sink_tokens_ + span));
  return kept / (static_cast<double>(whole) * static_cast<double>(shape_.n_layers * shape_.n_kv_heads));
}

double SpanPlan::density_without_sink(int64_t length) const {
  const int64_t whole = shape_.plan_length(length);
  double kept = 0;
  for (const auto& row : spans(length).kv_head_spans)
    for (const int64_t span : row) kept += static_cast<double>(std::min(whole, span));
  return kept / (static_cast<double>(whole) * static_cast<double>(shape_.n_layers * shape_.n_kv_heads));
}

double SpanPlan::mean_relative_span(int64_t length) const {
  check_length(length);
  const int64_t whole = shape_.plan_length(length);
  double sum = 0;
  for (const auto& row : rules_)
    for (const SpanRule& rule : row) sum += static_cast<double>(shape_.span(rule, length));
  return sum / (static_cast<double>(whole) * static_cast<double>(shape_.n_layers * rules_per_layer()));
}

}  // namespace polyspan
