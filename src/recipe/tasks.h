// recipe/tasks.h: synthetic tasks in readable bytes: what must be remembered is in the input, what is scored is marked.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace polyspan {

inline constexpr std::string_view kTaskNames = "recall, copy, chain, facts, passkey, phonebook or sums";

struct TaskOptions {
  std::string task = "recall";
  int64_t length = 128;  // tokens of an example that are read; an example has one more, the last one predicted
  int64_t pairs = 8;  // recall: key-value pairs; copy: letters; chain: chains; facts: facts there are; passkey: digits;
                      // phonebook: entries; sums: digits of a number
  int64_t gap = 0;    // recall, copy, phonebook: filler between what is told and what is asked
  int64_t hops = 2;   // chain: facts of a chain
  int64_t asked = -1;     // chain: steps to the answer; -1: all hops, 0: from 1 to hops, by chance
  int64_t questions = 1;  // chain, phonebook: to train on several; those of chain then begin anywhere in a chain
  int64_t examples = 1000;
  uint64_t seed = 1;
};

struct TaskExamples {
  int64_t example_length = 0;
  std::vector<int32_t> tokens;  // bytes, [examples, example_length]
  std::vector<uint8_t> mask;    // 1 where an answer is to be predicted
  double chance = 0;            // accuracy of a model that knows the answers' alphabet and nothing else
};

// recall  multi-query associative recall (Zoology, arXiv 2312.04927): "AqBzCd" gap "BzAq...": keys A-Z each with a value
//         a-z; after the gap the keys come back in random rounds and their values are to be predicted.
// copy    "qzdk" gap "=qzdk": letters to be repeated in order.
// chain   "AB;CD;BC;?A2=C": facts of several chains, shuffled; the letter `asked` steps after the first. The chains' last
//         letters all occur once, so rarity does not tell the answer.
// facts   "kqz=v;bda=m;": closed book: the value of a three-letter key is the same in every example, and nowhere else to be
//         found: it has to be stored in the weights. The table depends on `pairs` alone; the seed draws what is asked.
// passkey    "qh wK=4711;zt...K?4711": the digits that stand somewhere in noise.
// phonebook  "kqz=4711;bda=0815;" gap "?bda=0815;": the number of a name, four digits (Jelassi et al., arXiv 2402.01032).
// sums       "+7483,1920=81040": problems of two numbers, written from their last digit on; + sum, - difference, > the larger,
//            < the smaller. With four digits there are 4e8 problems: those of another seed have hardly been seen.
// Throws Error (kBadInput) where the task is not known or does not fit the length.
TaskExamples make_task(const TaskOptions& options);

}  // namespace polyspan
