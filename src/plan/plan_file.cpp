#include "plan/plan_file.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <sstream>
#include <utility>

#include "core/error.h"

namespace polyspan {
namespace {

using Json = nlohmann::json;

constexpr int64_t kMaxDepth = 64;       // containers open at once
constexpr size_t kMaxShownBytes = 24;   // of anything found in the file, in a message
constexpr size_t kMaxTextBytes = 4096;  // of a text that is kept (model name, ...)
constexpr size_t kMaxLengths = 4096;
constexpr double kMaxAlpha = 1e12;  // tokens; keeps alpha + beta * N exact to well under a token

// Text of the file as it may stand in a one-line message: printable ASCII, cut.
std::string shown(std::string_view text) {
  std::string out = "\"";
  for (const char c : text.substr(0, kMaxShownBytes)) out += c >= 0x20 && c < 0x7f ? c : '?';
  return out + (text.size() > kMaxShownBytes ? "...\"" : "\"");
}

std::string shown(double value) {
  std::ostringstream out;
  out.precision(12);
  out << value;
  return out.str();
}

// A scalar of the file.
struct Scalar {
  enum class Kind { kNumber, kInteger, kText, kOther } kind = Kind::kOther;
  double number = 0;       // of kNumber and kInteger
  int64_t integer = 0;     // of kInteger
  std::string text = {};   // of kText
  std::string found = {};  // how a message names it
  bool is_number() const { return kind == Kind::kNumber || kind == Kind::kInteger; }
};

// Reads a plan event by event instead of building a document: only what a plan needs is ever held, so a file of
// 64 MB of opening brackets or of unknown keys costs nothing.
class PlanReader final : public nlohmann::json_sax<Json> {
 public:
  PlanReader(std::string_view json, const std::filesystem::path& name) : json_(json), name_(name) {}

  PlanFile finish() {
    if (!seen("alphas") || !seen("betas"))
      throw Error::bad_file(name_, "found no \"", seen("alphas") ? "betas" : "alphas",
                            "\", wanted the rules of every layer as \"alphas\" and \"betas\"");
    return std::move(plan_);
  }

  bool null() override { return scalar({.found = "null"}); }
  bool boolean(bool value) override { return scalar({.found = value ? "true" : "false"}); }
  bool number_integer(int64_t value) override {
    return scalar({.kind = Scalar::Kind::kInteger,
                   .number = static_cast<double>(value),
                   .integer = value,
                   .found = std::to_string(value)});
  }
  bool number_unsigned(uint64_t value) override {
    if (value <= static_cast<uint64_t>(INT64_MAX)) return number_integer(static_cast<int64_t>(value));
    return number_float(static_cast<double>(value), {});
  }
  bool number_float(double value, const std::string&) override {
    return scalar({.kind = Scalar::Kind::kNumber, .number = value, .found = shown(value)});
  }
  bool string(std::string& value) override {
    return scalar({.kind = Scalar::Kind::kText, .text = value, .found = shown(value)});
  }
  bool binary(Json::binary_t&) override { return scalar({.found = "binary data"}); }  // JSON text never has it

  bool key(std::string& name) override {
    if (depth_ == 1) {
      key_ = name.size() <= kMaxShownBytes ? name : std::string();  // every known key is shorter
      if (seen(key_)) fail("found it twice, wanted it once");
      if (is_known(key_)) seen_.push_back(key_);
    } else if (depth_ == 2 && key_ == "model") {
      sub_key_ = name.size() <= kMaxShownBytes ? name : std::string();
    }
    return true;
  }

  bool start_object(size_t) override {
    open("an object");
    if (depth_ == 1 || !is_known(key_) || (key_ == "model" && (depth_ == 2 || !is_text_of_model()))) return true;
    --depth_;
    wrong("an object");
  }
  bool end_object() override { return close(); }

  bool start_array(size_t) override {
    open("an array");
    if (depth_ == 1) {
      --depth_;
      wrong("an array");
    }
    if (is_table()) {
      auto& table = rows();
      if (depth_ == 3) {
        if (static_cast<int64_t>(table.size()) >= kMaxPlanLayers) fail("found more than ", kMaxPlanLayers, " layers");
        table.emplace_back();
      }
      if (depth_ <= 3) return true;
    } else if (!is_known(key_) || (key_ == "lengths" && depth_ == 2) ||
               (key_ == "model" && depth_ > 2 && !is_text_of_model())) {
      return true;
    }
    --depth_;
    wrong("an array");
  }
  bool end_array() override { return close(); }

