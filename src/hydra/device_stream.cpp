#include "hydra/device_stream.h"

#ifdef POLYSPAN_HAS_HYDRA_KERNELS
#include <c10/core/impl/VirtualGuardImpl.h>

#include "hydra/ssm_kernels.h"
#endif

namespace polyspan {

#ifdef POLYSPAN_HAS_HYDRA_KERNELS
DeviceStream::DeviceStream(const torch::Device& device)
    : handle_(c10::impl::VirtualGuardImpl(device.type()).getStream(device).native_handle()) {
  hydra::use_device(device.index());
}
bool DeviceStream::is_for(const torch::Device& device) { return device.is_cuda(); }
#else
DeviceStream::DeviceStream(const torch::Device&) : handle_(nullptr) {}
bool DeviceStream::is_for(const torch::Device&) { return false; }
#endif

}  // namespace polyspan
