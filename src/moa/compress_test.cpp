// Whole runs of compress on a tiny random model: what they leave, that they repeat and resume to the byte, and what is
// refused. Such a model retrieves nothing: the samples are running text.
#include "moa/compress.h"

#include <cmath>

#include "eval/eval_test_util.h"
#include "moa/profile_stage.h"
#include "moa/validation.h"

namespace polyspan {
namespace {
using namespace testing_util;
namespace fs = std::filesystem;

class Compress : public testing::Test {
 protected:
  Compress() : text_(natural_text(800)) {
    options_.densities = {0.6, 0.5};
    options_.lengths = {512};
    options_.extend = {};
    options_.kinds = {"text"};
    options_.samples = 1, options_.steps = 2, options_.validation_samples = 1;
    options_.text = text_.path().string();
  }
  std::vector<CompressedPlan> run(const fs::path& folder, const CompressOptions& options) {
    RunDirectory directory(folder);
    return compress(*tiny_, directory, options, no_progress());
  }
  std::vector<CompressedPlan> run(const fs::path& folder) { return run(folder, options_); }

  const TinyEngine tiny_;
  TemporaryFile text_;
  const TemporaryFolder temporary_;
  const fs::path folder_ = temporary_.path();
  CompressOptions options_;
};

TEST_F(Compress, LeavesPlansWithinTheDensity) {
  options_.lengths = {512, 640}, options_.extend = {1024};
  const std::vector<CompressedPlan> plans = run(folder_ / "run");
  ASSERT_EQ(plans.size(), 2u);
  for (const CompressedPlan& plan : plans) {
    const SpanPlan loaded = SpanPlan::load(plan.file, tiny_->config().head_shape());
    EXPECT_EQ(loaded.info().density, plan.density);
    EXPECT_FALSE(loaded.info().model_fingerprint.empty());
    for (const int64_t length : {512, 640, 1024}) EXPECT_LE(loaded.density(length), plan.density + 1e-9);
    EXPECT_FALSE(plan.why.empty());
  }
  for (const char* name :
       {"run.json", "samples.jsonl", "search/0.6.json", "search/0.5.json", "validation/0.5.json",
        "candidates/0.5/annealed.json", "candidates/0.5/uniform.json", "candidates/0.5/dense-pairwise.json", "log.txt"})
    EXPECT_TRUE(fs::is_regular_file(folder_ / "run" / name)) << name;
  for (const auto& entry : fs::recursive_directory_iterator(folder_ / "run"))
    EXPECT_EQ(entry.path().string().find(".tmp-"), std::string::npos);
}

// A run that stops after any file it writes goes on to the same plans, to the byte: each file but the first is taken
// away with everything that was written after it.
TEST_F(Compress, RepeatsAndResumesToTheByte) {
  run(folder_ / "one");
  const fs::path two = folder_ / "two";
  run(two);
  const auto same = [&](const std::string& where) {
    for (const char* name : {"plans/0.6.json", "plans/0.5.json", "candidates/0.5/annealed.json", "search/0.5.json",
                             "validation/0.5.json", "samples.jsonl"})
      EXPECT_TRUE(contents(folder_ / "one" / name) == contents(two / name)) << name << " differs " << where;
  };
  same("in a second run");
  std::vector<std::pair<fs::file_time_type, fs::path>> written;
  for (const auto& entry : fs::recursive_directory_iterator(two))
    if (entry.is_regular_file() && entry.path().filename() != "lock" && entry.path().filename() != "log.txt" &&
        entry.path().filename() != "run.json")
      written.emplace_back(entry.last_write_time(), entry.path());
  std::sort(written.begin(), written.end());
  for (size_t kept = 0; kept < written.size(); kept += written.size() / 3) {
    for (size_t i = kept; i < written.size(); ++i) fs::remove(written[i].second);
    run(two);
    same("after " + std::to_string(kept) + " files");
  }
}

// A refinement that stops after any file it writes, or between two samples of a choice, ends with the same plan, to the byte.
TEST_F(Compress, RefinementGoesOnWhereItStopped) {
  options_.densities = {0.5}, options_.steps = 0, options_.refine = 2, options_.refine_samples = 14, options_.seed = 4;
  const fs::path one = folder_ / "one", two = folder_ / "two";
  run(one);
  fs::copy(one, two, fs::copy_options::recursive);
  std::vector<std::string> written;
  for (const auto& entry : fs::recursive_directory_iterator(one / "refine"))
    if (entry.is_regular_file()) written.push_back(fs::relative(entry.path(), one).string());
  std::sort(written.begin(), written.end());
  ASSERT_GE(written.size(), 18u);  // what dense makes of the samples, and rounds: a file a sample, choices, a summary
  const auto goes_on = [&](const std::string& where) {
    for (const char* name : {"candidates/0.5/refined.json", "validation/0.5.json", "plans/0.5.json"})
      fs::remove(two / name);
    run(two);
    for (const std::string& name : written) EXPECT_TRUE(contents(one / name) == contents(two / name)) << name << where;
    EXPECT_TRUE(contents(one / "plans/0.5.json") == contents(two / "plans/0.5.json")) << where;
    EXPECT_EQ(fs::exists(one / "candidates/0.5/refined.json"), fs::exists(two / "candidates/0.5/refined.json"))
        << where;
  };
  // The refined plan is the one that is taken, where there is one: beside it only baselines are validated.
  const OrderedJson validation = OrderedJson::parse(contents(one / "validation/0.5.json"));
  ASSERT_TRUE(fs::exists(one / "candidates/0.5/refined.json"));
  for (const OrderedJson& row : validation["rows"])
    EXPECT_TRUE(row["name"] == "refined" || row["name"] == "uniform" || row["name"] == "two-valued") << row["name"];
  for (size_t kept = 0; kept < written.size(); kept += written.size() / 4) {
    for (size_t i = kept; i < written.size(); ++i) fs::remove(two / written[i]);
    goes_on(" after " + std::to_string(kept) + " files");
  }
  const fs::path choices = two / "refine/0.5/round-1/choices.json";
  OrderedJson document = OrderedJson::parse(contents(choices));
  ASSERT_GE(document["choices"].size(), 2u);
  document["choices"].erase(document["choices"].begin() + 1, document["choices"].end());
  document["choices"][0]["losses"].erase(document["choices"][0]["losses"].begin() + 12,
                                         document["choices"][0]["losses"].end());
  write_file_atomically(choices, document.dump());
  fs::remove_all(two / "refine/0.5/round-2");
  fs::remove(two / "refine/0.5.json"), fs::remove(two / "refine/0.5/round-1/summary.json");
  goes_on(" in the midst of a choice");
  fs::remove(two / "candidates/0.5/refined.json"), fs::remove(two / "validation/0.5.json");
  document = OrderedJson::parse(contents(choices));
  document["choices"][1]["changes"] = {{0, 1, 0.5}};
  write_file_atomically(choices, document.dump());
  expect_error([&] { run(two); }, ErrorKind::kBadFile, {"choices.json", "other choices"});
  document["choices"][0]["losses"] = "none";
  write_file_atomically(choices, document.dump());
  expect_error([&] { run(two); }, ErrorKind::kBadFile, {"choices.json", "no losses"});
}

TEST_F(Compress, RefusesWhatItCannotDo) {
  CompressOptions options = options_;
  options.kinds = {"passkey-repeated"};
  expect_error([&] { run(folder_ / "wrong", options); }, ErrorKind::kBadInput,
               {"no sample of 512 tokens", "dense model"});
  options = options_;
  options.densities = {0.01};
  expect_error([&] { run(folder_ / "sparse", options); }, ErrorKind::kBadInput, {"0.01", "smallest"});
  options.densities = {0.5, 0.01};
  expect_error([&] { run(folder_ / "sparse", options); }, ErrorKind::kBadInput, {"0.01", "smallest"});
  options.per_query_head = true;
  expect_error([&] { run(folder_ / "sparse", options); }, ErrorKind::kBadInput, {"0.01", "smallest"});
  options = options_;
  options.extend = {tiny_->config().context_length + 1};
  expect_error([&] { run(folder_ / "long", options); }, ErrorKind::kBadInput,
               {std::to_string(tiny_->config().context_length)});
  const TemporaryFile little("Too little. ");
  options = options_;
  options.text = little.path().string();
  expect_error([&] { run(folder_ / "little", options); }, ErrorKind::kBadInput, {"natural text"});
  options = options_;
  options.kinds = {"text", "copy"}, options.lengths = {256, 640};
  expect_error([&] { run(folder_ / "brief", options); }, ErrorKind::kBadInput, {"256/copy/0", "are needed"});
  // What is known to fail fails before the long work, and leaves the folder to another try.
  for (const char* name : {"sparse", "long", "little", "brief"}) {
    EXPECT_FALSE(fs::exists(folder_ / name / "run.json")) << name;
    EXPECT_FALSE(fs::exists(folder_ / name / "profile")) << name;
  }
  const auto bad = [&](auto change) {
    CompressOptions o = options_;
    change(o);
    expect_error([&] { o.check(); }, ErrorKind::kUsage, {});
  };
  bad([](auto& o) { o.densities = {0}; });
  bad([](auto& o) { o.densities = {1}; });
  bad([](auto& o) { o.densities = {0.5, 0.5}; });
  bad([](auto& o) { o.densities = {std::nan("")}; });
  bad([](auto& o) { o.lengths = {}; });
  bad([](auto& o) { o.lengths = {8}; });
  bad([](auto& o) { o.extend = {512}; });
  bad([](auto& o) { o.extend = {400}; });
  bad([](auto& o) { o.kinds = {"rhyme"}; });
  bad([](auto& o) { o.kinds = {"document"}; });
  bad([](auto& o) { o.samples = 0; });
  bad([](auto& o) { o.weights["text"] = -1; });
}

// Made-up results of dense on the held-out samples: it answers none of them.
TEST_F(Compress, WithoutAHeldOutSampleCandidatesAreLeft) {
  const fs::path folder = folder_ / "run";
  run(folder);
  OrderedJson dense = OrderedJson::parse(contents(folder / "validation/dense.json"));
  for (int64_t index = 0; index < 4; ++index)
    dense["samples"]["512/text/" + std::to_string(index)] = {{"accepted", false}};
  write_file_atomically(folder / "validation/dense.json", dense.dump());
  fs::remove(folder / "validation/0.6.json");
  expect_error([&] { run(folder); }, ErrorKind::kBadInput, {"no held-out sample of 512 tokens", "candidates"});
  EXPECT_TRUE(fs::is_regular_file(folder / "candidates/0.6/annealed.json"));
}

// Other text would make other samples: plans of both would be neither run's. A finished run draws none.
TEST_F(Compress, GoesOnWithTheSameTextOnly) {
  const fs::path folder = folder_ / "run", description = folder / "run.json";
  run(folder);
  const std::string finished = contents(description);
  write_file_atomically(text_.path(), natural_text(700));
  EXPECT_NO_THROW(run(folder));
  EXPECT_EQ(contents(description), finished);  // with the seconds and the device of the process that made it
  OrderedJson document = OrderedJson::parse(finished);
  document["finished"] = false, document["seconds"]["profile"] = 1000;
  write_file_atomically(description, document.dump());
  expect_error([&] { run(folder); }, ErrorKind::kBadInput, {folder.string(), text_.path().string(), "changed"});
  write_file_atomically(text_.path(), natural_text(800));
  run(folder);
  document = OrderedJson::parse(contents(description));
  EXPECT_TRUE(document["finished"].get<bool>());
  EXPECT_GE(document["seconds"]["profile"].get<double>(), 1000);
}

TEST_F(Compress, ARunDirectoryIsOneModelsAndOneProcess) {
  const fs::path folder = folder_ / "run";
  run(folder);
  {
    const RunDirectory held(folder);
    expect_error([&] { RunDirectory second(folder); }, ErrorKind::kBadInput, {"another process"});
  }
  RandomModelConfig other = tiny_engine_config();
  other.seed = 99;
  const TinyEngine another(other);
  expect_error(
      [&] {
        RunDirectory directory(folder);
        compress(*another, directory, options_, no_progress());
      },
      ErrorKind::kBadInput, {"model"});
  std::string text = contents(folder / "run.json");
  text.replace(text.find("\"format_version\": 5"), 19, "\"format_version\": 7");
  write_file_atomically(folder / "run.json", text);
  expect_error([&] { run(folder); }, ErrorKind::kUnsupported, {"format_version 7"});
  const TemporaryFile file("no folder");
  expect_error([&] { RunDirectory directory(file.path()); }, ErrorKind::kIo, {"found a file"});
}

// What is there but damaged is said, not taken: each file cut at several places.
TEST_F(Compress, DamagedFilesAreSaid) {
  const fs::path folder = folder_ / "run";
  run(folder);
  const fs::path profile = folder / RunDirectory::profile_name("dense", "512/text/0");
  for (const fs::path& path :
       {profile, folder / "validation/dense.json", folder / "samples.jsonl", folder / "run.json"}) {
    const std::string whole = contents(path);
    ASSERT_GT(whole.size(), 100u) << path;
    for (const size_t length : {size_t{0}, size_t{1}, whole.size() / 3 + 7, whole.size() / 2 + 7, whole.size() - 4}) {
      std::error_code ignored;
      fs::remove_all(folder / "validation" / "0.5.json", ignored);
      write_file_atomically(path, whole.substr(0, length));
      try {
        run(folder);
        // A samples.jsonl that ends between two lines is a shorter one.
        EXPECT_TRUE(length == 0 && path.filename() == "samples.jsonl") << path << " cut at " << length << " was taken";
      } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find(path.filename().string()), std::string::npos) << error.what();
      }
    }
    write_file_atomically(path, whole);
  }
  EXPECT_NO_THROW(run(folder));
}

