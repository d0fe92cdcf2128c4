// polyspan eval: perplexity and pass-key retrieval, dense or under a plan.
#include <cstdio>
#include <nlohmann/json.hpp>

#include "cli/cli.h"
#include "core/error.h"
#include "eval/passkey.h"
#include "eval/perplexity.h"

namespace polyspan::cli {
namespace {

using Json = nlohmann::ordered_json;

struct EvalOptions {
  ModelOptions common;
  std::string task, text;
  std::vector<int64_t> lengths;
  int64_t samples = 8, context = 2048, windows = 0;
  uint64_t seed = 1;
  bool compare = false;
};

std::string natural_text(const EvalOptions& o) {
  if (!o.text.empty()) return read_text_file(o.text);
  const std::optional<std::string> text = default_natural_text();
  if (!text) throw Error::bad_input("no running text was found on this system: give one with --text FILE");
  return *text;
}

void print_table(const std::string& plan, const Json& row) {
  char line[200];
  if (row.contains("perplexity"))
    std::snprintf(line, sizeof line, " %7lld tokens: perplexity %8.4f   %lld windows, cache %s\n", static_cast<long long>(row["length"]),
                  row["perplexity"].get<double>(), static_cast<long long>(row["windows"]), human_bytes(row["kv_bytes"]).c_str());
  else
    std::snprintf(line, sizeof line, " %7lld tokens: %.3f right   repeated text %.3f, natural text %.3f, %lld prompts, cache %s\n",
                  static_cast<long long>(row["length"]), row["accuracy"].get<double>(), row["repeated"]["accuracy"].get<double>(),
                  row["natural"]["accuracy"].get<double>(), static_cast<long long>(row["n"]), human_bytes(row["kv_bytes"]).c_str());
  print(plan + std::string(plan.size() < 16 ? 16 - plan.size() : 0, ' ') + line);
}

Json evaluate(Engine& engine, const SpanPlan& plan, const EvalOptions& o, const std::string& text, Progress& progress) {
  Json rows = Json::array();
  const KvType type = kv_type_by_name(o.common.kv);
  if (o.task == "ppl") {
    const std::vector<int64_t> lengths = o.lengths.empty() ? std::vector{o.context} : o.lengths;
    for (int64_t length : lengths) {
      const PerplexityResult r = perplexity(engine, text, plan, {length, o.windows, type}, progress);
      rows.push_back({{"length", length}, {"perplexity", r.perplexity}, {"n", r.n_scored}, {"windows", r.n_windows}, {"kv_bytes", r.kv_bytes},
                      {"density", plan.density(length)}});
    }
    return rows;
  }
  PasskeyOptions options;
  if (!o.lengths.empty()) options.lengths = o.lengths;
  options.n_samples = o.samples;
  options.seed = o.seed;
  options.kv_type = type;
  for (const PasskeyRow& row : evaluate_passkey(engine, plan, text, options, progress))
    rows.push_back({{"length", row.length}, {"accuracy", row.accuracy()}, {"n", row.repeated.n + row.natural.n},
                    {"repeated", {{"accuracy", row.repeated.accuracy()}, {"n", row.repeated.n}}},
                    {"natural", {{"accuracy", row.natural.accuracy()}, {"n", row.natural.n}}},
                    {"kv_bytes", row.kv_bytes}, {"density", plan.density(row.length)}});
  return rows;
}

void eval(EvalOptions& o) {
  if (o.samples < 1 || o.samples > 1'000'000) throw Error::usage("--samples is ", o.samples, "; it must be between 1 and 1000000");
  const std::string text = natural_text(o);
  const std::unique_ptr<Engine> engine = o.common.load();
  const SpanPlan plan = o.common.load_plan(engine->config());
  for (int64_t length : o.lengths) engine->new_sequence(plan, length, kv_type_by_name(o.common.kv));  // checked before the work
  const std::unique_ptr<Progress> progress = make_progress();
  // With --compare: the dense model and the uniform plan of the same density beside the plan.
  std::vector<std::pair<std::string, SpanPlan>> plans = {{o.common.plan_name(), plan}};
  if (o.compare) {
    const int64_t length = o.lengths.empty() ? o.context : o.lengths.back();
    const double density = plan.density(length);
    plans.insert(plans.begin(), {"dense", engine->config().default_plan()});
    if (density < 1) {
      char name[32];
      std::snprintf(name, sizeof name, "uniform:%.3f", density);
      plans.emplace_back(name, SpanPlan::uniform(engine->config().head_shape(), density));
    }
    if (o.common.plan.empty() || o.common.plan == "dense") plans.erase(plans.begin() + 1, plans.end());
  }
  Json document = {{"task", o.task}, {"model", o.common.model}, {"plan", o.common.plan_name()}, {"kv_type", o.common.kv}, {"seed", o.seed}};
  for (const auto& [name, candidate] : plans) {
    const Json rows = evaluate(*engine, candidate, o, text, *progress);
    if (!o.common.json)
      for (const Json& row : rows) print_table(name, row);
    if (name == o.common.plan_name()) document["rows"] = rows;
    if (o.compare) document["compare"][name] = rows;
  }
  if (o.common.json) print(document.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
}

}  // namespace

void add_eval(CLI::App& app) {
  const auto o = std::make_shared<EvalOptions>();
  CLI::App* command = app.add_subcommand("eval", "Measure quality: perplexity or pass-key retrieval");
  o->common.add_to(*command);
  command->add_option("--task", o->task, "ppl (perplexity of a text) or passkey (retrieval of a number hidden in a long prompt)")
      ->required()->check(CLI::IsMember({"ppl", "passkey"}));
  command->add_option("--lengths", o->lengths, "prompt or window lengths in tokens, comma separated (default: 1024,2048,4096; ppl: --ctx)")
      ->delimiter(',')->check(CLI::PositiveNumber);
  command->add_option("--samples", o->samples, "passkey: prompts a length and kind of filler")->capture_default_str();
  command->add_option("--seed", o->seed, "seed of the prompts")->check(check_seed)->capture_default_str();
  command->add_option("--text", o->text, "text to score, or natural filler (default: the system's licence texts)");
  command->add_option("--ctx", o->context, "ppl: tokens a window; the second half of each is scored")->capture_default_str();
  command->add_option("--windows", o->windows, "ppl: number of windows (default: all of the text)")->check(CLI::PositiveNumber);
  command->add_flag("--compare", o->compare, "the dense model and the uniform plan of the same density beside the plan");
  command->footer("Examples:\n"
                  "  polyspan eval model.gguf --task ppl --text wiki.txt --ctx 2048 --windows 8\n"
                  "  polyspan eval model.gguf --task passkey --lengths 1024,4096 --plan uniform:0.25 --compare --json");
  command->callback([o] { eval(*o); });
}

}  // namespace polyspan::cli
