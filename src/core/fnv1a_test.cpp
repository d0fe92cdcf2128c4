#include "core/fnv1a.h"

#include <gtest/gtest.h>

namespace polyspan {
namespace {

// Published test vectors (draft-eastlake-fnv).
TEST(Fnv1a, IsTheKnownHash) {
  EXPECT_EQ(fnv1a(""), 0xcbf29ce484222325u);
  EXPECT_EQ(fnv1a("a"), 0xaf63dc4c8601ec8cu);
  EXPECT_EQ(fnv1a("foobar"), 0x85944171f73967e8u);
}

TEST(Fnv1a, PartsAddUp) {
  Fnv1a hash;
  hash.add("foo");
  hash.add("bar");
  EXPECT_EQ(hash.value(), fnv1a("foobar"));
  EXPECT_EQ(hash.hex(), "85944171f73967e8");
}

}  // namespace
}  // namespace polyspan