TEST(CompressOptions, SurviveTheirFile) {
  CompressOptions options;
  options.densities = {0.5, 0.125};
  options.weights = {{"text", 1.5}};
  options.kinds = {"text", "copy"};
  options.influence = Estimator::kPairwise;
  options.loss = ProfileLoss::kCrossEntropy;
  options.seed = 18446744073709551615ull;
  const auto json = nlohmann::ordered_json::parse(options.to_json().dump());
  EXPECT_EQ(CompressOptions::from_json(json, "run.json").to_json(), options.to_json());
  for (const auto& [name, value] : json.items()) {
    auto changed = json;
    changed.erase(name);
    expect_error([&] { CompressOptions::from_json(changed, "run.json"); }, ErrorKind::kBadFile, {"run.json", name});
    changed[name] = nlohmann::ordered_json::array({nullptr});
    expect_error([&] { CompressOptions::from_json(changed, "run.json"); }, ErrorKind::kBadFile, {"run.json"});
  }
  EXPECT_EQ(CompressOptions().validation_length(), 5120);
}

// Made-up results on disk: dense answers records at 384 tokens, and the key in repeated text nowhere.
TEST_F(Compress, AStepTakesTwoRecordsOnceTheyAreAnswered) {
  options_.lengths = {384, 640}, options_.kinds = {"records", "text", "passkey-repeated"};
  RunDirectory run(folder_ / "run");
  SampleStore samples(run, *tiny_, options_);
  const auto answers = [](const std::string& kind, int64_t length) {
    return kind == "text" || (kind == "records" && length == 384);
  };
  for (const std::string round : {"dense", "step-1", "step-2"})
    for (const int64_t length : options_.lengths)
      for (const std::string& kind : options_.kinds)
        for (int64_t index = 0; index < 4; ++index) {
          SampleProfile made;
          made.id = std::to_string(length) + "/" + kind + "/" + std::to_string(index);
          made.kind = kind, made.length = length, made.accepted = answers(kind, length);
          made.targets = {1}, made.candidate_spans = {length}, made.influence = {1, 1, 1, {0}, {0}, {0}, {0}};
          run.write_profile(round, made);
        }
  ProfileStage stage(run, *tiny_, options_, samples, no_progress());
  stage.dense();
  const SpanPlan plan = SpanPlan::uniform(tiny_->config().head_shape(), 0.5);
  const auto drawn = [&](const std::string& name, int64_t length) {
    std::vector<std::string> ids;
    for (const SampleProfile& sample : stage.under(plan, name, length).samples) ids.push_back(sample.id);
    return ids;
  };
  EXPECT_EQ(drawn("step-1", 384), (std::vector<std::string>{"384/records/1", "384/records/2", "384/text/1"}));
  EXPECT_EQ(drawn("step-2", 640), std::vector<std::string>{"640/text/1"});
}

