#include "hydra/cpu_memory.h"

#include <malloc.h>

namespace polyspan {

void keep_freed_memory() {
#ifdef __GLIBC__
  mallopt(M_MMAP_MAX, 0);         // no block of its own from the kernel
  mallopt(M_TRIM_THRESHOLD, -1);  // nothing is given back
  mallopt(M_TOP_PAD, 64 << 20);   // asked for at once
#endif
}

}  // namespace polyspan
