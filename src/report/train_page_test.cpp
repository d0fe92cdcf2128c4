// Training runs: what is read, what is wrong and how it is said, and the page.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <regex>

#include "core/error.h"
#include "report/charts.h"
#include "report/page.h"
#include "report/train_data.h"

namespace polyspan::report {
namespace {

constexpr char kConfig[] = R"(architecture = "hydra"
seed = 7
[model]
d_model = 32
n_layers = 2
chunk_len = 16
[ssm]
head_dim = 16
[attention]
every = 2
n_heads = 2
window = 32
[moe]
every = 2
n_experts = 4
d_expert = 32
[workspace]
n_slots = 4
[pkm]
layers = [1]
n_sub_keys = 8
top = 3
[data]
train = "a.tokens"
valid = "b.tokens"
[[stage]]
name = "first"
steps = 4
length = 64
[[stage]]
name = "<b>second"
steps = 6
length = 64
off = ["pkm"]
)";

constexpr char kBaseline[] = R"(architecture = "transformer"
[model]
d_model = 32
n_layers = 1
n_heads = 2
d_ff = 64
[data]
train = "a.tokens"
[[stage]]
steps = 2
length = 64
)";

std::string step_line(int64_t step, const std::string& more = "") {
  return R"({"type":"step","step":)" + std::to_string(step) + R"(,"stage":"first","loss":)" +
         std::to_string(5.5 - 0.25 * static_cast<double>(step)) +
         R"(,"lr":0.001,"grad_norm":1.5,"tokens_per_s":640.5)" + more + "}\n";
}

std::string hydra_line(int64_t step) {
  return step_line(step, R"(,"balance_loss":1.25,"z_loss":2.5,"moe.use.1":[0.5,0.5,0,0],"multipliers.0":[0.8,0.2,0.5],)"
                         R"("multipliers.1":[0.75,0.25,0.5],"workspace.touched.1":0.5,"pkm.gate.1":0.125,)"
                         R"("pkm.values_read.1":16,"of a later version":[{}])");
}

class TrainingRun : public testing::Test {
 protected:
  TrainingRun()
      : folder_(std::filesystem::temp_directory_path() /
                ("polyspan-training-" + std::string(testing::UnitTest::GetInstance()->current_test_info()->name()))) {
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
    metrics_ = R"({"type":"run","step":0,"device":"cpu","processor":"a <fast> one","threads":2,"libtorch":"1.2.3"})"
               "\n" +
               hydra_line(2) + hydra_line(4) +
               R"({"type":"eval","step":4,"stage":"first","loss":4.75,"accuracy":0.25})" + "\n" + hydra_line(6);
  }
  ~TrainingRun() override { std::filesystem::remove_all(folder_); }
  void write(const std::string& config, const std::string& metrics) const {
    std::ofstream(folder_ / "config.toml", std::ios::binary) << config;
    std::ofstream(folder_ / "metrics.jsonl", std::ios::binary) << metrics;
  }
  TrainRun read() const { return read_training_run(folder_); }
  std::string page(const std::string& config, const std::string& metrics) const {
    write(config, metrics);
    return training_page(read());
  }
  // What is said of metrics that are wrong; "" where a page is made of them.
  std::string error(const std::string& metrics) const {
    write(kConfig, metrics);
    try {
      training_page(read());
      return "";
    } catch (const Error& error) {
      return error.what();
    }
  }

  std::filesystem::path folder_;
  std::string metrics_;
};

#define EXPECT_HAS(text, part) \
  EXPECT_NE((text).find(part), std::string::npos) << (text).substr(0, 300) << "\nwanted " << part

TEST_F(TrainingRun, ReadsEveryPart) {
  write(kConfig, metrics_);
  ASSERT_TRUE(is_training_run(folder_));
  const TrainRun run = read();
  ASSERT_EQ(run.steps.size(), 3u);
  EXPECT_EQ(run.last_step(), 6);
  EXPECT_EQ(run.steps[0].loss, 5.0);
  ASSERT_EQ(run.evals.size(), 1u);
  EXPECT_EQ(run.evals[0].accuracy, 0.25);
  ASSERT_EQ(run.sessions.size(), 1u);
  EXPECT_EQ(run.sessions[0].n_threads, 2);
  EXPECT_EQ(run.config.seed, 7u);
  EXPECT_EQ(run.statistic("multipliers", 1, 1), (TrainRun::Points{{2, 0.25}, {4, 0.25}, {6, 0.25}}));
  EXPECT_TRUE(run.statistic("multipliers", 0, 2).size() == 3 && run.statistic("pkm.gate", 0).empty());
  // Two of four experts, alike: half of the largest entropy.
  const TrainRun::Points entropy = run.expert_entropy(1);
  ASSERT_EQ(entropy.size(), 3u);
  EXPECT_NEAR(entropy[0].second, 0.5, 1e-12);
  int64_t n = 0;
  for (const TensorSpec& tensor : hydra_tensors(run.config.hydra)) n += tensor.n_values();
  EXPECT_EQ(run.n_parameters(), n);
}

