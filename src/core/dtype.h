// core/dtype.h: number types and block-quantised types, as GGUF files have them.
//
// The enumerators' values are those of GGUF tensor infos (they reach the disk). A quantised row of n values is
// n / block_len blocks of block_bytes each; a row's length is a multiple of block_len.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace polyspan {

enum class DType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ2_K = 10,
  kQ3_K = 11,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kBF16 = 30,
};

struct DTypeInfo {
  DType type;
  std::string_view name;  // "Q4_1"
  int64_t block_len;      // values a block
  int64_t block_bytes;    // bytes a block
};

// nullopt for a type id that this program does not compute on.
std::optional<DTypeInfo> find_dtype(uint32_t gguf_type_id);
std::optional<DTypeInfo> find_dtype(std::string_view name);  // "Q4_1", as in the table
std::span<const DTypeInfo> all_dtypes();
std::string dtype_names();  // "F32, F16, Q4_0, ...": for messages
const DTypeInfo& dtype_info(DType type);
inline std::string_view dtype_name(DType type) { return dtype_info(type).name; }
// Name of any GGUF type id, known or not ("IQ2_XXS", "type 99"): for messages. The text of an unknown id lasts until
// this thread's next call.
std::string_view gguf_type_name(uint32_t gguf_type_id);
// Bytes of a row of n_values. REQUIRES: n_values % block_len == 0.
int64_t row_bytes(DType type, int64_t n_values);

// IEEE half and bfloat16, round to nearest even. Plain C++: for loading and tests, not for inner loops.
float f16_to_f32(uint16_t bits);
uint16_t f32_to_f16(float value);
float bf16_to_f32(uint16_t bits);
uint16_t f32_to_bf16(float value);

// Decodes n_values of `type` from `src` (file layout) to float. The plain reference of every weight format.
// REQUIRES: n_values % block_len == 0; src holds row_bytes(type, n_values) bytes.
void dequantize_row(DType type, const void* src, int64_t n_values, float* out);

}  // namespace polyspan
