// hydra/cpu_memory.h: what a training program asks of the C library's allocator.
#pragma once

namespace polyspan {

// Keeps freed memory for the next tensors; for the whole process, to be called at the start of main. As it comes, glibc takes
// each block over 32 MB from the kernel, gives it back when it is freed, and the kernel clears it page by page the next time:
// half of the time of a step with tensors of that size. Does nothing with other C libraries.
void keep_freed_memory();

}  // namespace polyspan