TEST_F(TrainingRun, NamesWhatIsWrong) {
  const std::string good = hydra_line(2);
  const auto changed = [&](const std::string& from, const std::string& to) {
    std::string line = good;
    line.replace(line.find(from), from.size(), to);
    return error(step_line(1) + line);
  };
  EXPECT_EQ(error(metrics_), "");
  EXPECT_HAS(error(""), "metrics.jsonl: no step is logged in it yet");
  EXPECT_HAS(changed("\"loss\":5.000000", "\"loss\":null"), "metrics.jsonl line 2: loss: found null");
  EXPECT_HAS(changed("\"loss\":5.000000", "\"loss\":\"x\""), "line 2: loss: found \"x\"");
  EXPECT_HAS(changed("\"lr\":0.001,", ""), "line 2: found no \"lr\"");
  EXPECT_HAS(changed("\"step\":2", "\"step\":1"), "line 2: step: found 1, wanted a step after 1");
  EXPECT_HAS(changed("\"step\":2", "\"step\":0"), "line 2: step: found 0");
  EXPECT_HAS(changed("\"step\",", "\"stop\","), "line 2: type: found \"stop\", wanted step, eval or run");
  EXPECT_HAS(changed("[0.5,0.5,0,0]", "[0.5,0.5]"), "moe.use.1: found an array of 2, wanted 4 numbers");
  EXPECT_HAS(changed("moe.use.1", "moe.use.2"), "wanted a key that ends in a layer, 0 to 1");
  EXPECT_HAS(changed("moe.use.1", "moe.use.x"), "wanted a key that ends in a layer, 0 to 1");
  EXPECT_HAS(changed("\"pkm.gate.1\":0.125", "\"pkm.gate.1\":[0.125]"), "pkm.gate.1: found an array of 1");
  EXPECT_HAS(error(step_line(1) + "\n"), "line 2: broken JSON");
  EXPECT_HAS(error(R"({"type":"eval","step":4,"stage":"a","loss":1,"accuracy":1.5})"
                   "\n"),
             "line 1: accuracy: found 1.5");
  std::filesystem::remove(folder_ / "metrics.jsonl");
  EXPECT_TRUE(is_training_run(folder_));
  EXPECT_THROW(read(), Error);
  std::filesystem::remove(folder_ / "config.toml");
  EXPECT_FALSE(is_training_run(folder_));
}

TEST_F(TrainingRun, EveryCutIsAnErrorOfItsLineOrFewerLines) {
  for (size_t length = 0; length < metrics_.size(); ++length) {
    if (length % 11 != 0 && metrics_[length] != '\n' && (length == 0 || metrics_[length - 1] != '\n')) continue;
    const std::string cut = metrics_.substr(0, length), said = error(cut);
    const auto n_whole = std::count(cut.begin(), cut.end(), '\n');
    if (!cut.empty() && cut.back() != '\n')
      EXPECT_HAS(said, "metrics.jsonl line " + std::to_string(n_whole + 1) + ": the file ends inside this line");
    else
      EXPECT_EQ(said.empty(), n_whole >= 2) << length << ": " << said;
  }
}

TEST_F(TrainingRun, ACallThatLeftNothingIsForgotten) {
  const auto call = [](int64_t step, const char* device) {
    return R"({"type":"run","step":)" + std::to_string(step) + R"(,"device":")" + device +
           R"(","threads":1,"libtorch":"1"})" + "\n";
  };
  write(kConfig, call(0, "a") + hydra_line(2) + call(2, "b") + call(2, "c") + hydra_line(4));
  const std::vector<TrainSession> sessions = read().sessions;
  ASSERT_EQ(sessions.size(), 2u);
  EXPECT_EQ(sessions[1].device, "c");
  EXPECT_HAS(training_page(read()), "<dt>Device from step 2 on</dt><dd>c, 1 thread, LibTorch 1</dd>");
}

