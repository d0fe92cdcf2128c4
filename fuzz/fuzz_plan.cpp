// Any bytes read as a plan: refused with an Error, or a plan whose figures are sane and which reads back as itself.
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "core/error.h"
#include "plan/span_plan.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace polyspan;
  const std::string_view json(reinterpret_cast<const char*>(data), size);
  for (const auto& shape :
       {std::optional<HeadShape>(), std::optional(HeadShape{2, 4, 2}), std::optional(HeadShape{2, 4, 2, 256, 32})}) {
    try {
      const SpanPlan plan = SpanPlan::parse(json, "fuzz", shape);
      for (const int64_t length : {int64_t{1}, int64_t{65}, int64_t{8192}, int64_t{1} << 40}) {
        const double density = plan.density(length);
        POLYSPAN_CHECK(density > 0 && density <= 1);
        const SpanTable table = plan.spans(length);
        for (const auto& row : table.query_head_spans)
          for (const int64_t span : row) POLYSPAN_CHECK(span >= 1 && span <= plan.shape().plan_length(length));
      }
      const std::string text = plan.to_json();
      POLYSPAN_CHECK(SpanPlan::parse(text, "again", plan.shape()).to_json() == text);
    } catch (const Error&) {
    }
  }
  return 0;
}
