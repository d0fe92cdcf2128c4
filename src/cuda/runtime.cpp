#include "cuda/runtime.h"

#include <cuda_runtime_api.h>

#include <array>
#include <atomic>

#include "core/error.h"

namespace polyspan::cuda {
namespace {

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

}  // namespace

void check(int status, std::string_view what) {
  if (status == cudaSuccess) return;
  const auto error = static_cast<cudaError_t>(status);
  if (error == cudaErrorMemoryAllocation) {  // CUDA does not say how much it wanted
    size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    cudaGetLastError();  // the next call shall not see it
    throw Error::out_of_memory(what, ": the GPU has too little memory left, ", free, " bytes");
  }
  if (error == cudaErrorInsufficientDriver) {
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (driver == 0) throw Error::unsupported(what, ": no NVIDIA driver was found; use --device cpu");
    throw Error::unsupported(what, ": the NVIDIA driver knows CUDA up to ", version_text(driver), ", this build needs ",
                             version_text(runtime), "; update the driver, or use --device cpu");
  }
  throw Error(ErrorKind::kIo, std::string(what) + ": the GPU reports \"" + cudaGetErrorString(error) + "\"");
}

void check_launch(const char* kernel) {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return;
  if (error == cudaErrorNoKernelImageForDevice)
    throw Error::unsupported(kernel, ": this build has no code for this GPU; build with CMAKE_CUDA_ARCHITECTURES for ",
                             compute_capability(), ", or use --device cpu");
  for (const cudaError_t ours : {cudaErrorInvalidValue, cudaErrorInvalidConfiguration, cudaErrorLaunchOutOfResources,
                                 cudaErrorInvalidDeviceFunction})
    POLYSPAN_CHECK(error != ours, std::string(kernel) + ": " + cudaGetErrorString(error));
  check(error, kernel);  // no memory for the kernel's code; a device that was lost before
}

DeviceProperties select_device(int index) {
  int n = 0;
  const cudaError_t error = cudaGetDeviceCount(&n);
  if (error == cudaErrorInsufficientDriver) check(error, "device cuda:" + std::to_string(index));
  if (error != cudaSuccess || n == 0)
    throw Error::unsupported("no NVIDIA GPU was found (",
                             error == cudaSuccess ? "the driver offers none" : cudaGetErrorString(error),
                             "); use --device cpu");
  if (index < 0 || index >= n)
    throw Error::unsupported("device cuda:", index, " was asked for; this machine has ", n, " (cuda:0 to cuda:", n - 1,
                             "), or use --device cpu");
  cudaDeviceProp p{};
  check(cudaGetDeviceProperties(&p, index), "reading the properties of the GPU");
  if (p.major < kLeastMajor)
    throw Error::unsupported("device cuda:", index, " (", p.name, ") has compute capability ", p.major, ".", p.minor,
                             "; at least ", kLeastMajor, ".0 is needed, or use --device cpu");
  check(cudaSetDevice(index), "selecting the GPU");
  return {p.name,
          p.major,
          p.minor,
          p.multiProcessorCount,
          static_cast<int64_t>(p.totalGlobalMem),
          static_cast<int64_t>(p.sharedMemPerBlockOptin)};
}

namespace {

// One attribute of each GPU, asked for once. Two threads may ask at once: they find the same.
template <cudaDeviceAttr kAttribute>
int device_attribute() {
  constexpr int kMostDevices = 64;
  static std::array<std::atomic<int>, kMostDevices> known{};
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "asking for the GPU");
  const size_t index = static_cast<size_t>(device);
  if (index < known.size() && known[index] != 0) return known[index];
  check(cudaDeviceGetAttribute(&value, kAttribute, device), "asking what the GPU can do");
  if (index < known.size()) known[index] = value;
  return value;
}

}  // namespace

