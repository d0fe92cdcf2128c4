#include "cuda/decode_launch.cuh"

namespace polyspan::cuda {
POLYSPAN_DECODE_ATTENTION(KvType::kF8)
}  // namespace polyspan::cuda
