// The page of a training run.
#include <algorithm>
#include <sstream>

#include "report/page.h"
#include "report/page_parts.h"
#include "report/words.h"

namespace polyspan::report {
namespace {

constexpr size_t kMostRows = 60;       // of the table of evaluations
constexpr size_t kMostExperts = 64;    // columns of their table
constexpr size_t kSmoothedParts = 40;  // a noisy curve's mean is over this part of it
const PlanStyle kTraining = {"s-plan", Marker::kCircle};
const PlanStyle kHeldOut = {"s-uniform", Marker::kSquare};

std::string plain_number(double value) {
  std::ostringstream out;
  out.precision(6);
  out << value;
  return out.str();
}

std::string bold(const std::string& text) { return "<strong>" + text + "</strong>"; }

bool is_hydra(const TrainRun& run) { return run.config.architecture == "hydra"; }
bool has_held_out(const TrainRun& run) { return !run.config.valid_tokens.empty(); }
std::string eval_name(const TrainRun& run) { return has_held_out(run) ? "held out" : "on training data"; }

// Where each stage but the last ends, as far as the run has come.
std::vector<int64_t> stage_ends(const TrainRun& run) {
  std::vector<int64_t> ends;
  int64_t end = 0;
  for (const TrainStage& stage : run.config.stages) {
    end += stage.steps;
    if (end < std::min(run.config.total_steps(), run.last_step())) ends.push_back(end);
  }
  return ends;
}

StepChart chart_of(const TrainRun& run, const std::string& title, const std::string& unit,
                   StepScale scale = StepScale::kFitting) {
  return {.title = title, .unit = unit, .scale = scale, .last_step = run.last_step(), .stage_ends = stage_ends(run)};
}

template <typename Value>
TrainRun::Points points_of(const TrainRun& run, Value value) {
  TrainRun::Points points;
  for (const StepRow& row : run.steps) points.emplace_back(row.step, value(row));
  return points;
}

// As logged, and smoothed where there is enough of it.
void add_noisy(StepChart& chart, const std::string& name, const TrainRun::Points& points) {
  const size_t width = points.size() / kSmoothedParts;
  const bool smoothed = width > 1;
  chart.series.push_back({.name = name,
                          .css = (smoothed ? "curve raw " : "series ") + kTraining.css,
                          .style = kTraining,
                          .points = points});
  if (smoothed)
    chart.series.push_back({.name = name + ", mean of " + std::to_string(width) + " logged steps",
                            .css = "series " + kTraining.css,
                            .style = kTraining,
                            .points = moving_mean(points, width)});
}

std::string one_line(const TrainRun& run, const std::string& title, const std::string& unit, StepScale scale,
                     const TrainRun::Points& points) {
  StepChart chart = chart_of(run, title, unit, scale);
  chart.series.push_back({.name = title, .css = "series " + kTraining.css, .style = kTraining, .points = points});
  return step_chart(chart);
}

// A line a layer, in the colour of its third of the depth; "" where no layer has any.
template <typename OfLayer>
std::string layers_figure(const TrainRun& run, const std::string& title, const std::string& unit, StepScale scale,
                          const std::string& caption, OfLayer of_layer) {
  StepChart chart = chart_of(run, title, unit, scale);
  const int64_t n_layers = run.config.hydra.n_layers;
  for (int64_t layer = 0; layer < n_layers; ++layer) {
    TrainRun::Points points = of_layer(layer);
    if (points.empty()) continue;
    const std::string third = "d" + std::to_string(std::min<int64_t>(2, 3 * layer / n_layers));
    chart.series.push_back({.name = "layer " + std::to_string(layer),
                            .css = "curve " + third,
                            .style = {third, Marker::kCircle},
                            .points = std::move(points)});
  }
  return chart.series.empty() ? "" : figure(step_chart(chart), caption);
}

const EvalRow* last_eval(const TrainRun& run) { return run.evals.empty() ? nullptr : &run.evals.back(); }

std::string part_list(const std::vector<std::string>& names) {
  std::string out;
  for (const std::string& name : names) out += (out.empty() ? "" : ", ") + escape_markup(name);
  return out;
}

std::string stages_table(const TrainRun& run) {
  HtmlTable table;
  table.caption = "Stages; loss and accuracy are of the last that was logged in the stage";
  table.head = {"stage", "steps", "length", "batch", "peak rate"};
  const struct {
    const char* name;
    std::vector<std::string> TrainStage::*parts;
  } lists[] = {{"off", &TrainStage::off}, {"frozen", &TrainStage::frozen}, {"ramp", &TrainStage::ramp}};
  const auto is_used = [&](const auto& list) {
    return std::any_of(run.config.stages.begin(), run.config.stages.end(),
                       [&](const TrainStage& stage) { return !(stage.*list.parts).empty(); });
  };
  for (const auto& list : lists)
    if (is_used(list)) table.head.push_back(list.name);
  table.head.insert(table.head.end(), {"training loss", "evaluation loss", "accuracy"});
  int64_t begin = 0;
  for (const TrainStage& stage : run.config.stages) {
    const int64_t end = begin + stage.steps;
    const auto in_stage = [&](const auto& row) { return row.step > begin && row.step <= end; };
    const auto step = std::find_if(run.steps.rbegin(), run.steps.rend(), in_stage);
    const auto eval = std::find_if(run.evals.rbegin(), run.evals.rend(), in_stage);
    // In a <span>, as a name that starts with '*' would emphasise the row.
    std::vector<std::string> row = {"<span>" + escape_markup(stage.name) + "</span>", count_text(stage.steps),
                                    count_text(stage.length), count_text(stage.batch), plain_number(stage.lr)};
    for (const auto& list : lists)
      if (is_used(list)) row.push_back(part_list(stage.*list.parts));
    row.push_back(step == run.steps.rend() ? "" : number_text(step->loss, 4));
    row.push_back(eval == run.evals.rend() ? "" : number_text(eval->loss, 4));
    row.push_back(eval == run.evals.rend() ? "" : percent_text(eval->accuracy));
    table.rows.push_back(std::move(row));
    begin = end;
  }
  return table.html();
}

std::string training_header(const TrainRun& run) {
  const int64_t total = run.config.total_steps(), last = run.last_step();
  std::string out = "<header>\n" + paragraph("A training run of polyspan", "over");
  out += "<h1>" + escape_markup(run.name()) + "</h1>\n";
  out +=
      paragraph(std::string(is_hydra(run) ? "Hydra" : "Transformer, the baseline") + " \xc2\xb7 " +
                    number_text(static_cast<double>(run.n_parameters()) / 1e6, 3) + " M parameters \xc2\xb7 step " +
                    count_text(last) + " of " + count_text(total) + " \xc2\xb7 seed " + std::to_string(run.config.seed),
                "sub");
  if (last < total)
    out += paragraph(bold("This run is not finished") + ": step " + count_text(last) + " of " + count_text(total) +
                         " is the last that is logged. The page shows what is there.",
                     "notice");
  std::string lead = "The training loss went from " + number_text(run.steps.front().loss, 3) + " at step " +
                     count_text(run.steps.front().step) + " to " + number_text(run.steps.back().loss, 3) + " at step " +
                     count_text(last) + ".";
  if (const EvalRow* eval = last_eval(run))
    lead += " Evaluated " + eval_name(run) + " at step " + count_text(eval->step) + ": loss " +
            number_text(eval->loss, 3) + ", accuracy " + bold(percent_text(eval->accuracy)) + ".";
  out += paragraph(lead, "lead") + stages_table(run);
  out +=
      "<nav aria-label=\"Sections\"><a href=\"#loss\">Loss</a> <a href=\"#evaluation\">Evaluation</a> <a "
      "href=\"#speed\">Gradient and speed</a> ";
  if (is_hydra(run))
    out += "<a href=\"#experts\">Experts</a> <a href=\"#gates\">Gates</a> <a href=\"#memory\">Slots and memory</a> ";
  return out + "<a href=\"#origin\">What was run</a></nav>\n</header>\n";
}

std::string loss_part(const TrainRun& run) {
  StepChart loss = chart_of(run, "Training loss", "loss, nats a token");
  add_noisy(loss, "training loss", points_of(run, [](const StepRow& row) { return row.loss; }));
  StepSeries eval{
      .name = "loss " + eval_name(run), .css = "series " + kHeldOut.css, .style = kHeldOut, .has_dots = true};
  for (const EvalRow& row : run.evals) eval.points.emplace_back(row.step, row.loss);
  if (!eval.points.empty()) loss.series.push_back(std::move(eval));
  const std::string body =
      paragraph(
          "Cross-entropy of the tokens that are to be predicted; each logged step is of its own batch. Broken "
          "upright lines: a stage ends.") +
      legend({{kTraining, "training"}, {kHeldOut, eval_name(run)}}) +
      gallery(figure(step_chart(loss), "Loss") +
              figure(one_line(run, "Learning rate", "rate", StepScale::kFromZero,
                              points_of(run, [](const StepRow& row) { return row.lr; })),
                     "Learning rate: warm-up, then a cosine over the whole run, times the stage's peak"));
  return section("loss", "Loss and learning rate", body);
}

std::string evaluation_part(const TrainRun& run) {
  if (run.evals.empty()) return section("evaluation", "Evaluation", paragraph("There is no evaluation yet.", "absent"));
  std::string body = paragraph(
      has_held_out(run) ? "On the file of the configuration's <code>valid</code>, the same sequences each time."
                        : "The configuration names no <code>valid</code>: this is of the training file, not held out.");
  StepChart accuracy = chart_of(run, "Accuracy", "share right", StepScale::kShare);
  accuracy.series.push_back(
      {.name = "accuracy", .css = "series " + kHeldOut.css, .style = kHeldOut, .points = {}, .has_dots = true});
  for (const EvalRow& row : run.evals) accuracy.series.back().points.emplace_back(row.step, row.accuracy);
  HtmlTable table;
  table.caption = "Evaluations";
  table.head = {"step", "loss", "accuracy"};
  const size_t every = (run.evals.size() + kMostRows - 1) / kMostRows;
  if (every > 1) table.caption += ": each " + std::to_string(every) + "th, and the last";
  for (size_t i = 0; i < run.evals.size(); ++i)
    if ((run.evals.size() - 1 - i) % every == 0)
      table.rows.push_back(
          {count_text(run.evals[i].step), number_text(run.evals[i].loss, 4), percent_text(run.evals[i].accuracy)});
  body += "<div class=\"beside\">" +
          figure(step_chart(accuracy), "Share of the predicted tokens whose most likely token is right") +
          table.html() + "</div>\n";
  return section("evaluation", "Evaluation", body);
}

std::string speed_part(const TrainRun& run) {
  StepChart gradient = chart_of(run, "Gradient norm", "norm");
  add_noisy(gradient, "gradient norm", points_of(run, [](const StepRow& row) { return row.grad_norm; }));
  const std::string clip = run.config.clip > 0 ? "; it is cut down to " + plain_number(run.config.clip) : "";
  return section("speed", "Gradient and speed",
                 gallery(figure(step_chart(gradient), "Norm of the gradient of all weights" + clip) +
                         figure(one_line(run, "Tokens per second", "tokens/s", StepScale::kFromZero,
                                         points_of(run, [](const StepRow& row) { return row.tokens_per_s; })),
                                "Tokens trained a second, the mean since the call of train began; evaluations and "
                                "checkpoints are not counted")));
}

std::string experts_part(const TrainRun& run) {
  const std::string entropy = layers_figure(
      run, "Entropy of the experts", "entropy", StepScale::kShare,
      "Entropy of the experts' shares, of the largest that there can be: 1 is all alike, 0 is always the same one",
      [&](int64_t layer) { return run.expert_entropy(layer); });
  if (entropy.empty())
    return section("experts", "Use of the experts", paragraph("No step that is logged had experts.", "absent"));
  std::string figures = entropy;
  const auto add_loss = [&](const std::string& title, const std::string& caption, auto value) {
    TrainRun::Points points;
    for (const StepRow& row : run.steps)
      if (value(row)) points.emplace_back(row.step, *value(row));
    if (!points.empty()) figures += figure(one_line(run, title, "loss", StepScale::kFitting, points), caption);
  };
  add_loss("Balance loss", "Balance loss, summed over the layers with experts; 1 a layer where all are used alike",
           [](const StepRow& row) { return row.balance_loss; });
  add_loss("Router z-loss", "z-loss, summed over the layers: how large the router's logits are",
           [](const StepRow& row) { return row.z_loss; });
  // Who was used at the last logged step that had experts.
  HtmlTable table;
  table.head = {"layer"};
  for (int64_t expert = 0; expert < run.config.hydra.n_experts && expert < static_cast<int64_t>(kMostExperts); ++expert)
    table.head.push_back("expert " + std::to_string(expert));
  const auto last = std::find_if(run.steps.rbegin(), run.steps.rend(),
                                 [](const StepRow& row) { return row.statistics.contains("moe.use"); });
  for (const auto& [layer, use] : last->statistics.at("moe.use")) {
    std::vector<std::string> cells = {std::to_string(layer)};
    for (size_t i = 0; i < use.size() && i < kMostExperts; ++i) cells.push_back(percent_text(use[i]));
    table.rows.push_back(std::move(cells));
  }
  table.caption = "Share of the choices that fell on each expert at step " + count_text(last->step);
  return section("experts", "Use of the experts",
                 paragraph("How the chunks of a step's batch chose among the experts: one line a layer.") +
                     depth_legend() + gallery(figures) + table.html());
}

std::string gates_part(const TrainRun& run) {
  std::string figures;
  const struct {
    const char* name;
    size_t at;
    bool (*has)(const HydraConfig&, int64_t);
  } paths[] = {
      {"state space", 0, [](const HydraConfig& c, int64_t) { return c.has_ssm; }},
      {"attention and workspace", 1,
       [](const HydraConfig& c, int64_t layer) { return c.has_attention(layer) || c.has_workspace(layer); }},
      {"experts", 2, [](const HydraConfig& c, int64_t layer) { return c.has_moe(layer); }},
  };
  for (const auto& path : paths)
    figures += layers_figure(run, std::string("Weight of the path: ") + path.name, "weight", StepScale::kFitting,
                             std::string("Weight of the path: ") + path.name, [&](int64_t layer) {
                               return path.has(run.config.hydra, layer) ? run.statistic("multipliers", layer, path.at)
                                                                        : TrainRun::Points();
                             });
  figures += layers_figure(run, "Gate of the memory", "gate", StepScale::kFitting,
                           "Gate of the product-key memory, mean over the tokens",
                           [&](int64_t layer) { return run.statistic("pkm.gate", layer); });
  if (figures.empty()) return section("gates", "Gates", paragraph("No gates are logged.", "absent"));
  return section("gates", "Gates",
                 paragraph("What a path is multiplied by: its learned scalar times the controller's multiplier, mean "
                           "over the chunks of a step's batch; one line a layer.") +
                     depth_legend() + gallery(figures));
}

std::string memory_part(const TrainRun& run) {
  const HydraConfig& c = run.config.hydra;
  const double n_values = static_cast<double>(c.n_sub_keys) * static_cast<double>(c.n_sub_keys);
  std::string figures = layers_figure(
      run, "Slots touched", "share", StepScale::kShare,
      "Share of the " + count_text(c.n_slots) + " slots whose gate opened by more than 0.1, mean over the chunks",
      [&](int64_t layer) { return run.statistic("workspace.touched", layer); });
  figures += layers_figure(run, "Memory values read", "share", StepScale::kFitting,
                           "Share of the " + count_text(c.n_sub_keys * c.n_sub_keys) +
                               " values of the product-key memory that a step's batch read",
                           [&](int64_t layer) {
                             TrainRun::Points points = run.statistic("pkm.values_read", layer);
                             for (auto& [step, value] : points) value /= n_values;
                             return points;
                           });
  if (figures.empty())
    return section("memory", "Slots and memory",
                   paragraph("No step that is logged had a workspace or a memory.", "absent"));
  return section("memory", "Slots and memory", depth_legend() + gallery(figures));
}

std::string sizes_words(const TrainConfig& config) {
  std::vector<std::string> words;
  const auto add = [&](const std::string& name, int64_t n) { words.push_back(name + " " + count_text(n)); };
  if (config.architecture == "hydra") {
    const HydraConfig& c = config.hydra;
    add("width", c.d_model), add("blocks", c.n_layers), add("chunk", c.chunk_len), add("vocabulary", c.vocab_size);
    if (!c.has_ssm) words.push_back("no state space");
    if (c.has_mamba2()) add("state", c.d_state);
    if (c.has_diagonal_ssm()) words.push_back("diagonal state space");
    if (c.attention_every == 0) words.push_back("no attention");
    if (c.attention_every > 0) add("window", c.window), add("global tokens", c.n_global);
    if (c.moe_every > 0) add("experts", c.n_experts);
    if (c.n_slots > 0) add("slots", c.n_slots);
    if (!c.pkm_layers.empty()) add("memory values", c.n_sub_keys * c.n_sub_keys);
  } else {
    const TransformerSizes& c = config.transformer;
    add("width", c.d_model), add("layers", c.n_layers), add("heads", c.n_heads), add("KV heads", c.n_kv_heads);
    add("hidden", c.d_ff), add("vocabulary", c.vocab_size);
  }
  std::string out;
  for (const std::string& word : words) out += (out.empty() ? "" : ", ") + word;
  return out;
}

std::string training_origin(const TrainRun& run) {
  const TrainConfig& config = run.config;
  std::vector<std::pair<std::string, std::string>> facts;
  const auto add = [&](const std::string& name, const std::string& value) {
    if (!value.empty()) facts.emplace_back(name, escape_markup(value));
  };
  add("Architecture", config.architecture);
  add("Sizes", sizes_words(config));
  add("Parameters", count_text(run.n_parameters()));
  if (is_hydra(run)) add("Active a token", count_text(account(config.hydra).active_parameters));
  add("Training tokens", config.train_tokens.filename().string());
  add("Evaluation tokens", config.valid_tokens.filename().string());
  add("Tokenizer", config.tokenizer);
  add("Optimizer", "AdamW, betas " + plain_number(config.beta1) + " and " + plain_number(config.beta2) +
                       ", weight decay " + plain_number(config.weight_decay) + ", " + count_text(config.warmup_steps) +
                       " steps of warm-up");
  add("Seed", std::to_string(config.seed));
  add("Folder", run.folder.string());
  for (const TrainSession& session : run.sessions) {
    std::string words = session.processor.empty() ? session.device : session.device + ", " + session.processor;
    words += ", " + std::to_string(session.n_threads) + (session.n_threads == 1 ? " thread" : " threads") +
             ", LibTorch " + session.libtorch;
    add(session.step == 0 ? "Device" : "Device from step " + count_text(session.step) + " on", words);
  }
  if (run.sessions.empty()) add("Device", "not recorded: the run is of an older version");
  return section(
      "origin", "What was run",
      fact_list(facts) + "<details><summary>Configuration</summary>\n<pre tabindex=\"0\">" +
          [&] {  // line by line: escape_markup makes spaces of line ends
            std::istringstream lines(run.config_text);
            std::string out;
            for (std::string line; std::getline(lines, line);) out += escape_markup(line) + "\n";
            return out;
          }() +
          "</pre></details>\n");
}

}  // namespace

std::string training_page(const TrainRun& run) {
  std::string body = training_header(run) + loss_part(run) + evaluation_part(run) + speed_part(run);
  if (is_hydra(run)) body += experts_part(run) + gates_part(run) + memory_part(run);
  body += training_origin(run);
  return document(escape_markup(run.name()) + ": a training run of polyspan", body);
}

}  // namespace polyspan::report
