// polyspan: the command line. Subcommands parse, call the library and print; errors end here, in one line.
#include <csignal>
#include <cstdio>
#include <new>
#include <string>

#include "cli/cli.h"
#include "core/error.h"

namespace {

// One line, whatever a file's name or an argument holds.
void print_error(const char* message, const char* hint = "") {
  std::string line = message;
  for (char& byte : line)
    if (static_cast<unsigned char>(byte) < 0x20) byte = ' ';
  std::fprintf(stderr, "polyspan: %s%s\n", line.c_str(), hint);
}

}  // namespace

int main(int argc, char** argv) {
  using namespace polyspan;
  std::signal(SIGPIPE, SIG_IGN);  // a closed pipe is an error of print(), not a silent death
  CLI::App app{
      "polyspan: language models with an attention span for every head.\n"
      "Runs GGUF models on the CPU; docs and examples: README.md."};
  app.name("polyspan");
  app.require_subcommand(1);
  app.set_version_flag("--version", "polyspan 0.1.0");
  app.footer(
      "Examples:\n"
      "  polyspan run model.gguf --chat -p \"What is a span?\"\n"
      "  polyspan run model.gguf -f document.txt --plan uniform:0.25 -n 100\n"
      "  polyspan chat model.gguf\n"
      "  polyspan bench model.gguf --prompt 512 --depth 0,4096 --plan uniform:0.5\n"
      "  polyspan inspect model.gguf --length 8192\n"
      "polyspan COMMAND --help explains a command.");
  cli::add_run(app);
  cli::add_chat(app);
  cli::add_bench(app);
  cli::add_eval(app);
  cli::add_compress(app);
  cli::add_inspect(app);
  cli::add_report(app);
  cli::add_prepare(app);
  cli::add_train(app);
  cli::add_export(app);
  try {
    app.parse(argc, argv);
    return 0;
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    print_error(error.what(), " (see polyspan --help)");
    return 2;
  } catch (const Error& error) {
    print_error(error.what());
    return error.kind() == ErrorKind::kUsage ? 2 : 1;
  } catch (const std::bad_alloc&) {
    print_error("out of memory");
    return 1;
  } catch (const std::exception& error) {
    print_error(error.what());
    return 1;
  }
}
