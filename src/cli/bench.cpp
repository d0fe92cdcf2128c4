// polyspan bench: prefill and decode speed of a model under a plan.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <random>

#include "cli/cli.h"
#include "core/error.h"
#include "core/huge_buffer.h"
#include "ops/isa.h"

namespace polyspan::cli {
namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;

struct BenchOptions {
  ModelOptions common;
  std::vector<int64_t> prompts, depths;
  int64_t gen = 32, reps = 3;
  uint64_t seed = 1;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

class Bench {
 public:
  Bench(Engine& engine, const SpanPlan& plan, KvType type, const BenchOptions& o)
      : engine_(engine), plan_(plan), type_(type), o_(o), random_(o.seed), logits_(static_cast<size_t>(engine.config().vocab_size)) {}

  Json prefill(int64_t n) {
    std::vector<double> rates;
    int64_t kv_bytes = 0;
    for (int64_t rep = 0; rep < o_.reps; ++rep) {
      const std::unique_ptr<Sequence> sequence = engine_.new_sequence(plan_, n, type_);
      kv_bytes = sequence->cache().bytes();
      const Clock::time_point start = Clock::now();
      feed(*sequence, n, logits_.data());
      rates.push_back(static_cast<double>(n) / seconds(start));
    }
    return row("prefill", n, 0, rates, kv_bytes);
  }

  // Decode steps as generation does them: forward, logits, the most likely token.
  Json decode(int64_t depth) {
    const std::unique_ptr<Sequence> sequence = engine_.new_sequence(plan_, depth + 1 + o_.gen * o_.reps, type_);
    feed(*sequence, depth + 1, logits_.data());
    std::vector<double> rates;
    TokenId token = greedy_token(logits_);
    for (int64_t rep = 0; rep < o_.reps; ++rep) {
      const Clock::time_point start = Clock::now();
      for (int64_t i = 0; i < o_.gen; ++i) {
        const StepRequest next{sequence.get(), {&token, 1}, logits_.data()};
        engine_.step({&next, 1});
        token = greedy_token(logits_);
      }
      rates.push_back(static_cast<double>(o_.gen) / seconds(start));
    }
    Json result = row("decode", o_.gen, depth, rates, sequence->cache().bytes());
    // What a step must read: every weight, and the kept keys and values (half a repetition's growth is ignored).
    const double kept = static_cast<double>(sequence->cache().bytes()) * std::min(1.0, static_cast<double>(depth + 1) / static_cast<double>(sequence->cache().max_tokens()));
    const double bytes = static_cast<double>(engine_.model().bytes_per_token()) + kept;
    result["bytes_per_token"] = static_cast<int64_t>(bytes);
    result["gb_per_s"] = bytes * result["tokens_per_s"].get<double>() / 1e9;
    return result;
  }

 private:
  static double seconds(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }
  void feed(Sequence& sequence, int64_t n, float* logits) {
    std::vector<TokenId> tokens(static_cast<size_t>(n));
    for (TokenId& token : tokens) token = static_cast<TokenId>(random_() % static_cast<uint64_t>(engine_.config().vocab_size));
    const StepRequest request{&sequence, tokens, logits};
    engine_.step({&request, 1});
  }
  static Json row(const char* test, int64_t n, int64_t depth, const std::vector<double>& rates, int64_t kv_bytes) {
    return {{"test", test}, {"n_tokens", n}, {"depth", depth}, {"tokens_per_s", median(rates)}, {"kv_bytes", kv_bytes}, {"repeats", rates}};
  }

  Engine& engine_;
  const SpanPlan& plan_;
  KvType type_;
  const BenchOptions& o_;
  std::mt19937_64 random_;
  std::vector<float> logits_;
};

void bench(BenchOptions& o) {
  if (o.prompts.empty() && o.depths.empty()) o.prompts = {512}, o.depths = {0};
  for (int64_t n : o.prompts)
    if (n < 1) throw Error::usage("--prompt ", n, ": at least 1 token is needed");
  for (int64_t n : o.depths)
    if (n < 0 || n > int64_t{1} << 31) throw Error::usage("--depth ", n, ": it must be between 0 and ", int64_t{1} << 31);
  constexpr int64_t kMost = 1 << 24;  // so that no product overflows
  if (o.gen < 1 || o.reps < 1 || o.gen > kMost || o.reps > kMost) throw Error::usage("--gen and --reps must be between 1 and ", kMost);
  const std::unique_ptr<Engine> engine = o.common.load();
  const SpanPlan plan = o.common.load_plan(engine->config());
  // Every length is checked before the first minute is spent.
  for (int64_t n : o.prompts) engine->new_sequence(plan, n, kv_type_by_name(o.common.kv));
  for (int64_t n : o.depths) engine->new_sequence(plan, n + 1 + o.gen * o.reps, kv_type_by_name(o.common.kv));
  Bench runner(*engine, plan, kv_type_by_name(o.common.kv), o);
  const int64_t total = static_cast<int64_t>(o.prompts.size() + o.depths.size());
  const std::unique_ptr<Progress> progress = make_progress();
  progress->start("bench", total);
  Json rows = Json::array();
  const auto add = [&](Json result) {
    if (!o.common.json) {
      char line[160];
      std::snprintf(line, sizeof line, "%-8s %7lld tokens at depth %7lld: %9.1f tokens/s   cache %s\n", result["test"].get<std::string>().c_str(),
                    static_cast<long long>(result["n_tokens"]), static_cast<long long>(result["depth"]), result["tokens_per_s"].get<double>(),
                    human_bytes(result["kv_bytes"]).c_str());
      print(line);
    }
    rows.push_back(std::move(result));
    progress->update(static_cast<int64_t>(rows.size()));
  };
  for (int64_t n : o.prompts) add(runner.prefill(n));
  for (int64_t depth : o.depths) add(runner.decode(depth));
  progress->finish();
  if (!o.common.json) return;
  print(Json{{"rows", rows},
             {"model", o.common.model},
             {"plan", o.common.plan_name()},
             {"kv_type", o.common.kv},
             {"threads", engine->n_threads()},
             {"isa", isa_name(current_isa())},
             {"weight_bytes", engine->model().weight_bytes()},
             {"peak_resident_bytes", peak_resident_bytes()},
             {"seed", o.seed}}.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
}

}  // namespace

void add_bench(CLI::App& app) {
  const auto o = std::make_shared<BenchOptions>();
  CLI::App* command = app.add_subcommand("bench", "Measure prefill and decode speed");
  o->common.add_to(*command);
  command->add_option("--prompt", o->prompts, "prompt lengths to prefill, comma separated (default: 512 when no --depth is given)")->delimiter(',');
  command->add_option("--depth", o->depths, "tokens in the cache before decoding, comma separated (default: 0 when no --prompt is given)")->delimiter(',');
  command->add_option("--gen", o->gen, "tokens to decode in a repeat")->capture_default_str();
  command->add_option("--reps", o->reps, "repeats; the median is reported")->capture_default_str();
  command->add_option("--seed", o->seed, "seed of the random tokens")->check(check_seed)->capture_default_str();
  command->footer("Examples:\n"
                  "  polyspan bench model.gguf\n"
                  "  polyspan bench model.gguf --prompt 512,7680 --gen 32 --depth 0,7680 --json\n"
                  "  polyspan bench model.gguf --depth 7680 --plan uniform:0.25 --kv q8");
  command->callback([o] { bench(*o); });
}

}  // namespace polyspan::cli
