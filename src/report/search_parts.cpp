// What the search saw and chose: spans of all heads, influence curves, the front, validation.
#include <algorithm>

#include "report/page_parts.h"
#include "report/words.h"

namespace polyspan::report {
namespace {

// The curves that were profiled under the dense model: those of any density's first round.
const SearchRound* first_round(const RunData& run) {
  for (const DensityResult& result : run.densities)
    if (result.search && !result.search->rounds.empty()) return &result.search->rounds.front();
  return nullptr;
}

std::vector<LossCurve> profiled_curves(const SearchRound& round) {
  std::vector<LossCurve> curves;
  for (const LossCurve& curve : round.curves)
    if (curve.length == curve.source_length) curves.push_back(curve);
  std::sort(curves.begin(), curves.end(), [](const LossCurve& a, const LossCurve& b) { return a.length < b.length; });
  return curves;
}

std::string front_hint(const std::string& name, const std::vector<double>& losses, const std::vector<int64_t>& lengths,
                       const Validation* validation) {
  std::string hint = name + ": loss ";
  for (size_t i = 0; i < losses.size(); ++i)
    hint += (i == 0 ? "" : ", ") + number_text(losses[i], 3) + " at " + count_text(lengths[i]);
  const ValidationRow* row = validation == nullptr ? nullptr : validation->row(name);
  if (row != nullptr) hint += "; held-out loss " + number_text(row->loss, 3);
  return hint;
}

// The front, and every other candidate by the curves that the front was found with.
std::vector<FrontPoint> front_points(const RunData& run, const DensityResult& result) {
  const SearchResult& search = *result.search;
  const Validation* validation = result.validation ? &*result.validation : nullptr;
  std::vector<FrontPoint> points;
  const auto add = [&](const std::string& name, const std::vector<double>& losses, bool on_front) {
    points.push_back({.name = name,
                      .hint = front_hint(name, losses, search.curve_lengths, validation),
                      .losses = losses,
                      .on_front = on_front,
                      .is_winner = validation != nullptr && validation->winner == name});
  };
  for (const FrontPlan& plan : search.front) add(plan.name, plan.losses, true);
  const SearchRound* round = front_round(result, run.options.per_query_head);
  if (round == nullptr) return points;
  for (const auto& [name, plan] : result.candidates) {
    const auto same = [&name = name](const FrontPlan& known) { return known.name == name; };
    if (std::any_of(search.front.begin(), search.front.end(), same)) continue;
    if (const auto losses = plan_losses(plan, *round, run.options.per_query_head)) add(name, *losses, false);
  }
  return points;
}

}  // namespace

std::string spans_part(const PageContext& page) {
  std::string body =
      page.run.model.window > 0
          ? paragraph(
                "What each head keeps of its window of " + count_text(page.run.model.window) +
                " tokens: blocks with attention from left to right, KV heads from top to bottom. The global tokens "
                "beyond it stay, whatever its span.")
          : paragraph(
                "What each head keeps of an input: layers from left to right, KV heads from top to bottom. "
                "The sink, the first tokens that every head keeps, is counted in.");
  body += shade_legend('h', "kept share",
                       {"under \xe2\x85\x9b", "\xe2\x85\x9b", "\xc2\xbc", "\xe2\x85\x9c", "\xc2\xbd", "\xe2\x85\x9d",
                        "\xc2\xbe", "\xe2\x85\x9e", "all"});
  for (const DensityResult& result : page.run.densities) {
    body += density_heading(result);
    if (!result.plan) {
      body += paragraph("There is no plan of this density yet.", "absent");
      continue;
    }
    const auto add = [&](bool query_heads) {
      std::string figures;
      for (const int64_t length : page.plan_lengths())
        figures += figure(span_map(*result.plan, length, query_heads),
                          "<strong>" + count_text(length) + " tokens</strong>" +
                              (query_heads ? "" : ": " + percent_text(result.plan->density(length)) + " of the cache"),
                          "map");
      body += gallery(figures, page.run.model.n_layers > 46 ? "maps one" : "maps");
    };
    add(false);
    if (!result.plan->per_query_head()) continue;
    body += paragraph(
        "The plan has a rule for each query head. A KV head keeps the longest span of its group, as above; this is "
        "what each query "
        "head sees of it:");
    add(true);
  }
  return section("spans", "Spans of all heads", body);
}

std::string influence_part(const PageContext& page) {
  const RunData& run = page.run;
  const SearchRound* round = first_round(run);
  const std::vector<LossCurve> curves = round == nullptr ? std::vector<LossCurve>() : profiled_curves(*round);
  if (curves.empty())
    return section("influence", "Influence of the spans",
                   paragraph("No influence curves yet: the search has not run.", "absent"));
  const bool query_heads = run.options.per_query_head;
  std::string body =
      paragraph("What it would cost to cut a head to a span, " +
                std::string(run.model.window > 0 ? "measured" : "to first order") +
                ", the other heads left as they are: one line a " + std::string(query_heads ? "query" : "KV") +
                " head" + (run.options.loss.empty() ? "" : ", loss " + escape_markup(run.options.loss)) +
                (run.options.influence.empty() ? "" : ", estimator " + escape_markup(run.options.influence)) +
                ". The scale is logarithmic except near 0.");
  body += depth_legend();
  std::string figures;
  for (const LossCurve& curve : curves)
    figures += figure(influence_overlay(curve, run.model.n_layers, query_heads),
                      "<strong>" + count_text(curve.length) + " tokens</strong>");
  body += gallery(figures);

  LayerChart chart{.curve = &curves.back(),
                   .layer = 0,
                   .heads_per_layer = query_heads ? run.model.n_heads : run.model.n_kv_heads,
                   .y = influence_axis(curves.back()),
                   .marks = {}};
  std::vector<LegendEntry> entries;
  for (size_t i = 0; i < run.densities.size(); ++i)
    if (run.densities[i].plan) {
      chart.marks.push_back(
          {&*run.densities[i].plan, density_style(i), "density " + density_text(run.densities[i].density)});
      entries.push_back({density_style(i), "span in the plan of density " + density_text(run.densities[i].density)});
    }
  std::string layers;
  for (chart.layer = 0; chart.layer < run.model.n_layers; ++chart.layer) layers += figure(influence_layer(chart), "");
  body +=
      std::string("<details") + (run.model.n_layers <= 40 ? " open" : "") + "><summary>Layer by layer at " +
      count_text(curves.back().length) + " tokens</summary>\n" + (entries.empty() ? "" : legend(entries)) +
      gallery(layers, "layers") +
      paragraph("All of them on the scales of the picture of " + count_text(curves.back().length) + " tokens above.",
                "note") +
      "</details>\n";
  return section("influence", "Influence of the spans", body);
}

std::string front_part(const PageContext& page) {
  std::string body = paragraph(
      "Plans of one density share the cache out between short and long inputs. Each point is a candidate: its "
      "predicted loss "
      "at one length against that at another, lower left is better. Filled: on the front; ringed: the winner of the "
      "validation.");
  body += legend({{plan_style("round"), "searched"},
                  {plan_style("uniform"), "uniform"},
                  {plan_style("two-valued"), "two-valued"}});
  for (const DensityResult& result : page.run.densities) {
    body += density_heading(result);
    const std::vector<FrontPoint> points = result.search ? front_points(page.run, result) : std::vector<FrontPoint>();
    if (points.empty()) {
      body += paragraph("No search of this density yet.", "absent");
      continue;
    }
    const std::vector<int64_t>& lengths = result.search->curve_lengths;
    if (lengths.size() < 2) {
      body += paragraph("One length was searched: there is no front to draw.", "absent");
      continue;
    }
    // Each other length against the last one; all pairs would repeat themselves.
    std::string figures;
    for (size_t x = 0; x + 1 < lengths.size(); ++x)
      figures += figure(front_chart(points, lengths, x, lengths.size() - 1),
                        count_text(lengths[x]) + " against " + count_text(lengths.back()) + " tokens");
    body += gallery(figures);
  }
  return section("front", "Front over the lengths", body);
}

std::string validation_part(const PageContext& page) {
  std::string body = paragraph(
      "What the candidates lose on samples that the search has not seen. Hollow: left early, clearly worse. "
      "The broken line is the dense model.");
  body += legend({{plan_style("round"), "searched"},
                  {plan_style("uniform"), "uniform"},
                  {plan_style("two-valued"), "two-valued"}});
  for (const DensityResult& result : page.run.densities) {
    body += density_heading(result);
    if (!result.validation) {
      body += paragraph("No validation of this density yet.", "absent");
      continue;
    }
    const Validation& validation = *result.validation;
    body += paragraph("Winner: <strong>" + escape_markup(validation.winner) + "</strong>" +
                      (validation.why.empty()
                           ? "."
                           : ", " + escape_markup(validation.why) + (validation.why.ends_with('.') ? "" : ".")));
    HtmlTable table;
    table.caption = "Held-out loss over " + count_text(validation.n_samples) + " samples of " +
                    count_text(validation.length) + " tokens, density " + density_text(result.density);
    table.head = {"candidate", "loss", "answers right", "samples"};
    if (!validation.rows.empty())
      for (const auto& [length, density] : validation.rows.front().densities)
        table.head.push_back("kept at " + count_text(length));
    table.rows.push_back({"dense", number_text(validation.dense_loss, 4), "", count_text(validation.n_samples)});
    for (const ValidationRow& row : validation.rows) {
      std::vector<std::string> cells = {(row.name == validation.winner ? "*" : "") + escape_markup(row.name),
                                        number_text(row.loss, 4), row.right ? percent_text(*row.right) : "",
                                        count_text(row.n_samples) + (row.stopped.empty() ? "" : ", left")};
      for (size_t i = 4; i < table.head.size(); ++i)
        cells.push_back(i - 4 < row.densities.size() ? percent_text(row.densities[i - 4].second) : "");
      table.rows.push_back(std::move(cells));
    }
    const std::string rest = validation.rows.size() > kMostCandidates
                                 ? "The best " + std::to_string(kMostCandidates) + " of " +
                                       std::to_string(validation.rows.size()) + " candidates."
                                 : "";
    body += "<div class=\"beside\">" + figure(validation_chart(validation), rest) + table.html() + "</div>\n";
  }
  return section("validation", "Validation on held-out samples", body);
}

}  // namespace polyspan::report
