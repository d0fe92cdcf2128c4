#include "moa/validation.h"

#include <gtest/gtest.h>

namespace polyspan {
namespace {

TEST(Validation, BeatingDenseAtRetrievalBuysNothing) {
  CalibrationSample retrieval, text;
  retrieval.retrieval = true, text.retrieval = false;
  const ValidationSample of_retrieval{&retrieval, {}, 2.0}, of_text{&text, {}, 2.0};
  EXPECT_DOUBLE_EQ(lost(of_retrieval, 0.5), 0);
  EXPECT_DOUBLE_EQ(lost(of_retrieval, 2.5), 0.5);
  EXPECT_DOUBLE_EQ(lost(of_text, 2.5), kTextCounts * 0.5);
  EXPECT_DOUBLE_EQ(lost(of_text, 1.5), -kTextCounts * 0.5);
}

}  // namespace
}  // namespace polyspan
