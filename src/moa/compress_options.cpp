#include "moa/compress_options.h"

#include <algorithm>
#include <charconv>
#include <set>

#include "core/error.h"
#include "moa/calibration.h"
#include "moa/influence.h"
#include "plan/span_plan.h"

namespace polyspan {
namespace {

constexpr int64_t kMostSamples = 10'000;

template <typename T>
void read(const nlohmann::ordered_json& json, const std::filesystem::path& file, const char* name, T& value) {
  const auto found = json.find(name);
  if (found == json.end()) throw Error::bad_file(file, "options: field \"", name, "\" is missing");
  try {
    value = found->template get<T>();
  } catch (const nlohmann::json::exception&) {
    throw Error::bad_file(file, "options: field \"", name, "\" holds ", found->type_name(),
                          ", which is not what belongs there");
  }
}

void check_count(const char* option, int64_t value, int64_t least) {
  if (value < least || value > kMostSamples)
    throw Error::usage(option, " is ", value, "; it must be between ", least, " and ", kMostSamples);
}

void check_kind(const char* option, const std::string& kind) {
  const auto known = calibration_kinds();
  if (kind == "document" || std::find(known.begin(), known.end(), kind) != known.end()) return;
  std::string names;
  for (const std::string_view name : known) names += std::string(name) + ", ";
  throw Error::usage(option, ": there is no kind \"", kind, "\" (known: ", names, "document)");
}

}  // namespace

CompressOptions CompressOptions::quick_preset() {
  CompressOptions o;
  o.quick = true;
  o.lengths = {1024, 2048};
  o.extend = {4096};
  o.samples = 1;
  o.steps = 1;
  o.validation_samples = 2;
  return o;
}

void CompressOptions::check() const {
  if (densities.empty()) throw Error::usage("--density names no density");
  std::set<double> seen;
  for (const double density : densities) {
    if (!(density > 0 && density < 1))
      throw Error::usage("--density ", density, "; a density lies between 0 and 1 (1 would be the dense model)");
    if (!seen.insert(density).second) throw Error::usage("--density names ", density, " twice");
  }
  std::set<int64_t> all;
  for (const auto* part : {&lengths, &extend})
    for (const int64_t length : *part) {
      if (length < 4 * kBlockTokens)
        throw Error::usage("a length of ", length, " tokens; at least ", 4 * kBlockTokens,
                           " are needed: the smallest span is ", kBlockTokens);
      if (!all.insert(length).second) throw Error::usage("--lengths and --extend name ", length, " twice");
    }
  if (lengths.empty()) throw Error::usage("--lengths names no length");
  for (const int64_t length : extend)
    if (length < *std::max_element(lengths.begin(), lengths.end()))
      throw Error::usage("--extend ", length, " is shorter than the longest of --lengths; add it there");
  for (const std::string& kind : kinds) check_kind("--kinds", kind);
  if (std::find(kinds.begin(), kinds.end(), "document") != kinds.end() && documents.empty())
    throw Error::usage("--kinds document needs --documents FILE");
  check_count("--samples", samples, 1);
  check_count("--steps", steps, 0);
  check_count("--step-samples", step_samples, 1);
  for (const auto& [kind, weight] : weights) {
    check_kind("--weights", kind);
    if (!(weight >= 0 && weight <= 1000))
      throw Error::usage("--weights: ", kind, " has ", weight, "; a weight lies between 0 and 1000");
  }
  check_count("--validation-samples", validation_samples, 1);
  check_count("--refine", refine, 0);
  check_count("--refine-samples", refine_samples, 2);
}

void CompressOptions::check_model(const ModelConfig& config) const {
  if (config.hydra) {
    if (config.hydra->n_attention_layers() == 0)
      throw Error::unsupported("this model has no attention: there are no spans to find");
    if (candidate_spans(config.head_shape(), config.hydra->window).size() < 2)
      throw Error::unsupported("the heads of this model have windows of ", config.hydra->window,
                               " tokens in chunks of ", config.hydra->chunk_len,
                               ": there is no shorter span of at least ", kBlockTokens);
    if (per_query_head) throw Error::unsupported("--per-query-head: the heads of a hydra model have spans by KV head");
    if (influence == Estimator::kPairwise)
      throw Error::unsupported("--influence pairwise needs gradients; a hydra model is profiled by forward passes");
  }
  for (const auto* part : {&lengths, &extend})
    for (const int64_t length : *part)
      if (length > config.context_length)
        throw Error::bad_input("a length of ", length, " tokens is more than the context of ", config.context_length,
                               " that the model was trained for; choose --lengths and --extend within it");
}

nlohmann::ordered_json CompressOptions::to_json() const {
  return {{"densities", densities},
          {"lengths", lengths},
          {"extend", extend},
          {"kinds", kinds},
          {"samples", samples},
          {"steps", steps},
          {"step_samples", step_samples},
          {"weights", weights},
          {"validation_samples", validation_samples},
          {"refine", refine},
          {"refine_samples", refine_samples},
          {"influence", estimator_name(influence)},
          {"loss", profile_loss_name(loss)},
          {"per_query_head", per_query_head},
          {"quick", quick},
          {"seed", seed},
          {"documents", documents},
          {"text", text}};
}

CompressOptions CompressOptions::from_json(const nlohmann::ordered_json& json, const std::filesystem::path& file) {
  CompressOptions o;
  std::string influence_text, loss_text;
  read(json, file, "densities", o.densities), read(json, file, "lengths", o.lengths),
      read(json, file, "extend", o.extend);
  read(json, file, "kinds", o.kinds), read(json, file, "samples", o.samples), read(json, file, "steps", o.steps);
  read(json, file, "step_samples", o.step_samples), read(json, file, "weights", o.weights),
      read(json, file, "validation_samples", o.validation_samples), read(json, file, "refine", o.refine),
      read(json, file, "refine_samples", o.refine_samples);
  read(json, file, "influence", influence_text), read(json, file, "loss", loss_text);
  read(json, file, "per_query_head", o.per_query_head), read(json, file, "quick", o.quick),
      read(json, file, "seed", o.seed);
  read(json, file, "documents", o.documents), read(json, file, "text", o.text);
  try {
    o.influence = estimator_by_name(influence_text);
    o.loss = profile_loss_by_name(loss_text);
    o.check();
  } catch (const Error& error) {
    throw Error::bad_file(file, "options: ", error.what());
  }
  return o;
}

int64_t CompressOptions::validation_length() const {
  const int64_t longest = *std::max_element(lengths.begin(), lengths.end());
  return extend.empty() ? longest : (3 * longest + *std::min_element(extend.begin(), extend.end())) / 4;
}

std::vector<int64_t> CompressOptions::refine_lengths() const {
  std::vector<int64_t> all = lengths;
  std::sort(all.begin(), all.end());
  if (all.size() > 2) all.erase(all.begin(), all.end() - 2);
  if (!extend.empty()) all.push_back(*std::min_element(extend.begin(), extend.end()));
  return all;
}

double CompressOptions::weight(std::string_view kind) const {
  constexpr double kRetrievalWeight = 2;
  const auto given = weights.find(std::string(kind));
  return given != weights.end() ? given->second : kind == kRunningText ? 1.0 : kRetrievalWeight;
}

std::string_view profile_loss_name(ProfileLoss loss) {
  return loss == ProfileLoss::kLogOdds ? "log-odds" : "cross-entropy";
}

ProfileLoss profile_loss_by_name(std::string_view name) {
  if (name == "log-odds") return ProfileLoss::kLogOdds;
  if (name == "cross-entropy") return ProfileLoss::kCrossEntropy;
  throw Error::usage("unknown loss \"", name, "\" (known: log-odds, cross-entropy)");
}

std::string density_name(double density) {
  char text[32];
  const auto end = std::to_chars(text, text + sizeof text, density).ptr;
  return {text, end};
}

}  // namespace polyspan
