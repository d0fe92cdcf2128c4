#include "eval/prompt_frame.h"

#include "eval/eval_test_util.h"
#include "eval/natural_text.h"
#include "eval/random_source.h"

namespace polyspan {
namespace {
using namespace testing_util;

TEST(PromptFrame, HeadBodyAndTailAreThePrompt) {
  const TinyEngine tiny;
  for (const ChatFormat* format : {static_cast<const ChatFormat*>(nullptr), &tiny->chat_format()}) {
    const PromptFrame frame(tiny->tokenizer(), format, "Before.\n", "\nAfter?", "It is ");
    std::vector<TokenId> joined = frame.head;
    const std::vector<TokenId> body = tiny->tokenizer().encode("Body.", {});
    joined.insert(joined.end(), body.begin(), body.end());
    joined.insert(joined.end(), frame.tail.begin(), frame.tail.end());
    EXPECT_EQ(joined, encode_prompt(tiny->tokenizer(), format, "Before.\nBody.\nAfter?", "It is "));
    const std::string text = tiny->tokenizer().decode(joined, true);
    EXPECT_EQ(count(text, "Before.\nBody.\nAfter?"), 1);
    EXPECT_TRUE(text.ends_with(format == nullptr ? "After?\nIt is " : "assistant\nIt is ")) << text;
    EXPECT_EQ(frame.size(), std::ssize(joined) - std::ssize(body));
  }
}

// Against trying every number, for sizes that grow evenly, in steps, and by chance; and with few calls.
TEST(LargestFitting, IsThatOfTryingAll) {
  RandomSource random{1};
  for (int round = 0; round < 300; ++round) {
    const int64_t least = random.between(0, 3), most = least + random.below(round < 100 ? 5 : 2000),
                  fixed = random.below(200);
    std::vector<int64_t> sizes = {fixed};
    for (int64_t n = 0; n < most; ++n)
      sizes.push_back(sizes.back() + random.between(round % 3 == 0 ? 7 : 1, round % 3 == 1 ? 40 : 7));
    const int64_t budget = random.below(sizes.back() * 5 / 4 + 2);
    std::optional<int64_t> wanted;
    for (int64_t n = least; n <= most; ++n)
      if (sizes[static_cast<size_t>(n)] <= budget) wanted = n;
    int calls = 0;
    const auto found = largest_fitting(least, most, budget, [&](int64_t n) {
      ++calls;
      EXPECT_TRUE(n >= least && n <= most) << n;
      return sizes[static_cast<size_t>(n)];
    });
    EXPECT_EQ(found, wanted) << "round " << round << " least " << least << " most " << most << " budget " << budget;
    EXPECT_LT(calls, 30) << "round " << round;
  }
}

TEST(NaturalText, Sentences) {
  EXPECT_EQ(split_sentences("One two.  Three\nfour! Five?\n\n six"),
            (std::vector<std::string>{"One two.", "Three four!", "Five?", "six"}));
  EXPECT_TRUE(split_sentences(" \n\t ").empty());
  std::string endless;
  for (int i = 0; i < 1000; ++i) endless += "word ";
  for (const std::string& sentence : split_sentences(endless)) EXPECT_LE(sentence.size(), 410u);
}

TEST(RandomSource, FollowsItsSeeds) {
  RandomSource a{1, 2}, b{1, 2}, c{2, 1};
  std::vector<int64_t> from_a, from_b, from_c;
  for (int i = 0; i < 20; ++i) {
    from_a.push_back(a.below(1000));
    from_b.push_back(b.below(1000));
    from_c.push_back(c.below(1000));
  }
  EXPECT_EQ(from_a, from_b);
  EXPECT_NE(from_a, from_c);
  std::vector<int> order = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, sorted = order;
  a.shuffle(order);
  EXPECT_NE(order, sorted);
  std::sort(order.begin(), order.end());
  EXPECT_EQ(order, sorted);
}

}  // namespace
}  // namespace polyspan
