#include "eval/longbench.h"

#include <algorithm>
#include <map>

#include "core/error.h"
#include "eval/jsonl.h"
#include "eval/prompt_frame.h"

namespace polyspan {
namespace {

// A prompt is before + context + after; "{input}" in `after` is the record's input.
struct DatasetForm {
  std::string_view name;
  ScoreRule rule;
  int64_t max_new_tokens;  // the paper's
  std::string_view before, after;
  bool chat = true;  // examples to continue and code are plain text, as in the paper
  bool first_line = false;
};

constexpr std::string_view kReadStory = "Read the story, then answer the question in a few words.\n\n";
constexpr std::string_view kReadArticle =
    "Read the article, then answer the question in a phrase or a sentence. Answer \"unanswerable\" where the article "
    "does not "
    "say it, and \"yes\" or \"no\" where that is asked.\n\n";
constexpr std::string_view kReadPassages =
    "Answer the question from the passages. Give the answer only, without further words.\n\n";
constexpr std::string_view kQuestion = "\n\nQuestion: {input}\nAnswer:";

constexpr DatasetForm kDatasets[] = {
    {"narrativeqa", ScoreRule::kTokenF1, 128, kReadStory, kQuestion},
    {"qasper", ScoreRule::kTokenF1, 128, kReadArticle, kQuestion},
    {"multifieldqa_en", ScoreRule::kTokenF1, 64, kReadPassages, kQuestion},
    {"hotpotqa", ScoreRule::kTokenF1, 32, kReadPassages, kQuestion},
    {"2wikimqa", ScoreRule::kTokenF1, 32, kReadPassages, kQuestion},
    {"musique", ScoreRule::kTokenF1, 32, kReadPassages, kQuestion},
    {"gov_report", ScoreRule::kRougeL, 512, "Write a summary, about one page long, of this government report.\n\n",
     "\n\nSummary:"},
    {"qmsum", ScoreRule::kRougeL, 512, "Answer the request from the transcript of a meeting, in a few sentences.\n\n",
     "\n\nRequest: {input}\nAnswer:"},
    {"multi_news", ScoreRule::kRougeL, 512, "Write a summary, about one page long, of these news articles.\n\n",
     "\n\nSummary:"},
    {"trec", ScoreRule::kClassification, 64, "Name the type of the last question, as in the examples.\n\n", "\n{input}",
     false, true},
    {"triviaqa", ScoreRule::kTokenF1, 32,
     "Answer the last question from its passage, as in the examples, with the answer only.\n\n", "\n\n{input}", false,
     true},
    {"samsum", ScoreRule::kRougeL, 128, "Sum up the last dialogue in a few short sentences, as in the examples.\n\n",
     "\n\n{input}", false, true},
    {"passage_count", ScoreRule::kCount, 32,
     "Some of these paragraphs may be copies of others. How many different ones are there?\n\n",
     "\n\nAnswer with one number, that of the different paragraphs.\nNumber:"},
    {"passage_retrieval_en", ScoreRule::kRetrieval, 32,
     "A summary follows these paragraphs. Find the paragraph that it sums up.\n\n",
     "\n\nSummary: {input}\n\nAnswer with the paragraph's number, as in \"Paragraph 1\".\nAnswer:"},
    {"lcc", ScoreRule::kCodeSimilarity, 64, "Write the next line of this code.\n\n", "\nNext line:\n", false},
    {"repobench-p", ScoreRule::kCodeSimilarity, 64, "Write the next line of this code.\n\n", "{input}\nNext line:\n",
     false},
};
constexpr std::string_view kChinese[] = {"multifieldqa_zh", "dureader", "vcsum", "lsht", "passage_retrieval_zh"};

// "qasper_e" (the sets of even length) is of the form of "qasper".
const DatasetForm* find_form(std::string_view dataset) {
  if (dataset.ends_with("_e")) dataset.remove_suffix(2);
  const auto found = std::find_if(std::begin(kDatasets), std::end(kDatasets),
                                  [&](const DatasetForm& form) { return form.name == dataset; });
  return found == std::end(kDatasets) ? nullptr : found;
}

void check_dataset(const std::string& dataset) {
  if (find_form(dataset) != nullptr) return;
  if (std::find(std::begin(kChinese), std::end(kChinese), dataset) != std::end(kChinese))
    throw Error::bad_input("the data set \"", dataset,
                           "\" is Chinese, which is not supported (its measures need a word segmenter)");
  std::string names;
  for (const DatasetForm& form : kDatasets) names += (names.empty() ? "" : ", ") + std::string(form.name);
  throw Error::bad_input("the data set \"", dataset.substr(0, 40), "\" is not known; there are ", names);
}

std::vector<std::string> strings_field(const nlohmann::json& object, const char* name) {
  const auto found = object.find(name);
  if (found == object.end()) throw Error::bad_input("the field \"", name, "\" is missing");
  std::vector<std::string> texts;
  if (found->is_array())
    for (const nlohmann::json& text : *found)
      if (text.is_string()) texts.push_back(text.get<std::string>());
  if (texts.empty() || texts.size() != found->size())
    throw Error::bad_input("the field \"", name, "\" is no list of one or more strings");
  return texts;
}

std::string with_input(std::string_view form, const std::string& input) {
  constexpr std::string_view kPlace = "{input}";
  const size_t at = form.find(kPlace);
  return at == std::string_view::npos
             ? std::string(form)
             : std::string(form.substr(0, at)) + input + std::string(form.substr(at + kPlace.size()));
}

// The frame around a prompt: chat format, or only the BOS.
struct Frame {
  std::vector<TokenId> head, tail;
  explicit Frame(const Engine& engine, bool chat) {
    if (chat && engine.has_chat_format()) {
      PromptFrame frame(engine.tokenizer(), &engine.chat_format(), "", "", "");
      head = std::move(frame.head);
      tail = std::move(frame.tail);
    } else if (engine.tokenizer().adds_bos() && engine.tokenizer().bos()) {
      head = {*engine.tokenizer().bos()};
    }
  }
};

// Without the middle tokens that are too many.
std::vector<TokenId> cut_middle(std::vector<TokenId> tokens, int64_t budget) {
  const int64_t excess = std::ssize(tokens) - budget;
  if (excess > 0) tokens.erase(tokens.begin() + budget / 2, tokens.begin() + budget / 2 + excess);
  return tokens;
}

}  // namespace

std::vector<LongBenchRecord> read_longbench(const std::filesystem::path& path) {
  std::vector<LongBenchRecord> records;
  read_jsonl(path, [&](const nlohmann::json& object, int64_t) {
    LongBenchRecord record;
    record.dataset = string_field(object, "dataset");
    check_dataset(record.dataset);
    record.input = string_field(object, "input");
    record.context = string_field(object, "context");
    record.answers = strings_field(object, "answers");
    if (find_form(record.dataset)->rule == ScoreRule::kClassification)
      record.classes = strings_field(object, "all_classes");
    records.push_back(std::move(record));
  });
  return records;
}

ScoreRule longbench_rule(const std::string& dataset) {
  check_dataset(dataset);
  return find_form(dataset)->rule;
}

std::vector<PromptItem> longbench_items(const Engine& engine, const std::vector<LongBenchRecord>& records,
                                        const LongBenchOptions& options) {
  constexpr int64_t kLeastPrompt = 32;  // tokens of a prompt that are left at least
  const std::vector<int64_t> lengths =
      options.lengths.empty() ? std::vector{engine.config().context_length} : options.lengths;
  for (const int64_t length : lengths) check_length(engine, length);
  const Frame chat(engine, true), plain(engine, false);
  std::vector<PromptItem> items;
  for (const int64_t length : lengths) {
    std::map<std::string, int64_t> n_taken;
    for (const LongBenchRecord& record : records) {
      if (options.n_samples && n_taken[record.dataset]++ >= *options.n_samples) continue;
      const DatasetForm& form = *find_form(record.dataset);
      const Frame& frame = form.chat ? chat : plain;
      const int64_t budget = length - form.max_new_tokens - std::ssize(frame.head) - std::ssize(frame.tail);
      if (budget < kLeastPrompt)
        throw Error::bad_input(record.dataset, ": a context of ", length, " tokens leaves ", budget,
                               " for the prompt beside the answer's ", form.max_new_tokens, "; at least ", kLeastPrompt,
                               " are wanted");
      const std::string text = std::string(form.before) + record.context + with_input(form.after, record.input);
      const std::vector<TokenId> body = cut_middle(engine.tokenizer().encode(text, {}), budget);
      PromptItem item{.tokens = frame.head,
                      .max_new_tokens = form.max_new_tokens,
                      .rule = form.rule,
                      .wanted = record.answers,
                      .classes = record.classes,
                      .first_line_only = form.first_line,
                      .row_length = length,
                      .kind = record.dataset};
      item.tokens.insert(item.tokens.end(), body.begin(), body.end());
      item.tokens.insert(item.tokens.end(), frame.tail.begin(), frame.tail.end());
      item.planned_length = std::ssize(item.tokens) + form.max_new_tokens;
      items.push_back(std::move(item));
    }
  }
  return items;
}

}  // namespace polyspan
