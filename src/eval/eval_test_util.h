// eval/eval_test_util.h: texts and engines for the tests of tasks. Included by tests and by nothing else.
#pragma once

#include <string>
#include <string_view>

#include "core/mapped_file.h"
#include "engine/engine_test_util.h"

namespace polyspan::testing_util {

inline std::string natural_text(int n_sentences = 400) {
  std::string text;
  for (int i = 0; i < n_sentences; ++i) text += "Sentence number " + std::to_string(i) + " says nothing. ";
  return text;
}

inline int64_t count(std::string_view text, std::string_view wanted) {
  int64_t n = 0;
  for (size_t at = text.find(wanted); at != text.npos; at = text.find(wanted, at + 1)) ++n;
  return n;
}

inline std::string contents(const std::filesystem::path& path) { return std::string(MappedFile(path).text()); }

class TemporaryFile {
 public:
  explicit TemporaryFile(std::string_view contents) { write_file_atomically(path_, contents); }
  const std::filesystem::path& path() const { return path_; }

 private:
  const TemporaryFolder folder_;
  const std::filesystem::path path_ = folder_.path() / "file";
};

}  // namespace polyspan::testing_util
