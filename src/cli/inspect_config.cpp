// polyspan inspect CONFIG.toml: what a model of this configuration costs, part by part, beside dense transformers.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "cli/cli.h"
#include "core/error.h"
#include "recipe/train_config.h"

namespace polyspan::cli {
namespace {

using Json = nlohmann::ordered_json;

int64_t count(const std::vector<TensorSpec>& tensors) {
  int64_t n = 0;
  for (const TensorSpec& tensor : tensors) n += tensor.n_values();
  return n;
}

// A transformer of the same width, heads and vocabulary with about `parameters` in all: as many layers as that takes.
TransformerSizes dense_of(const HydraConfig& c, int64_t parameters) {
  TransformerSizes dense;
  dense.d_model = c.d_model, dense.vocab_size = c.vocab_size;
  dense.n_heads = c.n_heads, dense.n_kv_heads = c.n_kv_heads, dense.head_dim = c.head_dim;
  dense.d_ff = (c.d_model * 8 / 3 + 63) / 64 * 64;
  dense.n_layers = 1;
  const int64_t one = count(transformer_tensors(dense));
  dense.n_layers = 2;
  const int64_t layer = count(transformer_tensors(dense)) - one;
  dense.n_layers =
      std::max<int64_t>(1, std::lround(static_cast<double>(parameters - one + layer) / static_cast<double>(layer)));
  return dense;
}

// One token at context length n: products with every weight, and attention over n keys.
Json transformer_costs(const TransformerSizes& c, int64_t length) {
  const double weights = static_cast<double>(count(transformer_tensors(c)));
  return {{"length", length},
          {"flops_per_token", 2 * weights + 4.0 * static_cast<double>(c.n_layers * c.n_heads * c.head_dim * length)},
          {"state_bytes", 2 * 2 * c.n_layers * c.n_kv_heads * c.head_dim * length}};  // keys and values, f16
}

Json transformer_document(const TransformerSizes& c, const std::vector<int64_t>& lengths) {
  Json document = {{"n_layers", c.n_layers}, {"d_ff", c.d_ff}, {"parameters", count(transformer_tensors(c))}};
  for (const int64_t length : lengths) document["costs"].push_back(transformer_costs(c, length));
  return document;
}

void print_row(const char* name, double parameters, double active, double flops, const std::string& state) {
  char line[200];
  std::snprintf(line, sizeof line, "%-26s %13.0f %13.0f %11.3f   %s\n", name, parameters, active, flops / 1e9,
                state.c_str());
  print(line);
}

}  // namespace

void inspect_config(const std::string& path, std::vector<int64_t> lengths, bool json) {
  const TrainConfig config = load_train_config(path);
  if (lengths.empty()) lengths = {1024, 8192, 65536};
  if (config.architecture == "transformer") {
    Json document = {{"file", path}, {"architecture", "transformer"}};
    document.update(transformer_document(config.transformer, lengths));
    return print(document.dump(2) + "\n");
  }
  const HydraAccount total = account(config.hydra);
  const TransformerSizes same_total = dense_of(config.hydra, total.parameters);
  const TransformerSizes same_active = dense_of(config.hydra, total.active_parameters);
  if (json) {
    Json document = {{"file", path},
                     {"architecture", "hydra"},
                     {"parameters", total.parameters},
                     {"active_parameters", total.active_parameters},
                     {"flops_per_token", total.flops_per_token},
                     {"state_bytes", total.state_bytes},
                     {"parts", Json::array()}};
    for (const HydraAccount::Part& part : total.parts)
      document["parts"].push_back({{"name", part.name},
                                   {"parameters", part.parameters},
                                   {"active_parameters", part.active_parameters},
                                   {"flops_per_token", part.flops_per_token},
                                   {"state_bytes", part.state_bytes}});
    document["dense_of_same_total"] = transformer_document(same_total, lengths);
    document["dense_of_same_active"] = transformer_document(same_active, lengths);
    return print(document.dump(2) + "\n");
  }
  print("part                          parameters        active  GFLOP/token   state of a sequence\n");
  for (const HydraAccount::Part& part : total.parts)
    print_row(part.name.c_str(), static_cast<double>(part.parameters), static_cast<double>(part.active_parameters),
              part.flops_per_token, human_bytes(part.state_bytes));
  print_row("hydra, at any length", static_cast<double>(total.parameters), static_cast<double>(total.active_parameters),
            total.flops_per_token, human_bytes(total.state_bytes));
  for (const auto& [name, dense] :
       {std::pair{"transformer, same total", same_total}, std::pair{"transformer, same active", same_active}}) {
    const double n = static_cast<double>(count(transformer_tensors(dense)));
    for (const int64_t length : lengths) {
      const Json costs = transformer_costs(dense, length);
      print_row(length == lengths.front() ? name : "", n, n, costs["flops_per_token"],
                human_bytes(costs["state_bytes"]) + " at " + std::to_string(length) + " tokens (f16)");
    }
  }
}

}  // namespace polyspan::cli
