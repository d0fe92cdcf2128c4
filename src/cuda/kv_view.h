// cuda/kv_view.h: how keys and values lie in GPU memory. Plain data, for host and device code.
//
// The storage of one KV head is row-major, so that 8 to 16 lanes read a key in one access:
//   f16, bf16: keys [capacity][head_dim], values [capacity][head_dim]
//   f8:        the same in e4m3 (1 byte; OCP 8-bit floating point), values beyond 448 as 448
//   q8:        key codes (int8) [capacity][head_dim], value codes, key scales (f32) [capacity], value scales
// Its size is that of the CPU's storage (ops/kv_storage.h) where head_dim is a multiple of 16: a KvLayout serves both.
// Slots: the sink, then the ring (model/kv_cache.h). A q8 row is scale * code, scale = max |x| / 127.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/kv_storage.h"

namespace polyspan::cuda {

struct KvHeadView {
  std::byte* data = nullptr;
  int32_t n_sink = 0;      // positions kept for good
  int32_t sink_slots = 0;  // the ring starts here
  int32_t ring_slots = 0;
  int32_t capacity = 0;  // sink_slots + ring_slots
};

}  // namespace polyspan::cuda
