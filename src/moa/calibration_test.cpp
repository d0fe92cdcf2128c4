// Calibration samples: their length and targets, what stands in them, that each depends on its own numbers only,
// documents, and what is refused. With POLYSPAN_MODEL: that the default model knows the answers.
#include "moa/calibration.h"

#include <cstdlib>
#include <map>
#include <set>

#include "engine/generate.h"
#include "eval/eval_test_util.h"
#include "eval/passkey.h"
#include "eval/scores.h"
#include "moa/calibration_text.h"

namespace polyspan {
namespace {
using namespace testing_util;

constexpr int64_t kLengths[] = {1500, 1501, 3000};

std::string text_of(const Engine& engine, const CalibrationSample& sample) {
  return engine.tokenizer().decode(sample.tokens, /*with_special=*/true);
}

// Before the first target.
std::string prompt_of(const Engine& engine, const CalibrationSample& sample) {
  return engine.tokenizer().decode(std::span(sample.tokens).first(static_cast<size_t>(sample.targets[0])),
                                   /*with_special=*/true);
}

CalibrationOptions options_with(std::vector<CalibrationDocument> documents = {}, uint64_t seed = 1) {
  return {seed, natural_text(), std::move(documents)};
}

std::string story(const std::string& name, int n_sentences) {
  std::string text;
  for (int i = 0; i < n_sentences; ++i) text += name + " did thing " + std::to_string(i) + ". ";
  return text;
}

class Calibration : public testing::Test {
 protected:
  const TinyEngine tiny_;
};

TEST_F(Calibration, SamplesHaveTheirLengthAndTargets) {
  CalibrationSource source(*tiny_, options_with(), 3000);
  for (const std::string_view kind : calibration_kinds())
    for (const int64_t length : kLengths)
      for (int64_t index = 0; index < 6; ++index) {
        const CalibrationSample sample = source.make(kind, length, index);
        SCOPED_TRACE(sample.id);
        EXPECT_EQ(sample.id, std::to_string(length) + "/" + std::string(kind) + "/" + std::to_string(index));
        EXPECT_EQ(sample.kind, kind);
        EXPECT_EQ(sample.length, length);
        EXPECT_EQ(std::ssize(sample.tokens), length);
        EXPECT_EQ(sample.retrieval, kind != "text");
        ASSERT_FALSE(sample.targets.empty());
        EXPECT_GE(sample.targets.front(), 1);
        EXPECT_LT(sample.targets.back(), length);
        EXPECT_TRUE(std::is_sorted(sample.targets.begin(), sample.targets.end(), std::less_equal<>()));  // strictly
        if (!sample.retrieval) continue;
        EXPECT_EQ(sample.targets.back(), length - 1);
        EXPECT_TRUE(text_of(*tiny_, sample).ends_with(sample.answer)) << sample.answer;
        EXPECT_EQ(std::ssize(sample.targets), length - sample.targets.front());
      }
}

TEST_F(Calibration, PasskeysAreTheDigits) {
  CalibrationSource source(*tiny_, options_with(), 3000);
  std::set<int64_t> n_keys;
  for (const std::string kind : {"passkey-repeated", "passkey-natural", "multikey"})
    for (int64_t index = 0; index < 12; ++index) {
      const CalibrationSample sample = source.make(kind, 2400, index);
      SCOPED_TRACE(sample.id);
      const std::string prompt = prompt_of(*tiny_, sample);
      EXPECT_EQ(sample.answer.size(), 5u);
      EXPECT_EQ(sample.answer.find_first_not_of("0123456789"), std::string::npos) << sample.answer;
      EXPECT_EQ(sample.targets.size(), 5u);  // a token each, in this vocabulary
      EXPECT_EQ(count(prompt, sample.answer), 2);
      const size_t opening = prompt.rfind("The pass key");
      ASSERT_NE(opening, prompt.npos);
      // "The pass key of river is " asks for the number that follows the same words earlier.
      EXPECT_EQ(count(prompt, prompt.substr(opening) + sample.answer + ". Remember it."), 1) << prompt.substr(opening);
      if (kind == "multikey")
        n_keys.insert(count(prompt, ". Remember it. "));
      else
        EXPECT_EQ(count(prompt, ". Remember it. "), 1);
    }
  EXPECT_EQ(n_keys, (std::set<int64_t>{4, 5, 6}));
}

TEST_F(Calibration, RecordsFillThePromptAndOneIsAskedFor) {
  CalibrationSource source(*tiny_, options_with(), 3000);
  for (int64_t index = 0; index < 6; ++index) {
    const CalibrationSample sample = source.make("records", 2400, index);
    SCOPED_TRACE(sample.id);
    const std::string prompt = prompt_of(*tiny_, sample);
    const size_t opening = prompt.rfind("The number of ");
    ASSERT_NE(opening, prompt.npos);
    const std::string record = prompt.substr(opening) + sample.answer + ".\n";
    EXPECT_EQ(count(prompt, record), 1) << record;
    EXPECT_EQ(count(prompt, sample.answer), 1);
    EXPECT_GE(count(prompt, "The number of "), 30);
    // Even indices ask for one of the first records.
    const int64_t before = count(prompt.substr(0, prompt.find(record)), "The number of ");
    EXPECT_LE(before, index % 2 == 0 ? 4 : 200);
  }
}

TEST_F(Calibration, PasskeysAreNotThoseOfTheEvaluation) {
  std::set<std::vector<TokenId>> evaluation;
  PasskeyOptions asked;
  asked.lengths = {2000, 2003, 2008}, asked.n_samples = 30;
  for (asked.seed = 0; asked.seed < 3; ++asked.seed)
    for (PromptItem& item : passkey_items(*tiny_, natural_text(), asked)) evaluation.insert(std::move(item.tokens));
  for (uint64_t seed = 0; seed < 3; ++seed) {
    CalibrationSource source(*tiny_, options_with({}, seed), 2008);
    for (const std::string kind : {"passkey-repeated", "passkey-natural"})
      for (const int64_t length : {2000, 2005})
        for (int64_t index = 0; index < 10; ++index) {
          CalibrationSample sample = source.make(kind, length, index);
          EXPECT_GE(sample.seed, uint64_t{1} << 62);  // the evaluation's are small
          sample.tokens.resize(static_cast<size_t>(sample.targets[0]));
          EXPECT_FALSE(evaluation.contains(sample.tokens)) << sample.id;
        }
  }
}

TEST_F(Calibration, ASampleDependsOnItsOwnNumbersOnly) {
  CalibrationSource source(*tiny_, options_with(), 3000), other(*tiny_, options_with(), 2000),
      reseeded(*tiny_, options_with({}, 2), 3000);
  for (const std::string_view kind : calibration_kinds()) {
    std::set<std::vector<TokenId>> distinct;
    for (int64_t index = 7; index >= 0; --index) {  // drawn in another order by `other`
      distinct.insert(source.make(kind, 2000, index).tokens);
      distinct.insert(reseeded.make(kind, 2000, index).tokens);
    }
    EXPECT_EQ(distinct.size(), 16u) << kind;
    for (int64_t index = 0; index < 8; ++index) {
      const CalibrationSample a = source.make(kind, 2000, index), b = other.make(kind, 2000, index);
      EXPECT_EQ(a.tokens, b.tokens) << a.id;
      EXPECT_EQ(a.targets, b.targets) << a.id;
      EXPECT_EQ(a.seed, b.seed) << a.id;
    }
  }
  EXPECT_NE(source.make("copy", 2000, 0).seed, source.make("section", 2000, 0).seed);
}

TEST_F(Calibration, ACopyIsBegunAgain) {
  CalibrationSource source(*tiny_, options_with(), 3000);
  double least = 1, most = 0;
  for (int64_t index = 0; index < 20; ++index) {
    const CalibrationSample sample = source.make("copy", 3000, index);
    SCOPED_TRACE(sample.id);
    const std::string text = text_of(*tiny_, sample);
    EXPECT_GE(sample.targets.size(), 48u);
    EXPECT_LE(sample.targets.size(), 80u);
    const size_t again = text.rfind("\n\n");
    ASSERT_NE(again, text.npos);
    EXPECT_TRUE(text.substr(0, again).ends_with("."));  // whole sentences
    const std::string passage = text.substr(again + 2);
    EXPECT_TRUE(passage.starts_with(" Sentence number ")) << passage;
    const size_t first = text.find(passage);
    EXPECT_LT(first, again);  // the passage stands in the text before
    EXPECT_EQ(count(text, passage), 2);
    const double depth = static_cast<double>(first) / static_cast<double>(again);
    least = std::min(least, depth), most = std::max(most, depth);
  }
  EXPECT_LT(least, 0.3);  // 20 uniform depths: all above with a chance of 8e-4
  EXPECT_GT(most, 0.7);
}

TEST_F(Calibration, ASectionIsASentenceOfTheText) {
  CalibrationSource source(*tiny_, options_with(), 3000);
  double least = 1, most = 0;
  for (int64_t index = 0; index < 20; ++index) {
    const CalibrationSample sample = source.make("section", 3000, index);
    SCOPED_TRACE(sample.id);
    const std::string prompt = prompt_of(*tiny_, sample);
    EXPECT_TRUE(prompt.starts_with("<|im_start|>system\n"));
    EXPECT_LE(sample.targets.size(), 48u);
    const std::string quote = prompt.substr(prompt.rfind("Sentence"));
    const std::string sentence = quote + sample.answer;
    EXPECT_TRUE(sentence.starts_with("Sentence number ")) << sentence;
    EXPECT_TRUE(sentence.ends_with(" says nothing.")) << sentence;
    const size_t place = prompt.find(sentence);
    ASSERT_NE(place, prompt.npos) << sentence;
    EXPECT_EQ(count(prompt, sentence), 1);
    least = std::min(least, static_cast<double>(place) / static_cast<double>(prompt.size()));
    most = std::max(most, static_cast<double>(place) / static_cast<double>(prompt.size()));
  }
  EXPECT_LT(least, 0.4);
  EXPECT_GT(most, 0.6);
}

TEST_F(Calibration, TextIsRunningText) {
  CalibrationSource source(*tiny_, options_with(), 3000);
  const std::string all = natural_text();
  for (const int64_t length : {2, 3, 100, 511, 512, 513, 514, 3000})
    for (int64_t index = 0; index < 3; ++index) {
      const CalibrationSample sample = source.make("text", length, index);
      SCOPED_TRACE(sample.id);
      EXPECT_EQ(std::ssize(sample.tokens), length);
      EXPECT_NE(all.find(text_of(*tiny_, sample)), all.npos);
      EXPECT_EQ(std::ssize(sample.targets), std::min<int64_t>(2048, length - length / 2));
      EXPECT_EQ(sample.targets.front(), length / 2);
      std::set<int64_t> steps;
      for (size_t i = 1; i < sample.targets.size(); ++i) steps.insert(sample.targets[i] - sample.targets[i - 1]);
      EXPECT_LE(steps.size(), 2u);
      if (!steps.empty()) {
        EXPECT_LE(*steps.rbegin() - *steps.begin(), 1);
      }
      EXPECT_GE(sample.targets.back(), length - (length / 512 + 2));
    }
}

TEST_F(Calibration, HalfOfTheNaturalSamplesHaveTheirWordsApart) {
  CalibrationOptions options = options_with();
  options.apart = true;
  CalibrationSource source(*tiny_, options, 1000);
  EXPECT_EQ(natural_text().find(" . "), std::string::npos);
  for (const std::string kind : {"text", "passkey-natural", "multikey"})
    for (int64_t index = 0; index < 4; ++index) {
      const CalibrationSample sample = source.make(kind, 1000, index);
      SCOPED_TRACE(sample.id);
      EXPECT_EQ(std::ssize(sample.tokens), 1000);
      EXPECT_EQ(count(text_of(*tiny_, sample), " . ") > 5, index == 1 || index == 2);
    }
}

TEST_F(Calibration, TextsWithoutSentences) {
  std::string words;
  for (int i = 0; i < 800; ++i) words.append("w").append(std::to_string(i)).append(" ");
  CalibrationSource source(*tiny_, {1, words, {}}, 2000);
  for (const std::string_view kind : calibration_kinds())
    EXPECT_EQ(std::ssize(source.make(kind, 2000, 0).tokens), 2000) << kind;
}

TEST_F(Calibration, WorksWithoutAChatFormat) {
  const TinyEngine plain(tiny_engine_config(), "");
  CalibrationSource source(*plain, options_with({{story("Ann", 100), "Who?", "Ann did."}}), 2000);
  for (const std::string_view kind : calibration_kinds())
    EXPECT_EQ(std::ssize(source.make(kind, 2000, 0).tokens), 2000) << kind;
  EXPECT_TRUE(text_of(*plain, source.make("document", 2000, 0)).ends_with("Question: Who?\nAnswer: Ann did."));
}

TEST_F(Calibration, TextThatIsTooShort) {
  expect_error(
      [&] {
        CalibrationSource(*tiny_, {1, natural_text(10), {}}, 3000);
      },
      ErrorKind::kBadInput, {"natural text", "3000", "tokens"});
  expect_error([&] { CalibrationSource(*tiny_, {1, "", {}}, 100); }, ErrorKind::kBadInput, {"has 0 tokens", "100"});
  expect_error([&] { CalibrationSource(*tiny_, options_with(), 1 << 30); }, ErrorKind::kBadInput, {"context"});
  CalibrationSource source(*tiny_, options_with(), 3000);
  for (const std::string_view kind : calibration_kinds())
    expect_error([&] { source.make(kind, kind == "text" ? 1 : 100, 0); }, ErrorKind::kBadInput,
                 {"tokens", kind == "text" ? "1" : "100"});
}

TEST_F(Calibration, DocumentsOfALengthLoseTheirMiddle) {
  CalibrationSource source(
      *tiny_, options_with({{"BEGIN" + story("Ann", 300) + "END", "Who did it?", "  Ann, of course."}}), 3000);
  const CalibrationSample sample = source.make("document", 2000, 5);
  const std::string text = text_of(*tiny_, sample);
  EXPECT_EQ(std::ssize(sample.tokens), 2000);
  EXPECT_EQ(sample.answer, "Ann, of course.");
  for (const std::string part : {"BEGIN", "END\n\nQuestion: Who did it?", "assistant\nAnn, of course.",
                                 "Ann did thing 0.", "Ann did thing 299."})
    EXPECT_EQ(count(text, part), 1) << part;
  EXPECT_EQ(count(text, "Ann did thing 150."), 0);
}

TEST_F(Calibration, ShortDocumentsAreJoined) {
  std::vector<CalibrationDocument> documents;
  for (const std::string name : {"Ann", "Bob", "Cid", "Dan"})
    documents.push_back({story(name, 30), "Who is " + name + "?", "A person named " + name});
  documents.push_back({documents[0].context, "Who else?", "Nobody."});  // a second question about the first text
  CalibrationSource source(*tiny_, options_with(documents), 3000);
  std::set<std::string> beginnings, around_bob;
  for (int64_t index = 0; index < 40; ++index) {
    const CalibrationSample sample = source.make("document", 1500, index);
    SCOPED_TRACE(sample.id);
    const std::string text = text_of(*tiny_, sample);
    const CalibrationDocument& document = documents[static_cast<size_t>(index) % 5];
    EXPECT_LE(std::ssize(sample.tokens), 1500);
    EXPECT_GE(std::ssize(sample.tokens), 1490);
    EXPECT_EQ(count(text, document.context), 1);
    EXPECT_EQ(count(text, "Question: " + document.question), 1);
    EXPECT_EQ(sample.answer, *document.answer);
    EXPECT_LE(count(text, "Ann did thing 5. "), 1);  // joined once
    beginnings.insert(text.substr(text.find(" did thing 0.") - 3, 3));
    if (index % 5 != 1) continue;
    std::string others;
    for (size_t at = 0; (at = text.find(" did thing 0.", at + 1)) != text.npos;)
      if (const std::string name = text.substr(at - 3, 3); name != "Bob") others += name;
    around_bob.insert(others);
  }
  EXPECT_GE(beginnings.size(), 3u);  // 40 random orders of four
  EXPECT_GE(around_bob.size(), 3u);  // 8 random orders of three
}

TEST_F(Calibration, DocumentsThatDoNotReachHalfTheLength) {
  const CalibrationDocument one{story("Ann", 20), "Who?", std::nullopt};  // some 400 tokens
  expect_error([&] { CalibrationSource(*tiny_, options_with({one}), 3000); }, ErrorKind::kBadInput,
               {"document 1 (\"Who?\")", "tokens", "3000", "1500"});
  CalibrationSource(*tiny_, options_with({one}), 800);
  const CalibrationDocument other{story("Bob", 90), "Where?", std::nullopt};
  CalibrationSource(*tiny_, options_with({one, other}), 3000);
  // The same text twice is not twice as much.
  expect_error(
      [&] {
        CalibrationSource(*tiny_, options_with({one, one, one, one}), 3000);
      },
      ErrorKind::kBadInput, {"document 1"});
  CalibrationSource source(*tiny_, options_with({{story("Ann", 200), std::string(500, 'q'), "yes"}}), 3000);
  expect_error([&] { source.make("document", 400, 0); }, ErrorKind::kBadInput, {"document 1", "400", "qqq..."});
}

TEST_F(Calibration, AnswersOfTheModelItself) {
  CalibrationSource source(*tiny_, options_with({{story("Ann", 300), "Who?", std::nullopt}}), 2000);
  const CalibrationSample sample = source.make("document", 1000, 0), again = source.make("document", 1000, 0);
  EXPECT_EQ(sample.tokens, again.tokens);
  EXPECT_LE(std::ssize(sample.tokens), 1000);
  EXPECT_GE(std::ssize(sample.tokens), 1000 - 48);
  EXPECT_LE(sample.targets.size(), 48u);
  const auto sequence = tiny_->new_sequence(tiny_.dense(), 1000, KvType::kF16);
  const auto prompt = std::span(sample.tokens).first(static_cast<size_t>(sample.targets[0]));
  GenerateResult result = generate(*tiny_, *sequence, prompt, {.max_tokens = 48});
  if (result.ended_with_token) result.tokens.pop_back();
  const auto answer = std::span(sample.tokens).subspan(static_cast<size_t>(sample.targets[0]));
  EXPECT_EQ(result.tokens, std::vector<TokenId>(answer.begin(), answer.end()));
}

TEST(CalibrationDocuments, AreRead) {
  const TemporaryFile file(
      "{\"context\": \"A b c.\", \"question\": \"What?\"}\n\n"
      "{\"context\": \"D e f.\", \"question\": \"Which?\", \"answer\": \"e\", \"more\": 1}\n"
      "{\"context\": \"G.\", \"question\": \"How?\", \"answer\": null}\n");
  const std::vector<CalibrationDocument> documents = read_documents(file.path());
  ASSERT_EQ(documents.size(), 3u);
  EXPECT_EQ(documents[0].context, "A b c.");
  EXPECT_EQ(documents[0].question, "What?");
  EXPECT_EQ(documents[0].answer, std::nullopt);
  EXPECT_EQ(documents[1].answer, "e");
  EXPECT_EQ(documents[2].answer, std::nullopt);
}

TEST(CalibrationDocuments, WithFieldsMissingOrEmpty) {
  const std::map<std::string, std::string> cases = {
      {R"({"question": "What?"})", "\"context\" is missing"},
      {R"({"context": "A."})", "\"question\" is missing"},
      {R"({"context": " \n", "question": "What?"})", "\"context\" is empty"},
      {R"({"context": "A.", "question": ""})", "\"question\" is empty"},
      {R"({"context": "A.", "question": 3})", "\"question\" is of type number"},
      {R"({"context": "A.", "question": "What?", "answer": ""})", "\"answer\" is empty"},
      {R"({"context": "A.", "question": "What?", "answer": ["a"]})", "\"answer\" is of type array"},
  };
  for (const auto& [line, problem] : cases) {
    const TemporaryFile file("{\"context\": \"A.\", \"question\": \"What?\"}\n" + line + "\n");
    expect_error([&] { read_documents(file.path()); }, ErrorKind::kBadFile, {file.path().string(), "line 2", problem});
  }
  expect_error([] { read_documents("/nowhere/documents.jsonl"); }, ErrorKind::kIo, {"/nowhere/documents.jsonl"});
}

// Teacher-forced argmax of each target.
std::vector<bool> right_targets(Engine& engine, const CalibrationSample& sample) {
  const auto sequence =
      engine.new_sequence(SpanPlan::dense(engine.config().head_shape()), std::ssize(sample.tokens), KvType::kF16);
  const size_t n_vocab = static_cast<size_t>(engine.config().vocab_size);
  std::vector<bool> right;
  engine.score(*sequence, sample.tokens, sample.targets[0] - 1,
               [&](int64_t first, std::span<const float> logits, int64_t n) {
                 for (int64_t i = 0; i < n && right.size() < sample.targets.size(); ++i) {
                   const int64_t target = sample.targets[right.size()];
                   if (first + i != target - 1) continue;
                   const std::span<const float> row = logits.subspan(static_cast<size_t>(i) * n_vocab, n_vocab);
                   right.push_back(std::max_element(row.begin(), row.end()) - row.begin() ==
                                   sample.tokens[static_cast<size_t>(target)]);
                 }
               });
  EXPECT_EQ(right.size(), sample.targets.size()) << sample.id;
  return right;
}

// SmolLM2-135M-Instruct, Q4_1. Measured shares: calibration_kinds.cpp.
TEST(CalibrationRealModel, SlowTheDenseModelKnowsTheAnswers) {
  const char* path = std::getenv("POLYSPAN_MODEL");
  const std::optional<std::string> text = default_natural_text();
  if (path == nullptr || !text)
    GTEST_SKIP() << "POLYSPAN_MODEL does not name the default model, or there is no natural text";
  const auto engine = Engine::load(path, 2);
  CalibrationSource source(*engine, {1, *text, {{*text, "What is this text about?", std::nullopt}}}, 1024);
  const std::map<std::string, double> least = {{"passkey-repeated", 0.9}, {"passkey-natural", 0.9},
                                               {"multikey", 0.75},        {"copy", 0.75},
                                               {"section", 0.7},          {"document", 0.95}};  // of the targets
  for (const auto& [kind, share] : least) {
    int64_t n = 0, n_right = 0;
    for (int64_t index = 0; index < (kind == "document" ? 1 : 4); ++index) {
      const CalibrationSample sample = source.make(kind, 1024, index);
      const std::vector<bool> right = right_targets(*engine, sample);
      const int64_t all = std::ssize(right), good = std::count(right.begin(), right.end(), true);
      n += all, n_right += good;
      if (index > 0 || !kind.starts_with("passkey")) continue;
      // All targets right is what the evaluation counts: the greedy continuation starts with the digits.
      const auto sequence = engine->new_sequence(SpanPlan::dense(engine->config().head_shape()), 1100, KvType::kF16);
      const auto prompt = std::span(sample.tokens).first(static_cast<size_t>(sample.targets[0]));
      const GenerateResult result = generate(*engine, *sequence, prompt, {.max_tokens = 8});
      EXPECT_EQ(score_answer(ScoreRule::kStartsWith, result.text, {{sample.answer}}) == 1, good == all)
          << sample.id << " " << result.text;
    }
    EXPECT_GE(static_cast<double>(n_right), share * static_cast<double>(n)) << kind;
  }
}

}  // namespace
}  // namespace polyspan