// Any byte may be anything: an Error or a page, never a crash.
TEST_F(TrainingRun, ChangedBytesNeverCrash) {
  uint64_t state = 12345;
  const auto next = [&state] { return (state = state * 6364136223846793005ull + 1442695040888963407ull) >> 33; };
  for (int i = 0; i < 200; ++i) {
    std::string changed = metrics_;
    const char bytes[] = "0129-.eE\"[]{},:x\x00\xff\x80\n ";
    changed[next() % changed.size()] = bytes[next() % (sizeof bytes - 1)];
    error(changed);
  }
}

TEST_F(TrainingRun, PageHasEachSection) {
  const std::string page = this->page(kConfig, metrics_);
  for (const char* id : {"loss", "evaluation", "speed", "experts", "gates", "memory", "origin"})
    EXPECT_HAS(page, "<section id=\"" + std::string(id) + "\">");
  EXPECT_HAS(page, "This run is not finished</strong>: step 6 of 10");
  EXPECT_HAS(page, "went from 5.00 at step 2 to 4.00 at step 6");
  EXPECT_HAS(page, "Evaluated held out at step 4: loss 4.75, accuracy <strong>25%</strong>");
  EXPECT_HAS(page, "cpu, a &lt;fast&gt; one, 2 threads, LibTorch 1.2.3");
  EXPECT_HAS(page, "&lt;b&gt;second");
  EXPECT_HAS(page, "Share of the 64 values");
  EXPECT_HAS(page, "n_experts = 4\n");  // the configuration, line by line
  for (const char* never : {"http", "nan", "<b>second", "<fast>", "Stage 3"})
    EXPECT_EQ(page.find(never), std::string::npos) << never;
}

TEST_F(TrainingRun, PageOfTheBaselineLeavesOutWhatItHasNot) {
  const std::string page = this->page(kBaseline, step_line(2));
  for (const char* id : {"loss", "evaluation", "speed", "origin"})
    EXPECT_HAS(page, "<section id=\"" + std::string(id) + "\">");
  for (const char* id : {"experts", "gates", "memory"})
    EXPECT_EQ(page.find("#" + std::string(id)), std::string::npos) << id;
  EXPECT_HAS(page, "There is no evaluation yet");
  EXPECT_HAS(page, "not recorded");
  EXPECT_EQ(page.find("not finished"), std::string::npos);
  // One logged step: a point, as there is no line.
  EXPECT_HAS(page, "<title>training loss, step 2: 5.000</title>");
  const std::string evaluated = this->page(
      kBaseline, step_line(2) + R"({"type":"eval","step":2,"stage":"first","loss":4.75,"accuracy":0.25})" + "\n");
  EXPECT_HAS(evaluated, "names no <code>valid</code>");
  EXPECT_EQ(evaluated.find("held out at"), std::string::npos);
}

// Place of the highest point of a picture's first line.
double highest(const std::string& svg) {
  const size_t at = svg.find("points=\"");
  const std::string list = svg.substr(at + 8, svg.find('"', at + 8) - at - 8);
  double least = 1e9;
  const std::regex pair("([-0-9.]+),([-0-9.]+)");
  for (std::sregex_iterator i(list.begin(), list.end(), pair), none; i != none; ++i)
    least = std::min(least, std::stod((*i)[2]));
  return least;
}

TEST(StepChart, AThinnedCurveKeepsItsSpike) {
  StepChart chart{.title = "t", .unit = "u", .scale = StepScale::kFromZero, .last_step = 20000};
  chart.series.push_back({.name = "n", .css = "series"});
  for (int64_t step = 1; step <= 20000; ++step) chart.series[0].points.emplace_back(step, step == 12345 ? 10.0 : 1.0);
  const std::string svg = step_chart(chart);
  EXPECT_LT(svg.size(), 12000u);
  EXPECT_EQ(highest(svg), 28);  // the top of the plot: 10 of 10
}

TEST(StepChart, MovingMeanIsOfWhatCameBefore) {
  const std::vector<std::pair<int64_t, double>> points = {{1, 4}, {2, 2}, {3, 0}, {4, 8}};
  EXPECT_EQ(moving_mean(points, 2), (std::vector<std::pair<int64_t, double>>{{1, 4}, {2, 3}, {3, 1}, {4, 4}}));
}

}  // namespace
}  // namespace polyspan::report
