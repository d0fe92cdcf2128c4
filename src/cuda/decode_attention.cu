#include "cuda/decode_attention.h"

#include "core/error.h"
#include "cuda/decode_launch.cuh"

namespace polyspan::cuda {

template <>
void launch_decode_attention<KvType::kF16>(const DecodeAttentionArgs& args, bool wide, StreamHandle stream);
template <>
void launch_decode_attention<KvType::kBF16>(const DecodeAttentionArgs& args, bool wide, StreamHandle stream);
template <>
void launch_decode_attention<KvType::kQ8>(const DecodeAttentionArgs& args, bool wide, StreamHandle stream);
template <>
void launch_decode_attention<KvType::kF8>(const DecodeAttentionArgs& args, bool wide, StreamHandle stream);
template <>
int decode_occupancy<KvType::kF16>(int64_t head_dim, int64_t n_rep, bool wide);
template <>
int decode_occupancy<KvType::kBF16>(int64_t head_dim, int64_t n_rep, bool wide);
template <>
int decode_occupancy<KvType::kQ8>(int64_t head_dim, int64_t n_rep, bool wide);
template <>
int decode_occupancy<KvType::kF8>(int64_t head_dim, int64_t n_rep, bool wide);

const char* decode_attention_problem(int64_t n_heads, int64_t n_kv_heads, int64_t head_dim) {
  if (head_dim != 64 && head_dim != 128) return "heads must have 64 or 128 dimensions";
  if (n_heads % n_kv_heads != 0) return "query heads must be a multiple of the KV heads";
  return "";
}

DecodeWidth decode_attention_width(KvType type, int64_t n_sequences, int64_t n_heads, int64_t n_kv_heads) {
  // Measured on an H100, shares of copy bandwidth, narrow and wide: f16 32/32 heads, 1 sequence of 67 MB 77% and 80%, of 268 MB 90%
  // and 93%, 4 sequences of 268 MB 90% and 96%, 16 sequences of 4.3 GB 99% and 102%; 32/8 heads, 67 MB 66% and 73%; f8 32/8 heads,
  // 4 sequences of 134 MB 84% and 85%, 16 of 537 MB 93% and 96%.
  const bool group = n_heads != n_kv_heads && type != KvType::kQ8 && type != KvType::kF8;
  return n_sequences * n_kv_heads <= (group ? 256 : 512) ? DecodeWidth::kWide : DecodeWidth::kNarrow;
}

int32_t decode_attention_blocks(KvType type, int64_t n_heads, int64_t n_kv_heads, int64_t head_dim, DecodeWidth width) {
  const int64_t n_rep = n_heads / n_kv_heads;
  const bool wide = width == DecodeWidth::kWide;
  const auto occupancy = [&] {
    switch (type) {
      case KvType::kF16: return decode_occupancy<KvType::kF16>(head_dim, n_rep, wide);
      case KvType::kBF16: return decode_occupancy<KvType::kBF16>(head_dim, n_rep, wide);
      case KvType::kQ8: return decode_occupancy<KvType::kQ8>(head_dim, n_rep, wide);
      case KvType::kF8: return decode_occupancy<KvType::kF8>(head_dim, n_rep, wide);
    }
    return 0;
  };
  return occupancy() * n_multiprocessors();
}

void decode_attention(const DecodeAttentionArgs& args, const Stream& stream) {
  POLYSPAN_CHECK(args.n_blocks >= 1 && args.n_sequences >= 1);
  POLYSPAN_CHECK(*decode_attention_problem(args.n_heads, args.n_kv_heads, args.head_dim) == '\0');
  const DecodeWidth width = args.width == DecodeWidth::kBest
                                ? decode_attention_width(args.type, args.n_sequences, args.n_heads, args.n_kv_heads)
                                : args.width;
  const bool wide = width == DecodeWidth::kWide;
  if (args.type == KvType::kF16) launch_decode_attention<KvType::kF16>(args, wide, stream.get());
  if (args.type == KvType::kBF16) launch_decode_attention<KvType::kBF16>(args, wide, stream.get());
  if (args.type == KvType::kQ8) launch_decode_attention<KvType::kQ8>(args, wide, stream.get());
  if (args.type == KvType::kF8) launch_decode_attention<KvType::kF8>(args, wide, stream.get());
  check_launch("decode_attention");
}

}  // namespace polyspan::cuda
