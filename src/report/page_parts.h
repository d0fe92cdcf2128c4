// report/page_parts.h: the sections of a report's page, each as HTML, and what they share.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "report/charts.h"
#include "report/run_data.h"

namespace polyspan::report {

// What every section is given: the run, and the lengths that the page shows, ascending.
struct PageContext {
  const RunData& run;
  std::vector<int64_t> lengths;
  // At which plans differ: windows are the same at every length.
  std::vector<int64_t> plan_lengths() const {
    return run.model.window > 0 ? std::vector<int64_t>{run.model.window} : lengths;
  }
};

// <head> and the script that shows hints at once (without it the browser's own are there).
std::string page_style();
std::string page_script();

// A picture with its caption. `wide`: as wide as the page.
std::string figure(const std::string& svg, const std::string& caption_html, std::string_view css = "");
// A row of pictures that flow into as many columns as fit.
std::string gallery(const std::string& figures, std::string_view css = "");
std::string section(std::string_view id, std::string_view heading, const std::string& body);
std::string paragraph(const std::string& html, std::string_view css = "");
std::string fact_list(const std::vector<std::pair<std::string, std::string>>& facts);  // names and values, both HTML
std::string depth_legend();                                                            // of the classes d0, d1, d2
// The whole page around its body; the title is HTML.
std::string document(const std::string& title, const std::string& body);

// A table in a box of its own that scrolls where it is wider than the page. Cells are HTML; the first column is a
// heading, the others are numbers. A row whose first cell starts with '*' is emphasised.
struct HtmlTable {
  std::string caption;
  std::vector<std::string> head;
  std::vector<std::vector<std::string>> rows;
  std::string html() const;
};

// A legend of plan styles: marker and name.
struct LegendEntry {
  PlanStyle style;
  std::string name;
};
std::string legend(const std::vector<LegendEntry>& entries);
std::string shade_legend(char ramp, std::string_view what, const std::vector<std::string>& labels);

std::string density_text(double density);  // "0.5"
std::string density_heading(const DensityResult& result);
// Bytes of the cache in f16, as the engine takes them.
int64_t cache_bytes(const RunModel& model, const SpanPlan& plan, int64_t length);

std::string header_part(const PageContext& page);  // title, verdict, the table at a glance
std::string spans_part(const PageContext& page);
std::string influence_part(const PageContext& page);
std::string front_part(const PageContext& page);
std::string validation_part(const PageContext& page);
std::string retrieval_part(const PageContext& page);
std::string cost_part(const PageContext& page);    // memory and speed
std::string origin_part(const PageContext& page);  // what was run

}  // namespace polyspan::report
