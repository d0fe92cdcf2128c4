// report/page.h: the report on a run as one HTML page that needs nothing else: no network, no fonts, no scripts to be
// read.
#pragma once

#include <string>
#include <vector>

#include "report/run_data.h"
#include "report/train_data.h"

namespace polyspan::report {

struct PageOptions {
  std::vector<int64_t> lengths;  // of the pictures of spans, of memory and of the speed; empty: the run's own
};

// The whole document. Everything that the run says is escaped.
std::string report_page(const RunData& run, const PageOptions& options = {});
std::string training_page(const TrainRun& run);

}  // namespace polyspan::report
