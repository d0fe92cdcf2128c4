// polyspan eval: perplexity and the tasks of src/eval, dense or under a plan, or side by side.
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "cli/cli.h"
#include "core/atomic_file.h"
#include "core/error.h"
#include "core/whole_progress.h"
#include "eval/longbench.h"
#include "eval/longeval.h"
#include "eval/passkey.h"
#include "eval/perplexity.h"
#include "eval/result_json.h"
#include "eval/ruler.h"
#include "eval/summary.h"

namespace polyspan::cli {
namespace {

using Json = nlohmann::ordered_json;

struct EvalOptions {
  ModelOptions common;
  std::string task, text, answers;
  std::vector<int64_t> lengths;
  std::vector<std::string> kinds, data;
  std::optional<int64_t> samples;
  int64_t context = 2048, windows = 0, keys = 1, depths = 0;
  uint64_t seed = 1;
  bool compare = false;

  std::vector<int64_t> lengths_or(std::vector<int64_t> otherwise) const {
    return lengths.empty() ? otherwise : lengths;
  }
};

constexpr int64_t kDefaultSamples = 8;
const std::vector<int64_t> kDefaultLengths = {1024, 2048, 4096};

// What is computed and shown beside the others.
struct Column {
  std::string name;
  PlanAt plan;
  std::vector<EvalRow> rows;  // all tasks but perplexity
  Json json = Json::array();
  bool repeats_previous = false;  // the same plan as the column before: not computed again
};

void check_options(const EvalOptions& o) {
  if (o.samples && (*o.samples < 1 || *o.samples > 1'000'000))
    throw Error::usage("--samples is ", *o.samples, "; it must be between 1 and 1000000");
  const auto only_for = [&](bool given, const char* option, std::initializer_list<std::string_view> tasks) {
    if (given && std::find(tasks.begin(), tasks.end(), o.task) == tasks.end())
      throw Error::usage(option, " does not go with --task ", o.task);
  };
  only_for(o.keys != 1, "--keys", {"passkey"});
  only_for(o.depths != 0, "--depths", {"passkey"});
  only_for(!o.kinds.empty(), "--kinds", {"ruler"});
  only_for(!o.data.empty(), "--data", {"longeval", "longbench"});
  only_for(!o.answers.empty(), "--answers", {"passkey", "longeval", "ruler", "longbench"});
  if (o.keys < 1 || o.keys > PasskeyGenerator::most_keys())
    throw Error::usage("--keys is ", o.keys, "; it must be between 1 and ", PasskeyGenerator::most_keys());
  if (o.depths < 0 || o.depths > 1000) throw Error::usage("--depths is ", o.depths, "; it must be between 1 and 1000");
  if (o.task == "longbench" && o.data.empty())
    throw Error::usage("--task longbench needs --data FILE: JSONL files in LongBench's form");
  if (o.task == "longeval" && !o.data.empty() && !o.lengths.empty())
    throw Error::usage("--lengths does not go with --data: the prompts of a LongEval file are as long as they are");
  if (o.compare && o.common.plan.empty())
    throw Error::usage("--compare wants a plan to put beside the dense model: --plan FILE or uniform:DENSITY");
  check_ruler_kinds(o.kinds);
  // A length twice would be one row.
  std::vector<int64_t> sorted = o.lengths;
  std::sort(sorted.begin(), sorted.end());
  if (const auto twice = std::adjacent_find(sorted.begin(), sorted.end()); twice != sorted.end())
    throw Error::usage("--lengths names ", *twice, " twice");
}

// What comes from files, read before the model is loaded.
struct Inputs {
  std::string text;
  std::vector<std::vector<LongEvalRecord>> longeval;
  std::vector<LongBenchRecord> longbench;
};

Inputs read_inputs(const EvalOptions& o) {
  Inputs in;
  for (const std::string& path : o.data) {
    if (o.task == "longeval") {
      in.longeval.push_back(read_longeval(path));
    } else {
      const std::vector<LongBenchRecord> records = read_longbench(path);
      in.longbench.insert(in.longbench.end(), records.begin(), records.end());
    }
  }
  if (o.task == "longeval" || o.task == "longbench") return in;
  if (!o.text.empty()) {
    in.text = read_text_file(o.text);
  } else if (std::optional<std::string> text = default_natural_text()) {
    in.text = std::move(*text);
  } else {
    throw Error::bad_input("no running text was found on this system: give one with --text FILE");
  }
  return in;
}

std::vector<PromptItem> make_items(const Engine& engine, const EvalOptions& o, const Inputs& in) {
  const int64_t samples = o.samples.value_or(kDefaultSamples);
  const std::vector<int64_t> lengths = o.lengths_or(kDefaultLengths);
  if (o.task == "passkey") return passkey_items(engine, in.text, {lengths, samples, o.seed, o.keys, o.depths});
  if (o.task == "ruler") return ruler_items(engine, in.text, {lengths, samples, o.seed, o.kinds});
  if (o.task == "longbench") return longbench_items(engine, in.longbench, {o.lengths, o.samples});
  if (!in.longeval.empty()) return longeval_file_items(engine, in.longeval, o.samples);
  return longeval_items(engine, {lengths, samples, o.seed});
}

// The lines of a row's table: what, and its value.
std::vector<std::pair<std::string, std::string>> table_lines(const Json& row) {
  std::vector<std::pair<std::string, std::string>> lines;
  const auto number = [](const Json& value, const char* form) {
    char text[32];
    std::snprintf(text, sizeof text, form, value.get<double>());
    return std::string(text);
  };
  const auto add_cells = [&](const Json& cells) {
    for (const auto& [name, cell] : cells.items())
      lines.emplace_back(std::string("  ").append(name), number(cell["accuracy"], "%.3f"));
  };
  if (row.contains("perplexity")) {
    lines.emplace_back("perplexity", number(row["perplexity"], "%.4f"));
    lines.emplace_back("windows", std::to_string(row["windows"].get<int64_t>()));
  } else {
    lines.emplace_back("accuracy", number(row["accuracy"], "%.3f"));
    for (const char* text : {"repeated", "natural"})
      if (row.contains(text)) add_cells({{std::string(text) + " text", row[text]}});
    for (const char* group : {"kinds", "datasets"})
      if (row.contains(group)) add_cells(row[group]);
    if (row.contains("depths"))
      for (const Json& cell : row["depths"])
        lines.emplace_back(std::string("  depth ").append(number(cell["depth"], "%.2f")),
                           number(cell["accuracy"], "%.3f"));
    lines.emplace_back("prompts", std::to_string(row["n"].get<int64_t>()));
  }
  lines.emplace_back("density", number(row["density"], "%.3f"));
  lines.emplace_back("cache", human_bytes(row["kv_bytes"].get<int64_t>()));
  return lines;
}

std::string cell_text(std::string text, size_t width, bool right) {
  if (text.size() > width) text.resize(width);
  text.insert(right ? 0 : text.size(), width - text.size(), ' ');
  return text;
}

// One block a length, one column a plan.
void print_table(const std::string& task, const std::vector<Column>& columns) {
  constexpr size_t kLabel = 24, kColumn = 18;
  for (size_t i = 0; i < columns.front().json.size(); ++i) {
    std::string out = cell_text(
        task + ", " + std::to_string(columns.front().json[i]["length"].get<int64_t>()) + " tokens", kLabel, false);
    for (const Column& column : columns)
      out += cell_text(std::filesystem::path(column.name).filename().string(), kColumn, true);
    std::vector<std::vector<std::pair<std::string, std::string>>> lines;
    for (const Column& column : columns) lines.push_back(table_lines(column.json[i]));
    for (size_t line = 0; line < lines.front().size(); ++line) {
      out += '\n';
      out += cell_text(lines.front()[line].first, kLabel, false);
      for (const auto& of_column : lines) out += cell_text(of_column[line].second, kColumn, true);
    }
    out += "\n\n";
    print(out);
  }
}

// The plan, and with --compare the dense model and the uniform plan of the plan's density at each length before it.
std::vector<Column> make_columns(const Engine& engine, const EvalOptions& o) {
  const SpanPlan plan = o.common.load_plan(engine.config());
  const bool is_dense = o.common.plan.empty() || o.common.plan == "dense";
  std::vector<Column> columns;
  if (o.compare && !is_dense) {
    columns.push_back({"dense", same_plan(engine.config().default_plan()), {}});
    columns.push_back({"uniform", uniform_like(plan), {}});
  }
  columns.push_back({o.common.plan_name(), same_plan(plan), {}});
  if (columns.size() > 1 && o.common.plan.starts_with("uniform:")) {
    columns[1].plan = columns[2].plan;
    columns[2].repeats_previous = true;
  }
  return columns;
}

int64_t n_computed(const std::vector<Column>& columns) {
  return std::count_if(columns.begin(), columns.end(), [](const Column& column) { return !column.repeats_previous; });
}

// Calls compute(column) for each column that is not its predecessor again.
template <typename Compute>
void fill_columns(std::vector<Column>& columns, Compute compute) {
  for (size_t i = 0; i < columns.size(); ++i) {
    if (columns[i].repeats_previous) {
      columns[i].rows = columns[i - 1].rows;
      columns[i].json = columns[i - 1].json;
    } else {
      compute(columns[i]);
    }
  }
}

void run_perplexity(Engine& engine, const EvalOptions& o, const Inputs& in, std::vector<Column>& columns,
                    Progress& shown) {
  const KvType type = kv_type_by_name(o.common.kv);
  const std::vector<int64_t> lengths = o.lengths_or({o.context});
  int64_t total = 0;
  for (const int64_t length : lengths) {  // what cannot be served is found before the work
    check_length(engine, length);
    total += count_windows(engine, in.text, {length, o.windows, type}) * length;
    for (const Column& column : columns) engine.new_sequence(column.plan(length), length, type);
  }
  WholeProgress progress(shown, "perplexity", total * n_computed(columns));
  fill_columns(columns, [&](Column& column) {
    for (const int64_t length : lengths) {
      const SpanPlan plan = column.plan(length);
      const PerplexityResult r = perplexity(engine, in.text, plan, {length, o.windows, type}, progress);
      column.json.push_back({{"length", length},
                             {"perplexity", r.perplexity},
                             {"n", r.n_scored},
                             {"windows", r.n_windows},
                             {"kv_bytes", r.kv_bytes},
                             {"density", plan.density(length)}});
    }
  });
}

void run_items(Engine& engine, const EvalOptions& o, const Inputs& in, std::vector<Column>& columns, Progress& shown) {
  const KvType type = kv_type_by_name(o.common.kv);
  const std::vector<PromptItem> items = make_items(engine, o, in);
  for (const Column& column : columns) check_items(engine, column.plan, items, type);
  std::optional<AtomicFile> answers;
  if (!o.answers.empty()) answers.emplace(o.answers);
  WholeProgress progress(shown, o.task, work_tokens(items) * n_computed(columns));
  fill_columns(columns, [&](Column& column) {
    const std::vector<ItemResult> results = evaluate_items(engine, column.plan, items, type, progress);
    column.rows = summarize(items, results);
    for (const EvalRow& row : column.rows) column.json.push_back(to_json(row, o.task));
    for (size_t i = 0; answers && i < items.size(); ++i) {
      Json line = {{"plan", column.name}};
      line.update(to_json(items[i], results[i]));
      answers->append(std::as_bytes(std::span<const char>(document_line(line))));
    }
  });
  if (answers) answers->commit();
}

void eval(EvalOptions& o) {
  check_options(o);
  const Inputs in = read_inputs(o);
  const std::unique_ptr<Engine> engine = o.common.load();
  std::vector<Column> columns = make_columns(*engine, o);
  const std::unique_ptr<Progress> shown = make_progress();
  if (o.task == "ppl")
    run_perplexity(*engine, o, in, columns, *shown);
  else
    run_items(*engine, o, in, columns, *shown);
  shown->finish();

  Json document = eval_document({o.common.model, o.common.plan_name(), o.common.kv, o.seed}, o.task, o.keys);
  if (o.task == "ruler")
    document["note"] =
        "own wording, no examples in the prompts; qa_1 and qa_2 ask for generated facts in place of SQuAD and HotpotQA";
  if (o.task == "longbench") document["note"] = "own wording of the prompts; measures of LongBench";
  document["rows"] = columns.back().json;
  if (o.compare)
    for (const Column& column : columns) document["compare"][column.name] = column.json;
  if (!o.common.json) print_table(o.task, columns);
  if (o.compare && o.task == "passkey")
    for (const Column& column : columns) {
      if (&column == &columns.front()) continue;  // dense
      const EffectiveContext context = effective_context(columns.front().rows, column.rows);
      document["effective_context"][column.name] = {
          {"tokens", context.tokens}, {"mean_span", context.mean_span}, {"times_mean_span", context.times_span()}};
      if (o.common.json) continue;
      char line[160] = ": effective context shorter than the shortest length\n";
      if (context.tokens > 0)
        std::snprintf(line, sizeof line, ": effective context %lld tokens, %.1f times the mean span of %.0f\n",
                      static_cast<long long>(context.tokens), context.times_span(), context.mean_span);
      print(column.name + line);
    }
  if (o.common.json) print(document_text(document));
}

}  // namespace

void add_eval(CLI::App& app) {
  const auto o = std::make_shared<EvalOptions>();
  CLI::App* command = app.add_subcommand("eval", "Measure quality: perplexity, retrieval, RULER, LongBench");
  o->common.add_to(*command);
  command
      ->add_option("--task", o->task,
                   "ppl (perplexity of a text), passkey (a number hidden in a long prompt), longeval (one line of "
                   "many), ruler (13 kinds of "
                   "long-context task) or longbench (files in LongBench's form)")
      ->required()
      ->check(CLI::IsMember({"ppl", "passkey", "longeval", "ruler", "longbench"}));
  command
      ->add_option("--lengths", o->lengths,
                   "prompt or window lengths in tokens, answers included, comma separated (default: 1024,2048,4096; "
                   "ppl: --ctx; longbench: the "
                   "model's context)")
      ->delimiter(',')
      ->check(CLI::PositiveNumber);
  command->add_option("--samples", o->samples,
                      "prompts a length and kind (default: 8; with --data: all, else the first ones of each)");
  command->add_option("--seed", o->seed, "seed of the prompts")->check(check_seed)->capture_default_str();
  command->add_option("--text", o->text, "text to score, or natural filler (default: the system's licence texts)");
  command->add_option("--ctx", o->context, "ppl: tokens a window; the second half of each is scored")
      ->capture_default_str();
  command->add_option("--windows", o->windows, "ppl: number of windows (default: all of the text)")
      ->check(CLI::PositiveNumber);
  command->add_option("--keys", o->keys, "passkey: keys in a prompt, one of them asked for by its name")
      ->capture_default_str();
  command->add_option("--depths", o->depths,
                      "passkey: places of the key, evenly spaced from the beginning to the end (default: random ones)");
  command
      ->add_option("--kinds", o->kinds,
                   "ruler: the kinds to run, comma separated, as in niah_single_1,vt,qa_1 (default: all)")
      ->delimiter(',');
  command->add_option("--data", o->data, "longeval, longbench: JSONL files in the published form");
  command->add_option("--answers", o->answers,
                      "file to write every answer to: JSONL, a line a prompt and plan (all tasks but ppl)");
  command->add_flag("--compare", o->compare,
                    "the dense model, and the uniform plan of the same density at each length, beside the plan");
  command->footer(
      "Examples:\n"
      "  polyspan eval model.gguf --task ppl --text wiki.txt --ctx 2048 --windows 8\n"
      "  polyspan eval model.gguf --task passkey --lengths 1024,4096 --plan uniform:0.25 --compare --json\n"
      "  polyspan eval model.gguf --task passkey --keys 4 --depths 5 --lengths 2048\n"
      "  polyspan eval model.gguf --task longeval --data 70_lines.jsonl --samples 20\n"
      "  polyspan eval model.gguf --task ruler --lengths 2048,4096 --samples 4 --kinds niah_multikey_1,vt\n"
      "  polyspan eval model.gguf --task longbench --data qasper.jsonl trec.jsonl --lengths 4096 --plan plan.json "
      "--compare");
  command->callback([o] { eval(*o); });
}

}  // namespace polyspan::cli
