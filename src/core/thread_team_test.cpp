#include "core/thread_team.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <numeric>

namespace polyspan {
namespace {

TEST(ThreadTeam, RunCallsEveryThreadOnce) {
  for (const int n_threads : {1, 2, 3, 8}) {
    SCOPED_TRACE(n_threads);
    ThreadTeam team(n_threads);
    ASSERT_EQ(team.size(), n_threads);
    std::vector<int> calls(static_cast<size_t>(n_threads), 0);  // each thread writes its own
    for (int section = 1; section <= 200; ++section) {
      team.run([&](int thread) { ++calls[static_cast<size_t>(thread)]; });
      for (const int n : calls) ASSERT_EQ(n, section);  // all have finished when run() returns
    }
  }
}

TEST(ThreadTeam, SplitCoversInOrderedParts) {
  for (const int n_threads : {1, 2, 3, 8}) {
    ThreadTeam team(n_threads);
    for (const int64_t n : {0, 1, 2, 3, 7, 8, 9, 100}) {
      SCOPED_TRACE(testing::Message() << n_threads << " threads, " << n << " items");
      std::vector<int> seen(static_cast<size_t>(n), 0);
      std::atomic<int> n_parts = 0;
      team.split(n, [&](int64_t begin, int64_t end) {
        EXPECT_LT(begin, end);
        ++n_parts;
        for (int64_t i = begin; i < end; ++i) ++seen[static_cast<size_t>(i)];
      });
      for (const int count : seen) ASSERT_EQ(count, 1);
      EXPECT_LE(n_parts, n_threads);
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
    team.run([&](int thread) { values[static_cast<size_t>(thread)] += section; });
    team.run([&](int thread) {
      const size_t left = static_cast<size_t>((thread + 1) % 3);
      EXPECT_EQ(values[left], section * (section + 1) / 2);
    });
  }
}

// Workers that went to sleep between two sections wake for the next one.
TEST(ThreadTeam, WakesAfterAPause) {
  ThreadTeam team(3);
  for (int round = 0; round < 3; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    std::atomic<int> calls = 0;
    team.run([&](int) { ++calls; });
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
