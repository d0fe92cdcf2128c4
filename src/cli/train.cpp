// polyspan prepare, train, export: from text to a model. Training itself is polyspan-train, the program that loads LibTorch.
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <nlohmann/json.hpp>

#include "cli/cli.h"
#include "core/error.h"
#include "ops/isa.h"
#include "recipe/export.h"
#include "recipe/prepare.h"
#include "recipe/tasks.h"

namespace polyspan::cli {
namespace {

struct PrepareArguments {
  std::vector<std::string> files;
  std::string tokenizer = "bytes", out, task;
  TaskOptions options;
  bool json = false;
};

void prepare(PrepareArguments& a) {
  if (a.files.empty() == a.task.empty()) throw Error::usage("prepare wants text files or --task, one of them");
  double chance = 0;
  if (!a.task.empty()) {
    if (a.tokenizer != "bytes") throw Error::usage("the tasks are written in bytes; --tokenizer is for text files");
    a.options.task = a.task;
    const TaskExamples examples = make_task(a.options);
    chance = examples.chance;
    write_token_file(a.out,
                     {.vocab_size = kByteVocabulary,
                      .example_length = examples.example_length,
                      .tokenizer = "bytes",
                      .source = a.task + ", seed " + std::to_string(a.options.seed)},
                     examples.tokens, examples.mask);
  } else {
    const std::unique_ptr<Progress> progress = make_progress();
    prepare_text({a.files.begin(), a.files.end()}, CorpusTokenizer(a.tokenizer), a.out, *progress);
  }
  const TokenFileInfo info = TokenFile::open(a.out).info();
  if (a.json) {
    nlohmann::ordered_json document = {{"file", a.out},
                                       {"tokens", info.n_tokens},
                                       {"vocab_size", info.vocab_size},
                                       {"example_length", info.example_length},
                                       {"tokenizer", info.tokenizer},
                                       {"source", info.source}};
    if (!a.task.empty()) document["chance"] = chance;
    return print(document.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
  }
  print(a.out + ": " + std::to_string(info.n_tokens) + " tokens of " + info.source + "\n");
}

struct TrainArguments {
  std::vector<std::string> rest;
};

// Replaces this process by polyspan-train, which lies beside this program.
void run_train(const TrainArguments& a) {
  std::error_code error;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  const std::filesystem::path program = self.parent_path() / "polyspan-train";
  // OpenBLAS 0.3.21 does not know newer processors and takes kernels that are half as fast (docs/hydra.md).
  const std::vector<IsaLevel> levels = supported_isa_levels();
  if (std::find(levels.begin(), levels.end(), IsaLevel::kAvx512) != levels.end())
    setenv("OPENBLAS_CORETYPE", "SKYLAKEX", /*overwrite=*/0);
  std::vector<std::string> words = {program.string()};
  words.insert(words.end(), a.rest.begin(), a.rest.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  execv(argv[0], argv.data());
  if (errno == ENOENT)
    throw Error::unsupported("this build has no training: it was made without LibTorch (libtorch-dev), so ",
                             program.string(), " is not there");
  throw Error::io(program, "cannot be started: ", std::strerror(errno));
}

struct ExportArguments {
  ExportOptions options;
  std::string run, out, type = "F32";
};

void run_export(ExportArguments& a) {
  std::transform(a.type.begin(), a.type.end(), a.type.begin(),
                 [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  const std::optional<DTypeInfo> type = find_dtype(a.type);
  if (!type) throw Error::usage("weight type \"", a.type, "\" is not known; wanted F32, F16, BF16, Q8_0 or Q4_0");
  a.options.type = type->type;
  a.options.run = a.run;
  a.options.out = a.out;
  export_run(a.options);
  print(a.out + "\n");
}

}  // namespace

void add_prepare(CLI::App& app) {
  const auto a = std::make_shared<PrepareArguments>();
  CLI::App* command = app.add_subcommand("prepare", "Make token files for training, from text or synthetic tasks");
  command->add_option("text", a->files, "text files");
  command->add_option("--tokenizer", a->tokenizer, "bytes, or a GGUF file whose tokenizer encodes the text")
      ->capture_default_str();
  command->add_option("-o,--output", a->out, "token file to write")->required();
  command->add_option("--task", a->task, "a synthetic task instead of text: " + std::string(kTaskNames));
  command->add_option("--length", a->options.length, "of a task: tokens of an example")->capture_default_str();
  command
      ->add_option(
          "--pairs", a->options.pairs,
          "of a task: pairs (recall), letters (copy), chains (chain), all facts (facts), digits (passkey, sums), "
          "entries (phonebook)")
      ->capture_default_str();
  command->add_option("--gap", a->options.gap, "of a task: filler between what is told and what is asked")
      ->capture_default_str();
  command->add_option("--hops", a->options.hops, "of chain: facts of a chain")->capture_default_str();
  command->add_option("--questions", a->options.questions, "of chain, phonebook: questions of an example")
      ->capture_default_str();
  command
      ->add_option("--asked", a->options.asked,
                   "of chain: steps to the answer; -1: all hops, 0: from 1 to hops, by chance")
      ->capture_default_str();
  command->add_option("--examples", a->options.examples, "of a task: examples")->capture_default_str();
  command->add_option("--seed", a->options.seed, "of a task")->check(check_seed)->capture_default_str();
  command->add_flag("--json", a->json, "print one JSON document on standard output");
  command->footer(
      "Examples:\n"
      "  polyspan prepare book.txt --tokenizer model.gguf -o train.tokens\n"
      "  polyspan prepare --task recall --pairs 8 --gap 64 --length 128 --examples 20000 -o train.tokens\n"
      "  polyspan prepare --task chain --hops 3 --pairs 3 --length 64 --seed 2 -o valid.tokens");
  command->callback([a] { prepare(*a); });
}

void add_train(CLI::App& app) {
  const auto a = std::make_shared<TrainArguments>();
  CLI::App* command = app.add_subcommand("train", "Train a model as a TOML file says (needs LibTorch)");
  command->prefix_command();
  command->set_help_flag();
  command->footer("polyspan train CONFIG.toml -o RUN [--resume] [--device cpu|cuda] [--stop-after STEPS] [--json]");
  command->callback([a, command] {
    a->rest = command->remaining();
    run_train(*a);
  });
}

void add_export(CLI::App& app) {
  const auto a = std::make_shared<ExportArguments>();
  CLI::App* command = app.add_subcommand("export", "Make a GGUF model of a training run");
  command->add_option("run", a->run, "folder of the run")->required();
  command->add_option("-o,--output", a->out, "GGUF file to write")->required();
  command->add_option("--type", a->type, "of the matrices: F32, F16, BF16, Q8_0 or Q4_0")->capture_default_str();
  command->add_option("--tokenizer", a->options.tokenizer,
                      "GGUF file of the tokenizer that the run was trained with (not for bytes)");
  command->footer(
      "Examples:\n  polyspan export run -o hydra.gguf\n  polyspan export run -o hydra.gguf --type Q8_0 --tokenizer "
      "model.gguf");
  command->callback([a] { run_export(*a); });
}

}  // namespace polyspan::cli
