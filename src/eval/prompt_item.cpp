#include "eval/prompt_item.h"

#include <algorithm>

#include "core/error.h"
#include "engine/generate.h"

namespace polyspan {
namespace {

// Tells a part's progress as progress of the whole.
class PartProgress final : public Progress {
 public:
  PartProgress(Progress& whole, int64_t before) : whole_(whole), before_(before) {}
  void update(int64_t done) override { whole_.update(before_ + done); }

 private:
  Progress& whole_;
  int64_t before_;
};

// Up to the end of the first line that has text.
std::string_view first_line(std::string_view text) {
  const size_t begin = std::min(text.find_first_not_of('\n'), text.size());
  return text.substr(begin, std::min(text.find('\n', begin), text.size()) - begin);
}

std::string answer(Engine& engine, Sequence& sequence, const PromptItem& item, Progress& progress) {
  std::string output;
  const auto wants_more = [&](std::string_view text) {
    output += text;
    if (item.first_line_only) {
      const std::string_view line = first_line(output);
      return line.data() + line.size() == output.data() + output.size();  // no line end behind it yet
    }
    return !score_is_final_at_one(item.rule) || score_answer(item.rule, output, item.wanted, item.classes) < 1;
  };
  const GenerateResult result =
      generate(engine, sequence, item.tokens, {.max_tokens = item.max_new_tokens}, wants_more, progress);
  return item.first_line_only ? std::string(first_line(result.text)) : result.text;
}

}  // namespace

PlanAt same_plan(SpanPlan plan) {
  return [plan = std::move(plan)](int64_t) { return plan; };
}

PlanAt uniform_like(SpanPlan plan) {
  return [plan = std::move(plan)](int64_t length) {
    return SpanPlan::uniform(plan.shape(), plan.density(length), plan.n_sink_tokens());
  };
}

void check_length(const Engine& engine, int64_t length) {
  if (length < 1) throw Error::bad_input("a length of ", length, " tokens; at least 1 is needed");
  if (length > engine.config().context_length)
    throw Error::bad_input("a length of ", length, " tokens is more than the context of ",
                           engine.config().context_length, " that the model was trained for");
}

void check_items(const Engine& engine, const PlanAt& plan, std::span<const PromptItem> items, KvType type) {
  int64_t longest = 0;
  for (const PromptItem& item : items) {
    POLYSPAN_CHECK(!item.tokens.empty() && !item.wanted.empty() && item.max_new_tokens > 0,
                   "an item without prompt or answer");
    POLYSPAN_CHECK(std::ssize(item.tokens) + item.max_new_tokens <= item.planned_length,
                   "an item that does not fit its length");
    check_length(engine, item.planned_length);
    longest = std::max(longest, item.planned_length);
  }
  if (longest > 0) engine.new_sequence(plan(longest), longest, type);  // whether its cache can be had
}

int64_t work_tokens(std::span<const PromptItem> items) {
  int64_t total = 0;
  for (const PromptItem& item : items) total += item.planned_length;
  return total;
}

std::vector<ItemResult> evaluate_items(Engine& engine, const PlanAt& plan, std::span<const PromptItem> items,
                                       KvType type, Progress& progress) {
  check_items(engine, plan, items, type);
  progress.start("evaluation", work_tokens(items));
  std::vector<ItemResult> results;
  int64_t done = 0;
  for (const PromptItem& item : items) {
    const SpanPlan spans = plan(item.planned_length);
    const std::unique_ptr<Sequence> sequence = engine.new_sequence(spans, item.planned_length, type);
    PartProgress part(progress, done);
    ItemResult result;
    result.output = answer(engine, *sequence, item, part);
    result.score = score_answer(item.rule, result.output, item.wanted, item.classes);
    result.kv_bytes = sequence->cache().bytes();
    result.density = spans.density(item.planned_length);
    results.push_back(std::move(result));
    progress.update(done += item.planned_length);
  }
  progress.finish();
  return results;
}

}  // namespace polyspan
