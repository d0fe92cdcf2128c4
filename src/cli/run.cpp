// polyspan run: one prompt, one answer.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "cli/cli.h"
#include "core/error.h"
#include "engine/generate.h"
#include "ops/isa.h"

namespace polyspan::cli {
namespace {

struct RunOptions {
  ModelOptions common;
  std::string prompt, file, system;
  bool chat = false, ignore_end = false;
  int64_t n = 256, context = 0;
  GenerateOptions generate;
};

std::vector<TokenId> encode_prompt(const RunOptions& o, const Engine& engine, const std::string& text) {
  if (!o.chat)
    return engine.tokenizer().encode(text, {.add_bos = engine.tokenizer().adds_bos(), .parse_special = true});
  std::vector<ChatMessage> messages;
  if (!o.system.empty()) messages.push_back({"system", o.system});
  messages.push_back({"user", text});
  return engine.chat_format().encode(messages, engine.tokenizer());
}

nlohmann::ordered_json logprobs_json(const std::vector<TokenChoice>& choices, const Tokenizer& tokenizer) {
  const auto json = [&](const LikelyToken& likely) {
    return nlohmann::ordered_json{
        {"token", likely.token}, {"text", tokenizer.token_bytes(likely.token)}, {"logprob", likely.logprob}};
  };
  nlohmann::ordered_json all = nlohmann::ordered_json::array();
  for (const TokenChoice& choice : choices) {
    nlohmann::ordered_json entry = json(choice.chosen);
    entry["top"] = nlohmann::ordered_json::array();
    for (const LikelyToken& likely : choice.top) entry["top"].push_back(json(likely));
    all.push_back(std::move(entry));
  }
  return all;
}

void run(RunOptions& o) {
  if (!o.prompt.empty() && !o.file.empty()) throw Error::usage("-p and -f exclude each other");
  if (o.generate.n_logprobs && !o.common.json) throw Error::usage("--logprobs needs --json, where they are written");
  if (o.n < 1) throw Error::usage("-n is ", o.n, "; at least 1 token must be generated");
  std::string text = o.prompt;
  if (!o.file.empty()) text = read_text_file(o.file);
  if (text.empty()) throw Error::bad_input("the prompt is empty: give one with -p TEXT or -f FILE");
  o.generate.sampling.check();
  const std::unique_ptr<Engine> engine = o.common.load();
  const std::vector<TokenId> prompt = encode_prompt(o, *engine, text);
  if (prompt.empty()) throw Error::bad_input("the prompt is empty: it has no tokens");
  const int64_t n_prompt = static_cast<int64_t>(prompt.size()), limit = engine->config().context_length;
  if (n_prompt >= (o.context > 0 ? std::min(o.context, limit) : limit))
    throw Error::bad_input("the prompt has ", n_prompt, " tokens and the context ",
                           o.context > 0 ? std::min(o.context, limit) : limit, "; there is no room for an answer");
  // The spans follow from the planned length: what was asked for with --ctx, else the prompt and the answer.
  const int64_t planned = o.context > 0 ? o.context : std::min(limit, n_prompt + std::min(o.n, limit));
  const SpanPlan plan = o.common.load_plan(engine->config());
  const std::unique_ptr<Sequence> sequence = engine->new_sequence(plan, planned, kv_type_by_name(o.common.kv));
  o.generate.max_tokens = o.n;
  o.generate.ignore_end = o.ignore_end;
  const std::unique_ptr<Progress> progress = make_progress();
  const GenerateResult result = generate(
      *engine, *sequence, prompt, o.generate,
      [&](std::string_view part) {
        if (!o.common.json) print(std::string(part));
        return true;
      },
      *progress);
  if (o.common.json) {
    nlohmann::ordered_json document = {
        {"text", result.text},
        {"prompt_tokens", result.n_prompt_tokens},
        {"generated_tokens", result.tokens.size()},
        {"finish_reason", result.finish_reason == FinishReason::kStop ? "stop" : "length"},
        {"prefill_tokens_per_s", result.prefill_tokens_per_s()},
        {"decode_tokens_per_s", result.decode_tokens_per_s()},
        {"time_to_first_token_s", result.prefill_seconds},
        {"kv_bytes", sequence->cache().bytes()},
        {"kv_type", o.common.kv},
        {"planned_length", planned},
        {"density", plan.density(planned)},
        {"plan", o.common.plan_name()},
        {"tokens", result.tokens},
        {"device", std::string(engine->model().device())},
        {"threads", engine->n_threads()},
        {"isa", isa_name(current_isa())},
        {"model", o.common.model}};
    if (o.generate.n_logprobs) document["logprobs"] = logprobs_json(result.choices, engine->tokenizer());
    print(document.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
    return;
  }
  print("\n");
  std::fprintf(stderr,
               "\n%lld prompt tokens at %.0f tokens/s, %zu generated at %.0f tokens/s; cache %s (%s, density %.2f)\n",
               static_cast<long long>(result.n_prompt_tokens), result.prefill_tokens_per_s(), result.tokens.size(),
               result.decode_tokens_per_s(), human_bytes(sequence->cache().bytes()).c_str(), o.common.kv.c_str(),
               plan.density(planned));
}

}  // namespace

void add_run(CLI::App& app) {
  const auto o = std::make_shared<RunOptions>();
  CLI::App* command = app.add_subcommand("run", "Continue a prompt, or answer it with --chat");
  o->common.add_to(*command);
  command->add_option("-p,--prompt", o->prompt, "the prompt");
  command->add_option("-f,--file", o->file, "read the prompt from a file");
  command->add_flag("--chat", o->chat, "put the prompt into the model's chat format, as a user's message");
  command->add_option("--system", o->system, "system message (with --chat)");
  command->add_option("-n,--n-predict", o->n, "most tokens to generate")->capture_default_str();
  command->add_option("--ctx", o->context, "planned length in tokens: fixes spans and cache (default: prompt + n)")
      ->check(CLI::PositiveNumber);
  command->add_option("--stop", o->generate.stop, "text that ends the answer; may be given several times");
  command
      ->add_option("--logprobs", o->generate.n_logprobs,
                   "with --json: of each generated token the logarithm of its probability, and the most likely others")
      ->check(CLI::Range(0, 100));
  command->add_flag("--ignore-eos", o->ignore_end, "go on after the model ends its turn");
  add_sampling(*command, o->generate.sampling);
  command->footer(
      "Examples:\n"
      "  polyspan run model.gguf --chat -p \"Name three rivers.\"\n"
      "  polyspan run model.gguf -p \"The capital of France is\" -n 16 --json\n"
      "  polyspan run model.gguf --chat -f question.txt --plan uniform:0.25 --kv q8");
  command->callback([o] { run(*o); });
}

}  // namespace polyspan::cli
