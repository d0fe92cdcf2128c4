// io/transformer_keys.h: the sizes of a transformer as GGUF keys ("ARCH.block_count", ...), for those who write models.
#pragma once

#include <cstdint>
#include <string>

#include "io/gguf_writer.h"

namespace polyspan {

// Sizes: context_length, d_model, n_layers, d_ff, n_heads, n_kv_heads and head_dim.
template <typename Sizes>
void add_transformer_sizes(const std::string& arch, const Sizes& sizes, GgufWriter& writer) {
  const auto add = [&](const char* key, int64_t value) {
    writer.add_u32(arch + "." + key, static_cast<uint32_t>(value));
  };
  add("context_length", sizes.context_length);
  add("embedding_length", sizes.d_model);
  add("block_count", sizes.n_layers);
  add("feed_forward_length", sizes.d_ff);
  add("attention.head_count", sizes.n_heads);
  add("attention.head_count_kv", sizes.n_kv_heads);
  add("attention.key_length", sizes.head_dim);
  add("attention.value_length", sizes.head_dim);
  add("rope.dimension_count", sizes.head_dim);
}

}  // namespace polyspan
