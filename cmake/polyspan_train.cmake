# The training component, POLYSPAN_TRAIN: library polyspan_hydra and program polyspan-train, which `polyspan train` calls.
# On where LibTorch is found: Debian's libtorch-dev, or a pip-installed torch with
# -DCMAKE_PREFIX_PATH=$(python3 -c 'import torch; print(torch.utils.cmake_prefix_path)'). Everything else does without.
option(POLYSPAN_TRAIN "build the training component (LibTorch)" ON)
if(POLYSPAN_TRAIN AND NOT POLYSPAN_SANITIZE)  # LibTorch is not built for sanitizers
  # A LibTorch with CUDA asks for which GPUs to compile, else runs a program to find out; nothing here is compiled for them.
  if(NOT DEFINED TORCH_CUDA_ARCH_LIST AND NOT DEFINED ENV{TORCH_CUDA_ARCH_LIST})
    set(TORCH_CUDA_ARCH_LIST 9.0)
  endif()
  # It also says for which GPUs to compile, for all files that come behind it; ours say so themselves.
  set(cuda_flags ${CMAKE_CUDA_FLAGS})
  set(cuda_architectures ${CMAKE_CUDA_ARCHITECTURES})
  find_package(Torch QUIET)
  set(CMAKE_CUDA_FLAGS ${cuda_flags})
  set(CMAKE_CUDA_ARCHITECTURES ${cuda_architectures})
endif()
if(NOT Torch_FOUND)
  message(STATUS "polyspan train is left out: POLYSPAN_TRAIN is off, this is a sanitizer build, or LibTorch was not found")
  return()
endif()
if(CMAKE_CXX_COMPILER_ID MATCHES "Clang" AND Torch_VERSION VERSION_LESS 2)
  # Its IValue holds a vector of itself before it is complete, which clang 14 refuses in C++20.
  message(STATUS "polyspan train is left out: the headers of LibTorch ${Torch_VERSION} do not compile with clang in C++20; use g++")
  return()
endif()
message(STATUS "polyspan train: LibTorch ${Torch_VERSION}")

file(GLOB hydra_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/hydra/*.cpp)
set(hydra_tests ${hydra_sources})
list(FILTER hydra_tests INCLUDE REGEX "_test\\.cpp$")
list(FILTER hydra_sources EXCLUDE REGEX "(_test|train_main)\\.cpp$")

# LibTorch's headers as system headers: their warnings are not ours. They take ten seconds to read, hence the unity build.
function(polyspan_uses_torch target)
  target_include_directories(${target} SYSTEM PRIVATE ${TORCH_INCLUDE_DIRS})
  polyspan_warnings(${target})
endfunction()
add_library(polyspan_hydra STATIC ${hydra_sources})
# stdc++ in front: a pip-installed libtorch exports parts of an old std::filesystem, which would be taken otherwise.
target_link_libraries(polyspan_hydra PUBLIC polyspan_recipe stdc++ ${TORCH_LIBRARIES})
polyspan_uses_torch(polyspan_hydra)
# LibTorch's parallel loop is a header's: without OpenMP, as which it is built, it is serial in our files.
find_package(OpenMP QUIET COMPONENTS CXX)
if(OpenMP_CXX_FOUND)
  target_link_libraries(polyspan_hydra PRIVATE OpenMP::OpenMP_CXX)
endif()
set_target_properties(polyspan_hydra PROPERTIES UNITY_BUILD ON)

# Kernels of our own for GPUs (docs/hydra.md): with nvcc and a LibTorch that computes there.
set(kernels_can_be OFF)
if(POLYSPAN_CUDA AND TORCH_CUDA_LIBRARIES AND NOT Torch_VERSION VERSION_LESS 2.9)
  set(kernels_can_be ON)
endif()
option(POLYSPAN_HYDRA_KERNELS "train with CUDA kernels of our own (nvcc, LibTorch 2.9 or later with CUDA)" ${kernels_can_be})
if(POLYSPAN_HYDRA_KERNELS)
  if(NOT kernels_can_be)
    message(FATAL_ERROR "POLYSPAN_HYDRA_KERNELS needs POLYSPAN_CUDA and LibTorch 2.9 or later with CUDA; found ${Torch_VERSION}")
  endif()
  file(GLOB hydra_kernels CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/hydra/*.cu)
  add_library(polyspan_hydra_kernels STATIC ${hydra_kernels})  # not among LibTorch's flags, which are for g++
  target_include_directories(polyspan_hydra_kernels PRIVATE ${CMAKE_SOURCE_DIR}/src)
  target_compile_options(polyspan_hydra_kernels PRIVATE --expt-relaxed-constexpr -Xcompiler=-Wall -Xcompiler=-Wextra
    $<$<BOOL:${POLYSPAN_WERROR}>:-Werror=all-warnings>)
  target_link_libraries(polyspan_hydra_kernels PUBLIC CUDA::cudart_static)
  target_link_libraries(polyspan_hydra PRIVATE polyspan_hydra_kernels)
  target_compile_definitions(polyspan_hydra PRIVATE POLYSPAN_HAS_HYDRA_KERNELS=1)
endif()

# c10d's Gloo is there in both, but only Debian has the headers that its own header includes (libgloo-dev).
find_path(POLYSPAN_GLOO_INCLUDE gloo/algorithm.h)
mark_as_advanced(POLYSPAN_GLOO_INCLUDE)
if(POLYSPAN_GLOO_INCLUDE AND Torch_VERSION VERSION_LESS 2)
  set_source_files_properties(src/hydra/processes.cpp PROPERTIES COMPILE_DEFINITIONS POLYSPAN_HAS_GLOO=1)
else()
  message(STATUS "polyspan train: several processes add up through c10d's store (Gloo needs libtorch-dev with libgloo-dev)")
endif()

add_executable(polyspan-train src/hydra/train_main.cpp src/cli/cli.cpp)
target_link_libraries(polyspan-train PRIVATE polyspan_hydra CLI11::CLI11)
polyspan_uses_torch(polyspan-train)
polyspan_compiles_fast(polyspan-train)
install(TARGETS polyspan-train)

if(POLYSPAN_BENCH)
  add_executable(polyspan-hydra-bench bench/hydra/hydra_bench.cpp)
  target_link_libraries(polyspan-hydra-bench PRIVATE polyspan_hydra CLI11::CLI11)
  polyspan_uses_torch(polyspan-hydra-bench)
  polyspan_compiles_fast(polyspan-hydra-bench)
endif()

if(POLYSPAN_TESTS AND hydra_tests)
  polyspan_unit_tests(hydra SOURCES ${hydra_tests} LINK polyspan_hydra)
  polyspan_uses_torch(hydra_test)
endif()
