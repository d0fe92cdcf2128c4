#include "report/words.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iterator>

namespace polyspan::report {

std::string count_text(int64_t value) {
  std::string digits = std::to_string(value < 0 ? -value : value);
  for (auto at = static_cast<std::ptrdiff_t>(digits.size()) - 3; at > 0; at -= 3)
    digits.insert(static_cast<size_t>(at), ",");
  return value < 0 ? "\xe2\x88\x92" + digits : digits;  // a minus sign
}

std::string percent_text(double share) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f", 100 * share);
  std::string out = text;
  if (out.ends_with(".0")) out.resize(out.size() - 2);
  return out + "%";
}

std::string number_text(double value, int digits) {
  if (value == 0) return "0";
  const double size = std::abs(value);
  if (size >= 999.5 && size < 1e6) return count_text(std::llround(value));
  char text[64];
  if (size >= 1e6 || size < 1e-5) {
    std::snprintf(text, sizeof text, "%.*e", digits - 1, value);
  } else {
    const int before = static_cast<int>(std::floor(std::log10(size))) + 1;
    std::snprintf(text, sizeof text, "%.*f", std::max(0, digits - before), value);
  }
  std::string out = text;
  if (out.front() == '-') out.replace(0, 1, "\xe2\x88\x92");
  return out;
}

std::string bytes_text(double bytes) {
  const char* const units[] = {"B", "kB", "MB", "GB", "TB", "PB"};
  size_t unit = 0;
  for (; bytes >= 999.5 && unit + 1 < std::size(units); ++unit) bytes /= 1000;
  return (unit == 0 ? count_text(static_cast<int64_t>(bytes)) : number_text(bytes, 3)) + "\xc2\xa0" + units[unit];
}

std::string duration_text(double seconds) {
  const auto whole = static_cast<int64_t>(std::llround(seconds));
  if (seconds < 10) return number_text(seconds, 2) + " s";
  if (whole < 60) return std::to_string(whole) + " s";
  if (whole < 3600)
    return std::to_string(whole / 60) + " min" + (whole % 60 ? " " + std::to_string(whole % 60) + " s" : "");
  return count_text(whole / 3600) + " h " + std::to_string(whole % 3600 / 60) + " min";
}

std::string join_words(const std::vector<std::string>& words) {
  std::string out;
  for (size_t i = 0; i < words.size(); ++i) out += (i == 0 ? "" : i + 1 == words.size() ? " and " : ", ") + words[i];
  return out;
}

std::string join_counts(const std::vector<int64_t>& values) {
  std::vector<std::string> words;
  for (const int64_t value : values) words.push_back(count_text(value));
  return join_words(words);
}

}  // namespace polyspan::report
