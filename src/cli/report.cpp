// polyspan report: a run of compress or train as one HTML page, and what can be measured under the plans of the former.
#include <algorithm>

#include "cli/cli.h"
#include "core/error.h"
#include "core/mapped_file.h"
#include "eval/natural_text.h"
#include "report/measure.h"
#include "report/page.h"

namespace polyspan::cli {
namespace {

struct ReportOptions {
  std::string folder, output, measure, text, kv = "f16";
  std::vector<int64_t> lengths;
  std::optional<int64_t> samples;
  uint64_t seed = 1;
  int threads = 0;
};

void measure(const ReportOptions& o, const report::RunData& run) {
  // What is not the run's model is refused before its weights are read.
  report::check_same_model(run.model, GgufFile::open(o.measure));
  report::MeasureOptions options{
      .lengths = o.lengths, .n_samples = o.samples, .text = {}, .kv_type = o.kv, .seed = o.seed};
  if (!o.text.empty()) {
    options.text = read_text_file(o.text);
  } else if (std::optional<std::string> text = default_natural_text()) {
    options.text = std::move(*text);
  } else {
    throw Error::bad_input("no running text was found on this system: give one with --text FILE");
  }
  ModelOptions model;
  model.model = o.measure;
  model.kv = o.kv;
  model.threads = o.threads;
  const std::unique_ptr<Engine> engine = model.load();
  const std::unique_ptr<Progress> progress = make_progress();
  report::measure_run(run, *engine, o.measure, options, *progress);
  progress->finish();
}

void report(const ReportOptions& o) {
  std::vector<int64_t> sorted = o.lengths;
  std::sort(sorted.begin(), sorted.end());
  if (const auto twice = std::adjacent_find(sorted.begin(), sorted.end()); twice != sorted.end())
    throw Error::usage("--lengths names ", *twice, " twice");
  std::error_code error;
  const std::filesystem::path folder = o.folder;
  const bool is_compress = std::filesystem::exists(folder / "run.json", error);
  if (!is_compress && report::is_training_run(folder)) {
    if (!o.measure.empty() || !o.lengths.empty())
      throw Error::usage(o.folder, " is a training run: --measure and --lengths are for runs of compress");
    return write_file_atomically(o.output, report::training_page(report::read_training_run(folder)));
  }
  if (!is_compress && std::filesystem::is_directory(folder, error))
    throw Error::io(folder,
                    "found no run.json (of polyspan compress) and no metrics.jsonl (of polyspan train): there is ",
                    "no such file, so this is the folder of neither");
  report::RunData run = report::read_run(folder);
  if (!o.measure.empty()) {
    measure(o, run);
    run = report::read_run(folder);
  }
  write_file_atomically(o.output, report::report_page(run, {.lengths = o.lengths}));
}

}  // namespace

void add_report(CLI::App& app) {
  const auto o = std::make_shared<ReportOptions>();
  CLI::App* command =
      app.add_subcommand("report", "Show a run of compress or train as one HTML page; measure the plans of compress");
  command->add_option("folder", o->folder, "run directory of polyspan compress, or folder of polyspan train")
      ->required();
  command->add_option("-o,--output", o->output, "HTML file to write")->required();
  command->add_option("--measure", o->measure,
                      "GGUF file of the run's model: measures pass-key retrieval and speed, dense, uniform and under "
                      "each plan, into the run "
                      "directory; what is there is kept");
  command
      ->add_option("--lengths", o->lengths,
                   "lengths in tokens to show and measure, comma separated (default: the run's, and its extension)")
      ->delimiter(',')
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 27));
  command
      ->add_option(
          "--samples", o->samples,
          "of --measure: prompts a length, kind of filler and place of the key (default: 1, which makes 10 a length)")
      ->check(CLI::Range(int64_t{1}, int64_t{1000}));
  command->add_option("--text", o->text, "of --measure: natural filler (default: the system's licence texts)");
  command->add_option("--kv", o->kv, "of --measure: element type of the KV cache: f16, bf16 or q8")
      ->capture_default_str();
  command->add_option("--seed", o->seed, "of --measure: seed of the prompts")->check(check_seed)->capture_default_str();
  command->add_option("-t,--threads", o->threads, "of --measure: threads (default: physical cores)")
      ->check(CLI::Range(1, 1024));
  command->footer(
      "Examples:\n"
      "  polyspan report run -o report.html\n"
      "  polyspan report run -o report.html --measure model.gguf --lengths 1024,4096 --samples 4");
  command->callback([o] { report(*o); });
}

}  // namespace polyspan::cli
