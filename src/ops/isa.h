// ops/isa.h: which instruction level the kernels run at, chosen once at start-up.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace polyspan {

// scalar: any x86-64 (and other machines); avx2: AVX2 + FMA + F16C; avx512: AVX-512 F/BW/VL/DQ + VNNI; avx512bf16: the
// same on an AMD processor with AVX512-BF16: the gradients of attention are products of bfloat16 (docs/compress.md).
enum class IsaLevel { kScalar, kAvx2, kAvx512, kAvx512Bf16 };

std::string_view isa_name(IsaLevel level);
std::string isa_names();  // of all: "scalar, avx2, ... or avx512bf16"
// Levels that this machine can run, lowest first.
std::vector<IsaLevel> supported_isa_levels();
IsaLevel current_isa();
// For tests and --isa: REQUIRES a supported level. Must not be called while kernels run.
void select_isa(IsaLevel level);
std::optional<IsaLevel> isa_by_name(std::string_view name);

}  // namespace polyspan
