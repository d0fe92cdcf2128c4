#include "text/unicode_class.h"

#include <gtest/gtest.h>

namespace polyspan {
namespace {

using namespace std::string_view_literals;

TEST(UnicodeClass, EveryCodePointIsWrittenAndReadBack) {
  for (char32_t code = 0; code < 0x110000; ++code) {
    std::string text;
    append_utf8(code, text);
    const Utf8Char decoded = decode_utf8(text, 0);
    ASSERT_TRUE(decoded.is_valid && decoded.code == code && decoded.n_bytes == text.size())
        << std::hex << uint32_t{code};
    for (size_t n_bytes = 1; n_bytes < text.size(); ++n_bytes)
      ASSERT_FALSE(decode_utf8(text.substr(0, n_bytes), 0).is_valid)
          << std::hex << uint32_t{code} << " cut at " << n_bytes;
  }
}

TEST(UnicodeClass, OverlongFormsAndWhatIsPastUnicodeAreInvalidAndRepaired) {
  const std::string r(kReplacementUtf8);
  const std::pair<std::string, std::string> cases[] = {{"\xC1\xBF", "\x7F"},
                                                       {"\xE0\x9F\xBF", "\u07ff"},
                                                       {"\xF0\x8F\xBF\xBF", "\uffff"},
                                                       {"\xF4\x90\x80\x80", r + r + r + r},
                                                       {"\xF8\x88\x80\x80\x80", r + r + r + r + r},
                                                       {"a\xFFz", "a" + r + "z"},
                                                       {"\x80", r},
                                                       {"\xE4\xB8", r + r},
                                                       {"\xED\xA0\x80", "\xED\xA0\x80"}};
  for (const auto& [text, repaired] : cases) {
    EXPECT_EQ(repair_utf8(text), repaired) << testing::PrintToString(text);
    EXPECT_EQ(is_valid_utf8(text), text == repaired) << testing::PrintToString(text);
  }
}

TEST(UnicodeClass, ClassesAreThoseOfUnicode15) {
  const std::pair<CharClass, std::u32string_view> cases[] = {
      {CharClass::kLetter, U"azAZ\u00e9\u4e2d\u02b0\U0002EBF0\U000323AF"},
      {CharClass::kNumber, U"09\u00b2\u0663\u216b"},
      {CharClass::kPunctuation, U"!_}\u3002\u00bf"},
      {CharClass::kSymbol, U"$+~|\ufffd\u20ac\U0001F600\U0001F6DC"},
      {CharClass::kMark, U"\u0301\u20dd\u0e31"},
      {CharClass::kSpace, U" \t\n\v\f\r\u0085\u00a0\u3000\u2028"},
      {CharClass::kOther, U"\0\u007f\u200b\u180e\u0378\ue000\U0010FFFF\U0001FAE9"sv}};  // U+1FAE9 came with Unicode 16
  for (const auto& [wanted, chars] : cases)
    for (const char32_t code : chars) EXPECT_EQ(char_class(code), wanted) << std::hex << uint32_t{code};
}

}  // namespace
}  // namespace polyspan
