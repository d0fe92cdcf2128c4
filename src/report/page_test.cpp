// The page and its parts: escaping, numbers, axes, and that each section is there whatever the run lacks.
#include "report/page.h"

#include <cmath>

#include "report/axis.h"
#include "report/charts.h"
#include "report/run_test_util.h"
#include "report/svg.h"
#include "report/words.h"

namespace polyspan::report {
namespace {

TEST(Svg, EscapesMarkupControlsAndBrokenText) {
  EXPECT_EQ(escape_markup("a<b>&\"'"), "a&lt;b&gt;&amp;&quot;&#39;");
  EXPECT_EQ(escape_markup("a\nb\x01\x7f"), "a b  ");
  EXPECT_EQ(escape_markup("\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80"), "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80");
  const std::string bad = "\xef\xbf\xbd";
  EXPECT_EQ(escape_markup("\xff"), bad);
  EXPECT_EQ(escape_markup("\xc3"), bad);                      // cut
  EXPECT_EQ(escape_markup("\xc0\xbc"), bad + bad);            // overlong '<'
  EXPECT_EQ(escape_markup("\xed\xa0\x80"), bad + bad + bad);  // surrogate
  Svg svg(10, 10, "<t>", "<d>");
  svg.text({1, 2}, Anchor::kEnd, "\"x", "<script>");
  svg.rect(0, 0, 1, 1, "h0", "</title>");
  EXPECT_EQ(svg.finish().find("<script"), std::string::npos);
  EXPECT_NE(svg.finish().find("&lt;/title&gt;</title>"), std::string::npos);
}

TEST(Svg, CoordinatesAreShortAndFinite) {
  EXPECT_EQ(coordinate(1.50), "1.5");
  EXPECT_EQ(coordinate(-0.001), "0");
  EXPECT_EQ(coordinate(100), "100");
  EXPECT_EQ(coordinate(NAN), "0");
  EXPECT_EQ(coordinate(INFINITY), "0");
}

TEST(Words, NumbersAsPeopleReadThem) {
  EXPECT_EQ(count_text(0), "0");
  EXPECT_EQ(count_text(999), "999");
  EXPECT_EQ(count_text(8192), "8,192");
  EXPECT_EQ(count_text(-1234567),
            "\xe2\x88\x92"
            "1,234,567");
  EXPECT_EQ(percent_text(0.5), "50%");
  EXPECT_EQ(percent_text(0.4961), "49.6%");
  EXPECT_EQ(number_text(0.04123, 3), "0.0412");
  EXPECT_EQ(number_text(2882.4, 3), "2,882");
  EXPECT_EQ(number_text(-1.5, 2),
            "\xe2\x88\x92"
            "1.5");
  EXPECT_EQ(bytes_text(176947200), "177\xc2\xa0MB");
  EXPECT_EQ(duration_text(151.2), "2 min 31 s");
  EXPECT_EQ(duration_text(3600), "1 h 0 min");
  EXPECT_EQ(join_words({"a", "b", "c"}), "a, b and c");
}

TEST(Axis, TicksLieInsideWhateverTheValues) {
  const std::vector<std::vector<double>> cases = {
      {}, {0}, {1, 1}, {-5, 3}, {0.001, 1000}, {1e-12, 1e-11}, {1e29, 1e30}, {0.1, 0.2, 0.9}};
  for (const std::vector<double>& values : cases) {
    const Axis axis = Axis::fitting(values);
    EXPECT_LE(axis.ticks().size(), 20u);
    for (const double value : values) {
      const double place = axis.place(value, 0, 100);
      EXPECT_GE(place, -1e-6);
      EXPECT_LE(place, 100 + 1e-6);
    }
    for (size_t i = 1; i < axis.ticks().size(); ++i) {
      EXPECT_LT(axis.ticks()[i - 1].value, axis.ticks()[i].value);
      EXPECT_NE(axis.ticks()[i - 1].label, axis.ticks()[i].label);
    }
  }
  const Axis near_zero = Axis::near_zero(-0.5, 20);
  EXPECT_LT(near_zero.place(-0.5, 0, 100), near_zero.place(0, 0, 100));
  EXPECT_LT(near_zero.place(0.1, 0, 100) - near_zero.place(0, 0, 100),
            near_zero.place(10, 0, 100) - near_zero.place(0.1, 0, 100));
  EXPECT_EQ(Axis::of_lengths({4096}).ticks().size(), 1u);
}

TEST(Charts, ShadesAreEighths) {
  for (int eighth = 0; eighth < 8; ++eighth) {
    EXPECT_EQ(shade_of(eighth / 8.0), eighth);
    EXPECT_EQ(shade_of(eighth / 8.0 + 0.124), eighth);
  }
  EXPECT_EQ(shade_of(1), 8);
  EXPECT_EQ(shade_of(0.9999), 7);
}

TEST(Charts, ASpanMapHasACellForEachHead) {
  TestRun test;
  const RunData run = test.read();
  const std::string map = span_map(*run.densities[0].plan, 512, false);
  size_t n_cells = 0;
  for (size_t at = map.find("<rect"); at != std::string::npos; at = map.find("<rect", at + 1)) ++n_cells;
  EXPECT_EQ(n_cells, 4u);
  // Layer 0, head 0: 64 + 64 of 512 tokens. Layer 1, head 1: dense.
  EXPECT_NE(map.find("layer 0, KV head 0: keeps 128 of 512 tokens (25%), span 64; alpha 64.0000, beta 0"),
            std::string::npos)
      << map;
  EXPECT_NE(map.find("class=\"h2\""), std::string::npos);
  EXPECT_NE(map.find("layer 1, KV head 1: keeps 512 of 512"), std::string::npos);
}

void expect_sections(const std::string& page) {
  for (const char* id : {"spans", "influence", "front", "validation", "retrieval", "cost", "origin"})
    EXPECT_NE(page.find("<section id=\"" + std::string(id) + "\">"), std::string::npos) << id;
  EXPECT_EQ(page.find("http"), std::string::npos);
  EXPECT_EQ(page.find("nan"), std::string::npos);
}

TEST(Page, HasEachSection) {
  TestRun run;
  const std::string page = report_page(run.read());
  expect_sections(page);
  EXPECT_NE(page.find("<strong>round0-sum</strong> won: its held-out loss is 0.375 at 512 tokens"), std::string::npos);
  EXPECT_EQ(page.find("not finished"), std::string::npos);
}

TEST(Page, CountsTheSamplesOfARefinement) {
  TestRun run;
  EXPECT_EQ(report_page(run.read()).find("for refinement"), std::string::npos);
  run.files["samples.jsonl"] +=
      R"({"id": "choose/256/text/0", "role": "choose", "kind": "text", "length": 256, "tokens": []})"
      "\n";
  run.replace("run.json", "\"profile\": 1.5", "\"profile\": 1.5, \"refinement\": 60");
  const RunData data = run.read();
  EXPECT_EQ(data.samples[0].n_refinement, 1);
  EXPECT_EQ(data.samples[0].n_validation, 1);
  const std::string page = report_page(data);
  EXPECT_NE(page.find("for refinement"), std::string::npos);
  EXPECT_NE(page.find("refinement 1 min"), std::string::npos) << page.substr(page.find("id=\"origin\""));
}

TEST(Page, HasEachSectionOfAnUnfinishedRun) {
  TestRun run;
  run.files = {{"run.json", run.files["run.json"]}};
  run.replace("run.json", "\"finished\": true", "\"finished\": false");
  const std::string page = report_page(run.read());
  expect_sections(page);
  EXPECT_NE(page.find("This run is not finished"), std::string::npos);
  EXPECT_NE(page.find("--measure small.gguf"), std::string::npos);
}

TEST(Page, EscapesEveryName) {
  TestRun run;
  const std::string evil = "<script>alert(1)</script>";
  run.replace("run.json", "\"small\"", "\"" + evil + "\"");
  run.replace("run.json", "small.gguf", evil);
  run.replace("run.json", "[\"text\"]", "[\"" + evil + "\"]");
  run.replace("run.json", "\"log-odds\"", "\"" + evil + "\"");
  run.replace("run.json", "\"isa\": \"avx2\"", "\"isa\": \"" + evil + "\", \"processor\": \"" + evil + "\"");
  run.files["log.txt"] = "2025-11-02 " + evil + "\n\xff\n";
  for (const char* file : {"validation/0.5.json", "search/0.5.json"})
    for (size_t at; (at = run.files[file].find("round0-sum")) != std::string::npos;)
      run.files[file].replace(at, 10, evil);
  const std::string page = report_page(run.read());
  EXPECT_EQ(page.find("<script>alert"), std::string::npos);
  EXPECT_NE(page.find("&lt;script&gt;alert(1)"), std::string::npos);
}

TEST(Page, ShowsQueryHeadsWhereThePlanHasThem) {
  TestRun run;
  run.files["plans/0.5.json"] =
      R"({"n_kv_heads": 2, "alphas": [[0, 0, 0, 0], [0, 0, 0, 0]], "betas": [[1, 0.5, 0.5, 0.5], [1, 0.5, 0.5, 1]]})";
  const std::string page = report_page(run.read());
  EXPECT_NE(page.find("layer 0, query head 3: keeps"), std::string::npos);
  EXPECT_NE(page.find("longest span of query heads 0 to 1"), std::string::npos);
}

// Of a Hydra model: shares are those of the windows, which no length changes.
TEST(Page, SpansOfWindows) {
  TestRun run;
  run.replace("run.json", "\"head_dim\": 64,", "\"head_dim\": 64, \"window\": 256, \"span_step\": 64,");
  for (const char* file : {"plans/0.5.json", "candidates/0.5/round0-sum.json", "candidates/0.5/uniform.json"})
    run.replace(file, "\"sink\": 64", "\"sink\": 0");
  const std::string page = report_page(run.read());
  EXPECT_NE(page.find("its window of 256 tokens"), std::string::npos);
  EXPECT_NE(page.find("keeps 128 of 256 tokens (50%)"), std::string::npos);
  EXPECT_EQ(page.find("of 512 tokens ("), std::string::npos);
  EXPECT_NE(page.find("56.2%"), std::string::npos);          // 64, 128, 128 and 256 of 4 x 256
  EXPECT_NE(page.find("295\xc2\xa0kB"), std::string::npos);  // 64 floats of a key and a value for each of these
  run.replace("run.json", "\"window\": 256", "\"window\": 255");
  EXPECT_NE(run.error().find("a multiple of span_step"), std::string::npos) << run.error();
}

TEST(Page, LengthsCanBeChosen) {
  TestRun run;
  const std::string page = report_page(run.read(), {.lengths = {300, 100}});
  EXPECT_NE(page.find("<strong>100 tokens</strong>"), std::string::npos);
  EXPECT_NE(page.find("<strong>300 tokens</strong>: "), std::string::npos);
}

}  // namespace
}  // namespace polyspan::report
