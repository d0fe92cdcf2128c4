// polyspan compress: finds every head's span.
#include <charconv>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "cli/cli.h"
#include "core/error.h"
#include "moa/compress.h"

namespace polyspan::cli {
namespace {

struct CompressArguments {
  ModelOptions common;
  std::string out, influence, loss;
  bool resume = false, quick = false, per_query_head = false;
  std::vector<double> densities;
  std::vector<int64_t> lengths, extend;
  std::vector<std::string> kinds;
  std::optional<int64_t> samples, steps, step_samples, validation_samples, refine, refine_samples;
  std::vector<std::string> weights;
  std::optional<uint64_t> seed;
  std::string documents, text;

  // What was given, over `options`.
  CompressOptions over(CompressOptions options) const {
    if (!densities.empty()) options.densities = densities;
    if (!lengths.empty()) options.lengths = lengths;
    if (!extend.empty()) options.extend = extend;
    if (extend == std::vector<int64_t>{0}) options.extend.clear();
    if (!kinds.empty()) options.kinds = kinds;
    if (samples) options.samples = *samples;
    if (steps) options.steps = *steps;
    if (step_samples) options.step_samples = *step_samples;
    for (const std::string& weight : weights) {
      const size_t at = weight.find('=');
      double value = 0;
      const char* const end = weight.data() + weight.size();
      if (at == weight.npos || std::from_chars(weight.data() + at + 1, end, value).ptr != end ||
          at + 1 == weight.size())
        throw Error::usage("--weights: found \"", weight, "\", wanted KIND=NUMBER");
      options.weights[weight.substr(0, at)] = value;
    }
    if (validation_samples) options.validation_samples = *validation_samples;
    if (refine) options.refine = *refine;
    if (refine_samples) options.refine_samples = *refine_samples;
    if (seed) options.seed = *seed;
    if (!influence.empty()) options.influence = estimator_by_name(influence);
    if (!loss.empty()) options.loss = profile_loss_by_name(loss);
    if (per_query_head) options.per_query_head = true;
    if (!documents.empty()) options.documents = documents;
    if (!text.empty()) options.text = text;
    return options;
  }
};

// A resumed run keeps its options: one that was given and differs would make another run of it.
CompressOptions resumed_options(const CompressArguments& a, const RunDirectory& run) {
  const OrderedJson before = run.read_json("run.json");
  if (!before.contains("options")) throw Error::bad_file(run.path("run.json"), "field \"options\" is missing");
  const CompressOptions stored = CompressOptions::from_json(before["options"], run.path("run.json"));
  const OrderedJson was = stored.to_json(), asked = a.over(stored).to_json();
  for (const auto& [name, value] : asked.items())
    if (value != was[name])
      throw Error::usage("the run in ", run.folder().string(), " was started with ", name, " ", was[name].dump(),
                         ", not ", value.dump(), "; leave the option out, or start another run");
  if (a.quick && !stored.quick)
    throw Error::usage("the run in ", run.folder().string(), " was started without --quick");
  return stored;
}

void run_compress(const CompressArguments& a) {
  const CompressOptions fresh = a.over(a.quick ? CompressOptions::quick_preset() : CompressOptions());
  fresh.check();
  RunDirectory run(a.out);
  if (run.has_run() && !a.resume)
    throw Error::usage(a.out, " holds a run already: go on with it with --resume, or choose another folder");
  if (!run.has_run() && a.resume) throw Error::usage(a.out, " holds no run to resume");
  const CompressOptions options = a.resume ? resumed_options(a, run) : fresh;
  const std::unique_ptr<Engine> engine = a.common.load();
  const std::unique_ptr<Progress> progress = make_progress();
  const std::vector<CompressedPlan> plans = compress(*engine, run, options, *progress);
  nlohmann::ordered_json document = {
      {"run", a.out}, {"model", a.common.model}, {"plans", nlohmann::ordered_json::array()}};
  for (const CompressedPlan& plan : plans) {
    nlohmann::ordered_json densities = nlohmann::ordered_json::array();
    for (const auto& [length, density] : plan.densities)
      densities.push_back({{"length", length}, {"density", density}});
    document["plans"].push_back({{"density", plan.density},
                                 {"file", plan.file.string()},
                                 {"winner", plan.winner},
                                 {"why", plan.why},
                                 {"loss_above_dense", plan.loss},
                                 {"n_samples", plan.n_samples},
                                 {"uniform_loss_above_dense", plan.uniform_loss},
                                 {"n_uniform_samples", plan.n_uniform_samples},
                                 {"densities", densities}});
  }
  if (a.common.json)
    return print(document.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
  for (const CompressedPlan& plan : plans) {
    char line[200];
    std::snprintf(line, sizeof line, ": held-out loss above dense %.3f (uniform %.3f", plan.loss, plan.uniform_loss);
    std::string text = plan.file.string() + line;
    if (plan.n_uniform_samples < plan.n_samples)  // left early: not a mean over the same samples
      text += " on " + std::to_string(plan.n_uniform_samples) + " of " + std::to_string(plan.n_samples) + " samples";
    text += "), " + plan.winner + "; density";
    for (const auto& [length, density] : plan.densities) {
      std::snprintf(line, sizeof line, " %.3f at %lld", density, static_cast<long long>(length));
      text += line;
    }
    print(text + "\n");
  }
}

}  // namespace

void add_compress(CLI::App& app) {
  const auto a = std::make_shared<CompressArguments>();
  CLI::App* command = app.add_subcommand("compress", "Find every head's span: profile, search, validate; writes plans");
  a->common.device = "cpu";  // not auto: the same options make the same plans wherever they run
  a->common.add_to(*command);
  for (const char* option : {"--plan", "--kv"})  // it makes plans; the numbers of the cache are its own affair
    command->remove_option(command->get_option(option));
  const CompressOptions defaults;
  command->add_option("-o,--output", a->out, "folder of the run; plans go to FOLDER/plans/DENSITY.json")->required();
  command->add_option("--density", a->densities, "shares of the KV cache to keep, one plan each (default: 0.5,0.25)")
      ->delimiter(',');
  command->add_option("--lengths", a->lengths, "prompt lengths to profile, in tokens (default: 1024,2048,4096)")
      ->delimiter(',');
  command
      ->add_option("--extend", a->extend,
                   "longer lengths that plans must also serve, not profiled; 0: none (default: 8192)")
      ->delimiter(',');
  command->add_option("--samples", a->samples,
                      "samples of each kind and length that the model answers rightly (default: 2)");
  command
      ->add_option(
          "--kinds", a->kinds,
          "kinds of samples: passkey-repeated, passkey-natural, multikey, records, copy, section, text, document")
      ->delimiter(',');
  command->add_option("--documents", a->documents,
                      "JSONL file of your documents: context, question, optionally answer");
  command->add_option("--text", a->text,
                      "running text for prompts (default: the Debian handbook, else the licence texts)");
  command->add_option("--influence", a->influence, "estimator: span, span-abs or pairwise (default: span)");
  command->add_option("--loss", a->loss, "what is differentiated: log-odds or cross-entropy (default: log-odds)");
  command->add_option(
      "--steps", a->steps,
      "profiles under the plan found so far, for each halving of the density; 0: one shot (default: 2)");
  command->add_option("--step-samples", a->step_samples,
                      "samples of each kind in such a profile, of records twice as many (default: 1)");
  command->add_option("--weights", a->weights, "weights of kinds, KIND=NUMBER (default: 2 for retrieval, 1 for text)")
      ->delimiter(',');
  command->add_option("--validation-samples", a->validation_samples,
                      "held-out samples that choose among the candidates (default: 3)");
  command->add_option("--refine", a->refine,
                      "rounds of refinement with the measured loss, for each density: minutes on a GPU (default: 0)");
  command->add_option("--refine-samples", a->refine_samples,
                      "samples that a round measures heads on; choices take twice as many (default: 48)");
  command->add_flag("--per-query-head", a->per_query_head,
                    "a span for each query head (the cache keeps the longest of a group)");
  command->add_option("--seed", a->seed, "seed of the samples (default: 1)")->check(check_seed);
  command->add_flag("--quick", a->quick, "fewer samples, 1,024 and 2,048 tokens, extended to 4,096: a first look");
  command->add_flag("--resume", a->resume, "go on with the run in the folder");
  command->footer(
      "Examples:\n"
      "  polyspan compress model.gguf -o run --density 0.5,0.25\n"
      "  polyspan compress model.gguf -o run --quick\n"
      "  polyspan compress model.gguf -o run --device cuda\n"
      "  polyspan compress model.gguf -o run --documents contracts.jsonl --lengths 2048,4096 --extend 8192\n"
      "  polyspan compress model.gguf -o run --resume\n"
      "  polyspan run model.gguf --chat -f question.txt --plan run/plans/0.25.json\n"
      "  polyspan report run -o report.html");
  command->callback([a] { run_compress(*a); });
}

}  // namespace polyspan::cli
