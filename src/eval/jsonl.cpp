#include "eval/jsonl.h"

#include <algorithm>
#include <string>
#include <string_view>

#include "core/error.h"
#include "core/mapped_file.h"

namespace polyspan {

void read_jsonl(const std::filesystem::path& path, const std::function<void(const nlohmann::json&, int64_t)>& visit) {
  const MappedFile file(path);
  const std::string_view text = file.text();
  int64_t n_line = 0, n_records = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    std::string_view line = text.substr(at, end - at);
    at = end + 1;
    ++n_line;
    if (n_line == 1 && line.starts_with("\xef\xbb\xbf")) line.remove_prefix(3);  // a byte order mark
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    nlohmann::json object;
    try {
      object = nlohmann::json::parse(line);
    } catch (const nlohmann::json::parse_error& error) {
      throw Error::bad_file(path, "line ", n_line, ": no JSON at character ", error.byte,
                            "; one object a line is wanted");
    }
    if (!object.is_object())
      throw Error::bad_file(path, "line ", n_line, ": found JSON of type ", object.type_name(), ", wanted an object");
    try {
      visit(object, n_line);
    } catch (const Error& error) {
      throw Error::bad_file(path, "line ", n_line, ": ", error.what());
    }
    ++n_records;
  }
  if (n_records == 0) throw Error::bad_file(path, "the file has no line with a JSON object");
}

std::string string_field(const nlohmann::json& object, const char* name) {
  const auto found = object.find(name);
  if (found == object.end()) throw Error::bad_input("the field \"", name, "\" is missing");
  if (!found->is_string())
    throw Error::bad_input("the field \"", name, "\" is of type ", found->type_name(), ", wanted a string");
  return found->get<std::string>();
}

}  // namespace polyspan
