#include "eval/longeval.h"

#include <algorithm>

#include "core/error.h"
#include "eval/jsonl.h"
#include "eval/prompt_frame.h"
#include "eval/words.h"

namespace polyspan {
namespace {

constexpr int64_t kLineAnswerTokens = 16;  // after "... is <": the number and what may follow
constexpr int64_t kFileAnswerTokens = 48;  // a whole sentence, which may name the line first

const ChatFormat* chat_format(const Engine& engine) {
  return engine.has_chat_format() ? &engine.chat_format() : nullptr;
}

struct Line {
  std::string name, number;
  std::string text() const { return "line " + name + ": REGISTER_CONTENT is <" + number + ">\n"; }
};

PromptItem make_item(const Engine& engine, int64_t length, uint64_t seed) {
  RandomSource random{seed, static_cast<uint64_t>(length), 0x1e};
  DistinctValues values(random);
  const int64_t budget = length - kLineAnswerTokens;
  // A line is more than eight tokens with any tokenizer.
  const int64_t most = std::clamp<int64_t>(budget / 8, 2, DistinctValues::n_word_pairs() * 3 / 4);
  std::vector<Line> lines;
  while (std::ssize(lines) < most)
    lines.push_back({values.word_pair(), values.number(static_cast<int>(random.between(4, 5)))});
  const double place = random.unit();
  const auto asked = [&](int64_t n) { return static_cast<size_t>(place * static_cast<double>(n)); };
  const auto tokens = [&](int64_t n) {
    const std::string& name = lines[asked(n)].name;
    std::string text =
        "This is a record of lines. Each has a name and, as its <REGISTER_CONTENT>, a number. Remember the number of "
        "each line: "
        "afterwards I ask for one of them.\n\n";
    for (int64_t i = 0; i < n; ++i) text += lines[static_cast<size_t>(i)].text();
    text += "\nThe record ends here. What is the <REGISTER_CONTENT> in line " + name + "? Answer with the number.";
    return encode_prompt(engine.tokenizer(), chat_format(engine), text,
                         "The <REGISTER_CONTENT> in line " + name + " is <");
  };
  const std::optional<int64_t> n =
      largest_fitting(2, most, budget, [&](int64_t count) { return std::ssize(tokens(count)); });
  if (!n)
    throw Error::bad_input("a line-retrieval prompt of ", length, " tokens: two lines and the question need ",
                           std::ssize(tokens(2)) + kLineAnswerTokens);
  return {.tokens = tokens(*n),
          .max_new_tokens = kLineAnswerTokens,
          .planned_length = length,
          .rule = ScoreRule::kFirstNumber,
          .wanted = {lines[asked(*n)].number},
          .row_length = length,
          .kind = "lines"};
}

}  // namespace

std::vector<PromptItem> longeval_items(const Engine& engine, const LongEvalOptions& options) {
  for (const int64_t length : options.lengths) check_length(engine, length);
  std::vector<PromptItem> items;
  for (const int64_t length : options.lengths)
    for (int64_t sample = 0; sample < options.n_samples; ++sample)
      items.push_back(make_item(engine, length, options.seed * 7919 + static_cast<uint64_t>(sample)));
  return items;
}

std::vector<LongEvalRecord> read_longeval(const std::filesystem::path& path) {
  std::vector<LongEvalRecord> records;
  read_jsonl(path, [&](const nlohmann::json& object, int64_t) {
    LongEvalRecord record;
    record.prompt = string_field(object, "prompt");
    if (record.prompt.empty()) throw Error::bad_input("the prompt is empty");
    const auto number = object.find("expected_number");
    if (number == object.end()) throw Error::bad_input("the field \"expected_number\" is missing");
    if (!number->is_number_unsigned())
      throw Error::bad_input("the field \"expected_number\" is no whole number from 0 on");
    record.expected_number = std::to_string(number->get<uint64_t>());
    records.push_back(std::move(record));
  });
  return records;
}

std::vector<PromptItem> longeval_file_items(const Engine& engine, const std::vector<std::vector<LongEvalRecord>>& files,
                                            std::optional<int64_t> n_samples) {
  std::vector<PromptItem> items;
  for (const std::vector<LongEvalRecord>& records : files) {
    const size_t first = items.size(), n = std::min(records.size(), static_cast<size_t>(n_samples.value_or(INT64_MAX)));
    int64_t longest = 0;
    for (size_t i = 0; i < n; ++i) {
      PromptItem item{.tokens = encode_prompt(engine.tokenizer(), chat_format(engine), records[i].prompt, ""),
                      .max_new_tokens = kFileAnswerTokens,
                      .rule = ScoreRule::kFirstNumber,
                      .wanted = {records[i].expected_number},
                      .kind = "lines"};
      item.planned_length = std::ssize(item.tokens) + kFileAnswerTokens;
      check_length(engine, item.planned_length);
      longest = std::max(longest, item.planned_length);
      items.push_back(std::move(item));
    }
    // Two files whose longest prompts are equal stay two rows.
    while (std::any_of(items.begin(), items.begin() + static_cast<std::ptrdiff_t>(first),
                       [&](const PromptItem& item) { return item.row_length == longest; }))
      ++longest;
    for (size_t i = first; i < items.size(); ++i) items[i].row_length = longest;
  }
  return items;
}

}  // namespace polyspan
