#include "ops/isa.h"

#ifndef POLYSPAN_ONLY_SCALAR
#include <cpuid.h>
#endif

#include <array>
#include <atomic>

#include "core/error.h"
#include "ops/kernels.h"

namespace polyspan {

namespace scalar {
extern const Kernels kTable;
}
#ifndef POLYSPAN_ONLY_SCALAR
namespace avx2 {
extern const Kernels kTable;
}
namespace avx512 {
extern const Kernels kTable;
}
namespace avx512bf16 {
void attention_gradient(const AttentionGradientArgs& args);
}
#endif

namespace {

constexpr std::array<std::string_view, 4> kNames = {"scalar", "avx2", "avx512", "avx512bf16"};

bool supports(IsaLevel level) {
  if (level == IsaLevel::kScalar) return true;
#ifndef POLYSPAN_ONLY_SCALAR
  __builtin_cpu_init();
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  __get_cpuid(1, &eax, &ebx, &ecx, &edx);
  const bool f16c = (ecx & bit_F16C) != 0;  // clang 14's __builtin_cpu_supports does not know the name
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c;
  if (level == IsaLevel::kAvx2) return avx2;
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vnni");
  if (level == IsaLevel::kAvx512) return avx512;
  // On Intel's a dot product of pairs takes as long as two multiply-adds: nothing gained, digits lost.
  return avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_is("amd");
#else
  return false;
#endif
}

#ifndef POLYSPAN_ONLY_SCALAR
const Kernels& avx512bf16_table() {
  static const Kernels table = [] {
    Kernels t = avx512::kTable;
    t.attention_gradient = avx512bf16::attention_gradient;
    return t;
  }();
  return table;
}
#endif

const Kernels* table_of(IsaLevel level) {
  switch (level) {
    case IsaLevel::kScalar: return &scalar::kTable;
#ifndef POLYSPAN_ONLY_SCALAR
    case IsaLevel::kAvx2: return &avx2::kTable;
    case IsaLevel::kAvx512: return &avx512::kTable;
    case IsaLevel::kAvx512Bf16: return &avx512bf16_table();
#else
    default: break;
#endif
  }
  return &scalar::kTable;
}

struct Selection {
  std::atomic<IsaLevel> level;
  std::atomic<const Kernels*> table;
  Selection() : level(supported_isa_levels().back()), table(table_of(level)) {}
};
Selection& selection() {
  static Selection instance;
  return instance;
}

}  // namespace

std::string_view isa_name(IsaLevel level) { return kNames[static_cast<size_t>(level)]; }

std::string isa_names() {
  std::string names(kNames[0]);
  for (size_t i = 1; i < kNames.size(); ++i) names.append(i + 1 < kNames.size() ? ", " : " or ").append(kNames[i]);
  return names;
}

std::vector<IsaLevel> supported_isa_levels() {
  std::vector<IsaLevel> levels;
  for (IsaLevel level : {IsaLevel::kScalar, IsaLevel::kAvx2, IsaLevel::kAvx512, IsaLevel::kAvx512Bf16})
    if (supports(level)) levels.push_back(level);
  return levels;
}

IsaLevel current_isa() { return selection().level.load(std::memory_order_relaxed); }

void select_isa(IsaLevel level) {
  POLYSPAN_CHECK(supports(level), std::string(isa_name(level)));
  selection().level = level;
  selection().table = table_of(level);
}

std::optional<IsaLevel> isa_by_name(std::string_view name) {
  for (size_t i = 0; i < kNames.size(); ++i)
    if (kNames[i] == name) return static_cast<IsaLevel>(i);
  return std::nullopt;
}

const Kernels& kernels() { return *selection().table.load(std::memory_order_relaxed); }

int64_t matmul_scratch_bytes(int64_t d_in) { return 2 * (16 * d_in + 2 * 4 * d_in); }

}  // namespace polyspan
