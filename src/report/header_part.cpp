// The top of the page: which model, the verdict in words, and a table of the figures that matter.
#include <algorithm>

#include "report/page_parts.h"
#include "report/words.h"

namespace polyspan::report {
namespace {

std::string strong(const std::string& text) { return "<strong>" + escape_markup(text) + "</strong>"; }

std::string loss_text(double loss) { return number_text(loss, 3); }

// "0.437 at 4,096 tokens, where the dense model has 0.412, uniform spans 1.92 and two-valued spans 0.61".
std::string loss_words(const Validation& validation) {
  std::vector<std::string> others = {"the dense model has " + loss_text(validation.dense_loss)};
  for (const char* name : {"uniform", "two-valued"}) {
    const ValidationRow* row = validation.row(name);
    if (row != nullptr && name != validation.winner)
      others.push_back(std::string(name) + " spans " + loss_text(row->loss) +
                       (row->stopped.empty() ? "" : " (left early)"));
  }
  return loss_text(validation.row(validation.winner)->loss) + " at " + count_text(validation.length) +
         " tokens, where " + join_words(others);
}

// "49.8%", or "49.2% to 51.4%" where it depends on the length.
std::string share_words(const SpanPlan& plan, const std::vector<int64_t>& lengths) {
  double least = 1, most = 0;
  for (const int64_t length : lengths) {
    least = std::min(least, plan.density(length));
    most = std::max(most, plan.density(length));
  }
  const std::string low = percent_text(least), high = percent_text(most);
  return low == high ? low + " of the cache" : low + " to " + high + " of the cache, depending on the length";
}

std::string verdict(const PageContext& page, const DensityResult& result) {
  const RunModel& model = page.run.model;
  std::string out = "At density " + density_text(result.density) + ", ";
  if (!result.plan && !result.validation) return out + "there is no plan yet.";
  if (result.validation) {
    const std::string& winner = result.validation->winner;
    const bool is_baseline = winner == "uniform" || winner == "two-valued";
    out += is_baseline ? "no searched plan did better than the baseline, " + strong(winner) + ": its held-out loss is "
                       : strong(winner) + " won: its held-out loss is ";
    out += loss_words(*result.validation) + ". ";
  } else {
    out += "the plan was not validated. ";
  }
  if (!result.plan) return out + "Its plan is not written yet.";
  const int64_t longest = page.lengths.back();
  const auto dense = static_cast<double>(cache_bytes(model, SpanPlan::dense(model.shape()), longest));
  const auto kept = static_cast<double>(cache_bytes(model, *result.plan, longest));
  return out + "It keeps " + share_words(*result.plan, page.lengths) + "; at " + count_text(longest) +
         " tokens that is " + bytes_text(kept) + " instead of " + bytes_text(dense) + ".";
}

std::string measured_accuracy(const PageContext& page, const MeasuredPlan& plan, int64_t length) {
  const Retrieval* found = page.run.measured.find_retrieval(plan, length);
  return found == nullptr ? "" : percent_text(found->accuracy);
}

std::string measured_decode(const PageContext& page, const MeasuredPlan& plan, int64_t length) {
  const Speed* found = page.run.measured.find_speed(plan, length);
  return found == nullptr || !found->decode_tokens_per_s ? "" : number_text(*found->decode_tokens_per_s, 3);
}

std::string glance(const PageContext& page) {
  const RunModel& model = page.run.model;
  const int64_t longest = page.lengths.back();
  HtmlTable table;
  table.caption = "At a glance; the longest length is " + count_text(longest) + " tokens";
  table.head = {"plan"};
  for (const int64_t length : page.lengths) table.head.push_back("kept at " + count_text(length));
  table.head.insert(table.head.end(), {page.run.model.window > 0 ? "windows, f32" : "cache, f16", "held-out loss"});
  const bool has_retrieval = !page.run.measured.retrieval.empty(), has_speed = !page.run.measured.speed.empty();
  if (has_retrieval) table.head.push_back("pass key found");
  if (has_speed) table.head.push_back("decode, tokens/s");
  const auto add = [&](const std::string& name, const SpanPlan* plan, const std::string& loss,
                       const MeasuredPlan& measured) {
    std::vector<std::string> row = {name};
    for (const int64_t length : page.lengths) row.push_back(plan == nullptr ? "" : percent_text(plan->density(length)));
    row.push_back(plan == nullptr ? "" : bytes_text(static_cast<double>(cache_bytes(model, *plan, longest))));
    row.push_back(loss);
    if (has_retrieval) row.push_back(measured_accuracy(page, measured, longest));
    if (has_speed) row.push_back(measured_decode(page, measured, longest));
    table.rows.push_back(std::move(row));
  };
  std::string dense_loss;
  for (const DensityResult& result : page.run.densities)
    if (result.validation && dense_loss.empty()) dense_loss = loss_text(result.validation->dense_loss);
  const SpanPlan dense = SpanPlan::dense(model.shape());
  add("dense", &dense, dense_loss, {"dense", 1});
  for (const DensityResult& result : page.run.densities) {
    const auto& validation = result.validation;
    const std::string winner = validation ? " <small>" + escape_markup(validation->winner) + "</small>" : "";
    add("*density " + density_text(result.density) + winner, result.plan ? &*result.plan : nullptr,
        validation ? loss_text(validation->row(validation->winner)->loss) : "", {"plan", result.density});
  }
  return table.html();
}

}  // namespace

std::string header_part(const PageContext& page) {
  const RunData& run = page.run;
  std::vector<std::string> densities;
  for (const double density : run.options.densities) densities.push_back(density_text(density));
  std::string out = "<header>\n" + paragraph("Spans of every head, found by polyspan", "over");
  out += "<h1>" + escape_markup(run.model.name.empty() ? "model without a name" : run.model.name) + "</h1>\n";
  std::string sub = (densities.size() == 1 ? "density " : "densities ") + join_words(densities) +
                    " \xc2\xb7 profiled at " + join_counts(run.options.lengths) + " tokens";
  if (!run.options.extend.empty()) sub += ", extended to " + join_counts(run.options.extend);
  if (!run.date.empty())
    sub += " \xc2\xb7 <time datetime=\"" + escape_markup(run.date) + "\">" + escape_markup(run.date) + "</time>";
  out += paragraph(sub, "sub");
  const std::vector<std::string> missing = run.missing();
  if (!run.finished || !missing.empty())
    out += paragraph(std::string("<strong>") +
                         (run.finished ? "Parts of this run are missing" : "This run is not finished") + "</strong>" +
                         (missing.empty() ? "." : ": " + join_words(missing) + ". The page shows what is there."),
                     "notice");
  for (const DensityResult& result : run.densities) out += paragraph(verdict(page, result), "lead");
  out += glance(page);
  out +=
      "<nav aria-label=\"Sections\"><a href=\"#spans\">Spans</a> <a href=\"#influence\">Influence</a> <a "
      "href=\"#front\">Front</a> "
      "<a href=\"#validation\">Validation</a> <a href=\"#retrieval\">Retrieval</a> <a href=\"#cost\">Memory and "
      "speed</a> "
      "<a href=\"#origin\">What was run</a></nav>\n";
  return out + "</header>\n";
}

}  // namespace polyspan::report
