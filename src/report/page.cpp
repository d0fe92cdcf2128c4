#include "report/page.h"

#include <algorithm>
#include <numeric>
#include <sstream>

#include "model/kv_cache.h"
#include "report/page_parts.h"
#include "report/words.h"

namespace polyspan::report {

std::string figure(const std::string& svg, const std::string& caption_html, std::string_view css) {
  std::string out = "<figure";
  if (!css.empty()) out.append(" class=\"").append(css).append("\"");
  out += "><div class=\"scroll\">" + svg + "</div>";
  if (!caption_html.empty()) out += "<figcaption>" + caption_html + "</figcaption>";
  return out + "</figure>\n";
}

std::string gallery(const std::string& figures, std::string_view css) {
  return "<div class=\"gallery" + (css.empty() ? std::string() : " " + std::string(css)) + "\">\n" + figures +
         "</div>\n";
}

std::string section(std::string_view id, std::string_view heading, const std::string& body) {
  std::string out = "<section id=\"";
  out.append(id).append("\">\n<h2>").append(heading).append("</h2>\n").append(body).append("</section>\n");
  return out;
}

std::string paragraph(const std::string& html, std::string_view css) {
  return "<p" + (css.empty() ? std::string() : " class=\"" + std::string(css) + "\"") + ">" + html + "</p>\n";
}

std::string HtmlTable::html() const {
  // The caption stands outside the box that scrolls, so that it is never cut.
  std::string out = "<p class=\"caption\">" + caption +
                    "</p>\n<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"" + caption +
                    "\"><table>\n<thead><tr>";
  for (const std::string& cell : head) out += "<th scope=\"col\">" + cell + "</th>";
  out += "</tr></thead>\n<tbody>\n";
  for (const std::vector<std::string>& row : rows) {
    const bool strong = row.front().starts_with('*');
    out += strong ? "<tr class=\"strong\">" : "<tr>";
    for (size_t i = 0; i < row.size(); ++i)
      out += i == 0 ? "<th scope=\"row\">" + row[i].substr(strong ? 1 : 0) + "</th>" : "<td>" + row[i] + "</td>";
    out += "</tr>\n";
  }
  return "<div class=\"table\">" + out + "</tbody></table></div></div>\n";
}

std::string legend(const std::vector<LegendEntry>& entries) {
  std::string out = "<ul class=\"legend\">";
  for (const LegendEntry& entry : entries) {
    Svg key(16, 14, entry.name, "");
    key.marker(entry.style.marker, {8, 7}, 4.5, "dot " + entry.style.css);
    out += "<li>" + key.finish() + escape_markup(entry.name) + "</li>";
  }
  return out + "</ul>\n";
}

std::string shade_legend(char ramp, std::string_view what, const std::vector<std::string>& labels) {
  std::string out = "<ul class=\"legend shades\"><li class=\"what\">";
  out.append(what).append("</li>");
  for (size_t i = 0; i < labels.size(); ++i)
    out += "<li><span class=\"shade " + std::string(1, ramp) + std::to_string(i) + "\"></span>" + labels[i] + "</li>";
  return out + "</ul>\n";
}

std::string density_text(double density) {
  std::ostringstream out;
  out.precision(6);
  out << density;
  return out.str();
}

std::string density_heading(const DensityResult& result) {
  return "<h3>Density " + density_text(result.density) + "</h3>\n";
}

int64_t cache_bytes(const RunModel& model, const SpanPlan& plan, int64_t length) {
  if (model.window > 0) {  // float32 keys and values of the windows; the rest of the state is the same under every plan
    int64_t kept = 0;
    for (const auto& row : plan.spans(length).kv_head_spans) kept = std::accumulate(row.begin(), row.end(), kept);
    return kept * model.head_dim * 2 * static_cast<int64_t>(sizeof(float));
  }
  ModelConfig shape;
  shape.n_layers = model.n_layers;
  shape.n_heads = model.n_heads;
  shape.n_kv_heads = model.n_kv_heads;
  shape.head_dim = model.head_dim;
  return KvLayout(shape, plan, length, KvType::kF16).bytes;
}

std::string fact_list(const std::vector<std::pair<std::string, std::string>>& facts) {
  std::string out = "<dl>";
  for (const auto& [name, value] : facts) out += "<dt>" + name + "</dt><dd>" + value + "</dd>\n";
  return out + "</dl>\n";
}

std::string depth_legend() {
  return "<ul class=\"legend\"><li><span class=\"stroke d0\"></span>first third of the layers</li><li><span "
         "class=\"stroke d1\"></span>middle</li><li><span class=\"stroke d2\"></span>last third</li></ul>\n";
}

std::string document(const std::string& title, const std::string& body) {
  return "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
         "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
         "<meta name=\"color-scheme\" content=\"light dark\">\n<title>" +
         title + "</title>\n<style>\n" + page_style() + "</style>\n</head>\n<body>\n<main>\n" + body +
         "</main>\n<script>\n" + page_script() + "</script>\n</body>\n</html>\n";
}

std::string report_page(const RunData& run, const PageOptions& options) {
  PageContext page{run, options.lengths.empty() ? run.all_lengths() : options.lengths};
  std::sort(page.lengths.begin(), page.lengths.end());
  page.lengths.erase(std::unique(page.lengths.begin(), page.lengths.end()), page.lengths.end());
  std::string body = header_part(page);
  body += spans_part(page);
  body += influence_part(page);
  body += front_part(page);
  body += validation_part(page);
  body += retrieval_part(page);
  body += cost_part(page);
  body += origin_part(page);
  return document(escape_markup(run.model.name) + ": spans by polyspan", body);
}

}  // namespace polyspan::report
