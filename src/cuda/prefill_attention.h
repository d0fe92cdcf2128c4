// cuda/prefill_attention.h: span attention of a chunk of new tokens of one sequence (MoA, arXiv 2406.14909) with the
// matrix instructions (FlashAttention-2, arXiv 2307.08691). Tiles of keys that no query of a block sees are never read.
//
// Keys come from two storages: the sequence's ring, as it was before the chunk, and the chunk itself, which is written
// into the ring afterwards (it may overwrite what its own first queries still need).
#pragma once

#include <cstdint>

#include "cuda/decode_attention.h"

namespace polyspan::cuda {

struct PrefillAttentionArgs {
  KvType type = KvType::kF16;
  int64_t n_heads = 0, n_kv_heads = 0, head_dim = 0;
  int64_t n_tokens = 0, first_position = 0;  // query t is at position first_position + t
  const float* q = nullptr;                  // [n_tokens, n_heads, head_dim] after RoPE; not scaled
  const KvHeadView* heads = nullptr;         // [n_kv_heads]: positions before first_position, as far as they are kept
  const KvHeadView* chunk = nullptr;         // [n_kv_heads]: slot t holds position first_position + t
  const int32_t* spans = nullptr;            // [n_heads]
  ActivationType out_type = ActivationType::kF32;
  void* out = nullptr;  // [n_tokens, n_heads, head_dim]
};
// Supports what decode_attention supports. Operands of the products are f16 (bf16 for a bf16 cache), sums f32.
void prefill_attention(const PrefillAttentionArgs& args, const Stream& stream);

// The two kernels that it chooses between: any GPU and cache; Hopper's instructions, f16 and bf16 caches.
void prefill_attention_mma(const PrefillAttentionArgs& args, const Stream& stream);
bool prefill_attention_wgmma_supports(const PrefillAttentionArgs& args);  // on the current GPU
void prefill_attention_wgmma(const PrefillAttentionArgs& args, const Stream& stream);

}  // namespace polyspan::cuda
