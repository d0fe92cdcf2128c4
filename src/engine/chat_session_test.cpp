// Conversations: turn after turn from the cache against one sequence that is fed with everything.
#include "engine/chat_session.h"

#include "engine/engine_test_util.h"

namespace polyspan {
namespace {
using namespace testing_util;

// ChatML written by hand, token by token: what the session's tokens must be.
class ByHand {
 public:
  explicit ByHand(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}
  void message(const std::string& role, const std::string& content) {
    control("<|im_start|>");
    text(role + "\n" + content);
    close();
  }
  void open_answer() {
    control("<|im_start|>");
    text("assistant\n");
  }
  // The generated tokens; the end-of-turn token is added where the model did not give it.
  void answer(const GenerateResult& result) {
    tokens.insert(tokens.end(), result.tokens.begin(), result.tokens.end());
    if (result.ended_with_token)
      text("\n");
    else
      close();
  }
  std::vector<TokenId> tokens;

 private:
  void control(const char* name) { tokens.push_back(tokenizer_.find_token(name).value()); }
  void text(const std::string& text) {
    const std::vector<TokenId> ids = tokenizer_.encode(text, {});
    tokens.insert(tokens.end(), ids.begin(), ids.end());
  }
  void close() {
    control("<|im_end|>");
    text("\n");
  }
  const Tokenizer& tokenizer_;
};

const char* const kQuestions[] = {"What is a span? It is a part of the text that one head sees.",
                                  "hello <|im_end|> there",
                                  "Tell me more about it, please, and about the ring as well: where do old keys go?"};

// Greedy, or with sampling wild enough to draw end tokens; cut by max_tokens, stop strings or the end token.
struct Conversation {
  double density;
  bool has_system, is_wild;
  std::vector<std::string> stop;
  int64_t max_tokens;
};

TEST(ChatSession, TurnsEqualOneSequence) {
  const TinyEngine tiny;
  const Conversation cases[] = {{1.0, false, false, {}, 30},        {1.0, true, false, {}, 1},
                                {0.3, false, false, {}, 50},        {0.3, true, true, {}, 60},
                                {0.3, false, true, {"e", "t"}, 60}, {1.0, true, true, {" "}, 200},
                                {0.3, false, true, {}, 150},        {1.0, false, false, {}, 0}};
  constexpr int64_t kPlanned = 640;  // density 0.3: 64 sink tokens and rings of 128; the conversations are longer
  int n_ended = 0, n_stopped = 0;
  int64_t longest = 0;
  for (size_t c = 0; c < std::size(cases); ++c) {
    const Conversation& o = cases[c];
    SCOPED_TRACE(testing::Message() << "case " << c);
    const SpanPlan plan = tiny.uniform(o.density);
    const std::optional<std::string> system = o.has_system ? std::optional<std::string>("Be brief.") : std::nullopt;
    ChatSession session(*tiny, plan, kPlanned, KvType::kF16, system);
    ByHand hand(tiny->tokenizer());
    if (system) hand.message("system", *system);
    for (size_t turn = 0; turn < std::size(kQuestions); ++turn) {
      SCOPED_TRACE(testing::Message() << "turn " << turn);
      GenerateOptions options{.max_tokens = o.max_tokens, .stop = o.stop};
      if (o.is_wild) options.sampling = {.temperature = 100, .top_k = 0, .top_p = 1, .min_p = 0, .seed = 10 * c + turn};
      hand.message("user", kQuestions[turn]);
      hand.open_answer();
      const GenerateResult result = session.ask(kQuestions[turn], options);
      n_ended += result.ended_with_token;
      n_stopped += !result.ended_with_token && result.finish_reason == FinishReason::kStop;

      // One fresh sequence, the whole conversation as its prompt: the same answer.
      const auto fresh = tiny->new_sequence(plan, kPlanned, KvType::kF16);
      const GenerateResult expected = generate(*tiny, *fresh, hand.tokens, options);
      EXPECT_EQ(result.tokens, expected.tokens);
      EXPECT_EQ(result.text, expected.text);
      EXPECT_EQ(result.ended_with_token, expected.ended_with_token);
      EXPECT_EQ(session.sequence().tokens(), fresh->tokens());
      longest = std::max(longest, session.sequence().n_tokens());
      hand.answer(result);
    }
    EXPECT_EQ(session.sequence().cache().bytes(), KvLayout(tiny->config(), plan, kPlanned, KvType::kF16).bytes);
  }
  EXPECT_GT(n_ended, 0);
  EXPECT_GT(n_stopped, 0);
  EXPECT_GT(longest, 64 + 2 * 128);
}

// The same turns, and the logits after them: those of a sequence that was fed everything at once.
TEST(ChatSession, CacheAfterTurnsIsTheCacheOfTheWhole) {
  const TinyEngine tiny;
  const SpanPlan plan = tiny.uniform(0.3);
  ChatSession session(*tiny, plan, 640, KvType::kF16, std::nullopt);
  for (const char* question : kQuestions) session.ask(question, {.max_tokens = 60, .ignore_end = true});
  ASSERT_GT(session.sequence().n_tokens(), 320);
  const auto fresh = tiny->new_sequence(plan, 640, KvType::kF16);
  tiny.feed(*fresh, session.sequence().tokens());
  const TokenId next[] = {5};
  Sequence& continued = const_cast<Sequence&>(session.sequence());
  EXPECT_LT(relative_error(tiny.feed(continued, next), tiny.feed(*fresh, next)), 1e-4);
}

// A question that does not fit, or options that are refused, leave the conversation as it was.
TEST(ChatSession, RefusedTurnsChangeNothing) {
  const TinyEngine tiny;
  const GenerateOptions options{.max_tokens = 8};
  const std::string too_long(400, 'x');
  ChatSession session(*tiny, tiny.dense(), 300, KvType::kF16, std::nullopt);
  ChatSession untroubled(*tiny, tiny.dense(), 300, KvType::kF16, std::nullopt);
  for (int turn = 0; turn < 2; ++turn) {
    SCOPED_TRACE(testing::Message() << "turn " << turn);
    const std::vector<TokenId> before = session.sequence().tokens();
    expect_error([&] { session.ask(too_long, options); }, ErrorKind::kBadInput,
                 {"full", std::to_string(before.size()) + " of 300", "more"});
    expect_error([&] { session.ask("hi", {.sampling = {.temperature = -1}}); }, ErrorKind::kUsage, {"temperature"});
    EXPECT_EQ(session.sequence().tokens(), before);
    EXPECT_EQ(session.ask("hi", options).tokens, untroubled.ask("hi", options).tokens);
    EXPECT_EQ(session.sequence().tokens(), untroubled.sequence().tokens());
  }
  // Turn after turn until it is full: the error comes as one, and the room is never exceeded.
  bool is_full = false;
  for (int turn = 0; turn < 100 && !is_full; ++turn) try {
      EXPECT_GE(std::ssize(session.ask("hi", options).tokens), 1);
      EXPECT_LE(session.sequence().n_tokens(), 300);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kBadInput) << error.what();
      is_full = true;
    }
  EXPECT_TRUE(is_full);
}

// Whoever shows the text may fail (a closed connection): the next turn closes the unfinished one and goes on.
TEST(ChatSession, GoesOnAfterAnExceptionOfTheCallback) {
  const TinyEngine tiny;
  ChatSession session(*tiny, tiny.dense(), 600, KvType::kF16, std::nullopt);
  session.ask("one", {.max_tokens = 5, .ignore_end = true});
  int n_calls = 0;
  const auto fail = [&](std::string_view) -> bool {
    if (++n_calls == 3) throw std::runtime_error("closed");
    return true;
  };
  EXPECT_THROW(session.ask("two", {.max_tokens = 50, .ignore_end = true}, fail), std::runtime_error);
  std::vector<TokenId> expected = session.sequence().tokens();
  session.ask("three", {.max_tokens = 0});
  const std::vector<TokenId> turn =
      tiny->chat_format().encode_next_turn({"user", "three"}, tiny->tokenizer(), /*ended=*/false);
  expected.insert(expected.end(), turn.begin(), turn.end());
  EXPECT_EQ(session.sequence().tokens(), expected);
}

TEST(ChatSession, NeedsAChatFormatAndAContext) {
  const TinyEngine plain(tiny_engine_config(), "");
  expect_error([&] { ChatSession(*plain, plain.dense(), 100, KvType::kF16, std::nullopt); }, ErrorKind::kUnsupported,
               {"chat template"});
  const TinyEngine tiny;
  expect_error([&] { ChatSession(*tiny, tiny.dense(), 0, KvType::kF16, std::nullopt); }, ErrorKind::kBadInput,
               {"0 tokens"});
  expect_error([&] { ChatSession(*tiny, tiny.dense(), 5000, KvType::kF16, std::nullopt); }, ErrorKind::kBadInput,
               {"5000", "4096"});
}

}  // namespace
}  // namespace polyspan
