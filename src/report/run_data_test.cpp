// Reading a run directory: what is right, what is missing, and every way in which a file can be wrong.
#include "report/run_data.h"

#include <cmath>
#include <set>

#include "report/run_test_util.h"

namespace polyspan::report {
namespace {

TEST(RunData, ReadsEveryPart) {
  const RunData run = TestRun().read();
  EXPECT_EQ(run.model.name, "small");
  EXPECT_EQ(run.options.seed, 18446744073709551615ull);
  EXPECT_EQ(run.date, "2025-11-02");
  EXPECT_EQ(run.log.size(), 2u);
  EXPECT_TRUE(run.missing().empty());
  ASSERT_EQ(run.samples.size(), 1u);
  EXPECT_EQ(run.samples[0].n_drawn, 1);
  EXPECT_EQ(run.samples[0].n_profiled, 1);
  EXPECT_EQ(run.samples[0].n_accepted, 1);
  EXPECT_EQ(run.samples[0].n_validation, 1);
  ASSERT_EQ(run.densities.size(), 1u);
  const DensityResult& result = run.densities[0];
  EXPECT_EQ(result.key, "0.5");
  EXPECT_EQ(result.search->front[0].losses, (std::vector<double>{1.5, 2.5}));
  EXPECT_EQ(result.validation->row("uniform")->stopped, "256/text/1");
  EXPECT_FALSE(result.validation->row("uniform")->right);
  EXPECT_EQ(result.candidates.size(), 2u);
  ASSERT_NE(run.measured.find_retrieval({"dense", 1}, 512), nullptr);
  EXPECT_EQ(run.measured.find_retrieval({"dense", 1}, 512)->depths.size(), 2u);
  EXPECT_EQ(run.measured.find_speed({"plan", 0.5}, 512)->decode_tokens_per_s, 123.4);
}

TEST(RunData, SumsThePlansLossOverTheHeads) {
  const RunData run = TestRun().read();
  const DensityResult& result = run.densities[0];
  // At 256: spans 64, 128, 128, 256 of four KV heads: 4 + 0.2 + 0 + 0. At 512: 64, 128 (a third of the way from 0.4 to
  // 0.2), 256, 512.
  const auto losses = plan_losses(*result.plan, result.search->rounds[0], false);
  ASSERT_TRUE(losses);
  EXPECT_NEAR((*losses)[0], 4.2, 1e-12);
  EXPECT_NEAR((*losses)[1], 4 + 0.4 - 0.2 / 3, 1e-12);
}

TEST(RunData, EveryPartButRunJsonMayBeMissing) {
  const TestRun whole;
  for (const auto& [name, contents] : whole.files) {
    if (name == "run.json" || name == "samples.jsonl") continue;
    SCOPED_TRACE(name);
    TestRun run;
    run.files.erase(name);
    EXPECT_EQ(run.error(), "");
  }
  TestRun bare;
  bare.files = {{"run.json", bare.files["run.json"]}};
  EXPECT_EQ(bare.error(), "");
  EXPECT_EQ(bare.read().missing().size(), 4u);
  TestRun empty;
  empty.files.clear();
  EXPECT_NE(empty.error().find("run.json: there is no such file"), std::string::npos) << empty.error();
  EXPECT_THROW(read_run("/no/such/folder"), Error);
}

TEST(RunData, NamesWhatIsWrong) {
  struct Case {
    const char *file, *from, *to;
    std::vector<const char*> said;
  };
  const std::vector<Case> cases = {
      {"run.json", "\"format_version\": 5", "\"format_version\": 1", {"version 1", "wanted 5"}},
      {"run.json", "\"format_version\": 5, ", "", {"format_version"}},
      {"run.json", "\"n_layers\": 2", "\"n_layers\": 0", {"model.n_layers", "found 0"}},
      {"run.json", "\"n_layers\": 2", "\"n_layers\": 1e30", {"model.n_layers"}},
      {"run.json", "\"n_kv_heads\": 2", "\"n_kv_heads\": 3", {"n_kv_heads", "divides the 4"}},
      {"run.json", "\"name\": \"small\"", "\"name\": 7", {"model.name", "found 7", "wanted text"}},
      {"run.json", "[256, 512]", "[]", {"options.lengths"}},
      {"run.json", "[256, 512]", "[256, -1]", {"options.lengths[1]", "found -1"}},
      {"run.json", "[0.5]", "[1.5]", {"options.densities[0]", "found 1.5"}},
      {"run.json", "[0.5]", "[NaN]", {"broken JSON"}},
      {"run.json", "[0.5]", "[1e999]", {"too large"}},
      {"run.json", "18446744073709551615", "-1", {"options.seed"}},
      {"samples.jsonl", "\"profile\"", "\"other\"", {"samples.jsonl line 1", "role", "other"}},
      {"profile/dense/256-text-0.json", "256/text/0", "256/text/9", {"256/text/9", "samples.jsonl"}},
      {"profile/dense/256-text-0.json", "true", "1", {"accepted", "true or false"}},
      {"search/0.5.json", "\"density\": 0.5", "\"density\": 0.25", {"density", "0.25"}},
      {"search/0.5.json",
       "0, 0, 8, 1]",
       "0, 0, 8]",
       {"rounds[0].curves[0].loss", "array of 7", "8 numbers (4 heads, 2 spans)"}},
      {"search/0.5.json", "0, 0, 8, 1]", "0, 0, 8, null]", {"loss[7]", "null", "finite"}},
      {"search/0.5.json", "[64, 128]", "[128, 64]", {"spans", "ascending"}},
      {"search/0.5.json", "[1.5, 2.5]", "[1.5]", {"front[0].losses", "2 numbers"}},
      {"search/0.5.json", "[1.5, 2.5]", "\"x\"", {"front[0].losses"}},
      {"validation/0.5.json", "\"winner\": \"round0-sum\"", "\"winner\": \"x\"", {"winner", "one of the rows"}},
      {"validation/0.5.json", "\"right\": 0.5", "\"right\": 1.5", {"rows[0].right", "1.5"}},
      {"plans/0.5.json", "[[64, 128], [0, 0]]", "[[64, 128]]", {"plans/0.5.json"}},
      {"plans/0.5.json", "[[64, 128], [0, 0]]", "[[64, NaN], [0, 0]]", {"layer 0, head 1", "NaN"}},
      {"candidates/0.5/uniform.json", "\"n_kv_heads\": 2", "\"n_kv_heads\": 1", {"uniform.json"}},
      {"measured/passkey-dense-512.json", "\"accuracy\": 0.75", "\"accuracy\": 7", {"rows[0].accuracy", "found 7"}},
      {"measured/passkey-dense-512.json", "\"plan_name\": \"dense\"", "\"plan_name\": \"x\"", {"plan_name"}},
      {"measured/speed-0.5-plan-512.json", "\"decode\"", "\"x\"", {"rows[0].test", "prefill or decode"}},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(std::string(c.file) + ": " + c.to);
    TestRun run;
    run.replace(c.file, c.from, c.to);
    const std::string error = run.error();
    EXPECT_NE(error.find(std::filesystem::path(c.file).filename().string()), std::string::npos) << error;
    for (const char* word : c.said) EXPECT_NE(error.find(word), std::string::npos) << error << "\nwanted " << word;
    EXPECT_EQ(error.find('\n'), std::string::npos) << error;
  }
}

TEST(RunData, EveryCutOfEveryFileIsAnError) {
  const TestRun whole;
  for (const auto& [name, contents] : whole.files) {
    if (!name.ends_with(".json")) continue;
    TestRun run;
    for (size_t length = 0; length < contents.size(); length += 1 + contents.size() / 60) {
      run.files[name] = contents.substr(0, length);
      const std::string error = run.error();
      EXPECT_NE(error.find(std::filesystem::path(name).filename().string()), std::string::npos)
          << name << " of " << length << " bytes: " << error;
    }
  }
}

// Any byte may be anything: an Error or a page, never a crash.
TEST(RunData, ChangedBytesNeverCrash) {
  const TestRun whole;
  uint64_t state = 12345;
  const auto next = [&state] { return (state = state * 6364136223846793005ull + 1442695040888963407ull) >> 33; };
  for (const auto& [name, contents] : whole.files) {
    TestRun run;
    for (int i = 0; i < 80; ++i) {
      run.files[name] = contents;
      const char bytes[] = "0129-.eE\"[]{},:x\x00\xff\x80 ";
      run.files[name][next() % contents.size()] = bytes[next() % (sizeof bytes - 1)];
      run.error();
    }
  }
}

TEST(RunData, DeepNestingIsRefused) {
  TestRun run;
  run.files["run.json"] = "{\"a\":" + std::string(100000, '[');
  EXPECT_NE(run.error().find("nested"), std::string::npos) << run.error();
}

TEST(Measured, DocumentsOfAnotherPlanAreLeftOut) {
  TestRun run;
  const std::string id = plan_id(*run.read().densities[0].plan);
  run.replace("measured/speed-0.5-plan-512.json", "\"plan_name\"", "\"plan_id\": \"" + id + "\", \"plan_name\"");
  EXPECT_EQ(run.read().measured.n_stale, 0);
  EXPECT_EQ(run.read().measured.speed.size(), 1u);
  run.replace("plans/0.5.json", "[0, 0]", "[0, 1]");
  EXPECT_EQ(run.read().measured.n_stale, 1);
  EXPECT_TRUE(run.read().measured.speed.empty());
}

}  // namespace
}  // namespace polyspan::report
