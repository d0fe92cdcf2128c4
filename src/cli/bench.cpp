// polyspan bench: prefill and decode speed of a model under a plan.
#include <cstdio>
#include <nlohmann/json.hpp>

#include "cli/cli.h"
#include "core/error.h"
#include "eval/result_json.h"
#include "eval/speed.h"

namespace polyspan::cli {
namespace {

using Json = nlohmann::ordered_json;

struct BenchOptions {
  ModelOptions common;
  std::vector<int64_t> prompts, depths;
  int64_t gen = 32, reps = 3;
  uint64_t seed = 1;
  bool in_turn = false;
};

void bench(BenchOptions& o) {
  if (o.prompts.empty() && o.depths.empty()) o.prompts = {512}, o.depths = {0};
  for (int64_t n : o.prompts)
    if (n < 1) throw Error::usage("--prompt ", n, ": at least 1 token is needed");
  for (int64_t n : o.depths)
    if (n < 0 || n > int64_t{1} << 31)
      throw Error::usage("--depth ", n, ": it must be between 0 and ", int64_t{1} << 31);
  constexpr int64_t kMost = 1 << 24;  // so that no product overflows
  if (o.gen < 1 || o.reps < 1 || o.gen > kMost || o.reps > kMost)
    throw Error::usage("--gen and --reps must be between 1 and ", kMost);
  const std::unique_ptr<Engine> engine = o.common.load();
  const SpanPlan plan = o.common.load_plan(engine->config());
  // Every length is checked before the first minute is spent.
  for (int64_t n : o.prompts) engine->new_sequence(plan, n, kv_type_by_name(o.common.kv));
  for (int64_t n : o.depths)
    engine->new_sequence(plan, SpeedMeter::decode_length(n, o.gen, o.reps), kv_type_by_name(o.common.kv));
  SpeedMeter meter(*engine, plan, kv_type_by_name(o.common.kv), o.seed);
  const int64_t total = static_cast<int64_t>(o.prompts.size() + o.depths.size());
  const std::unique_ptr<Progress> progress = make_progress();
  progress->start("bench", total);
  Json rows = Json::array();
  const auto add = [&](const SpeedRow& row) {
    if (!o.common.json) {
      char line[160];
      std::snprintf(line, sizeof line, "%-8s %7lld tokens at depth %7lld: %9.1f tokens/s   cache %s\n",
                    row.test.c_str(), static_cast<long long>(row.n_tokens), static_cast<long long>(row.depth),
                    row.tokens_per_s, human_bytes(row.kv_bytes).c_str());
      print(line);
    }
    rows.push_back(to_json(row));
    progress->update(static_cast<int64_t>(rows.size()));
  };
  for (int64_t n : o.prompts) add(meter.prefill(n, o.reps));
  if (o.in_turn)
    for (const SpeedRow& row : meter.decode_in_turn(o.depths, o.gen, o.reps)) add(row);
  else
    for (int64_t depth : o.depths) add(meter.decode(depth, o.gen, o.reps));
  progress->finish();
  if (o.common.json)
    print(document_text(bench_document({o.common.model, o.common.plan_name(), o.common.kv, o.seed}, *engine, rows)));
}

}  // namespace

void add_bench(CLI::App& app) {
  const auto o = std::make_shared<BenchOptions>();
  CLI::App* command = app.add_subcommand("bench", "Measure prefill and decode speed");
  o->common.add_to(*command);
  command
      ->add_option("--prompt", o->prompts,
                   "prompt lengths to prefill, comma separated (default: 512 when no --depth is given)")
      ->delimiter(',');
  command
      ->add_option("--depth", o->depths,
                   "tokens in the cache before decoding, comma separated (default: 0 when no --prompt is given)")
      ->delimiter(',');
  command->add_option("--gen", o->gen, "tokens to decode in a repeat")->capture_default_str();
  command->add_option("--reps", o->reps, "repeats; the median is reported")->capture_default_str();
  command->add_flag("--in-turn", o->in_turn,
                    "decode at all depths in turn, repeat by repeat, to compare them (holds all caches at once)");
  command->add_option("--seed", o->seed, "seed of the random tokens")->check(check_seed)->capture_default_str();
  command->footer(
      "Examples:\n"
      "  polyspan bench model.gguf\n"
      "  polyspan bench model.gguf --prompt 512,7680 --gen 32 --depth 0,7680 --json\n"
      "  polyspan bench model.gguf --depth 7680 --plan uniform:0.25 --kv q8");
  command->callback([o] { bench(*o); });
}

}  // namespace polyspan::cli
