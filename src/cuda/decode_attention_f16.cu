#include "cuda/decode_launch.cuh"

namespace polyspan::cuda {
POLYSPAN_DECODE_ATTENTION(KvType::kF16)
}  // namespace polyspan::cuda
