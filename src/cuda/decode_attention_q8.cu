#include "cuda/decode_launch.cuh"

namespace polyspan::cuda {
POLYSPAN_DECODE_ATTENTION(KvType::kQ8)
}  // namespace polyspan::cuda
