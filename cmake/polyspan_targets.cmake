# Helpers that keep every list of files out of the build files: sources, tests and kernels are found by pattern.

# Warnings for our own code.
function(polyspan_warnings target)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wshadow -Wnon-virtual-dtor -Woverloaded-virtual -Wimplicit-fallthrough)
  if(POLYSPAN_WERROR)
    target_compile_options(${target} PRIVATE -Werror)
  endif()
endfunction()

if(POLYSPAN_SANITIZE)
  add_compile_options(-fsanitize=${POLYSPAN_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${POLYSPAN_SANITIZE})
endif()

# What runs for milliseconds: optimised less, and its files compiled as one, so that the headers they share (GoogleTest,
# CLI11, JSON) are read once. Names in the unnamed namespaces of such files must differ.
function(polyspan_compiles_fast target)
  target_compile_options(${target} PRIVATE $<$<CONFIG:Release>:-O1>)
  set_target_properties(${target} PROPERTIES UNITY_BUILD ON)
endfunction()

# polyspan_unit_tests(NAME SOURCES files... LINK libs...): the test program NAME_test; each of its tests is one of ctest's.
function(polyspan_unit_tests name)
  cmake_parse_arguments(arg "" "" "SOURCES;LINK" ${ARGN})
  find_package(GTest REQUIRED)
  include(GoogleTest)
  enable_testing()
  add_executable(${name}_test ${arg_SOURCES})
  target_link_libraries(${name}_test PRIVATE ${arg_LINK} GTest::gtest GTest::gtest_main)
  target_compile_definitions(${name}_test PRIVATE POLYSPAN_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
  polyspan_warnings(${name}_test)
  polyspan_compiles_fast(${name}_test)
  gtest_discover_tests(${name}_test TEST_PREFIX "${name}." DISCOVERY_TIMEOUT 120 PROPERTIES TIMEOUT 1200)
endfunction()

# polyspan_library(NAME LINK libs...): the static library polyspan_NAME from src/NAME/*.cpp, and, with POLYSPAN_TESTS, the
# test program NAME_test from src/NAME/*_test.cpp. Files named *.isa.cpp are left to polyspan_isa_kernels.
function(polyspan_library name)
  cmake_parse_arguments(arg "" "" "LINK" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/${name}/*.cpp)
  set(tests ${sources})
  list(FILTER tests INCLUDE REGEX "_test\\.cpp$")
  list(FILTER sources EXCLUDE REGEX "(_test|\\.isa)\\.cpp$")
  add_library(polyspan_${name} STATIC ${sources})
  target_include_directories(polyspan_${name} PUBLIC ${CMAKE_SOURCE_DIR}/src)
  target_link_libraries(polyspan_${name} PUBLIC ${arg_LINK})
  polyspan_warnings(polyspan_${name})
  if(POLYSPAN_TESTS AND tests)
    polyspan_unit_tests(${name} SOURCES ${tests} LINK polyspan_${name})
  endif()
endfunction()

# polyspan_isa_kernels(NAME): compiles src/NAME/*.isa.cpp once for each instruction level into polyspan_NAME. Each pass
# sees POLYSPAN_ISA (the namespace of that level) and must define everything inside it: see src/ops/simd.h. The level
# avx512bf16 has only the kernel that differs from avx512's.
function(polyspan_isa_kernels name)
  file(GLOB kernels CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/${name}/*.isa.cpp)
  # -Wno-psabi: vectors wider than the machine's registers are passed to inlined functions only.
  set(flags_scalar -DPOLYSPAN_ISA=scalar -DPOLYSPAN_ISA_SCALAR=1 -Wno-psabi)
  set(flags_avx2 -DPOLYSPAN_ISA=avx2 -DPOLYSPAN_ISA_AVX2=1 -mavx2 -mfma -mf16c -mtune=haswell)
  set(avx512 -DPOLYSPAN_ISA_AVX512=1 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mavx2 -mfma -mf16c
             -mprefer-vector-width=512)
  set(flags_avx512 -DPOLYSPAN_ISA=avx512 ${avx512})
  set(flags_avx512bf16 -DPOLYSPAN_ISA=avx512bf16 -DPOLYSPAN_ISA_AVX512BF16=1 ${avx512} -mavx512bf16)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    set(levels scalar avx2 avx512 avx512bf16)
  else()
    set(levels scalar)
    target_compile_definitions(polyspan_${name} PRIVATE POLYSPAN_ONLY_SCALAR=1)
  endif()
  foreach(level ${levels})
    set(sources ${kernels})
    if(level STREQUAL avx512bf16)
      list(FILTER sources INCLUDE REGEX "attention_gradient")
    endif()
    add_library(polyspan_${name}_${level} OBJECT ${sources})
    target_include_directories(polyspan_${name}_${level} PRIVATE ${CMAKE_SOURCE_DIR}/src)
    set_target_properties(polyspan_${name}_${level} PROPERTIES UNITY_BUILD OFF)
    polyspan_warnings(polyspan_${name}_${level})
    if(POLYSPAN_SANITIZE)
      target_compile_definitions(polyspan_${name}_${level} PRIVATE POLYSPAN_SANITIZED=1)
    endif()
    # g++ 12 takes the undefined operand inside its own AVX-512 intrinsics for an uninitialised variable (PR 105593).
    target_compile_options(polyspan_${name}_${level} PRIVATE ${flags_${level}} $<$<CONFIG:Release>:-O3>
                           $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized -Wno-uninitialized>)
    target_sources(polyspan_${name} PRIVATE $<TARGET_OBJECTS:polyspan_${name}_${level}>)
  endforeach()
endfunction()
