// The pre-tokenisers by name. The expressions are those of the models' own tokenizer.json files, in the form in which
// llama.cpp runs them; the names are llama.cpp's. Each was compared with llama.cpp (tests/peers/tokenizer_oracle.py).
#include "core/error.h"
#include "text/pre_tokenizer.h"

namespace polyspan {
namespace {

// Han and kana, as DeepSeek-V3 sets them apart.
constexpr CharRange kHanAndKana[] = {{0x4E00, 0x9FA5}, {0x3040, 0x30FF}};
// Han, Hangul and all between U+0800 and Han, as DeepSeek LLM and Coder have it.
constexpr CharRange kEastAsian[] = {{0x0800, 0x9FA5}, {0xAC00, 0xD7FF}};
// Wide forms of ASCII punctuation, quotation marks, ideographic comma and full stop.
constexpr CharRange kWidePunctuation[] = {{0xFF01, 0xFF0F}, {0xFF1A, 0xFF5E}, {0x2018, 0x201F}, {0x3000, 0x3002}};
// Full stops and commas of several scripts.
constexpr CharRange kStops[] = {{0x2026, 0x2026}, {0x3001, 0x3002}, {0xFF0C, 0xFF0C},
                                {0x0964, 0x0964}, {0x06D4, 0x06D4}, {0x060C, 0x060C}};
// DeepSeek LLM's letters: those of scripts that have case.
constexpr CharRange kCasedLetters[] = {
    {0xB5, 0xB5},       {0xC0, 0xD6},       {0xD8, 0xF6},       {0xF8, 0x1BA},      {0x1BC, 0x1BF},
    {0x1C4, 0x293},     {0x295, 0x2AF},     {0x370, 0x373},     {0x376, 0x377},     {0x37B, 0x37D},
    {0x37F, 0x37F},     {0x386, 0x386},     {0x388, 0x38A},     {0x38C, 0x38C},     {0x38E, 0x3A1},
    {0x3A3, 0x3F5},     {0x3F7, 0x481},     {0x48A, 0x52F},     {0x531, 0x556},     {0x10A0, 0x10C5},
    {0x13A0, 0x13F5},   {0x13F8, 0x13FD},   {0x1C90, 0x1CBA},   {0x1CBD, 0x1CBF},   {0x1D00, 0x1D2B},
    {0x1D6B, 0x1D77},   {0x1D79, 0x1D9A},   {0x1E00, 0x1F15},   {0x1F18, 0x1F1D},   {0x1F20, 0x1F45},
    {0x1F48, 0x1F4D},   {0x1F50, 0x1F57},   {0x1F59, 0x1F59},   {0x1F5B, 0x1F5B},   {0x1F5D, 0x1F5D},
    {0x1F5F, 0x1F7D},   {0x1F80, 0x1FB4},   {0x1FB6, 0x1FBC},   {0x1FBE, 0x1FBE},   {0x1FC2, 0x1FC4},
    {0x1FC6, 0x1FCC},   {0x1FD0, 0x1FD3},   {0x1FD6, 0x1FDB},   {0x1FE0, 0x1FEC},   {0x1FF2, 0x1FF4},
    {0x1FF6, 0x1FFC},   {0x2102, 0x2102},   {0x2107, 0x2107},   {0x210A, 0x2113},   {0x2115, 0x2115},
    {0x2119, 0x211D},   {0x2124, 0x2124},   {0x2126, 0x2126},   {0x2128, 0x2128},   {0x212A, 0x212D},
    {0x212F, 0x2134},   {0x2139, 0x2139},   {0x213C, 0x213F},   {0x2145, 0x2149},   {0x214E, 0x214E},
    {0x2183, 0x2184},   {0x2C00, 0x2C7B},   {0x2C7E, 0x2CE4},   {0x2CEB, 0x2CEE},   {0x2CF2, 0x2CF3},
    {0xA640, 0xA66D},   {0xA680, 0xA69B},   {0xA722, 0xA76F},   {0xA771, 0xA787},   {0xA78B, 0xA78E},
    {0xAB70, 0xABBF},   {0xFB00, 0xFB06},   {0xFB13, 0xFB17},   {0xFF21, 0xFF3A},   {0xFF41, 0xFF5A},
    {0x10400, 0x1044F}, {0x104B0, 0x104D3}, {0x104D8, 0x104FB}, {0x10C80, 0x10CB2}, {0x10CC0, 0x10CF2},
    {0x118A0, 0x118DF}, {0x1E900, 0x1E943}};

// Parts that many expressions share.
const std::string kContraction = R"((?i:'(?:[sdmt]|ll|ve|re)))";
const std::string kWord = R"([^\r\n\p{L}\p{N}]?\p{L}+)";
const std::string kOther = R"( ?[^\s\p{L}\p{N}]+[\r\n]*)";
const std::string kSpaces = R"(\s*[\r\n]+|\s+(?!\S)|\s+)";
const std::string kGpt2 = R"('(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// Llama 3 (digits by threes) and Qwen 2 (single digits) differ in `digits` only.
std::string llama3_like(const std::string& digits) {
  return kContraction + "|" + kWord + "|" + digits + "|" + kOther + "|" + kSpaces;
}

// Words that also end where small letters turn into capitals. `upper` and `lower` are members of a bracket.
std::string cased_like(const std::string& upper, const std::string& lower, const std::string& suffix,
                       const std::string& digits) {
  const std::string lead = R"([^\r\n\p{L}\p{N}]?)";
  return lead + "[" + upper + "]*[" + lower + "]+" + suffix + "|" + lead + "[" + upper + "]+[" + lower + "]*" + suffix +
         "|" + digits + R"(| ?[^\s\p{L}\p{N}]+[\r\n/]*|)" + kSpaces;
}

struct Row {
  std::vector<std::string_view> names;
  PreTokenizerSpec spec;
};

std::vector<Row> make_table() {
  const std::string one_digit = R"(\p{N})", three_digits = R"(\p{N}{1,3})";
  const std::string optional_contraction = kContraction + "?";
  const PreTokenizerSpec llama3 = {{{llama3_like(three_digits)}}, true, true};
  return {
      {{"default"}, {{{R"([\p{P}\$\+<=>\^~\|]+)"}, {kGpt2}, {R"(\p{N}+)"}, {"[0-9][0-9][0-9]"}}}},
      {{"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"},
       llama3},
      {{"dbrx", "smaug-bpe", "glm4", "chatglm-bpe"}, {llama3.expressions}},
      {{"gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4", "gigachat", "a.x-4.0",
        "mellum", "modern-bert", "jina-es", "jina-de", "jina-v1-en", "jina-v2-es", "jina-v2-de", "jina-v2-code",
        "roberta-bpe"},
       {{{kGpt2}}}},
      {{"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"},
       {{{one_digit}, {kGpt2}}}},
      {{"falcon"}, {{{R"([\p{P}\$\+<=>\^~\|`]+)"}, {kGpt2}, {"[0-9][0-9][0-9]"}}}},
      {{"qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2"},
       {{{llama3_like(one_digit)}}}},
      {{"qwen35"},
       {{{kContraction + R"(|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|)" + kSpaces}}}},
      {{"laguna"}, {{{R"([^\n]+|[\n]+)"}, {llama3_like(one_digit)}}}},
      {{"ufakzeka"}, {{{kWord + R"(|\p{N}|)" + kOther + "|" + kSpaces}}}},
      {{"minicpm5"}, {{{three_digits}, {llama3_like(R"(\p{N}+)")}}, true}},
      {{"jais-2"},
       {{{kContraction + "|" + kWord + "|" + three_digits + "|" + kOther +
          R"(|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S))"
          R"(|\s{4}(?!\S)|\s{1,2}(?!\S)|\s)"}}}},
      {{"bailingmoe", "bailingmoe2", "llada-moe"},
       {{{kContraction + "|" + kWord + R"(|\p{N}|)" + kOther + R"(|\s*[\r\n]|\s+(?!\S)|\s+)"}}}},
      {{"seed-coder"}, {{{kContraction + "|" + kWord + R"(|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|)" + kSpaces}}}},
      {{"exaone-moe"},  // letters with their marks, and single spaces between them
       {{{kContraction + R"(|[^\r\n\p{L}\p{N}]?\p{L}(?: ?\p{L}|\p{M})*+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|)"
                         R"(\s+(?!\S)|\s+)"}}}},
      {{"tekken"}, {{{cased_like(R"(A-Z\p{U})", R"(a-z\p{U})", "", one_digit)}}, true, true}},
      {{"gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"},
       {{{cased_like(R"(A-Z\p{U})", R"(a-z\p{U})", optional_contraction, three_digits)}}}},
      {{"granite-embed-multi-97m"},
       {{{cased_like(R"(A-Z\p{U}\p{M})", R"(a-z\p{U}\p{M})", optional_contraction, three_digits)}}, true}},
      {{"deepseek-llm"},
       {{{R"([\r\n])"},
         {R"(\s?[A-Za-z\p{R}]+)", kCasedLetters},
         {R"(\s?[!-/:-~\p{R}]+)", kWidePunctuation},
         {R"(\s++(?:\z|(*SKIP)(*FAIL)))"},  // spaces at the end; the verb keeps long runs elsewhere linear
         {R"(\p{R}+)", kEastAsian},
         {R"(\p{N}+)"}}}},
      {{"deepseek-coder"},
       {{{R"([\r\n])"}, {R"(\s?\p{L}+)"}, {R"(\s?\p{P}+)"}, {R"(\p{R}+)", kEastAsian}, {one_digit}}}},
      {{"deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"},
       {{{three_digits},
         {R"(\p{R}+)", kHanAndKana},
         {R"([!-/:-@\[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|)" + kSpaces}}}},
      {{"poro-chat", "bloom", "gpt3-finnish"}, {{{R"( ?[^(\s|.,!?)\p{R}]+)", kStops}}}},
      {{"viking"}, {{{R"( ?[^(\s|.,!?)\p{R}]+)", kStops}, {one_digit}}}},
  };
}

const std::vector<Row>& table() {
  static const std::vector<Row> rows = make_table();
  return rows;
}

}  // namespace

PreTokenizerSpec find_pre_tokenizer(std::string_view name) {
  for (const Row& row : table())
    for (const std::string_view known : row.names)
      if (known == name) return row.spec;
  throw Error::unsupported("the pre-tokeniser '", name, "' (tokenizer.ggml.pre) is not known");
}

std::vector<std::string_view> pre_tokenizer_names() {
  std::vector<std::string_view> names;
  for (const Row& row : table()) names.insert(names.end(), row.names.begin(), row.names.end());
  return names;
}

}  // namespace polyspan
