#include "moa/run_directory.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <fstream>
#include <iomanip>
#include <iterator>
#include <sstream>
#include <system_error>
#include <tuple>

#include "core/error.h"
#include "core/fnv1a.h"
#include "core/mapped_file.h"

namespace polyspan {
namespace fs = std::filesystem;
namespace {

std::string read_whole(const fs::path& path) { return std::string(MappedFile(path).text()); }

OrderedJson parse_object(std::string_view text, const fs::path& path) {
  const OrderedJson document = OrderedJson::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!document.is_object())
    throw Error::bad_file(path, "found no JSON object; the file was changed or belongs to something else");
  return document;
}

// A field of the type that is wanted.
template <typename T>
T field(const OrderedJson& object, const char* name, const fs::path& path) {
  const auto found = object.find(name);
  if (found == object.end()) throw Error::bad_file(path, "field \"", name, "\" is missing");
  try {
    return found->get<T>();
  } catch (const nlohmann::json::exception&) {
    throw Error::bad_file(path, "field \"", name, "\" holds ", found->type_name(), ", which is not what belongs there");
  }
}

// Seven digits: more than an influence has that mean something, and a third of the file.
double shortened(double value) {
  char text[40];
  std::snprintf(text, sizeof text, "%.7g", value);
  return std::strtod(text, nullptr);
}
std::vector<double> shortened(const std::vector<double>& values) {
  std::vector<double> out;
  out.reserve(values.size());
  for (const double value : values) out.push_back(shortened(value));
  return out;
}

}  // namespace

RunDirectory::RunDirectory(fs::path folder) : folder_(std::move(folder)) {
  std::error_code error;
  if (fs::exists(folder_, error) && !fs::is_directory(folder_, error))
    throw Error::io(folder_, "found a file, wanted a folder for the run");
  fs::create_directories(folder_, error);
  if (error) throw Error::io(folder_, "cannot make the folder: ", error.message());
  lock_.emplace(folder_);
}

bool RunDirectory::has(std::string_view name) const {
  std::error_code error;
  return fs::is_regular_file(path(name), error);
}

void RunDirectory::write_json(std::string_view name, OrderedJson document) const {
  const fs::path to = path(name);
  std::error_code error;
  fs::create_directories(to.parent_path(), error);
  if (error) throw Error::io(to.parent_path(), "cannot make the folder: ", error.message());
  OrderedJson whole = {{"format_version", kRunFormatVersion}};
  whole.update(document);
  write_file_atomically(to, whole.dump(1, ' ', false, OrderedJson::error_handler_t::replace) + "\n");
}

OrderedJson RunDirectory::read_json(std::string_view name) const {
  OrderedJson document = parse_object(read_whole(path(name)), path(name));
  const auto version = field<int64_t>(document, "format_version", path(name));
  if (version != kRunFormatVersion)
    throw Error(ErrorKind::kUnsupported, path(name).string() + ": found format_version " + std::to_string(version) +
                                             ", this program reads " + std::to_string(kRunFormatVersion));
  return document;
}

void RunDirectory::remove(std::string_view name) const {
  std::error_code ignored;
  fs::remove(path(name), ignored);
}

void RunDirectory::log(std::string_view line) const {
  std::ofstream file(path("log.txt"), std::ios::app);
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  file << std::put_time(&utc, "%Y-%m-%d %H:%M:%S ") << line << '\n';
  file.flush();
  if (!file) throw Error::io(path("log.txt"), "cannot be written");
}

std::vector<StoredSample> RunDirectory::read_samples() const {
  std::vector<StoredSample> samples;
  if (!has("samples.jsonl")) return samples;
  const fs::path from = path("samples.jsonl");
  std::istringstream lines(read_whole(from));
  for (std::string line; std::getline(lines, line);) {
    const OrderedJson object = parse_object(line, from);
    StoredSample stored;
    CalibrationSample& s = stored.sample;
    stored.role = field<std::string>(object, "role", from);
    s.id = field<std::string>(object, "id", from), s.kind = field<std::string>(object, "kind", from);
    s.length = field<int64_t>(object, "length", from), s.seed = field<uint64_t>(object, "seed", from);
    s.retrieval = field<bool>(object, "retrieval", from), s.answer = field<std::string>(object, "answer", from);
    s.tokens = field<std::vector<TokenId>>(object, "tokens", from),
    s.targets = field<std::vector<int64_t>>(object, "targets", from);
    samples.push_back(std::move(stored));
  }
  return samples;
}

void RunDirectory::write_samples(const std::vector<StoredSample>& samples) const {
  std::vector<const StoredSample*> ordered;  // the same file whatever the order in which a resumed run came to them
  for (const StoredSample& stored : samples) ordered.push_back(&stored);
  std::sort(ordered.begin(), ordered.end(), [](const StoredSample* a, const StoredSample* b) {
    return std::tie(a->role, a->sample.id) < std::tie(b->role, b->sample.id);
  });
  std::string text;
  for (const StoredSample* stored : ordered) {
    const auto& [s, role] = *stored;
    const OrderedJson object = {{"id", s.id},         {"role", role},         {"kind", s.kind},
                                {"length", s.length}, {"seed", s.seed},       {"retrieval", s.retrieval},
                                {"answer", s.answer}, {"targets", s.targets}, {"tokens", s.tokens}};
    text += object.dump(-1, ' ', false, OrderedJson::error_handler_t::replace) + "\n";
  }
  write_file_atomically(path("samples.jsonl"), text);
}

