#include <gtest/gtest.h>

#include <random>

#include "core/error.h"
#include "text/pre_tokenizer.h"
#include "text/small_vocabulary.h"

namespace polyspan {
namespace {

// Merges by trying all pairs over and over: what the fast versions are held to. `words` are cut already.
std::vector<std::string> merge_slowly(const VocabSpec& spec, const std::string& word) {
  std::vector<std::string> symbols;
  for (const unsigned char byte : word) symbols.push_back(gpt2_char(byte));
  for (;;) {
    size_t best_rank = spec.merges.size(), best = 0;
    for (size_t i = 0; i + 1 < symbols.size(); ++i)
      for (size_t rank = 0; rank < best_rank; ++rank)
        if (spec.merges[rank] == symbols[i] + " " + symbols[i + 1]) best_rank = rank, best = i;
    if (best_rank == spec.merges.size()) return symbols;
    symbols[best] += symbols[best + 1];
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
}

TEST(BpeTokenizer, MergesAsTheSlowVersionAtEveryLength) {
  const SmallVocabulary small = small_bpe_vocabulary("bloom");  // keeps letters and digits of a text one word
  const auto tokenizer = make_tokenizer(small.spec);
  constexpr unsigned kSeed = 7;
  std::mt19937 rng(kSeed);
  for (size_t length = 1; length <= 130; ++length) {  // around the 48 bytes where the algorithm changes
    std::string word;
    for (size_t i = 0; i < length; ++i) word += "aaaaathe123ingll"[rng() % 16];
    std::vector<TokenId> wanted;
    for (const std::string& symbol : merge_slowly(small.spec, word)) wanted.push_back(*tokenizer->find_token(symbol));
    EXPECT_EQ(tokenizer->encode(word, {}), wanted) << "seed " << kSeed << " length " << length << " word " << word;
  }
}

TEST(BpeTokenizer, EveryPreTokeniserKeepsTheBytesOfAnyText) {
  for (const std::string_view pre : pre_tokenizer_names()) {
    const SmallVocabulary small = small_bpe_vocabulary(std::string(pre));
    const auto tokenizer = make_tokenizer(small.spec);
    EXPECT_EQ(tokenizer->pre_tokenizer_name(), pre);
    std::mt19937 rng(3);
    for (int round = 0; round < 60; ++round) {
      std::string bytes, valid;
      for (uint32_t i = 0; i < rng() % 60; ++i) bytes += static_cast<char>(rng() % 3 == 0 ? rng() : 32 + rng() % 95);
      while (valid.size() < rng() % 90) append_utf8(rng() % 2 == 0 ? 32 + rng() % 95 : rng() % 0xD800, valid);
      EXPECT_EQ(tokenizer->decode(tokenizer->encode(valid, {})), valid) << pre << " round " << round;
      EXPECT_EQ(tokenizer->decode(tokenizer->encode(bytes, {.keep_invalid_bytes = true})), bytes)
          << pre << " round " << round;
      EXPECT_EQ(tokenizer->decode(tokenizer->encode(bytes, {})), repair_utf8(bytes)) << pre << " round " << round;
    }
  }
}

TEST(BpeTokenizer, LongRunsAreNoTrouble) {  // a quadratic step would take minutes
  constexpr size_t kBytes = 1 << 18;
  for (const std::string_view pre : {"smollm", "tekken", "deepseek-llm", "exaone-moe"}) {
    const SmallVocabulary small = small_bpe_vocabulary(std::string(pre));
    const auto tokenizer = make_tokenizer(small.spec);
    for (const std::string_view unit :
         {"a", " ", "\n", "1", "!", "A", "\u00e9", "\u4e2d", "\u0301", "\xff", " \n", "<tool"}) {
      std::string text;
      while (text.size() < kBytes) text += unit;
      text += 'x';
      EXPECT_EQ(tokenizer->decode(tokenizer->encode(text, {.parse_special = true, .keep_invalid_bytes = true})), text)
          << pre << " unit " << unit;
    }
  }
}

TEST(BpeTokenizer, BosComesWhenAskedFor) {
  const SmallVocabulary small = small_bpe_vocabulary("gpt-2");
  const auto tokenizer = make_tokenizer(small.spec);
  EXPECT_FALSE(tokenizer->adds_bos());
  EXPECT_EQ(tokenizer->encode("", {.add_bos = true}), std::vector<TokenId>{*tokenizer->bos()});
  EXPECT_TRUE(tokenizer->encode("", {}).empty());
  EXPECT_TRUE(make_tokenizer(small_bpe_vocabulary("llama-bpe").spec)->adds_bos());
}

// A changed vocabulary, and what the message of the error must name.
struct BadVocabulary {
  std::string what;
  void (*spoil)(SmallVocabulary&);
  ErrorKind kind;
  std::string named;
};

TEST(BpeTokenizer, BadVocabulariesAreRefusedByName) {
  const BadVocabulary cases[] = {
      {"no tokens", [](SmallVocabulary& v) { v.spec.tokens.clear(); }, ErrorKind::kBadFile, "tokens is empty"},
      {"types", [](SmallVocabulary& v) { v.spec.types.pop_back(); }, ErrorKind::kBadFile, "token_type has"},
      {"duplicate", [](SmallVocabulary& v) { v.add("aa"); }, ErrorKind::kBadFile, "'aa' is the same as token 256"},
      {"merge of one", [](SmallVocabulary& v) { v.spec.merges.push_back("ab"); }, ErrorKind::kBadFile,
       "merges[16] = 'ab'"},
      {"half a merge", [](SmallVocabulary& v) { v.spec.merges.push_back("a "); }, ErrorKind::kBadFile, "'a '"},
      {"empty merge", [](SmallVocabulary& v) { v.spec.merges.push_back(""); }, ErrorKind::kBadFile, "''"},
      {"no result", [](SmallVocabulary& v) { v.spec.merges.push_back("a b"); }, ErrorKind::kBadFile, "part 3"},
      {"no part", [](SmallVocabulary& v) { v.spec.merges.push_back("a aaaaaaa"); }, ErrorKind::kBadFile, "part 2"},
      {"bos", [](SmallVocabulary& v) { v.spec.bos = 277; }, ErrorKind::kBadFile, "bos_token_id is 277"},
      {"eos", [](SmallVocabulary& v) { v.spec.eos = -1; }, ErrorKind::kBadFile, "eos_token_id is -1"},
      {"eot", [](SmallVocabulary& v) { v.spec.eot = int64_t{1} << 40; }, ErrorKind::kBadFile, "eot_token_id"},
      {"add bos",
       [](SmallVocabulary& v) {
         v.spec.add_bos = true;
         v.spec.bos.reset();
       },
       ErrorKind::kBadFile, "BOS"},
      {"pre", [](SmallVocabulary& v) { v.spec.pre = "gpt-9"; }, ErrorKind::kUnsupported, "gpt-9"},
      {"empty pre", [](SmallVocabulary& v) { v.spec.pre = ""; }, ErrorKind::kUnsupported, "''"},
      {"model", [](SmallVocabulary& v) { v.spec.model = "rwkv"; }, ErrorKind::kUnsupported, "rwkv"},
  };
  for (const BadVocabulary& bad : cases) {
    SmallVocabulary small = small_bpe_vocabulary("gpt-2");
    ASSERT_EQ(small.spec.tokens.size(), 277u);
    bad.spoil(small);
    try {
      make_tokenizer(small.spec);
      ADD_FAILURE() << bad.what << ": accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), bad.kind) << bad.what << ": " << error.what();
      EXPECT_NE(std::string(error.what()).find(bad.named), std::string::npos) << bad.what << ": " << error.what();
    }
  }
}

TEST(BpeTokenizer, IdsOutsideOfTheVocabularyAreRefused) {
  const SmallVocabulary small = small_bpe_vocabulary("gpt-2");
  const auto tokenizer = make_tokenizer(small.spec);
  for (const TokenId id : {-1, 277, INT32_MAX, INT32_MIN}) EXPECT_THROW(tokenizer->token_bytes(id), Error) << id;
  EXPECT_EQ(tokenizer->token_bytes(*tokenizer->eos()), "");
  EXPECT_EQ(tokenizer->token_bytes(*tokenizer->eos(), true), "<|im_end|>");
}

TEST(BpeTokenizer, AWordThatIsATokenWinsOverMergesWhereTheFileSaysSo) {
  for (const bool ignores : {false, true}) {
    SmallVocabulary small = small_bpe_vocabulary(ignores ? "llama-bpe" : "smaug-bpe");
    const TokenId whole = small.add("zebra");
    small.add("quagga", TokenType::kControl);
    const auto tokenizer = make_tokenizer(small.spec);
    EXPECT_EQ(tokenizer->encode("zebra", {}),
              ignores ? std::vector<TokenId>{whole} : std::vector<TokenId>({'z', 'e', 'b', 'r', 'a'}));
    EXPECT_EQ(tokenizer->encode("quagga", {}), std::vector<TokenId>({'q', 'u', 'a', 'g', 'g', 'a'}));
  }
}

// Qwen2.5-Coder's file has such a merge.
TEST(BpeTokenizer, AMergeToAControlTokenIsNotMade) {
  SmallVocabulary small = small_bpe_vocabulary("gpt-2");
  small.add("xy", TokenType::kControl);
  small.strings.push_back("x y");
  small.spec.merges.push_back(small.strings.back());
  EXPECT_EQ(make_tokenizer(small.spec)->encode("xy", {}), std::vector<TokenId>({'x', 'y'}));
}

}  // namespace
}  // namespace polyspan
