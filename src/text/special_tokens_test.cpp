#include "text/special_tokens.h"

#include <gtest/gtest.h>

#include "text/small_vocabulary.h"

namespace polyspan {
namespace {

// Fragments as text: special tokens in [ ], plain text in ( ).
std::string describe(const SpecialTokens& special, std::string_view text, std::vector<ByteRange> markup) {
  std::string out;
  for (const Fragment& fragment : special.split(text, markup)) {
    const std::string part(text.substr(fragment.begin, fragment.end - fragment.begin));
    out += fragment.id >= 0 ? "[" + part + "]" : "(" + part + ")";
  }
  return out;
}

TEST(SpecialTokens, LongerGoFirstAndControlTokensOnlyInMarkup) {
  const SmallVocabulary small = small_bpe_vocabulary("gpt-2");
  const Vocabulary vocabulary(small.spec);
  const SpecialTokens special(vocabulary, /*strips_right=*/false);
  const auto all = [&](std::string_view text) {
    return describe(special, text, {{0, static_cast<uint32_t>(text.size())}});
  };
  EXPECT_EQ(all(""), "");
  EXPECT_EQ(all("abc"), "(abc)");
  EXPECT_EQ(all("<|im_end|>"), "[<|im_end|>]");
  EXPECT_EQ(all("a<|im_end|><|im_start|>b"), "(a)[<|im_end|>][<|im_start|>](b)");
  EXPECT_EQ(all("<|im_<|im_end|>end|>"), "(<|im_)[<|im_end|>](end|>)");
  EXPECT_EQ(all("<tool>>><tool>"), "[<tool>>](>)[<tool>]");
  EXPECT_EQ(describe(special, "<|im_end|><tool>", {}), "(<|im_end|>)[<tool>]");
}

TEST(SpecialTokens, ATokenMustLieWhollyInsideMarkup) {
  const SmallVocabulary small = small_bpe_vocabulary("gpt-2");
  const Vocabulary vocabulary(small.spec);
  const SpecialTokens special(vocabulary, /*strips_right=*/false);
  const std::string text = "xx<|im_end|>yy<|im_end|>";  // tokens at 2..12 and 14..24
  for (uint32_t begin = 0; begin <= text.size(); ++begin)
    for (uint32_t end = begin; end <= text.size(); ++end) {
      const bool first = begin <= 2 && end >= 12, second = begin <= 14 && end >= 24;
      const std::string wanted = first && second ? "(xx)[<|im_end|>](yy)[<|im_end|>]"
                                 : first         ? "(xx)[<|im_end|>](yy<|im_end|>)"
                                 : second        ? "(xx<|im_end|>yy)[<|im_end|>]"
                                                 : "(xx<|im_end|>yy<|im_end|>)";
      EXPECT_EQ(describe(special, text, {{begin, end}}), wanted) << begin << ".." << end;
    }
  EXPECT_EQ(describe(special, text, {{0, 7}, {7, 13}, {14, 24}}), "(xx<|im_end|>yy)[<|im_end|>]");
}

TEST(SpecialTokens, Phi3DropsSpacesAfterSpecialTokens) {
  SmallVocabulary small = small_bpe_vocabulary("gpt-2");
  small.add("<s>", TokenType::kControl);
  const Vocabulary vocabulary(small.spec);
  const SpecialTokens special(vocabulary, /*strips_right=*/true);
  EXPECT_EQ(describe(special, " <|im_end|> \n x <s> y<|im_end|>  ", {{0, 40}}),
            "( )[<|im_end|>](x )[<s>]( y)[<|im_end|>]");
}

}  // namespace
}  // namespace polyspan
