// cuda/device.h: which processor runs a model: what --device says. Always there; without the CUDA component every GPU
// is refused with a message that says so.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "core/progress.h"
#include "model/model.h"

namespace polyspan {

enum class DeviceKind {
  kAuto,  // a GPU where this build and the machine have one that runs the model, else the CPU
  kCpu,
  kCuda,
};

struct Device {
  DeviceKind kind = DeviceKind::kAuto;
  int index = 0;  // of the GPU
  bool operator==(const Device&) const = default;
};

// "auto", "cpu", "cuda" (which is cuda:0) or "cuda:N". Throws Error (kUsage) for anything else.
Device parse_device(std::string_view text);
std::string device_name(const Device& device);  // "cuda:0"

// Whether this build has the CUDA component.
bool has_cuda_component();
// GPUs that the driver offers; 0 without a driver or without the component.
int n_cuda_devices();
// Whether cuda:0 is there and new enough for this build.
bool has_usable_gpu();
// Why a GPU cannot run a model of this configuration ("heads of 80 dimensions; ..."), or "" when it can.
std::string cuda_model_problem(const ModelConfig& config);

// What kAuto means for a model on this machine; other devices are returned as they are.
Device resolve_device(const Device& device, const ModelConfig& config);

// Loads a model onto a GPU. Throws Error: kUnsupported (no component, no driver, too old a GPU, a model that it cannot
// run), kOutOfMemory naming the bytes needed and free, and what Model::load throws.
std::unique_ptr<Model> load_cuda_model(std::unique_ptr<GgufFile> file, int device_index, Progress& progress);

}  // namespace polyspan
