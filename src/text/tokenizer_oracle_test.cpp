// Compares with llama.cpp's ids, as tests/peers/tokenizer_oracle.py wrote them: those of the default model (a file of
// the repository; POLYSPAN_MODEL names the model), and a folder of vocabularies named by POLYSPAN_TOKENIZER_ORACLE.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "text/pre_tokenizer.h"
#include "text/tokenizer.h"
#include "text/unicode_class.h"

namespace polyspan {
namespace {

std::string from_base64(const std::string& text) {
  constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string bytes;
  uint32_t bits = 0;
  int n_bits = 0;
  for (const char digit : text) {
    if (digit == '=') break;
    bits = bits << 6 | static_cast<uint32_t>(kDigits.find(digit));
    n_bits += 6;
    if (n_bits >= 8) bytes += static_cast<char>(bits >> (n_bits -= 8) & 0xFF);
  }
  return bytes;
}

std::string in_hex(const std::string& bytes) {
  std::string out;
  for (const unsigned char byte : bytes) out += "0123456789abcdef"[byte >> 4], out += "0123456789abcdef"[byte & 15];
  return out;
}

// Every byte of `text` has a token: then valid text must come back from its ids.
bool has_all_bytes(const Tokenizer& tokenizer, const std::string& text) {
  for (const char byte : text) {
    const std::vector<TokenId> ids = tokenizer.encode({&byte, 1}, {.keep_invalid_bytes = true});
    if (ids.empty()) return false;
  }
  return true;
}

void compare(const Tokenizer& tokenizer, const std::filesystem::path& oracle_path) {
  const nlohmann::json oracle = nlohmann::json::parse(std::ifstream(oracle_path));
  int n_wrong = 0;
  for (const auto& item : oracle.at("cases")) {
    const std::string text =
        item.contains("text") ? item.at("text").get<std::string>() : from_base64(item.at("base64"));
    const bool special = item.at("special");
    const std::vector<TokenId> wanted = item.at("ids");
    const std::vector<TokenId> ids = tokenizer.encode(text, {.parse_special = special});
    if (ids != wanted && ++n_wrong <= 10)
      ADD_FAILURE() << oracle_path << " special " << special << " text '" << text << "' (" << in_hex(text)
                    << ")\n  ids " << testing::PrintToString(ids) << "\n  llama.cpp " << testing::PrintToString(wanted);
    if (tokenizer.model_name() == "gpt2" && is_valid_utf8(text) && has_all_bytes(tokenizer, text)) {
      EXPECT_EQ(tokenizer.decode(ids, /*with_special=*/true), text) << oracle_path;
    }
    const bool comes_back = is_valid_utf8(text) && text.find("\u2581") == std::string::npos;  // but for the added space
    if (tokenizer.model_name() == "llama" && comes_back && !special && !text.empty()) {
      EXPECT_EQ(tokenizer.decode(ids, /*with_special=*/true).substr(text.starts_with("<user>") ? 0 : 1), text)
          << oracle_path;
    }
  }
  EXPECT_EQ(n_wrong, 0) << "of " << oracle.at("cases").size() << " in " << oracle_path;
  std::vector<TokenId> ends;
  for (TokenId id = 0; id < tokenizer.vocab_size(); ++id)
    if (tokenizer.is_end_of_generation(id)) ends.push_back(id);
  EXPECT_EQ(ends, oracle.at("ends").get<std::vector<TokenId>>()) << oracle_path;
}

TEST(TokenizerOracle, DefaultModelGivesTheIdsOfLlamaCpp) {
  const char* model = std::getenv("POLYSPAN_MODEL");
  if (model == nullptr) GTEST_SKIP() << "POLYSPAN_MODEL names no file";
  const auto tokenizer = Tokenizer::from_gguf(GgufFile::open(model));
  if (tokenizer->pre_tokenizer_name() != "smollm") GTEST_SKIP() << model << " is not the default model";
  compare(*tokenizer, std::filesystem::path(POLYSPAN_SOURCE_DIR) / "tests/data/tokenizer_smollm.json");
}

TEST(TokenizerOracle, EveryVocabularyOfTheFolderGivesTheIdsOfLlamaCpp) {
  const char* folder = std::getenv("POLYSPAN_TOKENIZER_ORACLE");
  if (folder == nullptr)
    GTEST_SKIP() << "POLYSPAN_TOKENIZER_ORACLE names no folder (tests/peers/tokenizer_oracle.py --all)";
  std::set<std::string> names_left;
  for (const std::string_view name : pre_tokenizer_names()) names_left.emplace(name);
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() != ".gguf") continue;
    const auto tokenizer = Tokenizer::from_gguf(GgufFile::open(entry.path()));
    names_left.erase(std::string(tokenizer->pre_tokenizer_name()));
    compare(*tokenizer, std::filesystem::path(entry.path()).replace_extension(".json"));
  }
  EXPECT_TRUE(names_left.empty()) << "not compared: " << testing::PrintToString(names_left);
}

}  // namespace
}  // namespace polyspan
