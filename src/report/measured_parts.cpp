// What was measured under the plans, what they cost, and what was run.
#include <algorithm>
#include <set>

#include "report/page_parts.h"
#include "report/words.h"

namespace polyspan::report {
namespace {

std::string measure_command(const RunData& run) {
  const std::string model = run.model.file.empty() ? "MODEL.gguf" : run.model.file;
  return "<code>polyspan report " + escape_markup(run.folder.string()) + " --measure " + escape_markup(model) +
         " -o report.html</code>";
}

std::string stale_words(const RunData& run) {
  if (run.measured.n_stale == 0) return "";
  return paragraph(
      count_text(run.measured.n_stale) + " measurements are of plans that the run no longer has and are left out.",
      "absent");
}

struct NamedPlan {
  MeasuredPlan plan;
  std::string name;
};

// Dense, uniform and the plan of one density.
std::vector<NamedPlan> plans_of(const DensityResult& result) {
  std::vector<NamedPlan> plans(3);
  const char* const names[] = {"dense", "uniform", "plan"};
  for (size_t i = 0; i < plans.size(); ++i)
    plans[i] = {.plan = {.name = names[i], .density = i == 0 ? 1 : result.density}, .name = names[i]};
  return plans;
}

std::vector<int64_t> retrieval_lengths(const Measurements& measured) {
  std::set<int64_t> lengths;
  for (const Retrieval& result : measured.retrieval) lengths.insert(result.length);
  return {lengths.begin(), lengths.end()};
}

std::string rate_text(const std::optional<double>& rate) { return rate ? number_text(*rate, 3) : ""; }

std::string memory_body(const PageContext& page) {
  const RunModel& model = page.run.model;
  std::vector<Series> series;
  std::vector<LegendEntry> entries;
  HtmlTable table;
  table.caption = "KV cache in f16";
  table.head = {"length", "dense"};
  table.rows.resize(page.lengths.size());
  const auto add = [&](const std::string& name, const PlanStyle& style, const SpanPlan& plan) {
    Series line{.name = name, .style = style, .points = {}, .hints = {}};
    for (size_t i = 0; i < page.lengths.size(); ++i) {
      const int64_t length = page.lengths[i];
      const auto bytes = static_cast<double>(cache_bytes(model, plan, length));
      line.points.emplace_back(length, bytes / 1e6);
      line.hints.push_back(name + ": " + bytes_text(bytes) + " at " + count_text(length) + " tokens");
      table.rows[i].push_back(bytes_text(bytes));
    }
    series.push_back(std::move(line));
    entries.push_back({style, name});
  };
  for (size_t i = 0; i < page.lengths.size(); ++i) table.rows[i].push_back(count_text(page.lengths[i]));
  add("dense", plan_style("dense"), SpanPlan::dense(model.shape()));
  for (size_t i = 0; i < page.run.densities.size(); ++i) {
    const DensityResult& result = page.run.densities[i];
    if (!result.plan) continue;
    add("density " + density_text(result.density), density_style(i), *result.plan);
    table.head.push_back("density " + density_text(result.density));
  }
  return legend(entries) + "<div class=\"beside\">" + figure(length_chart("KV cache by length", "MB", series), "") +
         table.html() + "</div>\n";
}

std::string speed_body(const PageContext& page) {
  const Measurements& measured = page.run.measured;
  std::set<int64_t> lengths;
  for (const Speed& speed : measured.speed) lengths.insert(speed.length);
  std::string body =
      legend({{plan_style("dense"), "dense"}, {plan_style("uniform"), "uniform"}, {plan_style("plan"), "plan"}});
  for (const DensityResult& result : page.run.densities) {
    std::vector<Series> decode, prefill;
    for (const NamedPlan& named : plans_of(result)) {
      Series of_decode{.name = named.name, .style = plan_style(named.name), .points = {}, .hints = {}};
      Series of_prefill = of_decode;
      for (const int64_t length : lengths) {
        const Speed* speed = measured.find_speed(named.plan, length);
        if (speed == nullptr) continue;
        const auto point = [&](Series& line, const std::optional<double>& rate, const char* what) {
          if (!rate) return;
          line.points.emplace_back(length, *rate);
          line.hints.push_back(named.name + ": " + what + " " + number_text(*rate, 3) + " tokens/s at " +
                               count_text(length));
        };
        point(of_decode, speed->decode_tokens_per_s, "decode");
        point(of_prefill, speed->prefill_tokens_per_s, "prefill");
      }
      if (!of_decode.points.empty()) decode.push_back(std::move(of_decode));
      if (!of_prefill.points.empty()) prefill.push_back(std::move(of_prefill));
    }
    if (decode.empty() && prefill.empty()) continue;
    const std::string density = density_text(result.density);
    body += "<h3>Speed, density " + density + "</h3>\n";
    std::string figures;
    if (!decode.empty())
      figures += figure(length_chart("Decode speed, density " + density, "tokens/s", decode),
                        "<strong>Decode</strong> with a cache of that length");
    if (!prefill.empty())
      figures += figure(length_chart("Prefill speed, density " + density, "tokens/s", prefill),
                        "<strong>Prefill</strong> of a prompt of that length");
    body += gallery(figures);
    HtmlTable table;
    table.caption = "Tokens per second, density " + density;
    table.head = {"length"};
    for (const char* what : {"decode", "prefill"})
      for (const NamedPlan& named : plans_of(result)) table.head.push_back(std::string(what) + ", " + named.name);
    for (const int64_t length : lengths) {
      std::vector<std::string> row = {count_text(length)};
      for (const bool is_decode : {true, false})
        for (const NamedPlan& named : plans_of(result)) {
          const Speed* speed = measured.find_speed(named.plan, length);
          row.push_back(
              speed == nullptr ? "" : rate_text(is_decode ? speed->decode_tokens_per_s : speed->prefill_tokens_per_s));
        }
      table.rows.push_back(std::move(row));
    }
    body += table.html();
  }
  std::vector<std::string> machines;
  for (const std::string& machine : measured.machines) machines.push_back(escape_markup(machine));
  return body +
         paragraph(
             "Measured with " + join_words(machines) +
                 (page.run.processor.empty() ? "" : "; the run was made on " + escape_markup(page.run.processor)) + ".",
             "note");
}

std::string seconds_words(const RunData& run) {
  std::vector<std::string> parts;
  for (const auto& [phase, seconds] : run.seconds) parts.push_back(phase + " " + duration_text(seconds));
  return join_words(parts);
}

std::string yes_no(bool value) { return value ? "yes" : "no"; }

}  // namespace

std::string retrieval_part(const PageContext& page) {
  const Measurements& measured = page.run.measured;
  if (measured.retrieval.empty())
    return section(
        "retrieval", "Retrieval",
        stale_words(page.run) + paragraph("Not measured: " + measure_command(page.run) + " measures it.", "absent"));
  const std::vector<int64_t> lengths = retrieval_lengths(measured);
  std::set<int64_t> prompts;
  for (const Retrieval& result : measured.retrieval)
    for (const DepthCell& cell : result.depths) prompts.insert(cell.n);
  std::string body = paragraph(
      "Share of prompts whose hidden pass key the model repeats, by the place of the key (top: the beginning) and the "
      "length. " +
      (prompts.empty()
           ? std::string()
           : "A cell is " + join_counts({prompts.begin(), prompts.end()}) + " prompts, so a single cell says little."));
  body += stale_words(page.run);
  for (const DensityResult& result : page.run.densities) {
    std::string figures;
    for (const NamedPlan& named : plans_of(result)) {
      std::vector<const Retrieval*> by_length;
      double sum = 0;
      int64_t n = 0;
      for (const int64_t length : lengths)
        if (const Retrieval* found = measured.find_retrieval(named.plan, length)) {
          by_length.push_back(found);
          sum += found->accuracy * static_cast<double>(found->n);
          n += found->n;
        }
      if (by_length.empty()) continue;
      figures += figure(retrieval_grid("Pass key retrieval, " + named.name, by_length),
                        "<strong>" + named.name + "</strong>: " + percent_text(sum / static_cast<double>(n)) + " of " +
                            count_text(n) + " prompts",
                        "grid");
    }
    if (!figures.empty()) body += density_heading(result) + gallery(figures, "grids");
  }
  HtmlTable table;
  table.caption = "Pass key found, all places together";
  table.head = {"plan"};
  for (const int64_t length : lengths) table.head.push_back(count_text(length));
  const auto add = [&](const NamedPlan& named, const std::string& name) {
    std::vector<std::string> row = {name};
    bool any = false;
    for (const int64_t length : lengths) {
      const Retrieval* found = measured.find_retrieval(named.plan, length);
      any = any || found != nullptr;
      row.push_back(
          found == nullptr ? "" : percent_text(found->accuracy) + " <small>of " + count_text(found->n) + "</small>");
    }
    if (any) table.rows.push_back(std::move(row));
  };
  for (const DensityResult& result : page.run.densities)
    for (const NamedPlan& named : plans_of(result)) {
      if (named.name != "dense")
        add(named, (named.name == "plan" ? "*plan, density " : "uniform, density ") + density_text(result.density));
      else if (&result == &page.run.densities.front())
        add(named, "dense");
    }
  return section("retrieval", "Retrieval", body + table.html());
}

std::string cost_part(const PageContext& page) {
  std::string body = paragraph(
      "The cache as the engine allocates it for one sequence of each length, by the plans. (While a prompt is read, "
      "each head "
      "also has room for one chunk of it.)");
  body += memory_body(page);
  if (page.run.measured.speed.empty())
    body += paragraph("Speed is not measured: " + measure_command(page.run) + " measures it.", "absent");
  else
    body += speed_body(page);
  return section("cost", "Memory and speed", body);
}

std::string origin_part(const PageContext& page) {
  const RunData& run = page.run;
  const RunOptions& options = run.options;
  std::vector<std::pair<std::string, std::string>> facts;
  const auto add = [&](const std::string& name, const std::string& value) {
    if (!value.empty()) facts.emplace_back(name, escape_markup(value));
  };
  add("Model", run.model.name + (run.model.architecture.empty() ? "" : ", " + run.model.architecture) +
                   (run.model.quantization.empty() ? "" : ", " + run.model.quantization) + ": " +
                   std::to_string(run.model.n_layers) + " layers, " + std::to_string(run.model.n_heads) + " heads in " +
                   std::to_string(run.model.n_kv_heads) + " groups of " + std::to_string(run.model.head_dim) +
                   " dimensions, context " + count_text(run.model.context_length));
  add("File", run.model.file);
  add("Fingerprint", run.model.fingerprint);
  add("Run directory", run.folder.string());
  add("Lengths",
      join_counts(options.lengths) + (options.extend.empty() ? "" : "; extended to " + join_counts(options.extend)));
  add("Influence", options.influence);
  add("Loss", options.loss);
  add("Samples", options.n_samples > 0 ? count_text(options.n_samples) : "");
  add("A rule for each query head", yes_no(options.per_query_head));
  add("Quick", options.quick ? "yes" : "");
  add("Seed", std::to_string(options.seed));
  add("Text", options.text);
  add("Documents", options.documents);
  for (const auto& [name, value] : options.others) {
    std::string words = name;
    std::replace(words.begin(), words.end(), '_', ' ');
    if (!words.empty() && words[0] >= 'a' && words[0] <= 'z') words[0] = static_cast<char>(words[0] - 'a' + 'A');
    add(escape_markup(words), value);
  }
  add("Device",
      run.processor +
          (run.n_threads > 0 ? (run.processor.empty() ? "" : ", ") + std::to_string(run.n_threads) + " threads" : "") +
          (run.isa.empty() ? "" : ", " + run.isa));
  add("Time", seconds_words(run));
  add("Made by", run.created_by);
  std::string body = fact_list(facts);
  if (!run.samples.empty()) {
    HtmlTable table;
    table.caption = "Samples by kind; accepted: profiled under the dense model, which answered right";
    table.head = {"kind", "drawn", "profiled", "accepted", "for validation"};
    const bool refined = std::any_of(run.samples.begin(), run.samples.end(),
                                     [](const SampleKind& kind) { return kind.n_refinement > 0; });
    if (refined) table.head.push_back("for refinement");
    for (const SampleKind& kind : run.samples) {
      table.rows.push_back({escape_markup(kind.kind), count_text(kind.n_drawn), count_text(kind.n_profiled),
                            count_text(kind.n_accepted), count_text(kind.n_validation)});
      if (refined) table.rows.back().push_back(count_text(kind.n_refinement));
    }
    body += table.html();
  }
  if (!run.log.empty()) {
    body += "<details><summary>Log, " + count_text(static_cast<int64_t>(run.log.size())) +
            " lines</summary>\n<pre tabindex=\"0\">";
    for (const std::string& line : run.log) body += escape_markup(line) + "\n";
    body += "</pre></details>\n";
  }
  return section("origin", "What was run", body);
}

}  // namespace polyspan::report
