#include "recipe/tasks.h"

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <string>

#include "core/error.h"
#include "eval/random_source.h"

namespace polyspan {
namespace {

constexpr int64_t kLetters = 26;

// One example under construction.
struct Writer {
  std::vector<int32_t>& tokens;
  std::vector<uint8_t>& mask;
  void put(char c, bool scored = false) {
    tokens.push_back(static_cast<unsigned char>(c));
    mask.push_back(scored);
  }
  void fill(int64_t n) {
    for (int64_t i = 0; i < n; ++i) put('.');
  }
};

std::vector<int64_t> shuffled(int64_t n, RandomSource& random) {
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  random.shuffle(order);
  return order;
}

void check_room(const TaskOptions& o, int64_t needed) {
  if (o.length + 1 < needed)
    throw Error::bad_input("an example of the task ", o.task, " with these sizes has ", needed, " tokens; --length is ",
                           o.length, " (and one more)");
}

void recall(const TaskOptions& o, RandomSource& random, Writer out) {
  const std::vector<int64_t> keys = shuffled(kLetters, random);
  std::vector<char> values;
  for (int64_t i = 0; i < o.pairs; ++i) values.push_back(static_cast<char>('a' + random.below(kLetters)));
  const auto key = [&](int64_t i) { return static_cast<char>('A' + keys[static_cast<size_t>(i)]); };
  for (int64_t i = 0; i < o.pairs; ++i) out.put(key(i)), out.put(values[static_cast<size_t>(i)]);
  out.fill(o.gap);
  for (int64_t left = o.length + 1 - 2 * o.pairs - o.gap; left > 0;) {
    for (const int64_t i : shuffled(o.pairs, random)) {
      if (left < 2) break;
      out.put(key(i)), out.put(values[static_cast<size_t>(i)], true);
      left -= 2;
    }
    if (left == 1) out.put('.'), left = 0;
  }
}

void copy(const TaskOptions& o, RandomSource& random, Writer out) {
  std::vector<char> letters;
  for (int64_t i = 0; i < o.pairs; ++i) letters.push_back(static_cast<char>('a' + random.below(kLetters)));
  out.fill(o.length + 1 - 2 * o.pairs - o.gap - 1);
  for (const char c : letters) out.put(c);
  out.fill(o.gap);
  out.put('=');
  for (const char c : letters) out.put(c, true);
}

void chain(const TaskOptions& o, RandomSource& random, Writer out) {
  const std::vector<int64_t> letters = shuffled(kLetters, random);
  const int64_t n = o.hops + 1;
  const auto letter = [&](int64_t c, int64_t i) {
    return static_cast<char>('A' + letters[static_cast<size_t>(c * n + i)]);
  };
  std::vector<std::pair<char, char>> facts;
  for (int64_t c = 0; c < o.pairs; ++c)
    for (int64_t i = 0; i < o.hops; ++i) facts.emplace_back(letter(c, i), letter(c, i + 1));
  random.shuffle(facts);
  out.fill(o.length + 1 - 3 * o.pairs * o.hops - 5 * o.questions);
  for (const auto& [from, to] : facts) out.put(from), out.put(to), out.put(';');
  for (int64_t i = 0; i < o.questions; ++i) {
    const int64_t asked = random.below(o.pairs);
    const int64_t steps = o.asked < 0 ? o.hops : o.asked > 0 ? o.asked : random.between(1, o.hops);
    const int64_t first = o.questions == 1 ? 0 : random.between(0, o.hops - steps);
    out.put('?'), out.put(letter(asked, first)), out.put(static_cast<char>('0' + steps)), out.put('=');
    out.put(letter(asked, first + steps), true);
  }
}

constexpr int64_t kFactBytes = 6, kMostFacts = kLetters * kLetters * kLetters;

void facts(const TaskOptions& o, RandomSource& random, Writer out) {
  const int64_t n = (o.length + 1) / kFactBytes;
  std::vector<int64_t> seen;  // of one example: a fact that came twice could be copied
  while (std::ssize(seen) < n) {
    const int64_t fact = random.below(o.pairs);
    if (std::find(seen.begin(), seen.end(), fact) != seen.end()) continue;
    seen.push_back(fact);
    int64_t key = (fact * 7919 + 13) % kMostFacts;  // 7,919 shares no factor with 26: another key for each fact
    for (int64_t i = 0; i < 3; ++i, key /= kLetters) out.put(static_cast<char>('a' + key % kLetters));
    out.put('=');
    out.put(static_cast<char>('a' + RandomSource{0x6661637473, static_cast<uint64_t>(fact)}.below(kLetters)), true);
    out.put(';');
  }
  out.fill(o.length + 1 - n * kFactBytes);
}

char digit(RandomSource& random) { return static_cast<char>('0' + random.below(10)); }

void passkey(const TaskOptions& o, RandomSource& random, Writer out) {
  std::string key;
  for (int64_t i = 0; i < o.pairs; ++i) key += digit(random);
  const int64_t filler = o.length + 1 - 2 * o.pairs - 5, place = random.between(0, filler);
  const auto noise = [&](int64_t n) {
    for (int64_t i = 0; i < n; ++i)
      out.put(random.below(6) == 0 ? ' ' : static_cast<char>('a' + random.below(kLetters)));
  };
  noise(place);
  for (const char c : "K=" + key + ";") out.put(c);
  noise(filler - place);
  out.put('K'), out.put('?');
  for (const char c : key) out.put(c, true);
}

constexpr int64_t kEntryBytes = 9, kMostEntries = 1000;

void phonebook(const TaskOptions& o, RandomSource& random, Writer out) {
  std::vector<std::string> names, numbers;
  while (std::ssize(names) < o.pairs) {
    std::string name, number;
    for (int i = 0; i < 3; ++i) name += static_cast<char>('a' + random.below(kLetters));
    if (std::find(names.begin(), names.end(), name) != names.end()) continue;
    for (int i = 0; i < 4; ++i) number += digit(random);
    names.push_back(name), numbers.push_back(number);
  }
  const auto entry = [&](size_t i, bool scored) {
    for (const char c : names[i]) out.put(c);
    out.put('=');
    for (const char c : numbers[i]) out.put(c, scored);
    out.put(';');
  };
  out.fill(o.length - kEntryBytes * (o.pairs + o.questions) - o.gap);
  for (size_t i = 0; i < names.size(); ++i) entry(i, false);
  out.fill(o.gap);
  out.put('?');
  for (int64_t i = 0; i < o.questions; ++i) entry(static_cast<size_t>(random.below(o.pairs)), true);
}

constexpr int64_t kMostDigits = 15;  // numbers fit into 64 bits

int64_t problem_bytes(int64_t digits) { return 3 * digits + 4; }

void sums(const TaskOptions& o, RandomSource& random, Writer out) {
  const int64_t n = (o.length + 1) / problem_bytes(o.pairs);
  const auto number = [&](int64_t value, int64_t digits, bool scored) {
    for (int64_t i = 0; i < digits; ++i, value /= 10) out.put(static_cast<char>('0' + value % 10), scored);
  };
  int64_t numbers = 1;
  for (int64_t i = 0; i < o.pairs; ++i) numbers *= 10;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t kind = random.below(4), a = random.below(numbers), b = random.below(numbers);
    const int64_t answers[] = {a + b, std::abs(a - b), std::max(a, b), std::min(a, b)};
    out.put("+-><"[kind]), number(a, o.pairs, false);
    out.put(','), number(b, o.pairs, false);
    out.put('='), number(answers[kind], o.pairs + 1, true);
  }
  out.fill(o.length + 1 - n * problem_bytes(o.pairs));
}

}  // namespace

