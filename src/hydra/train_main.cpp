// polyspan-train: the part of `polyspan train` that needs LibTorch, a program of its own so that the others load without.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "cli/cli.h"
#include "core/error.h"
#include "hydra/cpu_memory.h"
#include "hydra/processes.h"
#include "hydra/trainer.h"

namespace polyspan {
namespace {

int run(int argc, char** argv) {
  TrainOptions options;
  bool json = false;
  CLI::App app{"Train a model (the program behind `polyspan train`)"};
  app.name("polyspan train");
  app.add_option("config", options.config_file, "TOML file of the run: model, data, stages (docs/hydra.md)")
      ->required();
  app.add_option("-o,--output", options.folder, "folder of the run: checkpoint, metrics, configuration")->required();
  app.add_flag("--resume", options.resume, "go on from the folder's checkpoint");
  app.add_option("--device", options.device, "cpu or cuda")->capture_default_str();
  int64_t n_processes = 1;
  app.add_option("--processes", n_processes,
                 "of this machine, which share every batch (torchrun's environment does the same)")
      ->check(CLI::Range(1, 1024));
  app.add_option("--stop-after", options.stop_after, "steps to train in this call, then a checkpoint; 0: to the end")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 40));
  app.add_flag("--json", json, "print one JSON document on standard output");
  const char* const rank = std::getenv("RANK");
  const bool shows = rank == nullptr || std::string_view(rank) == "0";  // of several processes one speaks
  try {
    app.parse(argc, argv);
    if (n_processes > 1 && !among_processes()) return start_processes(n_processes, argv);
    const std::unique_ptr<Progress> progress = shows ? cli::make_progress() : nullptr;
    const TrainResult result = train(options, shows ? *progress : no_progress());
    if (!result.is_first) return 0;
    if (json) {
      const nlohmann::ordered_json document = {
          {"run", options.folder.string()},      {"steps", result.steps},
          {"parameters", result.parameters},     {"loss", result.loss},
          {"eval_loss", result.eval_loss},       {"eval_accuracy", result.eval_accuracy},
          {"tokens_per_s", result.tokens_per_s}, {"libtorch", TORCH_VERSION}};
      cli::print(document.dump(2) + "\n");
    } else {
      char line[200];
      std::snprintf(line, sizeof line, ": step %lld, loss %.4f; held-out loss %.4f, accuracy %.4f; %.0f tokens/s\n",
                    static_cast<long long>(result.steps), result.loss, result.eval_loss, result.eval_accuracy,
                    result.tokens_per_s);
      cli::print(options.folder.string() + line);
    }
    return 0;
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);
    std::fprintf(stderr, "polyspan: %s (see polyspan train --help)\n", error.what());
    return 2;
  } catch (const Error& error) {
    // What is wrong with the configuration is wrong for all.
    if (shows || error.kind() == ErrorKind::kIo || error.kind() == ErrorKind::kOutOfMemory)
      std::fprintf(stderr, "polyspan: %s\n", error.what());
    return error.kind() == ErrorKind::kUsage ? 2 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "polyspan: %s\n", error.what());
    return 1;
  }
}

}  // namespace
}  // namespace polyspan

int main(int argc, char** argv) {
  polyspan::keep_freed_memory();
  return polyspan::run(argc, argv);
}