// A made-up dense result: which targets count.
TEST(AcceptedTargets, ShortAnswersCountWholeLongOnesByHalf) {
  CalibrationSample sample;
  const auto scores = [&](std::vector<bool> right) {
    sample.targets.clear();
    std::vector<TargetScore> made;
    for (const bool is_right : right)
      sample.targets.push_back(10 + std::ssize(sample.targets)), made.push_back({-1, 0, is_right});
    return made;
  };
  EXPECT_EQ(accepted_targets(sample, scores({true, true})), (std::vector<int64_t>{10, 11}));
  EXPECT_EQ(accepted_targets(sample, scores({true, false})), std::nullopt);
  std::vector<bool> longer(20, false);
  for (size_t i = 0; i < 9; ++i) longer[2 * i] = true;
  EXPECT_EQ(accepted_targets(sample, scores(longer)), std::nullopt);
  longer[19] = true;
  const auto counted = accepted_targets(sample, scores(longer));
  ASSERT_TRUE(counted.has_value());
  EXPECT_EQ(counted->size(), 10u);
  EXPECT_EQ(counted->back(), 29);
  sample.retrieval = false;
  EXPECT_EQ(accepted_targets(sample, scores({false, false})), (std::vector<int64_t>{10, 11}));
}

}  // namespace
}  // namespace polyspan
