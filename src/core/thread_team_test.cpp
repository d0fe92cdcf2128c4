#include "core/thread_team.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <numeric>

namespace polyspan {
namespace {

TEST(ThreadTeam, SplitCoversInOrderedParts) {
  for (const int n_threads : {1, 2, 3, 8}) {
    ThreadTeam team(n_threads);
    for (const int64_t n : {0, 1, 2, 3, 7, 8, 9, 100}) {
      SCOPED_TRACE(testing::Message() << n_threads << " threads, " << n << " items");
      std::vector<int> seen(static_cast<size_t>(n), 0);
      std::atomic<int> n_parts = 0;
      team.split(n, [&](int64_t begin, int64_t end, int thread) {
        EXPECT_LT(begin, end);
        EXPECT_TRUE(thread >= 0 && thread < n_threads);
        ++n_parts;
        for (int64_t i = begin; i < end; ++i) ++seen[static_cast<size_t>(i)];
      });
      for (const int count : seen) ASSERT_EQ(count, 1);
      EXPECT_LE(n_parts, ThreadTeam::kPartsPerThread * n_threads);
    }
  }
}

TEST(ThreadTeam, EachHandsOutEveryItemOnce) {
  for (const int n_threads : {1, 2, 3, 8}) {
    ThreadTeam team(n_threads);
    for (const int64_t n : {0, 1, 2, 7, 1000}) {
      SCOPED_TRACE(testing::Message() << n_threads << " threads, " << n << " items");
      std::vector<int> seen(static_cast<size_t>(n), 0);
      team.each(n, [&](int64_t item, int thread) {
        EXPECT_TRUE(thread >= 0 && thread < n_threads);
        ++seen[static_cast<size_t>(item)];
      });
      for (const int count : seen) ASSERT_EQ(count, 1);
    }
  }
}

// What one section wrote, another thread reads in the next: without a fence of its own.
TEST(ThreadTeam, SectionsSeeEachOther) {
  ThreadTeam team(3);
  std::vector<int64_t> values(3, 0);
  for (int64_t section = 1; section <= 2000; ++section) {
    team.each(3, [&](int64_t item, int) { values[static_cast<size_t>(item)] += section; });
    team.each(3, [&](int64_t item, int) {
      const size_t left = static_cast<size_t>((item + 1) % 3);
      EXPECT_EQ(values[left], section * (section + 1) / 2);
    });
  }
}

// Sections of one item more than threads, one after the other: a worker that comes late must not touch a finished section.
TEST(ThreadTeam, LateWorkersStayOutOfFinishedSections) {
  ThreadTeam team(4);
  for (int section = 0; section < 20000; ++section) {
    std::vector<int> done(5, 0);  // dies with the section
    team.each(5, [&done](int64_t item, int) { ++done[static_cast<size_t>(item)]; });
    ASSERT_EQ(done, std::vector<int>(5, 1));
  }
}

// Workers that went to sleep between two sections wake for the next one.
TEST(ThreadTeam, WakesAfterAPause) {
  ThreadTeam team(3);
  for (int round = 0; round < 3; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    std::atomic<int> calls = 0;
    team.each(3, [&](int64_t, int) { ++calls; });
    EXPECT_EQ(calls, 3);
  }
}

TEST(ThreadTeam, StartsAndStops) {
  for (int round = 0; round < 50; ++round) ThreadTeam team(1 + round % 4);  // never used
  EXPECT_GE(default_thread_count(), 1);
  EXPECT_LE(default_thread_count(), static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace
}  // namespace polyspan
