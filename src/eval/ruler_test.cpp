// RULER's kinds: each prompt has its length, and what is asked for stands in it where and as often as it should.
#include "eval/ruler.h"

#include <map>
#include <regex>
#include <set>

#include "eval/eval_test_util.h"
#include "eval/words.h"

namespace polyspan {
namespace {
using namespace testing_util;

constexpr int64_t kLength = 4000;

std::vector<PromptItem> items_of(const TinyEngine& tiny, const std::string& kind, int64_t n = 3, uint64_t seed = 1,
                                 int64_t length = kLength) {
  return ruler_items(*tiny, natural_text(), {.lengths = {length}, .n_samples = n, .seed = seed, .kinds = {kind}});
}

std::string text_of(const TinyEngine& tiny, const PromptItem& item) {
  return tiny->tokenizer().decode(item.tokens, true);
}

std::vector<std::smatch> matches(const std::string& text, const std::regex& pattern) {
  return {std::sregex_iterator(text.begin(), text.end(), pattern), {}};
}

TEST(Words, AreDistinct) {
  std::set<std::string_view> all;
  for (const auto list : {adjectives(), nouns()})
    for (const std::string_view word : list) {
      EXPECT_TRUE(all.insert(word).second) << word;
      EXPECT_EQ(word.find_first_not_of("abcdefghijklmnopqrstuvwxyz"), word.npos) << word;
    }
}

TEST(Words, ValuesAreDistinctAndNotInTheText) {
  RandomSource random{1};
  std::string digits;  // all two-digit numbers but 42
  for (int i = 10; i < 100; ++i)
    if (i != 42) digits += std::to_string(i) + " ";
  DistinctValues values(random, digits);
  EXPECT_EQ(values.number(2), "42");
  expect_error([&] { values.number(2); }, ErrorKind::kBadInput, {"text"});
  std::set<std::string> drawn;
  for (int i = 0; i < 2000; ++i) {
    for (const std::string& value : {values.number(7), values.uuid(), values.letters(5), values.coded_word(6),
                                     values.invented_name(), values.word_pair()})
      EXPECT_TRUE(drawn.insert(value).second) << value;
  }
  const std::regex form(
      "[1-9][0-9]{6}|[0-9][0-9a-f]{7}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[A-Z]{5}|[a-z]{6}|[A-Z][a-z]{5}|"
      "[a-z]+-[a-z]+");
  for (const std::string& value : drawn) EXPECT_TRUE(std::regex_match(value, form)) << value;
}

TEST(Ruler, EveryKindHasItsLength) {
  const TinyEngine tiny;
  EXPECT_EQ(ruler_kinds().size(), 13u);
  for (const std::string_view kind : ruler_kinds())
    for (const int64_t length : {3000, 4000})
      for (const PromptItem& item : items_of(tiny, std::string(kind), 3, 2, length)) {
        SCOPED_TRACE(testing::Message() << kind << " length " << length << " prompt " << item.tokens.size() << " room "
                                        << item.max_new_tokens);
        const int64_t size = std::ssize(item.tokens) + item.max_new_tokens;
        EXPECT_LE(size, length);
        EXPECT_GT(size, length - 250);  // less than one more unit: at most two documents, a token a byte
        EXPECT_EQ(item.planned_length, length);
        EXPECT_EQ(item.row_length, length);
        EXPECT_EQ(item.kind, kind);
        EXPECT_EQ(text_of(tiny, item).find("\x01"), std::string::npos);
      }
}

TEST(Ruler, EveryKindFollowsTheSeed) {
  const TinyEngine tiny;
  for (const std::string_view kind : ruler_kinds()) {
    SCOPED_TRACE(kind);
    const std::string name(kind);
    const std::vector<PromptItem> items = items_of(tiny, name, 2, 1), again = items_of(tiny, name, 2, 1),
                                  other = items_of(tiny, name, 2, 2);
    EXPECT_EQ(items[0].tokens, again[0].tokens);
    EXPECT_EQ(items[1].tokens, again[1].tokens);
    EXPECT_NE(items[0].wanted, items[1].wanted);
    EXPECT_NE(items[0].wanted, other[0].wanted);
  }
}

// A scripted answer that says what is wanted has score 1 (in small letters too), one that leaves a thing out less.
TEST(Ruler, PerfectAnswersHaveScoreOne) {
  const TinyEngine tiny;
  for (const std::string_view kind : ruler_kinds())
    for (const PromptItem& item : items_of(tiny, std::string(kind))) {
      SCOPED_TRACE(kind);
      std::string said = " ", all_but_first;
      for (size_t i = 0; i < item.wanted.size(); ++i) {
        said += item.wanted[i] + ", ";
        if (i > 0) all_but_first += item.wanted[i] + ", ";
      }
      EXPECT_EQ(score_answer(item.rule, said + "and that is all.", item.wanted), 1);
      EXPECT_LE(std::ssize(tiny->tokenizer().encode(said, {})), item.max_new_tokens);
      const double n = static_cast<double>(item.wanted.size());
      EXPECT_DOUBLE_EQ(score_answer(item.rule, all_but_first, item.wanted), (n - 1) / n);
      EXPECT_EQ(score_answer(item.rule, "I do not know.", item.wanted), 0);
    }
}

TEST(Ruler, NeedlesStandOnceUnderTheirKeys) {
  const TinyEngine tiny;
  struct Case {
    const char* kind;
    size_t n_wanted;
    int64_t n_needles;  // 0: the whole haystack
    bool uuid_keys, uuid_values;
    const char* filler;
  };
  const Case cases[] = {
      {"niah_single_1", 1, 1, false, false, "The grass is green."},
      {"niah_single_2", 1, 1, false, false, "says nothing."},
      {"niah_single_3", 1, 1, false, true, "says nothing."},
      {"niah_multikey_1", 1, 4, false, false, "says nothing."},
      {"niah_multikey_2", 1, 0, false, false, ""},
      {"niah_multikey_3", 1, 0, true, true, ""},
      {"niah_multivalue", 4, 4, false, false, "says nothing."},
      {"niah_multiquery", 4, 4, false, false, "says nothing."},
  };
  const std::regex needle("One of the secret (number|code)s for ([^ ]+) is ([^ ]+)\\.");
  const std::regex number("[1-9][0-9]{6}"), uuid("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"),
      pair("[a-z]+-[a-z]+");
  for (const Case& c : cases)
    for (const PromptItem& item : items_of(tiny, c.kind)) {
      SCOPED_TRACE(c.kind);
      const std::string text = text_of(tiny, item);
      const std::string question = text.substr(text.rfind("\n\nWhat "));
      const std::vector<std::smatch> needles = matches(text, needle);
      EXPECT_TRUE(c.n_needles > 0 ? std::ssize(needles) == c.n_needles : needles.size() > 15) << needles.size();
      EXPECT_EQ(item.wanted.size(), c.n_wanted);
      EXPECT_GT(count(text, *c.filler != '\0' ? c.filler : "One of the secret"), 10);
      std::multiset<std::string> of_asked;
      for (const std::smatch& found : needles) {
        EXPECT_TRUE(std::regex_match(found[2].str(), c.uuid_keys ? uuid : pair)) << found[2];
        EXPECT_TRUE(std::regex_match(found[3].str(), c.uuid_values ? uuid : number)) << found[3];
        if (matches(question, std::regex("[ ]" + found[2].str() + "( |,|$)")).size() > 0) of_asked.insert(found[3]);
      }
      EXPECT_EQ(of_asked, std::multiset<std::string>(item.wanted.begin(), item.wanted.end())) << question;
      for (const std::string& value : item.wanted) EXPECT_EQ(count(text, value), 1) << value;
      EXPECT_TRUE(text.ends_with(c.n_wanted > 1 ? " are " : " is "));
    }
}

TEST(Ruler, NeedlesAreAnywhere) {
  const TinyEngine tiny;
  double least = 1, most = 0;
  for (const PromptItem& item : items_of(tiny, "niah_single_1", 20)) {
    const std::string text = text_of(tiny, item);
    const double depth = static_cast<double>(text.find(item.wanted[0])) / static_cast<double>(text.size());
    least = std::min(least, depth);
    most = std::max(most, depth);
  }
  EXPECT_LT(least, 0.35);
  EXPECT_GT(most, 0.65);
}

// Following the assignments in the text from the number gives the variables wanted.
TEST(Ruler, VariablesFormOneChain) {
  const TinyEngine tiny;
  for (const PromptItem& item : items_of(tiny, "vt", 5)) {
    const std::string text = text_of(tiny, item);
    std::map<std::string, std::string> value;
    for (const std::smatch& found : matches(text, std::regex("VAR ([A-Z]{5}) = (VAR )?([A-Z0-9]{5})\\."))) {
      const std::string from = found[3];
      value[found[1]] = found[2].matched ? value.at(from) : from;  // at: assigned before it is used
    }
    EXPECT_EQ(value.size(), 5u);
    EXPECT_EQ(std::set<std::string>(item.wanted.begin(), item.wanted.end()).size(), 5u);
    for (const std::string& name : item.wanted) {
      EXPECT_EQ(count(text, "have the value " + value.at(name)), 2);  // the question and the answer's opening
      EXPECT_EQ(count(text, name), name == item.wanted.back() ? 1 : 2);
    }
  }
}

TEST(Ruler, CommonWordsAreTheMostFrequent) {
  const TinyEngine tiny;
  for (const int64_t length : {3000, 4000})
    for (const PromptItem& item : items_of(tiny, "cwe", 3, 1, length)) {
      const std::string text = text_of(tiny, item);
      std::map<std::string, int64_t> times;
      int64_t position = 0;
      for (const std::smatch& found : matches(text, std::regex("([0-9]+)\\. ([a-z]+)"))) {
        EXPECT_EQ(std::stoll(found[1]), ++position);
        ++times[found[2]];
      }
      ASSERT_EQ(item.wanted.size(), 10u);
      EXPECT_GE(times.size(), 20u);
      for (const auto& [word, n] : times) {
        const bool is_common = std::find(item.wanted.begin(), item.wanted.end(), word) != item.wanted.end();
        EXPECT_EQ(n, is_common ? times[item.wanted[0]] : times[item.wanted[0]] / 10) << word;
      }
      EXPECT_GE(times[item.wanted[0]], 10);
    }
}

TEST(Ruler, FrequentWordsFollowZipf) {
  const TinyEngine tiny;
  for (const PromptItem& item : items_of(tiny, "fwe")) {
    const std::string text = text_of(tiny, item);
    const size_t begin = text.find("dots.\n\n") + 7, end = text.find("\n\nWhich three");
    const std::string body = " " + text.substr(begin, end - begin) + " ";
    std::vector<std::pair<int64_t, std::string>> ranks;
    std::map<std::string, int64_t> times;
    for (const std::smatch& found : matches(body, std::regex("([a-z]+|\\.\\.\\.)"))) ++times[found[1]];
    for (const auto& [word, n] : times) ranks.emplace_back(n, word);
    std::sort(ranks.rbegin(), ranks.rend());
    ASSERT_GT(ranks.size(), 5u);
    EXPECT_EQ(ranks[0].second, "...");
    ASSERT_EQ(item.wanted.size(), 3u);
    for (size_t i = 0; i < 3; ++i) EXPECT_EQ(ranks[i + 1].second, item.wanted[i]);
    EXPECT_GT(ranks[3].first, ranks[4].first);
    EXPECT_NEAR(static_cast<double>(ranks[1].first) / static_cast<double>(ranks[0].first), 0.25, 0.02);  // exponent 2
  }
}

TEST(Ruler, QuestionsAreAnsweredByOneDocumentOrTwo) {
  const TinyEngine tiny;
  for (const PromptItem& item : items_of(tiny, "qa_1", 12)) {
    const std::string text = text_of(tiny, item);
    EXPECT_EQ(count(text, item.wanted.at(0)), 1);
    // The answer's opening is how the document says it.
    const std::string opening = text.substr(text.rfind("assistant\n") + 10);
    EXPECT_EQ(count(text, opening + " " + item.wanted[0]), 1) << opening;
    EXPECT_GT(matches(text, std::regex("Document [0-9]+:\n")).size(), 10u);
  }
  for (const PromptItem& item : items_of(tiny, "qa_2", 6)) {
    const std::string text = text_of(tiny, item);
    std::smatch question, birth, founder;
    ASSERT_TRUE(
        std::regex_search(text, question, std::regex("Who founded the town where ([A-Za-z]+ [A-Za-z]+) was born\\?")));
    ASSERT_TRUE(
        std::regex_search(text, birth, std::regex(question[1].str() + " was born in the town of ([A-Za-z]+)\\.")));
    ASSERT_TRUE(std::regex_search(
        text, founder, std::regex("The town of " + birth[1].str() + " was founded by ([A-Za-z]+ [A-Za-z]+)\\.")));
    EXPECT_EQ(founder[1], item.wanted.at(0));
    EXPECT_EQ(count(text, item.wanted[0]), 1);
    EXPECT_EQ(count(text, birth[1].str()), 2);
  }
}

TEST(Ruler, Refuses) {
  const TinyEngine tiny;
  const auto run = [&](std::vector<int64_t> lengths, const std::string& text, std::vector<std::string> kinds) {
    return [&tiny, lengths, text, kinds] {
      ruler_items(*tiny, text, {.lengths = lengths, .n_samples = 1, .kinds = kinds});
    };
  };
  expect_error(run({2000}, natural_text(), {"vt", "niah"}), ErrorKind::kUsage, {"niah", "niah_single_1", "qa_2"});
  for (const int64_t length : {int64_t{-1}, int64_t{0}, int64_t{4097}, INT64_MAX})
    expect_error(run({2000, length}, natural_text(), {}), ErrorKind::kBadInput, {std::to_string(length)});
  for (const std::string_view kind : ruler_kinds())
    expect_error(run({200}, natural_text(), {std::string(kind)}), ErrorKind::kBadInput, {std::string(kind), "200"});
  expect_error(run({3000}, "", {"niah_single_2"}), ErrorKind::kBadInput, {"--text"});
  expect_error(run({3000}, natural_text(10), {"niah_single_2"}), ErrorKind::kBadInput, {"niah_single_2", "--text"});
  EXPECT_NO_THROW(run({3000}, "", {"niah_single_1", "vt", "qa_1"})());
}

}  // namespace
}  // namespace polyspan