int compute_capability() {
  return 10 * device_attribute<cudaDevAttrComputeCapabilityMajor>() +
         device_attribute<cudaDevAttrComputeCapabilityMinor>();
}
int n_multiprocessors() { return device_attribute<cudaDevAttrMultiProcessorCount>(); }

int64_t free_device_bytes() {
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "reading the free memory of the GPU");
  return static_cast<int64_t>(free);
}

Stream::Stream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream"); }
Stream::~Stream() { cudaStreamDestroy(stream_); }
void Stream::synchronize() const { check(cudaStreamSynchronize(stream_), "waiting for the GPU"); }

DeviceBuffer::DeviceBuffer(int64_t bytes, std::string_view what) {
  POLYSPAN_CHECK(bytes >= 0);
  if (bytes == 0) return;
  void* memory = nullptr;
  const cudaError_t error = cudaMalloc(&memory, static_cast<size_t>(bytes));
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    throw Error::out_of_memory(what, " needs ", bytes, " bytes of GPU memory; ", free_device_bytes(), " are free");
  }
  check(error, what);
  data_ = static_cast<std::byte*>(memory);
  bytes_ = bytes;
}

DeviceBuffer::~DeviceBuffer() {
  if (data_ != nullptr) cudaFree(data_);
}

void grow(DeviceBuffer& buffer, int64_t bytes, std::string_view what, const Stream& stream) {
  if (buffer.size_bytes() >= bytes) return;
  stream.synchronize();  // nothing queued may use what is freed
  buffer = DeviceBuffer();
  buffer = DeviceBuffer(bytes, what);
}

void copy_to_device(void* to, const void* from, int64_t bytes, const Stream& stream) {
  if (bytes > 0)
    check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, stream.get()),
          "copying to the GPU");
}

void copy_to_host(void* to, const void* from, int64_t bytes, const Stream& stream) {
  if (bytes > 0)
    check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, stream.get()),
          "copying from the GPU");
}

void copy_on_device(void* to, const void* from, int64_t bytes, const Stream& stream) {
  if (bytes > 0)
    check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice, stream.get()),
          "copying on the GPU");
}

void fill_bytes(void* to, int value, int64_t bytes, const Stream& stream) {
  if (bytes > 0) check(cudaMemsetAsync(to, value, static_cast<size_t>(bytes), stream.get()), "filling GPU memory");
}

Graph::Graph(const Stream& stream, const std::function<void()>& record) {
  // Thread-local mode: other threads may allocate meanwhile.
  check(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal), "recording a graph");
  cudaGraph_t graph = nullptr;
  try {
    record();
  } catch (...) {
    cudaStreamEndCapture(stream.get(), &graph);
    if (graph != nullptr) cudaGraphDestroy(graph);
    cudaGetLastError();
    throw;
  }
  check(cudaStreamEndCapture(stream.get(), &graph), "recording a graph");
  const cudaError_t error = cudaGraphInstantiate(&exec_, graph, 0);
  cudaGraphDestroy(graph);
  check(error, "preparing a graph");
}

Graph::~Graph() {
  if (exec_ != nullptr) cudaGraphExecDestroy(exec_);
}

void Graph::launch(const Stream& stream) const { check(cudaGraphLaunch(exec_, stream.get()), "launching a step"); }

Timer::Timer() {
  check(cudaEventCreate(&begin_), "creating an event");
  check(cudaEventCreate(&end_), "creating an event");
}

Timer::~Timer() {
  cudaEventDestroy(begin_);
  cudaEventDestroy(end_);
}

double Timer::milliseconds(const Stream& stream, const std::function<void()>& work) {
  check(cudaEventRecord(begin_, stream.get()), "timing");
  work();
  check(cudaEventRecord(end_, stream.get()), "timing");
  check(cudaEventSynchronize(end_), "timing");
  float ms = 0;
  check(cudaEventElapsedTime(&ms, begin_, end_), "timing");
  return static_cast<double>(ms);
}

}  // namespace polyspan::cuda
