#include "cuda/device.h"

#include <charconv>

#include "core/error.h"

namespace polyspan {

Device parse_device(std::string_view text) {
  if (text == "auto") return {DeviceKind::kAuto, 0};
  if (text == "cpu") return {DeviceKind::kCpu, 0};
  if (text == "cuda") return {DeviceKind::kCuda, 0};
  constexpr std::string_view kPrefix = "cuda:";
  if (text.substr(0, kPrefix.size()) == kPrefix) {
    const std::string_view digits = text.substr(kPrefix.size());
    int index = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), index);
    if (error == std::errc() && end == digits.data() + digits.size() && index >= 0) return {DeviceKind::kCuda, index};
  }
  throw Error::usage("device \"", text, "\" is not known; wanted auto, cpu, cuda or cuda:N");
}

std::string device_name(const Device& device) {
  if (device.kind == DeviceKind::kAuto) return "auto";
  return device.kind == DeviceKind::kCpu ? "cpu" : "cuda:" + std::to_string(device.index);
}

Device resolve_device(const Device& device, const ModelConfig& config) {
  if (device.kind != DeviceKind::kAuto) return device;
  const bool gpu = has_usable_gpu() && cuda_model_problem(config).empty();
  return {gpu ? DeviceKind::kCuda : DeviceKind::kCpu, 0};
}

}  // namespace polyspan
