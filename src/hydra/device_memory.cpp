#include "hydra/device_memory.h"

#if TORCH_VERSION_MAJOR > 2 || (TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 9)
#include <c10/core/CachingDeviceAllocator.h>
#define POLYSPAN_HAS_DEVICE_ALLOCATOR 1
#endif

namespace polyspan {

int64_t peak_device_bytes([[maybe_unused]] const torch::Device& device) {
#ifdef POLYSPAN_HAS_DEVICE_ALLOCATOR
  if (!device.is_cpu())
    return c10::getDeviceAllocator(device.type())
        ->getDeviceStats(device.index() < 0 ? 0 : device.index())
        .allocated_bytes[0]
        .peak;
#endif
  return 0;
}

void reset_peak_device_bytes([[maybe_unused]] const torch::Device& device) {
#ifdef POLYSPAN_HAS_DEVICE_ALLOCATOR
  if (!device.is_cpu()) c10::getDeviceAllocator(device.type())->resetPeakStats(device.index() < 0 ? 0 : device.index());
#endif
}

void empty_device_cache([[maybe_unused]] const torch::Device& device) {
#ifdef POLYSPAN_HAS_DEVICE_ALLOCATOR
  if (!device.is_cpu()) c10::getDeviceAllocator(device.type())->emptyCache();
#endif
}

}  // namespace polyspan
