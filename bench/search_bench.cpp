// bench/search_bench.cpp: how long the search for a plan takes, on random loss curves of a model's shape.
#include <CLI/CLI.hpp>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <iostream>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "core/error.h"
#include "moa/search.h"

namespace {

using polyspan::LossCurve;
using polyspan::SearchProblem;

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double uniform(std::mt19937_64& random) { return static_cast<double>(random() >> 11) * 0x1p-53; }

// Losses that fall with the span, fast at first, over three decades of heads; a head's shape varies with the length.
LossCurve random_curve(int64_t length, int64_t source_length, int64_t n_heads, std::mt19937_64& random) {
  constexpr int64_t kSpans = 17;
  LossCurve curve{.length = length, .source_length = source_length, .spans = {}, .loss = {}};
  for (int64_t i = 0; i < kSpans; ++i)
    curve.spans.push_back(polyspan::kBlockTokens + i * (source_length - polyspan::kBlockTokens) / kSpans);
  for (int64_t head = 0; head < n_heads; ++head) {
    const double size = std::pow(10.0, -3 * uniform(random));
    const double steepness = 1 + 30 * uniform(random) * uniform(random);
    std::vector<double> fall;  // between neighbouring spans
    for (int64_t i = 0; i < kSpans; ++i)
      fall.push_back(uniform(random) * std::exp(-steepness * static_cast<double>(i) / kSpans));
    double left = std::accumulate(fall.begin(), fall.end(), 0.0);
    const double all = left;
    for (int64_t i = 0; i < kSpans; ++i) {
      curve.loss.push_back(size * left / all);
      left -= fall[i];
    }
  }
  return curve;
}

}  // namespace

int main(int argc, char** argv) {
  SearchProblem problem;
  problem.shape = {.n_layers = 30, .n_heads = 9, .n_kv_heads = 3};
  std::vector<int64_t> profile{1024, 2048, 4096}, extend{8192};
  int64_t steps = 5;
  uint64_t seed = 1;
  polyspan::RuleOptions rule_options;
  CLI::App app("Times the search for a plan on random loss curves.");
  app.add_option("--layers", problem.shape.n_layers, "layers")->capture_default_str();
  app.add_option("--heads", problem.shape.n_heads, "query heads a layer")->capture_default_str();
  app.add_option("--kv-heads", problem.shape.n_kv_heads, "KV heads a layer")->capture_default_str();
  app.add_flag("--per-query-head", problem.per_query_head, "a rule for each query head");
  app.add_option("--lengths", profile, "profile lengths")->delimiter(',');
  app.add_option("--extend", extend, "extension lengths")->delimiter(',');
  app.add_option("--alpha-step", rule_options.alpha_step, "tokens between alphas [from the lengths]");
  app.add_option("--beta-parts", rule_options.beta_parts, "steps of beta from 0 to 1")->capture_default_str();
  app.add_option("--density", problem.density, "of the KV cache")->capture_default_str();
  app.add_option("--min-fill", problem.min_fill, "lower bound of the density, as a share")->capture_default_str();
  app.add_option("--gap", problem.gap, "relative optimality gap")->capture_default_str();
  app.add_option("--steps", steps, "of the front's grid; 0: corners only")->capture_default_str();
  app.add_option("--seed", seed, "of the curves")->capture_default_str();
  bool no_front = false;
  app.add_flag("--no-front", no_front, "one solve only");
  CLI11_PARSE(app, argc, argv);
  try {
    std::mt19937_64 random(seed);
    for (const int64_t length : profile)
      problem.curves.push_back(random_curve(length, length, problem.n_heads(), random));
    for (const int64_t length : extend) {
      problem.curves.push_back(problem.curves[profile.size() - 1]);
      problem.curves.back().length = length;
    }
    problem.bounded_lengths = profile;
    problem.bounded_lengths.insert(problem.bounded_lengths.end(), extend.begin(), extend.end());
    problem.rules = polyspan::make_rules(profile, extend, rule_options);
    std::printf("%lld heads, %zu rules, %zu lengths, density %g, gap %g\n", static_cast<long long>(problem.n_heads()),
                problem.rules.size(), problem.bounded_lengths.size(), problem.density, problem.gap);
    auto start = std::chrono::steady_clock::now();
    const auto sum = polyspan::minimise(problem, std::vector<double>(problem.curves.size(), 1));
    std::printf("one solve: %.2f s, loss %.6f, density", seconds_since(start),
                std::accumulate(sum.losses.begin(), sum.losses.end(), 0.0));
    for (const double density : sum.densities) std::printf(" %.4f", density);
    std::printf("\n");
    if (no_front) return 0;
    start = std::chrono::steady_clock::now();
    const auto front = polyspan::pareto_front(problem, steps);
    std::printf("front: %.2f s, %zu plans\n", seconds_since(start), front.size());
    for (const auto& candidate : front) {
      for (const double loss : candidate.losses) std::printf("  %10.6f", loss);
      std::printf("  %s\n", candidate.origin.c_str());
    }
  } catch (const std::exception& error) {
    std::cerr << "polyspan-search-bench: " << error.what() << "\n";
    return 1;
  }
  return 0;
}
