// report/words.h: numbers as people read them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace polyspan::report {

std::string count_text(int64_t value);   // "8,192"
std::string percent_text(double share);  // "49.6%"; "50%" where that is exact to a tenth
std::string number_text(
    double value,
    int digits);  // that many significant digits, whole from 1,000 on; no exponent within reason: "0.0412"
std::string bytes_text(double bytes);                           // "177 MB": powers of 1,000
std::string duration_text(double seconds);                      // "2 min 31 s"
std::string join_words(const std::vector<std::string>& words);  // "a, b and c"
std::string join_counts(const std::vector<int64_t>& values);    // "1,024, 2,048 and 4,096"

}  // namespace polyspan::report
