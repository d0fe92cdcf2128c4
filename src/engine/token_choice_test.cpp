#include "engine/token_choice.h"

#include <gtest/gtest.h>

#include <cmath>

namespace polyspan {
namespace {

TEST(TokenChoice, MostLikelyFirstWithTheirProbabilities) {
  // Probabilities 1/2, 1/8, 1/4, 1/8, whatever is added to all logits.
  const double base = 300;
  std::vector<float> logits;
  for (const double p : {0.5, 0.125, 0.25, 0.125}) logits.push_back(static_cast<float>(base + std::log(p)));
  const TokenChoice choice = token_choice(logits, 3, 3);
  EXPECT_EQ(choice.chosen.token, 3);
  EXPECT_NEAR(choice.chosen.logprob, std::log(0.125), 1e-4);
  ASSERT_EQ(choice.top.size(), 3u);
  EXPECT_EQ(choice.top[0].token, 0);
  EXPECT_NEAR(choice.top[0].logprob, std::log(0.5), 1e-4);
  EXPECT_EQ(choice.top[1].token, 2);
  EXPECT_EQ(choice.top[2].token, 1);  // the lower id of two that are as likely
}

TEST(TokenChoice, NoMoreThanThereAre) {
  const std::vector<float> logits = {1, 2};
  EXPECT_EQ(token_choice(logits, 0, 20).top.size(), 2u);
  EXPECT_TRUE(token_choice(logits, 0, 0).top.empty());
}

}  // namespace
}  // namespace polyspan
