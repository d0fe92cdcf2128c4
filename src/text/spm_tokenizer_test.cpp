#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "core/error.h"
#include "text/small_vocabulary.h"

namespace polyspan {
namespace {

std::vector<std::string> pieces(const Tokenizer& tokenizer, std::string_view text, EncodeOptions options = {}) {
  std::vector<std::string> out;
  for (const TokenId id : tokenizer.encode(text, options)) out.push_back(tokenizer.token_bytes(id, true));
  return out;
}
using Pieces = std::vector<std::string>;

TEST(SpmTokenizer, MergesByScoreAndFallsBackToBytes) {
  const SmallVocabulary small = small_spm_vocabulary();
  const auto tokenizer = make_tokenizer(small.spec);
  EXPECT_TRUE(tokenizer->adds_bos());
  EXPECT_EQ(pieces(*tokenizer, "the"), Pieces({" the"}));  // "the" (-3) is built from "th" (-4), then "▁the"
  EXPECT_EQ(pieces(*tokenizer, "aaaaa"), Pieces({" ", "aaaa", "a"}));
  EXPECT_EQ(pieces(*tokenizer, "\xC3\xA9"), Pieces({" ", "\xC3\xA9"}));
  EXPECT_EQ(pieces(*tokenizer, "q\xFF"), Pieces({" ", "q", "\xFF"}));
  EXPECT_EQ(pieces(*tokenizer, ""), Pieces());
  EXPECT_EQ(pieces(*tokenizer, "a", {.add_bos = true}), Pieces({"<s>", " ", "a"}));
}

TEST(SpmTokenizer, SpacePrefixFollowsSpecialTokensAndTheFile) {
  SmallVocabulary small = small_spm_vocabulary();
  EXPECT_EQ(pieces(*make_tokenizer(small.spec), "a</s>a<tool>a", {.parse_special = true}),
            Pieces({" ", "a", "</s>", " ", "a", "<tool>", " ", "a"}));
  small.spec.add_space_prefix = false;
  EXPECT_EQ(pieces(*make_tokenizer(small.spec), "a</s>a", {.parse_special = true}), Pieces({"a", "</s>", "a"}));
}

TEST(SpmTokenizer, PlainTextSpellsNoControlOrByteToken) {
  const SmallVocabulary small = small_spm_vocabulary();  // "<s" is a piece: "<s>" could be merged from it
  const auto tokenizer = make_tokenizer(small.spec);
  EXPECT_EQ(pieces(*tokenizer, "<s>"), Pieces({" ", "<s", ">"}));
  EXPECT_EQ(tokenizer->decode(tokenizer->encode("<0x0A></s><unk>", {})), " <0x0A></s><unk>");
}

TEST(SpmTokenizer, KeepsTheBytesOfAnyText) {
  const SmallVocabulary small = small_spm_vocabulary();
  const auto tokenizer = make_tokenizer(small.spec);
  std::mt19937 rng(5);
  for (int round = 0; round < 500; ++round) {
    std::string text;
    for (uint32_t i = 0; i < 1 + rng() % 40; ++i)
      text += rng() % 2 == 0 ? static_cast<char>(rng()) : "the a<s>"[rng() % 8];
    if (text.find("\u2581") != std::string::npos) continue;
    EXPECT_EQ(tokenizer->decode(tokenizer->encode(text, {.keep_invalid_bytes = true})), " " + text)
        << "round " << round;
  }
  for (const std::string_view unit : {"a", " ", "q", "\n", "\u00e9a", "the "}) {
    std::string text;
    while (text.size() < 1 << 18) text += unit;
    EXPECT_EQ(tokenizer->decode(tokenizer->encode(text, {})), " " + text) << unit;
  }
}

TEST(SpmTokenizer, BadVocabulariesAreRefusedByName) {
  const auto message = [](void (*spoil)(SmallVocabulary&)) -> std::string {
    SmallVocabulary small = small_spm_vocabulary();
    spoil(small);
    try {
      make_tokenizer(small.spec);
    } catch (const Error& error) {
      return error.what();
    }
    return "accepted";
  };
  const auto has = [](const std::string& text, std::string_view wanted) {
    return text.find(wanted) != std::string::npos;
  };
  EXPECT_PRED2(has, message([](SmallVocabulary& v) { v.spec.scores.pop_back(); }), "scores has");
  EXPECT_PRED2(has, message([](SmallVocabulary& v) { v.spec.scores[4] = NAN; }), "scores[4] is not a number");
  EXPECT_PRED2(has, message([](SmallVocabulary& v) { v.spec.unknown = 9999; }), "unknown_token_id is 9999");
  EXPECT_PRED2(has, message([](SmallVocabulary& v) {
                 v.add("the");
                 v.spec.types.pop_back();
               }),
               "token_type has");
}

TEST(SpmTokenizer, WithoutByteTokensUnknownsStandForBytes) {
  SmallVocabulary small;
  small.spec.model = "llama";
  small.add("<unk>", TokenType::kUnknown);
  const TokenId a = small.add("a");
  small.spec.add_space_prefix = false;
  EXPECT_EQ(make_tokenizer(small.spec)->encode("aqa", {}), std::vector<TokenId>({a, 0, a}));
}

}  // namespace
}  // namespace polyspan
