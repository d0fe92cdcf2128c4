#include "moa/calibration_text.h"

#include <gtest/gtest.h>

namespace polyspan {
namespace {

TEST(CalibrationText, TakesTheProseOfAPage) {
  const std::string words =
      "A sentence that is long enough to be read as prose, with an <em>emphasised</em> word, "
      "a number &#38; an entity,\n   and more words than the least that a paragraph may have.";
  const std::string page =
      "<?xml version=\"1.0\"?><!DOCTYPE html PUBLIC \"x\" \"y\"><html><head><title>Title</title></head><body>"
      "<div class=\"para\">too short</div><p class=\"other\">" +
      words +
      "</p>"
      "<div class=\"para\">" +
      words + "<pre>$ a listing</pre><div class=\"para\">inner " + words +
      "</div></div>"
      "</body></html>";
  const std::string line =
      "A sentence that is long enough to be read as prose, with an emphasised word, a number & an "
      "entity, and more words than the least that a paragraph may have.";
  EXPECT_EQ(paragraphs_of(page), line + "\ninner " + line + "\n");
}

TEST(CalibrationText, WordsAndMarksStandApart) {
  EXPECT_EQ(words_apart("An ox, an ox; an ox, an."), " <unk> ox , an ox ; an ox , an .");  // "An" and "an": two words
  EXPECT_EQ(words_apart("a a-a\n\nRARE 1999's a"), " a a - a \n <unk> 1999 ' <unk> a");
  EXPECT_EQ(words_apart("\xc3\xa9t\xc3\xa9 \xc3\xa9t\xc3\xa9 \xc3\xa9t\xc3\xa9!"),
            " \xc3\xa9t\xc3\xa9 \xc3\xa9t\xc3\xa9 \xc3\xa9t\xc3\xa9 !");
  EXPECT_EQ(words_apart(""), "");
}

TEST(CalibrationText, APageThatIsNoXmlGivesNothing) {
  EXPECT_EQ(paragraphs_of("<div class=\"para\">" + std::string(300, 'a')), "");
  EXPECT_EQ(paragraphs_of(""), "");
}

TEST(CalibrationText, TheDefaultIsPlentyOfProse) {
  const std::optional<std::string> text = default_calibration_text();
  if (!text) GTEST_SKIP() << "neither the handbook nor the licences are installed";
  EXPECT_GT(text->size(), 100'000u);
  EXPECT_EQ(text->find("<div"), text->npos);
}

}  // namespace
}  // namespace polyspan
