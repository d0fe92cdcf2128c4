#include <gtest/gtest.h>

#include "text/small_vocabulary.h"
#include "text/unicode_class.h"

namespace polyspan {
namespace {

// One token a byte.
std::string stream(const Tokenizer& tokenizer, std::string_view bytes, std::vector<std::string>* parts = nullptr) {
  StreamDecoder decoder(tokenizer);
  std::string text;
  for (const char byte : bytes) {
    const std::string part = decoder.push(static_cast<uint8_t>(byte));
    if (parts != nullptr) parts->push_back(part);
    text += part;
  }
  return text + decoder.finish();
}

TEST(StreamDecoder, WaitsForWholeCharacters) {
  const SmallVocabulary small = small_bpe_vocabulary("gpt-2");
  const auto tokenizer = make_tokenizer(small.spec);
  std::vector<std::string> parts;
  EXPECT_EQ(stream(*tokenizer, "a\u00e9\u4e2d\U0001F600", &parts), "a\u00e9\u4e2d\U0001F600");
  EXPECT_EQ(parts, std::vector<std::string>({"a", "", "\u00e9", "", "", "\u4e2d", "", "", "", "\U0001F600"}));
}

TEST(StreamDecoder, ReplacesWhatIsNoCharacter) {  // the examples of Unicode 15, tables 3-8 to 3-11, and cut-off ends
  const SmallVocabulary small = small_bpe_vocabulary("gpt-2");
  const auto tokenizer = make_tokenizer(small.spec);
  const std::string r(kReplacementUtf8);
  EXPECT_EQ(stream(*tokenizer,
                   "\xC0\xAF\xE0\x80\xBF\xF0\x81\x82"
                   "A"),
            r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(stream(*tokenizer,
                   "\xED\xA0\x80\xED\xBF\xBF\xED\xAF"
                   "A"),
            r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(stream(*tokenizer,
                   "\xF4\x91\x92\x93\xFF"
                   "A\x80\xBF"
                   "B"),
            r + r + r + r + r + "A" + r + r + "B");
  EXPECT_EQ(stream(*tokenizer,
                   "\xE1\x80\xE2\xF0\x91\x92\xF1\xBF"
                   "A"),
            r + r + r + r + "A");
  for (const std::string_view cut : {"\xC3", "\xE4", "\xE4\xB8", "\xF0", "\xF0\x9F", "\xF0\x9F\x98"})
    EXPECT_EQ(stream(*tokenizer, cut), r) << cut.size();
  EXPECT_EQ(stream(*tokenizer, ""), "");
}

TEST(StreamDecoder, EveryPairOfBytesGivesValidText) {
  const SmallVocabulary small = small_bpe_vocabulary("gpt-2");
  const auto tokenizer = make_tokenizer(small.spec);
  for (int first = 0; first < 256; ++first)
    for (int second = 0; second < 256; ++second) {
      const std::string bytes = {static_cast<char>(first), static_cast<char>(second)};
      EXPECT_TRUE(is_valid_utf8(stream(*tokenizer, bytes + "\x80"
                                                           "A")))
          << first << " " << second;
    }
}

TEST(StreamDecoder, ControlTokensAreSilent) {
  const SmallVocabulary small = small_bpe_vocabulary("gpt-2");
  const auto tokenizer = make_tokenizer(small.spec);
  StreamDecoder decoder(*tokenizer);
  EXPECT_EQ(decoder.push(0xC3), "");
  EXPECT_EQ(decoder.push(*tokenizer->eos()), "");
  EXPECT_EQ(decoder.push(0xA9), "\u00e9");
  EXPECT_EQ(decoder.finish(), "");
}

}  // namespace
}  // namespace polyspan
