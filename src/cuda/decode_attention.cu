#include "cuda/decode_attention.h"

#include "core/error.h"
#include "cuda/decode_launch.cuh"

namespace polyspan::cuda {

template <>
void launch_decode_attention<KvType::kF16>(const DecodeAttentionArgs& args, StreamHandle stream);
template <>
void launch_decode_attention<KvType::kBF16>(const DecodeAttentionArgs& args, StreamHandle stream);
template <>
void launch_decode_attention<KvType::kQ8>(const DecodeAttentionArgs& args, StreamHandle stream);
template <>
int decode_occupancy<KvType::kF16>(int64_t head_dim, int64_t n_rep);
template <>
int decode_occupancy<KvType::kBF16>(int64_t head_dim, int64_t n_rep);
template <>
int decode_occupancy<KvType::kQ8>(int64_t head_dim, int64_t n_rep);

const char* decode_attention_problem(int64_t n_heads, int64_t n_kv_heads, int64_t head_dim) {
  if (head_dim != 64 && head_dim != 128) return "heads must have 64 or 128 dimensions";
  if (n_heads % n_kv_heads != 0) return "query heads must be a multiple of the KV heads";
  return "";
}

int32_t decode_attention_blocks(KvType type, int64_t n_heads, int64_t n_kv_heads, int64_t head_dim) {
  const int64_t n_rep = n_heads / n_kv_heads;
  const int per_multiprocessor = type == KvType::kF16    ? decode_occupancy<KvType::kF16>(head_dim, n_rep)
                                 : type == KvType::kBF16 ? decode_occupancy<KvType::kBF16>(head_dim, n_rep)
                                                         : decode_occupancy<KvType::kQ8>(head_dim, n_rep);
  int device = 0, n_multiprocessors = 0;
  check(cudaGetDevice(&device), "asking for the device");
  check(cudaDeviceGetAttribute(&n_multiprocessors, cudaDevAttrMultiProcessorCount, device),
        "asking for the multiprocessors");
  return per_multiprocessor * n_multiprocessors;
}

void decode_attention(const DecodeAttentionArgs& args, const Stream& stream) {
  POLYSPAN_CHECK(args.n_blocks >= 1 && args.n_sequences >= 1);
  POLYSPAN_CHECK(*decode_attention_problem(args.n_heads, args.n_kv_heads, args.head_dim) == '\0');
  if (args.type == KvType::kF16) launch_decode_attention<KvType::kF16>(args, stream.get());
  if (args.type == KvType::kBF16) launch_decode_attention<KvType::kBF16>(args, stream.get());
  if (args.type == KvType::kQ8) launch_decode_attention<KvType::kQ8>(args, stream.get());
  check_launch("decode_attention");
}

}  // namespace polyspan::cuda
