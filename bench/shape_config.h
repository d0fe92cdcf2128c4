// bench/shape_config.h: the configuration of a known shape, for models whose weights are made where they run.
#pragma once

#include <string_view>

#include "core/error.h"
#include "io/random_model.h"
#include "model/config.h"

namespace polyspan::bench {

// Of any length that is timed. REQUIRES: `name` is of a llama shape that find_model_shape() knows.
inline ModelConfig shape_config(std::string_view name) {
  const std::optional<RandomModelConfig> shape = find_model_shape(name);
  POLYSPAN_CHECK(shape && shape->arch == "llama", std::string(name));
  ModelConfig config;
  config.architecture = shape->arch, config.name = name, config.context_length = 262144;
  config.n_layers = shape->n_layers, config.d_model = shape->d_model, config.d_ff = shape->d_ff;
  config.n_heads = shape->n_heads, config.n_kv_heads = shape->n_kv_heads, config.head_dim = shape->head_dim;
  config.vocab_size = shape->vocab_size;
  config.rope.n_dims = shape->head_dim, config.rope.base = shape->rope_base;
  return config;
}

}  // namespace polyspan::bench