  // `position` counts the bytes read so far, the end of the file as one; the token that did not fit ends there. (The
  // library's own idea of that token goes back further than the token.)
  bool parse_error(size_t position, const std::string&, const Json::exception&) override {
    size_t start = std::min(std::max<size_t>(position, 1) - 1, json_.size());
    for (size_t back = 0; start < json_.size() && !is_between_tokens(json_[start]) && start > 0 &&
                          back < kMaxShownBytes && !is_between_tokens(json_[start - 1]);
         ++back)
      --start;
    const size_t line_start = json_.substr(0, start).rfind('\n');
    const auto line = 1 + std::count(json_.begin(), json_.begin() + static_cast<std::ptrdiff_t>(start), '\n');
    const size_t column = line_start == std::string_view::npos ? start + 1 : start - line_start;
    const std::string_view rest = json_.substr(start);
    const std::string_view word = rest.substr(0, std::max<size_t>(1, rest.find_first_of(kBetweenTokens)));
    fail("broken JSON at line ", line, ", column ", column, ": found ",
         rest.empty() ? std::string("the end of the file") : shown(word), ", wanted ", wanted());
  }

 private:
  static constexpr std::string_view kBetweenTokens = " \t\r\n,:[]{}";
  static bool is_between_tokens(char c) { return kBetweenTokens.find(c) != std::string_view::npos; }

  static bool is_known(std::string_view key) {
    static constexpr std::string_view kKeys[] = {"alphas", "betas",      "sink",          "n_heads", "n_kv_heads",
                                                 "model",  "created_by", "density",       "lengths", "influence",
                                                 "window", "span_step",  "format_version"};
    return std::find(std::begin(kKeys), std::end(kKeys), key) != std::end(kKeys);
  }
  bool seen(std::string_view key) const { return std::find(seen_.begin(), seen_.end(), key) != seen_.end(); }
  bool is_table() const { return key_ == "alphas" || key_ == "betas"; }
  bool is_text_of_model() const { return sub_key_ == "name" || sub_key_ == "fingerprint"; }
  std::vector<std::vector<double>>& rows() { return key_ == "alphas" ? plan_.alphas : plan_.betas; }

  // What may stand at the present place, for messages.
  std::string wanted() const {
    if (depth_ == 0) return "an object with \"alphas\" and \"betas\"";
    if (is_table()) {
      if (depth_ == 1) return "an array of layers";
      if (depth_ == 2) return "an array of a layer's heads";
      return key_ == "alphas" ? "a finite number (tokens)" : "a number from 0 to 1";
    }
    if (key_ == "sink") return "an integer from 0 to " + std::to_string(kMaxSinkTokens) + " (tokens)";
    if (key_ == "n_heads" || key_ == "n_kv_heads") return "an integer from 1 to " + std::to_string(kMaxPlanHeads);
    if (key_ == "window" || key_ == "span_step")
      return "an integer from 1 to " + std::to_string(kMaxWindow) + " (tokens)";
    if (key_ == "format_version") return "a positive integer";
    if (key_ == "density") return "a number above 0, at most 1";
    if (key_ == "lengths") return depth_ == 1 ? "an array of lengths" : "a positive integer (tokens)";
    if (key_ == "model" && depth_ == 1) return "an object";
    if (is_known(key_)) return "a text of at most " + std::to_string(kMaxTextBytes) + " bytes";
    return "valid JSON";
  }

  // "betas, layer 3, head 2: ", as far as it is known.
  std::string place() {
    if (depth_ == 0 || !is_known(key_)) return {};
    std::string text = key_;
    if (is_table() && depth_ >= 2) {
      const auto& table = rows();
      if (depth_ == 2) return text + ", layer " + std::to_string(table.size()) + ": ";
      text += ", layer " + std::to_string(table.size() - 1) + ", head " + std::to_string(table.back().size());
    } else if (key_ == "model" && depth_ >= 2 && is_text_of_model()) {
      text += ", " + sub_key_;
    }
    return text + ": ";
  }

  template <typename... Parts>
  [[noreturn]] void fail(const Parts&... parts) {
    throw Error::bad_file(name_, place(), parts...);
  }
  [[noreturn]] void wrong(std::string_view found) { fail("found ", found, ", wanted ", wanted()); }

  void open(std::string_view what) {
    if (depth_ >= kMaxDepth) fail("found ", what, " nested deeper than ", kMaxDepth, " levels");
    ++depth_;
  }
  bool close() {
    --depth_;
    if (depth_ == 1) key_.clear();
    if (depth_ == 2) sub_key_.clear();
    return true;
  }

