// Configurations, token files, checkpoints and tasks: what is wrong with one is said; what is cut is refused.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <set>

#include "core/error.h"
#include "core/test_util.h"
#include "io/safetensors.h"
#include "recipe/prepare.h"
#include "recipe/tasks.h"
#include "recipe/token_file.h"
#include "recipe/train_config.h"

namespace polyspan {
namespace {

using testing_util::message_of;

class Recipe : public testing::Test {
 protected:
  Recipe() : folder_(std::filesystem::temp_directory_path() / ("polyspan-recipe-" + std::to_string(getpid()))) {
    std::filesystem::create_directories(folder_);
  }
  ~Recipe() override { std::filesystem::remove_all(folder_); }
  // Every length of the file but the whole one must be refused by `open`.
  void expect_cuts_refused(const std::filesystem::path& path,
                           const std::function<void(const std::filesystem::path&)>& open) const {
    std::ifstream file(path, std::ios::binary);
    const std::string bytes((std::istreambuf_iterator<char>(file)), {});
    const std::filesystem::path cut = folder_ / "cut";
    for (size_t n = 0; n < bytes.size(); ++n) {
      std::ofstream(cut, std::ios::binary) << bytes.substr(0, n);
      EXPECT_THROW(open(cut), Error) << n << " of " << bytes.size() << " bytes";
    }
  }
  std::filesystem::path folder_;
};

TEST_F(Recipe, TheLargeModelIsOneOfSixteenHundredMillion) {
  const TrainConfig config =
      load_train_config(std::filesystem::path(POLYSPAN_SOURCE_DIR) / "bench/hydra/hydra-1.6b.toml");
  EXPECT_NEAR(static_cast<double>(account(config.hydra).parameters), 1.6e9, 0.02 * 1.6e9);
}

TEST_F(Recipe, ConfigurationsSayWhatIsWrong) {
  const auto message = [](const std::string& text) { return message_of([&] { parse_train_config(text, "c.toml"); }); };
  const std::map<std::string, std::string> cases = {
      {"[model]\nd_modle = 4", "c.toml:2: [model] d_modle is not known; did you mean d_model?"},
      {"[mdel]\n", "did you mean model?"},
      {"architecture = \"mamba\"", "wanted hydra or transformer"},
      {"[model]\nd_model = \"x\"", "must be a whole number"},
      {"[model]\nd_model = 0", "it must be between 1 and"},
      {"[model]\nd_model = ", "c.toml: line 2"},
      {"[attention]\nwindow = 100", "attention.window is 100; it must be a multiple of chunk_len, 64"},
      {"[attention]\nn_heads = 4\nn_kv_heads = 3", "multiple of attention.n_kv_heads, 3"},
      {"[moe]\nn_experts = 1", "moe.n_active is 2; there are only 1 experts"},
      {"[pkm]\nlayers = [8]", "pkm.layers names block 8; the blocks are 0 to 7"},
      {"[ssm]\nkind = \"diagnal\"", "c.toml:2: [ssm] kind is \"diagnal\"; did you mean diagonal?"},
      {"[ssm]\nkind = \"rnn\"", "[ssm] kind is \"rnn\"; wanted mamba2 or diagonal"},
      {"[ssm]\nkind = \"diagonal\"\nd_state = 16", "c.toml:3: [ssm] d_state is a size of mamba2; kind is diagonal"},
      {"[ssm]\nenabled = false\n[attention]\nevery = 0", "no block would see another token"},
      {"[[stage]]\nlength = 4", "[stage 1] steps is missing"},
      {"[run]\nprecision = \"fp8\"", "precision is \"fp8\"; wanted f32 or bf16"},
      {"[[stage]]\nsteps = 1\noff = [\"moe\"]\nramp = [\"moe\"]", "which another list"},
      {"[model]\nvocab_size = 16000000\nd_model = 1000000\n[ssm]\nd_inner = 64\n[attention]\nhead_dim = 64",
       "the sizes are too large"},
  };
  for (const auto& [text, part] : cases)
    EXPECT_NE(message(text).find(part), std::string::npos) << text << "\n  gave: " << message(text);
  EXPECT_EQ(message("[[stage]]\nsteps = 1\n"), "no error");
  EXPECT_EQ(message("[model]\nd_model = 30\n[attention]\nhead_dim = 8\n[ssm]\nkind = \"diagonal\"\n"), "no error");
}

TEST_F(Recipe, TokenFilesComeBackAndAreCheckedAtEveryLength) {
  const std::filesystem::path path = folder_ / "a.tokens";
  const std::vector<int32_t> tokens = {1, 2, 259, 0, 5, 6};
  const std::vector<uint8_t> mask = {0, 1, 0, 1, 1, 0};
  write_token_file(path, {.vocab_size = 260, .example_length = 3, .tokenizer = "bytes", .source = "test"}, tokens,
                   mask);
  {
    const TokenFile file = TokenFile::open(path);
    EXPECT_TRUE(std::ranges::equal(file.tokens(), tokens) && std::ranges::equal(file.mask(), mask));
    EXPECT_EQ(file.info().example_length, 3);
  }
  expect_cuts_refused(path, [](const std::filesystem::path& cut) { TokenFile::open(cut); });
  write_token_file(path, {.vocab_size = 200, .tokenizer = "bytes", .source = "test"}, tokens, {});
  EXPECT_NE(message_of([&] { TokenFile::open(path); }).find("token 2 is 259; the vocabulary has 200"),
            std::string::npos);
}

TEST_F(Recipe, CheckpointsComeBackAndAreCheckedAtEveryLength) {
  const std::filesystem::path path = folder_ / "a.safetensors";
  const std::vector<float> a = {1, 2, 3, 4, 5, 6}, b = {7};
  const NamedFloatTensor tensors[] = {{"a", {{2, 3}, a}}, {"b", {{1}, b}}};
  write_safetensors(path, {{"step", "12"}}, tensors);
  {
    const SafetensorsFile file = SafetensorsFile::open(path);
    EXPECT_TRUE(std::ranges::equal(file.get("a", std::vector<int64_t>{2, 3}).values, a));
    EXPECT_EQ(file.get_metadata("step"), "12");
    EXPECT_NE(message_of([&] {
                file.get("a", std::vector<int64_t>{3, 2});
              }).find("[2, 3]; wanted [3, 2]"),
              std::string::npos);
    EXPECT_NE(message_of([&] { file.get("c", std::vector<int64_t>{1}); }).find("tensor c is missing"),
              std::string::npos);
  }
  expect_cuts_refused(path, [](const std::filesystem::path& cut) { SafetensorsFile::open(cut); });
}

TEST_F(Recipe, RecallAnswersAreInTheExample) {
  const TaskExamples made =
      make_task({.task = "recall", .length = 40, .pairs = 5, .gap = 6, .examples = 50, .seed = 3});
  ASSERT_EQ(made.example_length, 41);
  for (int64_t e = 0; e < 50; ++e) {
    const int32_t* const x = made.tokens.data() + e * 41;
    std::map<int32_t, int32_t> value;
    for (int64_t i = 0; i < 5; ++i) value[x[2 * i]] = x[2 * i + 1];
    EXPECT_EQ(value.size(), 5u);
    int64_t n_scored = 0;
    for (int64_t t = 0; t < 41; ++t) {
      if (made.mask[static_cast<size_t>(e * 41 + t)] == 0) continue;
      ++n_scored;
      EXPECT_EQ(x[t], value.at(x[t - 1]));
    }
    EXPECT_GE(n_scored, 10);
  }
}

TEST_F(Recipe, ChainAnswersFollowFromTheFacts) {
  const TaskExamples made =
      make_task({.task = "chain", .length = 60, .pairs = 3, .hops = 4, .examples = 50, .seed = 3});
  for (int64_t e = 0; e < 50; ++e) {
    const int32_t* const x = made.tokens.data() + e * made.example_length;
    std::map<int32_t, int32_t> next;
    std::map<int32_t, int64_t> times;
    int64_t t = 0;
    for (; x[t] != '?'; ++t) {
      if (x[t] == ';') next[x[t - 2]] = x[t - 1], ++times[x[t - 2]], ++times[x[t - 1]];
    }
    int32_t at = x[t + 1];
    for (int64_t hop = 0; hop < x[t + 2] - '0'; ++hop) at = next.at(at);
    EXPECT_EQ(x[t + 4], at);
    EXPECT_EQ(t + 5, made.example_length);
    int64_t n_once = 0;
    for (const auto& [letter, n] : times) n_once += n == 1;
    EXPECT_EQ(n_once, 6);  // the answer is one of six letters that occur once
  }
}

TEST_F(Recipe, ChainsCanBeAskedForEveryNumberOfSteps) {
  std::set<int64_t> asked;
  for (const int64_t steps : {0, 1, 3}) {
    const TaskExamples made =
        make_task({.task = "chain", .length = 60, .pairs = 3, .hops = 4, .asked = steps, .examples = 60, .seed = 3});
    for (int64_t e = 0; e < 60; ++e) {
      const int64_t n = made.tokens[static_cast<size_t>((e + 1) * made.example_length - 3)] - '0';
      EXPECT_TRUE(steps == 0 || n == steps) << n;
      if (steps == 0) asked.insert(n);
    }
  }
  EXPECT_EQ(asked, (std::set<int64_t>{1, 2, 3, 4}));
}

TEST_F(Recipe, SeveralQuestionsOfAChainAreAllAnsweredByTheFacts) {
  const TaskExamples made = make_task(
      {.task = "chain", .length = 90, .pairs = 3, .hops = 4, .asked = 0, .questions = 8, .examples = 20, .seed = 3});
  for (int64_t e = 0; e < 20; ++e) {
    const int32_t* const x = made.tokens.data() + e * made.example_length;
    std::map<int32_t, int32_t> next;
    int64_t t = 0, n_scored = 0;
    for (; x[t] != '?'; ++t)
      if (x[t] == ';') next[x[t - 2]] = x[t - 1];
    for (; t < made.example_length; t += 5) {
      ASSERT_EQ(x[t], '?');
      int32_t at = x[t + 1];
      for (int64_t hop = 0; hop < x[t + 2] - '0'; ++hop) at = next.at(at);
      EXPECT_EQ(x[t + 4], at);
      n_scored += made.mask[static_cast<size_t>(e * made.example_length + t + 4)];
    }
    EXPECT_EQ(n_scored, 8);
  }
}

// One table for every seed, no key twice in an example; other tables would have to agree by chance.
TEST_F(Recipe, FactsAreTheSameInEveryFile) {
  std::map<std::string, int32_t> table;
  for (const uint64_t seed : {1, 2}) {
    const TaskExamples made = make_task({.task = "facts", .length = 95, .pairs = 300, .examples = 100, .seed = seed});
    for (int64_t e = 0; e < 100; ++e) {
      std::set<std::string> keys;
      for (int64_t i = 0; i < 16; ++i) {
        const size_t at = static_cast<size_t>(e * made.example_length + 6 * i);
        const std::string key(made.tokens.begin() + static_cast<int64_t>(at),
                              made.tokens.begin() + static_cast<int64_t>(at) + 3);
        EXPECT_TRUE(keys.insert(key).second) << key << " twice in example " << e;
        EXPECT_TRUE(made.mask[at + 4] == 1 && made.tokens[at + 3] == '=');
        EXPECT_EQ(table.emplace(key, made.tokens[at + 4]).first->second, made.tokens[at + 4]) << key;
      }
    }
  }
  EXPECT_EQ(table.size(), 300u);
}

TEST_F(Recipe, APasskeyIsToldOnceAndAskedForAtTheEnd) {
  const TaskExamples made = make_task({.task = "passkey", .length = 79, .pairs = 5, .examples = 200, .seed = 3});
  ASSERT_EQ(made.example_length, 80);
  std::set<size_t> places;
  for (int64_t e = 0; e < 200; ++e) {
    const std::string text(made.tokens.begin() + e * 80, made.tokens.begin() + (e + 1) * 80);
    const std::string key = text.substr(75);
    EXPECT_EQ(text.substr(73, 2), "K?");
    const size_t told = text.find("K=" + key + ";");
    ASSERT_LT(told, size_t{73}) << text;
    EXPECT_EQ(text.find_first_of("0123456789"), told + 2) << text;
    EXPECT_EQ(text.find_first_of("0123456789", told + 8), size_t{75}) << text;
    places.insert(told);
    for (size_t t = 0; t < 80; ++t) EXPECT_EQ(made.mask[static_cast<size_t>(e) * 80 + t], t >= 75 ? 1 : 0);
  }
  EXPECT_EQ(*places.begin(), 0u);
  EXPECT_EQ(*places.rbegin(), 65u);  // 66 places: 200 draws miss the first or the last one in a tenth of all seeds
}

TEST_F(Recipe, APhonebookTellsTheNumbersThatItAsksFor) {
  const TaskExamples made =
      make_task({.task = "phonebook", .length = 120, .pairs = 8, .gap = 10, .questions = 3, .examples = 50, .seed = 3});
  for (int64_t e = 0; e < 50; ++e) {
    const std::string text(made.tokens.begin() + e * 121, made.tokens.begin() + (e + 1) * 121);
    const size_t first = 120 - 9 * 11 - 10, asked = 121 - 3 * 9;
    EXPECT_EQ(text.substr(0, first), std::string(first, '.'));
    EXPECT_EQ(text.substr(first + 72, 11), "..........?");
    std::map<std::string, std::string> book;
    for (size_t i = 0; i < 8; ++i) book[text.substr(first + 9 * i, 3)] = text.substr(first + 9 * i + 3, 6);
    EXPECT_EQ(book.size(), 8u);
    for (size_t i = 0; i < 3; ++i) EXPECT_EQ(text.substr(asked + 9 * i + 3, 6), book.at(text.substr(asked + 9 * i, 3)));
    for (size_t t = 0; t < 121; ++t)
      EXPECT_EQ(made.mask[static_cast<size_t>(e) * 121 + t], t >= asked && (t - asked) % 9 >= 4 && (t - asked) % 9 < 8);
  }
}

TEST_F(Recipe, SumsAreRightAndHardlyComeTwice) {
  const TaskExamples made = make_task({.task = "sums", .length = 97, .pairs = 4, .examples = 100, .seed = 3});
  const auto value = [](std::string digits) { return std::stoi(std::string(digits.rbegin(), digits.rend())); };
  std::map<char, int> kinds;
  std::set<std::string> problems;
  for (int64_t e = 0; e < 100; ++e) {
    const std::string text(made.tokens.begin() + e * 98, made.tokens.begin() + (e + 1) * 98);
    for (size_t i = 0; i < 6; ++i) {
      const std::string problem = text.substr(16 * i, 16);
      const int a = value(problem.substr(1, 4)), b = value(problem.substr(6, 4)), answer = value(problem.substr(11));
      ++kinds[problem[0]], problems.insert(problem);
      EXPECT_TRUE(problem[5] == ',' && problem[10] == '=') << problem;
      EXPECT_EQ(answer, problem[0] == '+'   ? a + b
                        : problem[0] == '-' ? std::abs(a - b)
                        : problem[0] == '>' ? std::max(a, b)
                                            : std::min(a, b))
          << problem;
    }
    EXPECT_EQ(text.substr(96), "..");
    for (size_t t = 0; t < 98; ++t)
      EXPECT_EQ(made.mask[static_cast<size_t>(e) * 98 + t], t < 96 && t % 16 >= 11 ? 1 : 0);
  }
  EXPECT_EQ(kinds.size(), 4u);
  EXPECT_GE(problems.size(), 599u);
}

TEST_F(Recipe, TasksThatDoNotFitAreRefused) {
  for (const TaskOptions& o :
       {TaskOptions{.task = "recal"}, TaskOptions{.task = "recall", .length = 10, .pairs = 8},
        TaskOptions{.task = "recall", .pairs = 27}, TaskOptions{.task = "chain", .pairs = 9, .hops = 3},
        TaskOptions{.task = "copy", .length = 8, .pairs = 8}, TaskOptions{.task = "facts", .length = 95, .pairs = 15},
        TaskOptions{.task = "facts", .pairs = 17577}, TaskOptions{.task = "chain", .pairs = 2, .asked = 3},
        TaskOptions{.task = "passkey", .length = 10, .pairs = 4}, TaskOptions{.task = "phonebook", .pairs = 1001},
        TaskOptions{.task = "phonebook", .length = 80, .pairs = 8, .questions = 1},
        TaskOptions{.task = "phonebook", .questions = int64_t{1} << 62}, TaskOptions{.task = "sums", .pairs = 16},
        TaskOptions{.task = "sums", .length = 14, .pairs = 4}})
    EXPECT_THROW(make_task(o), Error) << o.task << " " << o.length << " " << o.pairs;
}

TEST_F(Recipe, TextBecomesBytesWithAnEnd) {
  std::ofstream(folder_ / "a.txt") << "h\xc3\xa9";
  prepare_text({folder_ / "a.txt"}, CorpusTokenizer("bytes"), folder_ / "a.tokens", no_progress());
  const TokenFile file = TokenFile::open(folder_ / "a.tokens");
  const std::vector<int32_t> expected = {'h', 0xc3, 0xa9, kByteEnd};
  EXPECT_TRUE(std::ranges::equal(file.tokens(), expected));
  std::ofstream(folder_ / "empty.txt") << "";
  EXPECT_NE(message_of([&] {
              prepare_text({folder_ / "empty.txt"}, CorpusTokenizer("bytes"), folder_ / "b.tokens", no_progress());
            }).find("no text"),
            std::string::npos);
}

}  // namespace
}  // namespace polyspan
