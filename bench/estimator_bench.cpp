// polyspan-estimator-bench: how well the estimators of a profile rank what really happens when one KV head is cut. For
// random (KV head, span) pairs: the change of a sample's loss by a forward pass with that head cut, against the
// first-order predictions of one backward pass of the uncut model. Prints a row a pair (--rows) and rank correlations
// (Spearman).
//   polyspan-estimator-bench model.gguf --length 1024 --cuts 200 --kind passkey-natural --loss log-odds
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <random>

#include "core/error.h"
#include "engine/engine.h"
#include "eval/natural_text.h"
#include "moa/calibration.h"
#include "moa/compress_options.h"
#include "moa/influence.h"
#include "moa/validation.h"

namespace {

using namespace polyspan;

struct Cut {
  int64_t layer = 0, kv_head = 0;
  size_t candidate = 0;
  double change = 0, span = 0, span_abs = 0, square = 0, pairwise = 0;
};

// Ranks from 0; equal values share their mean rank.
std::vector<double> ranks(const std::vector<double>& values) {
  std::vector<size_t> order(values.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return values[a] < values[b]; });
  std::vector<double> rank(values.size());
  for (size_t i = 0, end = 0; i < order.size(); i = end) {
    for (end = i; end < order.size() && values[order[end]] == values[order[i]];) ++end;
    for (size_t k = i; k < end; ++k) rank[order[k]] = 0.5 * static_cast<double>(i + end - 1);
  }
  return rank;
}

double rank_correlation(const std::vector<double>& a, const std::vector<double>& b) {
  const std::vector<double> x = ranks(a), y = ranks(b);
  const double mean = 0.5 * static_cast<double>(x.size() - 1);
  double xy = 0, xx = 0, yy = 0;
  for (size_t i = 0; i < x.size(); ++i)
    xy += (x[i] - mean) * (y[i] - mean), xx += (x[i] - mean) * (x[i] - mean), yy += (y[i] - mean) * (y[i] - mean);
  return xy / std::sqrt(xx * yy);
}

void print_correlations(const char* which, const std::vector<Cut>& cuts) {
  if (cuts.size() < 8) {
    std::printf("%-34s %4zu cuts: too few\n", which, cuts.size());
    return;
  }
  std::vector<double> change, size, span, span_abs, square, pairwise;
  for (const Cut& cut : cuts)
    change.push_back(cut.change), size.push_back(std::abs(cut.change)), span.push_back(cut.span),
        span_abs.push_back(cut.span_abs), square.push_back(cut.square), pairwise.push_back(cut.pairwise);
  std::printf("%-34s %4zu cuts: span %.3f, span-abs %.3f, squares %.3f, pairwise %.3f (of |change|: %.3f, %.3f)\n",
              which, cuts.size(), rank_correlation(change, span), rank_correlation(change, span_abs),
              rank_correlation(change, square), rank_correlation(change, pairwise), rank_correlation(size, span_abs),
              rank_correlation(size, pairwise));
}

double loss_of(const std::vector<TargetScore>& scores, ProfileLoss loss) {
  return loss == ProfileLoss::kLogOdds ? -mean_log_odds(scores) : mean_loss(scores);
}

}  // namespace

int main(int argc, char** argv) {
  std::string path, kind = "passkey-natural", loss_name = "log-odds";
  int64_t length = 1024, n_cuts = 200, index = 1;
  uint64_t seed = 1;
  int threads = 0;
  bool rows = false;
  CLI::App app{"Rank correlation of the estimators with the true change of the loss when one KV head is cut"};
  app.add_option("model", path)->required();
  app.add_option("--length", length);
  app.add_option("--cuts", n_cuts);
  app.add_option("--kind", kind, "of the sample (moa/calibration.h)");
  app.add_option("--index", index, "of the sample");
  app.add_option("--loss", loss_name);
  app.add_option("--seed", seed);
  app.add_option("-t", threads);
  app.add_flag("--rows", rows);
  CLI11_PARSE(app, argc, argv);
  try {
    const ProfileLoss loss = profile_loss_by_name(loss_name);
    const auto engine = Engine::load(path, threads > 0 ? threads : default_thread_count());
    CalibrationSource source(*engine, {seed, default_natural_text().value_or(""), {}}, length);
    const CalibrationSample sample = source.make(kind, length, index);
    const auto profiler = engine->model().make_span_profiler(no_progress());
    const HeadShape shape = engine->config().head_shape();
    const int64_t group = shape.n_heads / shape.n_kv_heads;
    const std::vector<int64_t> candidates = candidate_spans(shape, length);
    std::vector<AttentionSpan> spans(static_cast<size_t>(shape.n_layers * shape.n_heads), {length, kDefaultSinkTokens});
    const ProfileRequest dense{sample.tokens, sample.targets, spans, candidates, loss};
    const double dense_loss = loss_of(profiler->forward(dense), loss);
    const SpanInfluence in = profiler->backward(dense);
    std::mt19937_64 random(seed);
    const auto below = [&](size_t n) { return static_cast<size_t>(random() % n); };
    std::vector<Cut> cuts;
    for (int64_t i = 0; i < n_cuts; ++i) {
      Cut cut{static_cast<int64_t>(below(static_cast<size_t>(shape.n_layers))),
              static_cast<int64_t>(below(static_cast<size_t>(shape.n_kv_heads))), below(candidates.size() - 1)};
      const auto first = static_cast<size_t>(cut.layer * shape.n_heads + cut.kv_head * group);
      for (int64_t r = 0; r < group; ++r) {
        const size_t at = in.at(cut.layer, cut.kv_head * group + r, static_cast<int64_t>(cut.candidate));
        cut.span += in.span[at], cut.span_abs += in.span_abs[at];
        cut.square += in.span_square[at], cut.pairwise += in.pairwise[at];
        spans[first + static_cast<size_t>(r)].span = candidates[cut.candidate];
      }
      cut.change = loss_of(profiler->forward(dense), loss) - dense_loss;  // dense.spans is a view of `spans`
      for (int64_t r = 0; r < group; ++r) spans[first + static_cast<size_t>(r)].span = length;
      if (rows)
        std::printf("layer %lld head %lld span %lld: change %.5f, span %.5f, span-abs %.5f, pairwise %.5f\n",
                    static_cast<long long>(cut.layer), static_cast<long long>(cut.kv_head),
                    static_cast<long long>(candidates[cut.candidate]), cut.change, cut.span, cut.span_abs,
                    cut.pairwise);
      cuts.push_back(cut);
    }
    std::printf("%s of %lld tokens, loss %s: %.4f dense\n", sample.id.c_str(), static_cast<long long>(length),
                loss_name.c_str(), dense_loss);
    print_correlations("all", cuts);
    std::vector<Cut> small, larger;
    for (const Cut& cut : cuts)
      (std::abs(cut.change) < 0.02 * std::max(1.0, std::abs(dense_loss)) ? small : larger).push_back(cut);
    print_correlations("change below 2% of the loss", small);
    print_correlations("larger ones", larger);
    std::vector<Cut> felt;
    for (const Cut& cut : cuts)
      if (std::abs(cut.change) > 1e-3 * std::max(1.0, std::abs(dense_loss))) felt.push_back(cut);
    print_correlations("change above 0.1% of the loss", felt);
  } catch (const Error& error) {
    std::fprintf(stderr, "polyspan-estimator-bench: %s\n", error.what());
    return 1;
  }
  return 0;
}