  bool scalar(const Scalar& value) {
    if (depth_ == 0) wrong(value.found);
    if (is_table()) return entry(value);
    if (!is_known(key_)) return true;
    if (key_ == "lengths") {
      if (depth_ != 2 || positive(value) == 0) wrong(value.found);
      if (plan_.info.lengths.size() >= kMaxLengths) fail("found more than ", kMaxLengths, " lengths");
      plan_.info.lengths.push_back(value.integer);
    } else if (key_ == "model") {
      if (depth_ == 1) wrong(value.found);
      if (depth_ == 2 && sub_key_ == "name") plan_.info.model_name = text(value);
      if (depth_ == 2 && sub_key_ == "fingerprint") plan_.info.model_fingerprint = text(value);
    } else if (key_ == "created_by") {
      plan_.info.created_by = text(value);
    } else if (key_ == "influence") {
      plan_.info.influence = text(value);
    } else if (key_ == "density") {
      if (!value.is_number() || !(value.number > 0 && value.number <= 1)) wrong(value.found);
      plan_.info.density = value.number;
    } else if (key_ == "window" || key_ == "span_step") {
      const int64_t tokens = positive(value);
      if (tokens == 0 || tokens > kMaxWindow) wrong(value.found);
      (key_ == "window" ? plan_.window : plan_.span_step) = tokens;
    } else if (key_ == "sink") {
      if (value.kind != Scalar::Kind::kInteger || value.integer < 0 || value.integer > kMaxSinkTokens)
        wrong(value.found);
      plan_.n_sink_tokens = value.integer;
    } else {
      const int64_t count = positive(value);
      if (count == 0 || (key_ != "format_version" && count > kMaxPlanHeads)) wrong(value.found);
      if (key_ == "n_heads") plan_.n_heads = count;
      if (key_ == "n_kv_heads") plan_.n_kv_heads = count;
      if (key_ == "format_version" && count > kPlanFormatVersion)
        throw Error::unsupported(name_.string(), ": format_version: found ", count, ", this program reads up to ",
                                 kPlanFormatVersion);
    }
    return true;
  }

  // One rule's alpha or beta.
  bool entry(const Scalar& value) {
    if (depth_ != 3 || !value.is_number() || !std::isfinite(value.number)) wrong(value.found);
    if (key_ == "betas" && !(value.number >= 0 && value.number <= 1)) wrong(value.found);
    if (key_ == "alphas" && !(std::abs(value.number) <= kMaxAlpha))
      fail("found ", value.found, ", wanted at most ", kMaxAlpha, " tokens");
    int64_t& n_rules = key_ == "alphas" ? n_alphas_ : n_betas_;
    if (++n_rules > kMaxPlanRules) fail("found more than ", kMaxPlanRules, " rules");
    rows().back().push_back(value.number);
    return true;
  }

  static int64_t positive(const Scalar& value) {  // 0: it is none
    return value.kind == Scalar::Kind::kInteger && value.integer > 0 ? value.integer : 0;
  }
  const std::string& text(const Scalar& value) {
    if (value.kind != Scalar::Kind::kText || value.text.size() > kMaxTextBytes) wrong(value.found);
    return value.text;
  }

  std::string_view json_;
  const std::filesystem::path& name_;
  PlanFile plan_;
  int64_t depth_ = 0;    // containers open
  std::string key_;      // of the outermost object; "" between keys and for long (hence unknown) ones
  std::string sub_key_;  // inside "model"
  std::vector<std::string> seen_;
  int64_t n_alphas_ = 0, n_betas_ = 0;
};

// A JSON value in its shortest form that reads back as the same value; bytes that are no UTF-8 become U+FFFD.
std::string dumped(const Json& value) { return value.dump(-1, ' ', false, Json::error_handler_t::replace); }

void write_table(std::ostream& out, std::string_view key, const std::vector<std::vector<double>>& table) {
  out << ",\n  \"" << key << "\": [";
  for (size_t layer = 0; layer < table.size(); ++layer)
    out << (layer == 0 ? "\n    " : ",\n    ") << dumped(Json(table[layer]));
  out << "\n  ]";
}

}  // namespace

PlanFile read_plan_file(std::string_view json, const std::filesystem::path& name) {
  if (static_cast<int64_t>(json.size()) > kMaxPlanFileBytes)
    throw Error::bad_file(name, "found ", json.size(), " bytes, wanted a plan of at most ", kMaxPlanFileBytes);
  PlanReader reader(json, name);
  Json::sax_parse(json.begin(), json.end(), &reader);
  return reader.finish();
}

std::string write_plan_file(const PlanFile& plan) {
  std::ostringstream out;
  out << "{\n  \"format_version\": " << kPlanFormatVersion;
  const SpanPlan::Info& info = plan.info;
  if (!info.model_name.empty() || !info.model_fingerprint.empty())
    out << ",\n  \"model\": " << dumped({{"name", info.model_name}, {"fingerprint", info.model_fingerprint}});
  if (plan.n_sink_tokens) out << ",\n  \"sink\": " << *plan.n_sink_tokens;
  if (plan.n_heads) out << ",\n  \"n_heads\": " << *plan.n_heads;
  if (plan.n_kv_heads) out << ",\n  \"n_kv_heads\": " << *plan.n_kv_heads;
  if (plan.window) out << ",\n  \"window\": " << *plan.window;
  if (plan.span_step) out << ",\n  \"span_step\": " << *plan.span_step;
  if (!info.lengths.empty()) out << ",\n  \"lengths\": " << dumped(Json(info.lengths));
  if (info.density) out << ",\n  \"density\": " << dumped(Json(*info.density));
  if (!info.influence.empty()) out << ",\n  \"influence\": " << dumped(Json(info.influence));
  if (!info.created_by.empty()) out << ",\n  \"created_by\": " << dumped(Json(info.created_by));
  write_table(out, "alphas", plan.alphas);
  write_table(out, "betas", plan.betas);
  out << "\n}\n";
  return out.str();
}

}  // namespace polyspan
