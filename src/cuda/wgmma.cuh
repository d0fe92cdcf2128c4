// cuda/wgmma.cuh: Hopper's matrix instructions on f16 and bf16 with sums in f32 (PTX ISA, wgmma.mma_async; sm_90a
// only), their operands in shared memory, and the barriers that hand tiles from warps that load to warps that multiply.
//
// 128 threads multiply [64 x 16] by [16 x n]. With g = lane / 4 and c = lane % 4, a thread of warp w holds, of rows
// 16w + g and 16w + g + 8, what mma.cuh says of a [16 x 16] operand A, and of the sums d[4j .. 4j + 3]: columns
// 8j + 2c, 8j + 2c + 1 of the first row, then of the second.
//
// A tile in shared memory is cut into panels of 64 columns (128 bytes a row), chunk i of row r at i ^ (r % 8): the
// 128-byte swizzle. Panels begin at multiples of 1024 bytes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace polyspan::cuda {

inline constexpr int kPanelColumns = 64, kPanelRowBytes = 128;

// Byte offset of 16-byte chunk `chunk` of a row of a tile of `n_rows` rows.
__device__ inline uint32_t panel_offset(int n_rows, int row, int chunk) {
  return static_cast<uint32_t>((chunk / 8 * n_rows + row) * kPanelRowBytes + ((chunk ^ row) & 7) * 16);
}

// Operand at `address` of swizzled panels, groups of 8 rows 1024 bytes apart. `panel_bytes` counts only where the
// columns are not the summed dimension (values) and span two panels.
__device__ inline uint64_t panel_operand(uint32_t address, int panel_bytes) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62, kRowGroup = uint64_t{1024 >> 4} << 32;
  return kSwizzle128 | kRowGroup | static_cast<uint64_t>(panel_bytes >> 4) << 16 | (address & 0x3ffff) >> 4;
}
// Before the first product and after registers of one were touched.
__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
__device__ inline void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }
// All but the newest kPending groups are done: `d` may be read. The compiler learns of it through `d`.
template <int kPending, int kN>
__device__ inline void wait_products(float (&d)[kN]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kPending) : "memory");
#pragma unroll
  for (int i = 0; i < kN; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// The operand lists have no other form than the text of the instruction.
#define POLYSPAN_OUT4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define POLYSPAN_OUT16(i) POLYSPAN_OUT4(i), POLYSPAN_OUT4(i + 4), POLYSPAN_OUT4(i + 8), POLYSPAN_OUT4(i + 12)
#define POLYSPAN_LIST32                                                                                            \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, " \
  "%24, %25, %26, %27, %28, %29, %30, %31"
#define POLYSPAN_LIST64                                                                                              \
  POLYSPAN_LIST32                                                                                                    \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, " \
  "%54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define POLYSPAN_SCORES(type)                                                                                         \
  asm volatile("{.reg .pred add; setp.ne.b32 add, %66, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type \
               " {" POLYSPAN_LIST64 "}, %64, %65, add, 1, 1, 0, 0;}\n"                                                \
               : POLYSPAN_OUT16(0), POLYSPAN_OUT16(16), POLYSPAN_OUT16(32), POLYSPAN_OUT16(48)                        \
               : "l"(a), "l"(b), "r"(static_cast<int>(add)))
#define POLYSPAN_SUMS128(type)                                                                   \
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" POLYSPAN_LIST64 \
               "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;\n"                                     \
               : POLYSPAN_OUT16(0), POLYSPAN_OUT16(16), POLYSPAN_OUT16(32), POLYSPAN_OUT16(48)   \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
#define POLYSPAN_SUMS64(type)                                                                   \
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {" POLYSPAN_LIST32 \
               "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;\n"                                    \
               : POLYSPAN_OUT16(0), POLYSPAN_OUT16(16)                                          \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

// d = a b^T, or d += a b^T: a [64 x 16] and b [128 x 16] in shared memory, 16 columns of a panel each.
template <typename T>
__device__ inline void multiply_scores(float (&d)[64], uint64_t a, uint64_t b, bool add) {
  if constexpr (std::is_same_v<T, __half>)
    POLYSPAN_SCORES("f16");
  else
    POLYSPAN_SCORES("bf16");
}
// d += a b: a [64 x 16] in registers, b [16 x 128] (or 64) 16 rows of panels.
template <typename T>
__device__ inline void multiply_values(float (&d)[64], const uint32_t (&a)[4], uint64_t b) {
  if constexpr (std::is_same_v<T, __half>)
    POLYSPAN_SUMS128("f16");
  else
    POLYSPAN_SUMS128("bf16");
}
template <typename T>
__device__ inline void multiply_values(float (&d)[32], const uint32_t (&a)[4], uint64_t b) {
  if constexpr (std::is_same_v<T, __half>)
    POLYSPAN_SUMS64("f16");
  else
    POLYSPAN_SUMS64("bf16");
}
#undef POLYSPAN_OUT4
#undef POLYSPAN_OUT16
#undef POLYSPAN_LIST32
#undef POLYSPAN_LIST64
#undef POLYSPAN_SCORES
#undef POLYSPAN_SUMS128
#undef POLYSPAN_SUMS64

// What was written to shared memory by ordinary and cp.async writes of this thread, the matrix instructions may read
// after the barrier that follows.
__device__ inline void publish_to_products() { asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory"); }

// Barriers in shared memory, 8 bytes each: phase p (0, 1, ...) ends with the n-th arrival.
__device__ inline void make_barrier(uint32_t barrier, int n_arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(barrier), "r"(n_arrivals) : "memory");
}
__device__ inline void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}
// Until phase p with p % 2 == `parity` has ended; the phase before the first counts as ended, with parity 1.
__device__ inline void wait_phase(uint32_t barrier, uint32_t parity) {
  uint32_t done = 0;
  do {
    asm volatile(
        "{.reg .pred done; mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2; selp.b32 %0, 1, 0, done;}\n"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
  } while (done == 0);
}

// One of the 15 barriers of a block for whole warps: `n_threads` arrive, those that wait among them.
__device__ inline void wait_named(int barrier, int n_threads) {
  asm volatile("bar.sync %0, %1;\n" ::"r"(barrier), "r"(n_threads) : "memory");
}
__device__ inline void arrive_named(int barrier, int n_threads) {
  asm volatile("bar.arrive %0, %1;\n" ::"r"(barrier), "r"(n_threads) : "memory");
}

// How many registers a thread of this warpgroup has from here on.
template <int kRegisters>
__device__ inline void give_registers_back() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}

}  // namespace polyspan::cuda
