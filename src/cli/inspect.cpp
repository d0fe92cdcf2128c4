// polyspan inspect: what a model or a plan is, and what it costs, before anything is allocated.
#include <cstdio>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "cli/cli.h"
#include "core/error.h"
#include "plan/span_plan.h"

namespace polyspan::cli {
namespace {

using Json = nlohmann::ordered_json;

struct InspectOptions {
  std::string path, model, plan, kv = "f16";
  int64_t n_kv_heads = 0, head_dim = 0;
  std::vector<int64_t> lengths;
  bool json = false, heads = false;
};

bool is_gguf(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  char magic[4] = {};
  return file.read(magic, 4) && std::memcmp(magic, "GGUF", 4) == 0;
}

std::vector<int64_t> default_lengths(int64_t context) {
  std::vector<int64_t> lengths;
  for (int64_t n = 2048; n < context; n *= 2) lengths.push_back(n);
  lengths.push_back(context);
  return lengths;
}

Json spans_json(const SpanPlan& plan, int64_t length) {
  const SpanTable table = plan.spans(length);
  return {{"length", length}, {"query_heads", table.query_head_spans}, {"kv_heads", table.kv_head_spans}};
}

// One line a length: share of the dense cache and bytes.
Json density_rows(const SpanPlan& plan, const std::vector<int64_t>& lengths, const ModelConfig* config,
                  int64_t head_dim, KvType type) {
  Json rows = Json::array();
  for (int64_t n : lengths) {
    Json row = {{"length", n}};
    const SpanTable table = plan.spans(n);
    const double kept = plan.density(n);
    // A file that names no sink (the published form) is described without one; the engine keeps 64 sink tokens all the same.
    row["density"] = plan.names_sink() ? kept : plan.mean_relative_span(n);
    row["mean_relative_span"] = plan.mean_relative_span(n);
    row["kv_density"] = kept;
    row["kv_density_without_sink"] = plan.density_without_sink(n);
    if (config != nullptr) {
      row["kv_bytes"] = KvLayout(*config, plan, n, type).bytes;
      row["dense_kv_bytes"] = KvLayout(*config, SpanPlan::dense(config->head_shape()), n, type).bytes;
    } else if (head_dim > 0) {
      ModelConfig shape;
      shape.n_layers = plan.shape().n_layers, shape.n_heads = plan.shape().n_heads,
      shape.n_kv_heads = plan.shape().n_kv_heads;
      shape.head_dim = head_dim;
      row["kv_bytes"] = KvLayout(shape, plan, n, type).bytes;
    } else {
      row["kv_bytes"] = nullptr;  // needs the size of a head: --model or --head-dim
    }
    rows.push_back(std::move(row));
  }
  return rows;
}

void print_density_rows(const Json& rows, bool of_windows = false) {
  print(of_windows ? "    length   density    of the windows   state bytes\n"
                   : "    length   density   of the KV cache   cache bytes\n");
  for (const Json& row : rows) {
    char line[160];
    std::snprintf(line, sizeof line, "%10lld   %7.3f   %15.3f   %s\n", static_cast<long long>(row["length"]),
                  row["density"].get<double>(), row["kv_density"].get<double>(),
                  row["kv_bytes"].is_null() ? "(needs --model or --head-dim)" : human_bytes(row["kv_bytes"]).c_str());
    print(line);
  }
}

void inspect_model(const InspectOptions& o) {
  const GgufFile file = GgufFile::open(o.path);
  const ModelConfig config = read_config(file);
  const SpanPlan plan = o.plan.empty() ? config.default_plan() : SpanPlan::from_spec(o.plan, config.head_shape());
  const std::vector<int64_t> lengths = o.lengths.empty() ? default_lengths(config.context_length) : o.lengths;
  const Json rows = density_rows(plan, lengths, &config, config.head_dim, kv_type_by_name(o.kv));
  std::string chat = "none";
  try {
    if (const std::optional<ChatFormat> format = ChatFormat::recognize(file)) chat = chat_format_name(format->kind());
  } catch (const Error&) {
    chat = "not recognised";
  }
  Json document = {{"file", o.path},
                   {"file_bytes", file.file_bytes()},
                   {"architecture", config.architecture},
                   {"name", config.name},
                   {"n_layers", config.n_layers},
                   {"n_heads", config.n_heads},
                   {"n_kv_heads", config.n_kv_heads},
                   {"head_dim", config.head_dim},
                   {"d_model", config.d_model},
                   {"d_ff", config.d_ff},
                   {"vocab_size", config.vocab_size},
                   {"context_length", config.context_length},
                   {"parameters", config.n_parameters},
                   {"quantisation", config.quantization},
                   {"rope_base", config.rope.base},
                   {"rope_linear_scale", config.rope.linear_scale},
                   {"sliding_window", config.sliding_window},
                   {"tokenizer", file.find_string("tokenizer.ggml.model").value_or("")},
                   {"pre_tokenizer", file.find_string("tokenizer.ggml.pre").value_or("")},
                   {"chat_format", chat},
                   {"plan", o.plan.empty() ? "dense" : o.plan},
                   {"kv_type", o.kv},
                   {"densities", rows}};
  if (config.hydra) {  // what a plan gives spans to
    const HydraConfig& hydra = *config.hydra;
    document["kv_type"] = "none: the state is float32";
    document["attention_blocks"] = Json::array();
    for (int64_t layer = 0; layer < hydra.n_layers; ++layer)
      if (hydra.has_attention(layer)) document["attention_blocks"].push_back(layer);
    document["window"] = hydra.window;
    document["global_tokens"] = hydra.n_global;
    document["chunk"] = hydra.chunk_len;
  }
  if (o.heads) document["spans"] = spans_json(plan, lengths.back());
  if (o.json) return print(document.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
  for (const auto& [key, value] : document.items())
    if (key != "densities" && key != "spans") {
      const std::string text = value.is_string() ? value.get<std::string>() : value.dump();
      print(key + std::string(key.size() < 20 ? 20 - key.size() : 1, ' ') + text + "\n");
    }
  print_density_rows(rows, config.hydra.has_value());
  if (o.heads) print(document["spans"].dump() + "\n");
}

void inspect_plan(const InspectOptions& o) {
  std::optional<HeadShape> shape;
  std::optional<ModelConfig> config;
  if (!o.model.empty()) {
    const GgufFile file = GgufFile::open(o.model);
    config = read_config(file);
    shape = config->head_shape();
  }
  SpanPlan plan = SpanPlan::load(o.path, shape);
  if (!shape && o.n_kv_heads > 0) {
    const int64_t n_heads = plan.rules_per_layer();
    if (n_heads % o.n_kv_heads != 0)
      throw Error::usage("--kv-heads ", o.n_kv_heads, " does not divide the plan's ", n_heads, " heads a layer");
    plan = SpanPlan::load(o.path, HeadShape{plan.shape().n_layers, n_heads, o.n_kv_heads});
  }
  const std::vector<int64_t> lengths = !o.lengths.empty()             ? o.lengths
                                       : !plan.info().lengths.empty() ? plan.info().lengths
                                                                      : std::vector<int64_t>{2048, 4096, 8192, 16384};
  const Json rows = density_rows(plan, lengths, config ? &*config : nullptr, o.head_dim, kv_type_by_name(o.kv));
  Json document = {{"file", o.path},
                   {"n_layers", plan.shape().n_layers},
                   {"n_heads", plan.shape().n_heads},
                   {"n_kv_heads", plan.shape().n_kv_heads},
                   {"per_query_head", plan.per_query_head()},
                   {"sink", plan.n_sink_tokens()},
                   {"window", plan.shape().window},
                   {"model", plan.info().model_name},
                   {"created_by", plan.info().created_by},
                   {"kv_type", o.kv},
                   {"densities", rows}};
  if (o.heads) document["spans"] = spans_json(plan, lengths.back());
  if (o.json) return print(document.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
  for (const auto& [key, value] : document.items())
    if (key != "densities" && key != "spans") {
      const std::string text = value.is_string() ? value.get<std::string>() : value.dump();
      if (!text.empty()) print(key + std::string(key.size() < 20 ? 20 - key.size() : 1, ' ') + text + "\n");
    }
  print_density_rows(rows, plan.shape().window > 0);
  if (o.heads) print(document["spans"].dump() + "\n");
}

void inspect(const InspectOptions& o) {
  std::error_code error;
  if (std::filesystem::is_directory(o.path, error))
    throw Error::bad_input(o.path, ": this is a directory without a run of polyspan");
  if (!std::filesystem::exists(o.path, error)) throw Error::io(o.path, "there is no such file");
  if (is_gguf(o.path) || std::filesystem::path(o.path).extension() == ".gguf") return inspect_model(o);
  if (std::filesystem::path(o.path).extension() == ".toml") return inspect_config(o.path, o.lengths, o.json);
  inspect_plan(o);
}

}  // namespace

void add_inspect(CLI::App& app) {
  const auto o = std::make_shared<InspectOptions>();
  CLI::App* command = app.add_subcommand("inspect", "Show what a model or a plan is, and what its cache costs");
  command->add_option("path", o->path, "a GGUF model, a plan file, or the TOML file of a training run")->required();
  command->add_option("--length", o->lengths, "context lengths in tokens, comma separated")
      ->delimiter(',')
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 31));
  command->add_option("--plan", o->plan, "of a model: cache under this plan (file, uniform:DENSITY, dense)");
  command->add_option("--model", o->model, "of a plan: the model it is for (gives KV heads and bytes)");
  command->add_option("--kv-heads", o->n_kv_heads, "of a plan: KV heads a layer, where no model is at hand")
      ->check(CLI::PositiveNumber);
  command->add_option("--head-dim", o->head_dim, "of a plan: dimensions of a head, where no model is at hand")
      ->check(CLI::Range(1, 512));
  command->add_option("--kv", o->kv, "element type of the cache: f16, bf16, q8 or f8 (on a GPU only)")
      ->capture_default_str();
  command->add_flag("--heads", o->heads, "the span of every head at the last length");
  command->add_flag("--json", o->json, "print one JSON document on standard output");
  command->footer(
      "Examples:\n"
      "  polyspan inspect model.gguf --length 8192 --plan uniform:0.25\n"
      "  polyspan inspect plan.json --length 4096,8192 --json\n"
      "  polyspan inspect plan.json --kv-heads 8 --head-dim 128 --length 16384\n"
      "  polyspan inspect bench/hydra/hydra-1.6b.toml");
  command->callback([o] { inspect(*o); });
}

}  // namespace polyspan::cli
