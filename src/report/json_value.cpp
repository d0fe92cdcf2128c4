#include "report/json_value.h"

#include <algorithm>
#include <cmath>
#include <sstream>
#include <utility>

#include "core/error.h"
#include "core/mapped_file.h"
#include "moa/run_directory.h"

namespace polyspan::report {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxFileBytes = size_t{256} << 20;
constexpr size_t kMaxTextBytes = size_t{64} << 10;
constexpr int kMaxDepth = 32;  // containers open at once
constexpr size_t kMaxShownBytes = 24;

// What was found, as it may stand in a one-line message: printable ASCII, cut.
std::string shown(const Json& json) {
  if (json.is_object()) return "an object";
  if (json.is_array()) return "an array of " + std::to_string(json.size());
  std::string out;
  for (const char c : json.dump(-1, ' ', true, Json::error_handler_t::replace).substr(0, kMaxShownBytes + 1))
    out += c >= 0x20 && c < 0x7f ? c : '?';
  if (out.size() > kMaxShownBytes) out = out.substr(0, kMaxShownBytes) + "...";
  return out;
}

std::string shown_number(double value) {
  std::ostringstream out;
  out.precision(12);
  out << value;
  return out.str();
}

}  // namespace

void JsonValue::wrong(const std::string& wanted) const {
  throw Error::bad_file(*file_, place_.empty() ? "" : place_ + ": ", "found ", shown(*json_), ", wanted ", wanted);
}

JsonValue JsonValue::at(std::string_view key) const {
  if (!json_->is_object()) wrong("an object");
  const auto found = json_->find(std::string(key));
  std::string place = place_.empty() ? std::string(key) : place_ + "." + std::string(key);
  if (found == json_->end()) throw Error::bad_file(*file_, "found no \"", place, "\", wanted it");
  return {*found, *file_, std::move(place)};
}

std::optional<JsonValue> JsonValue::find(std::string_view key) const {
  if (!json_->is_object()) wrong("an object");
  const auto found = json_->find(std::string(key));
  if (found == json_->end() || found->is_null()) return std::nullopt;
  return at(key);
}

std::vector<JsonValue> JsonValue::items(size_t most) const {
  if (!json_->is_array()) wrong("an array");
  if (json_->size() > most) wrong("at most " + std::to_string(most) + " entries");
  std::vector<JsonValue> values;
  values.reserve(json_->size());
  for (size_t i = 0; i < json_->size(); ++i)
    values.emplace_back((*json_)[i], *file_, place_ + "[" + std::to_string(i) + "]");
  return values;
}

double JsonValue::number(double least, double most) const {
  const double value = json_->is_number() ? json_->get<double>() : NAN;
  if (!std::isfinite(value) || value < least || value > most)
    wrong("a number from " + shown_number(least) + " to " + shown_number(most));
  return value;
}

int64_t JsonValue::integer(int64_t least, int64_t most) const {
  const bool fits = json_->is_number_unsigned() ? json_->get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX)
                                                : json_->is_number_integer();
  const int64_t value = fits ? json_->get<int64_t>() : 0;
  if (!fits || value < least || value > most)
    wrong("an integer from " + std::to_string(least) + " to " + std::to_string(most));
  return value;
}

uint64_t JsonValue::unsigned_integer() const {
  if (!json_->is_number_unsigned()) wrong("an integer, at least 0");
  return json_->get<uint64_t>();
}

std::string JsonValue::text() const {
  if (!json_->is_string()) wrong("text");
  const auto& value = json_->get_ref<const std::string&>();
  if (value.size() > kMaxTextBytes) wrong("text of at most " + std::to_string(kMaxTextBytes) + " bytes");
  return value;
}

bool JsonValue::boolean() const {
  if (!json_->is_boolean()) wrong("true or false");
  return json_->get<bool>();
}

std::vector<double> JsonValue::numbers(size_t most) const {
  if (!json_->is_array() || json_->size() > most) wrong("an array of at most " + std::to_string(most) + " numbers");
  std::vector<double> values;
  values.reserve(json_->size());
  for (const Json& entry : *json_) {
    const double value = entry.is_number() ? entry.get<double>() : NAN;
    if (!std::isfinite(value))
      JsonValue(entry, *file_, place_ + "[" + std::to_string(values.size()) + "]").wrong("a finite number");
    values.push_back(value);
  }
  return values;
}

std::vector<int64_t> JsonValue::integers(int64_t least, int64_t most_value, size_t most) const {
  std::vector<int64_t> values;
  for (const JsonValue& entry : items(most)) values.push_back(entry.integer(least, most_value));
  return values;
}

std::vector<std::string> JsonValue::keys() const {
  if (!json_->is_object()) wrong("an object");
  std::vector<std::string> names;
  for (const auto& [name, value] : json_->items()) names.push_back(name);
  return names;
}

std::string JsonValue::dump() const {
  return json_->dump(-1, ' ', false, Json::error_handler_t::replace).substr(0, 200);
}

std::string read_file(const std::filesystem::path& file) {
  const MappedFile mapped(file);
  const std::string_view text = mapped.text();
  if (text.size() > kMaxFileBytes)
    throw Error::bad_file(file, "found ", text.size(), " bytes, wanted at most ", kMaxFileBytes);
  return std::string(text);
}

JsonDocument parse_json(std::string_view text, const std::filesystem::path& name, std::string_view skipped) {
  const auto filter = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (depth > kMaxDepth) throw Error::bad_file(name, "found more than ", kMaxDepth, " nested values");
    return event != Json::parse_event_t::key || skipped.empty() || parsed.get_ref<const std::string&>() != skipped;
  };
  try {
    return {name, Json::parse(text, filter)};
  } catch (const Json::parse_error& error) {
    const size_t end = std::min(std::max<size_t>(error.byte, 1) - 1, text.size());
    const auto line = 1 + std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(end), '\n');
    if (end >= text.size())
      throw Error::bad_file(name, "broken JSON: found the end of the file at line ", line, ", wanted more");
    const size_t line_start = text.substr(0, end).rfind('\n');
    throw Error::bad_file(name, "broken JSON at line ", line, ", column ",
                          line_start == std::string_view::npos ? end + 1 : end - line_start);
  } catch (const Json::exception&) {  // a number beyond the range of a double
    throw Error::bad_file(name, "broken JSON: found a number that is too large");
  }
}

JsonDocument read_json(const std::filesystem::path& file, std::string_view skipped) {
  return parse_json(read_file(file), file, skipped);
}

JsonDocument read_versioned(const std::filesystem::path& file, std::string_view skipped) {
  JsonDocument document = read_json(file, skipped);
  const int64_t version = document.root().at("format_version").integer(1, INT64_MAX);
  if (version != kRunFormatVersion)
    throw Error(ErrorKind::kUnsupported, file.string() + ": found format version " + std::to_string(version) +
                                             ", wanted " + std::to_string(kRunFormatVersion));
  return document;
}

}  // namespace polyspan::report
