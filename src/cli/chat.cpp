// polyspan chat: a conversation in the terminal, continued from its cache.
#include <algorithm>
#include <cstdio>
#include <iostream>

#include "cli/cli.h"
#include "core/error.h"
#include "engine/chat_session.h"

namespace polyspan::cli {
namespace {

struct ChatOptions {
  ModelOptions common;
  std::string system;
  int64_t n = 1024, context = 0;
  GenerateOptions generate;
};

// std::getline with a bound: a stream without line ends must not fill the memory. False at the end of the input.
bool read_line(std::string& line) {
  constexpr size_t kMostBytes = 16 << 20;
  line.clear();
  for (int byte; (byte = std::cin.get()) != std::char_traits<char>::eof();) {
    if (byte == '\n') return true;
    if (line.size() == kMostBytes)
      throw Error::bad_input("a line of more than ", kMostBytes, " bytes on standard input");
    line += static_cast<char>(byte);
  }
  return !line.empty();
}

void chat(ChatOptions& o) {
  o.generate.sampling.check();
  if (o.n < 1) throw Error::usage("-n is ", o.n, "; at least 1 token must be generated");
  o.generate.max_tokens = o.n;
  const std::unique_ptr<Engine> engine = o.common.load();
  const SpanPlan plan = o.common.load_plan(engine->config());
  const int64_t planned = o.context > 0 ? o.context : std::min<int64_t>(engine->config().context_length, 8192);
  const auto new_session = [&] {
    return std::make_unique<ChatSession>(*engine, plan, planned, kv_type_by_name(o.common.kv),
                                         o.system.empty() ? std::nullopt : std::optional(o.system));
  };
  std::unique_ptr<ChatSession> session = new_session();
  std::fprintf(stderr, "%s, %s format, %lld tokens of context, cache %s. /reset starts anew, /quit or Ctrl-D ends.\n",
               engine->config().name.c_str(), std::string(chat_format_name(engine->chat_format().kind())).c_str(),
               static_cast<long long>(planned), human_bytes(session->sequence().cache().bytes()).c_str());
  const std::unique_ptr<Progress> progress = make_progress();
  for (;;) {
    std::fprintf(stderr, "> ");
    std::string line;
    if (!read_line(line) || line == "/quit") break;
    if (line.empty()) continue;
    if (line == "/reset") {
      session = nullptr;  // the old cache goes before the new one comes
      session = new_session();
      continue;
    }
    try {
      const GenerateResult result = session->ask(
          line, o.generate,
          [](std::string_view part) {
            print(std::string(part));
            return true;
          },
          *progress);
      print("\n");
      std::fprintf(stderr, "[%lld + %zu tokens, %.0f and %.0f tokens/s; %lld of %lld in context]\n",
                   static_cast<long long>(result.n_prompt_tokens), result.tokens.size(), result.prefill_tokens_per_s(),
                   result.decode_tokens_per_s(), static_cast<long long>(session->sequence().n_tokens()),
                   static_cast<long long>(planned));
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kBadInput) throw;
      std::fprintf(stderr, "polyspan: %s\n", error.what());
    }
  }
}

}  // namespace

void add_chat(CLI::App& app) {
  const auto o = std::make_shared<ChatOptions>();
  CLI::App* command = app.add_subcommand("chat", "Talk with a model in the terminal");
  o->common.add_to(*command);
  o->generate.sampling.temperature = 0.7f;
  command->add_option("--system", o->system, "system message");
  command->add_option("-n,--n-predict", o->n, "most tokens of an answer")->capture_default_str();
  command
      ->add_option(
          "--ctx", o->context,
          "tokens of the whole conversation: fixes spans and cache (default: the model's context, at most 8192)")
      ->check(CLI::PositiveNumber);
  command->add_option("--stop", o->generate.stop, "text that ends an answer; may be given several times");
  add_sampling(*command, o->generate.sampling);
  command->footer(
      "Examples:\n"
      "  polyspan chat model.gguf\n"
      "  polyspan chat model.gguf --plan uniform:0.5 --system \"You answer in one sentence.\"\n"
      "  echo \"What is a llama?\" | polyspan chat model.gguf --temp 0");
  command->callback([o] { chat(*o); });
}

}  // namespace polyspan::cli
