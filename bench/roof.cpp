// Measures how fast this machine reads memory, with 1 and more threads: the roof under which decoding runs.
// One JSON document on standard output. usage: roof [THREADS,...] [MEGABYTES] [REPEATS]     (default 1,2 1024 7)
//
// Each thread sums its own part of a buffer that is larger than the caches; time runs from the first thread's start to
// the last one's end. The best repeat is the roof (the others met neighbours), the median is printed beside it.
#include <sys/mman.h>

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

// Sum of `count` words; eight streams of independent additions, so that loads and not additions are what it waits for.
// REQUIRES: count % 64 == 0.
uint64_t sum_words(const uint64_t* words, size_t count) {
  uint64_t sums[8] = {};
  for (size_t i = 0; i < count; i += 64) {
    __builtin_prefetch(words + i + 512);  // Zen 5, 1 thread, 3 runs: 36, 36, 37 GB/s; without 33, 33, 37
    for (size_t j = 0; j < 64; j += 8)
      for (size_t k = 0; k < 8; ++k) sums[k] += words[i + j + k];
  }
  uint64_t sum = 0;
  for (const uint64_t part : sums) sum += part;
  return sum;
}

// Seconds of each repeat.
std::vector<double> read_seconds(const uint64_t* words, size_t n_words, int n_threads, int n_repeats, uint64_t& check) {
  const size_t part = n_words / static_cast<size_t>(n_threads) / 64 * 64;
  std::vector<uint64_t> sums(static_cast<size_t>(n_threads) * 8);  // 64 bytes a thread
  std::vector<double> seconds;
  std::barrier sync(n_threads);
  std::vector<std::thread> threads;
  for (int thread = 0; thread < n_threads; ++thread)
    threads.emplace_back([&, thread] {
      const auto index = static_cast<size_t>(thread);
      for (int repeat = 0; repeat <= n_repeats; ++repeat) {  // the first warms up
        sync.arrive_and_wait();
        const auto start = Clock::now();
        sums[index * 8] += sum_words(words + index * part, part);
        sync.arrive_and_wait();
        if (thread == 0 && repeat > 0) seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count());
      }
    });
  for (std::thread& thread : threads) thread.join();
  for (const uint64_t sum : sums) check += sum;
  return seconds;
}

// A positive number, or the end of the program.
long number(const char* text, long largest) {
  char* end = nullptr;
  const long value = std::strtol(text, &end, 10);
  if (end == text || value < 1 || value > largest) {
    std::fprintf(stderr, "roof: found \"%s\", wanted a number from 1 to %ld\n", text, largest);
    std::exit(2);
  }
  return value;
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<int> thread_counts;
  for (const char* at = argc > 1 ? argv[1] : "1,2"; at != nullptr; at = std::strchr(at, ',')) {
    if (*at == ',') ++at;
    thread_counts.push_back(static_cast<int>(number(at, 1024)));
  }
  const size_t n_bytes = static_cast<size_t>(argc > 2 ? number(argv[2], 1 << 20) : 1024) << 20;
  const int n_repeats = static_cast<int>(argc > 3 ? number(argv[3], 1000) : 7);
  void* memory = mmap(nullptr, n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    std::fprintf(stderr, "roof: cannot map %zu bytes\n", n_bytes);
    return 1;
  }
  madvise(memory, n_bytes, MADV_HUGEPAGE);
  auto* words = static_cast<uint64_t*>(memory);
  const size_t n_words = n_bytes / sizeof(uint64_t);
  for (size_t i = 0; i < n_words; ++i) words[i] = i;

  uint64_t check = 0;
  std::printf("{\"bytes\": %zu, \"rows\": [", n_bytes);
  for (size_t i = 0; i < thread_counts.size(); ++i) {
    std::vector<double> seconds = read_seconds(words, n_words, thread_counts[i], n_repeats, check);
    std::sort(seconds.begin(), seconds.end());
    const auto gb = static_cast<double>(n_bytes) * 1e-9;
    std::printf("%s{\"threads\": %d, \"read_gb_per_s\": %.2f, \"median_gb_per_s\": %.2f}", i == 0 ? "" : ", ",
                thread_counts[i], gb / seconds.front(), gb / seconds[seconds.size() / 2]);
  }
  std::printf("], \"check\": %llu}\n", static_cast<unsigned long long>(check % 1000));
  munmap(memory, n_bytes);
}