std::string RunDirectory::profile_name(std::string_view round, std::string_view sample_id) {
  std::string id(sample_id);
  for (char& byte : id)
    if (byte == '/') byte = '-';
  return "profile/" + std::string(round) + "/" + id + ".json";
}

void RunDirectory::write_profile(std::string_view round, const SampleProfile& p) const {
  OrderedJson document = {{"id", p.id},
                          {"round", round},
                          {"kind", p.kind},
                          {"length", p.length},
                          {"accepted", p.accepted},
                          {"loss", p.loss},
                          {"log_odds", p.log_odds},
                          {"dense_log_odds", p.dense_log_odds},
                          {"n_targets", p.n_targets},
                          {"n_right", p.n_right},
                          {"forward_s", shortened(p.forward_s)},
                          {"backward_s", shortened(p.backward_s)}};
  if (p.accepted) {
    document["targets"] = p.targets;
    document["candidate_spans"] = p.candidate_spans;
  }
  if (p.accepted && !p.is_broken()) {
    document["n_layers"] = p.influence.n_layers;
    document["n_heads"] = p.influence.n_heads;
    document["influence"] = {{"span", shortened(p.influence.span)},
                             {"span_abs", shortened(p.influence.span_abs)},
                             {"span_square", shortened(p.influence.span_square)},
                             {"pairwise", shortened(p.influence.pairwise)}};
  }
  // One number a line would make a file of thousands of lines.
  const fs::path to = path(profile_name(round, p.id));
  std::error_code error;
  fs::create_directories(to.parent_path(), error);
  if (error) throw Error::io(to.parent_path(), "cannot make the folder: ", error.message());
  OrderedJson whole = {{"format_version", kRunFormatVersion}};
  whole.update(document);
  write_file_atomically(to, whole.dump() + "\n");
}

SampleProfile RunDirectory::read_profile(std::string_view round, const CalibrationSample& sample) const {
  const std::string name = profile_name(round, sample.id);
  const fs::path from = path(name);
  const OrderedJson object = read_json(name);
  SampleProfile p;
  p.id = field<std::string>(object, "id", from), p.kind = field<std::string>(object, "kind", from),
  p.length = field<int64_t>(object, "length", from);
  if (p.id != sample.id || p.length != sample.length || p.kind != sample.kind)
    throw Error::bad_file(from, "found the result of ", p.id, ", wanted that of ", sample.id);
  p.accepted = field<bool>(object, "accepted", from), p.loss = field<double>(object, "loss", from);
  p.log_odds = field<double>(object, "log_odds", from),
  p.dense_log_odds = field<double>(object, "dense_log_odds", from);
  p.n_targets = field<int64_t>(object, "n_targets", from), p.n_right = field<int64_t>(object, "n_right", from);
  p.forward_s = field<double>(object, "forward_s", from), p.backward_s = field<double>(object, "backward_s", from);
  if (!p.accepted) return p;
  p.targets = field<std::vector<int64_t>>(object, "targets", from);
  for (const int64_t target : p.targets)
    if (target < 1 || target >= std::ssize(sample.tokens))
      throw Error::bad_file(from, "found a target at ", target, " of ", sample.tokens.size(), " tokens");
  p.candidate_spans = field<std::vector<int64_t>>(object, "candidate_spans", from);
  if (p.is_broken()) return p;
  SpanInfluence& in = p.influence;
  in.n_layers = field<int64_t>(object, "n_layers", from), in.n_heads = field<int64_t>(object, "n_heads", from);
  in.n_candidates = std::ssize(p.candidate_spans);
  const auto values = field<OrderedJson>(object, "influence", from);
  in.span = field<std::vector<double>>(values, "span", from),
  in.span_abs = field<std::vector<double>>(values, "span_abs", from);
  in.span_square = field<std::vector<double>>(values, "span_square", from);
  in.pairwise = field<std::vector<double>>(values, "pairwise", from);
  const bool sane = in.n_layers >= 1 && in.n_layers <= (1 << 16) && in.n_heads >= 1 && in.n_heads <= (1 << 16);
  for (const auto* part : {&in.span, &in.span_abs, &in.span_square, &in.pairwise})
    if (!sane || part->size() != in.at(in.n_layers, 0, 0))
      throw Error::bad_file(from, "found ", part->size(),
                            " influences, wanted one for each layer, head and candidate span");
  return p;
}

std::string model_fingerprint(const GgufFile& file) {
  Fnv1a hash;
  const int64_t size = file.file_bytes();
  hash.add(std::as_bytes(std::span(&size, 1)));
  const std::span<const std::byte> all = file.mapping().bytes();
  size_t data_begin = all.size();
  for (const GgufTensor& tensor : file.tensors())
    data_begin = std::min(data_begin, static_cast<size_t>(tensor.data.data() - all.data()));
  hash.add(all.first(data_begin));
  for (const GgufTensor& tensor : file.tensors())
    hash.add(tensor.data.first(std::min<size_t>(tensor.data.size(), 4096)));
  return hash.hex();
}

OrderedJson describe_model(const GgufFile& file, const ModelConfig& config) {
  const HeadShape shape = config.head_shape();
  OrderedJson model = {{"name", config.name},
                       {"file", file.path().filename().string()},
                       {"fingerprint", model_fingerprint(file)},
                       {"architecture", config.architecture},
                       {"quantization", config.quantization},
                       {"n_layers", shape.n_layers},
                       {"n_heads", config.n_heads},
                       {"n_kv_heads", config.n_kv_heads},
                       {"head_dim", config.head_dim},
                       {"context_length", config.context_length}};
  if (shape.window > 0) model["window"] = shape.window, model["span_step"] = shape.span_step;
  return model;
}

}  // namespace polyspan
