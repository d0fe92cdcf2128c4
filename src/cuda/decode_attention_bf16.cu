#include "cuda/decode_launch.cuh"

namespace polyspan::cuda {
POLYSPAN_DECODE_ATTENTION(KvType::kBF16)
}  // namespace polyspan::cuda