TaskExamples make_task(const TaskOptions& o) {
  if (o.examples < 1 || o.length < 2 || o.pairs < 1 || o.gap < 0 || o.hops < 1 || o.questions < 1 ||
      std::max({o.pairs, o.gap, o.questions}) > o.length + kMostFacts || o.examples > (int64_t{1} << 32) / o.length)
    throw Error::bad_input("sizes of a task must be positive, and its file at most 4 Gi tokens");
  TaskExamples out;
  out.example_length = o.length + 1;
  out.chance = 1.0 / static_cast<double>(kLetters);
  void (*make)(const TaskOptions&, RandomSource&, Writer) = nullptr;
  if (o.task == "recall") {
    if (o.pairs > kLetters) throw Error::bad_input("recall has at most ", kLetters, " pairs; found ", o.pairs);
    check_room(o, 2 * o.pairs + o.gap + 2);
    make = recall;
  } else if (o.task == "copy") {
    check_room(o, 2 * o.pairs + o.gap + 1);
    make = copy;
  } else if (o.task == "chain") {
    if (o.hops > 9 || o.pairs * (o.hops + 1) > kLetters)
      throw Error::bad_input(o.pairs, " chains of ", o.hops, " hops need ", o.pairs * (o.hops + 1),
                             " letters; there are ", kLetters);
    check_room(o, 3 * o.pairs * o.hops + 5 * o.questions);
    out.chance = 1.0 / static_cast<double>(o.pairs * (o.hops + 1));
    if (o.asked < -1 || o.asked > o.hops)
      throw Error::bad_input("--asked is ", o.asked, "; a chain has ", o.hops, " hops");
    make = chain;
  } else if (o.task == "facts") {
    const int64_t n = (o.length + 1) / kFactBytes;
    check_room(o, kFactBytes);
    if (o.pairs < n || o.pairs > kMostFacts)
      throw Error::bad_input("facts wants between ", n, " (those of one example) and ", kMostFacts, " facts; found ",
                             o.pairs);
    make = facts;
  } else if (o.task == "passkey") {
    check_room(o, 2 * o.pairs + 5);
    out.chance = 0.1;
    make = passkey;
  } else if (o.task == "phonebook") {
    if (o.pairs > kMostEntries)
      throw Error::bad_input("phonebook has at most ", kMostEntries, " entries; found ", o.pairs);
    check_room(o, kEntryBytes * (o.pairs + o.questions) + o.gap + 1);
    out.chance = 0.1;
    make = phonebook;
  } else if (o.task == "sums") {
    if (o.pairs > kMostDigits) throw Error::bad_input("sums has at most ", kMostDigits, " digits; found ", o.pairs);
    check_room(o, problem_bytes(o.pairs));
    out.chance = 0.1;
    make = sums;
  } else {
    throw Error::usage("task \"", o.task, "\" is not known; wanted ", kTaskNames);
  }
  for (int64_t i = 0; i < o.examples; ++i) {
    RandomSource random{o.seed, static_cast<uint64_t>(i)};
    make(o, random, {out.tokens, out.mask});
    POLYSPAN_CHECK(std::ssize(out.tokens) == (i + 1) * out.example_length);
  }
  return out;
}

}  // namespace polyspan
