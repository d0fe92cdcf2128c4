// io/gguf_value_type.h: the types of metadata values, by their numbers in a GGUF file.
#pragma once

#include <cstdint>

namespace polyspan::gguf_value_type {

enum ValueType : uint32_t {
  kU8 = 0,
  kI8 = 1,
  kU16 = 2,
  kI16 = 3,
  kU32 = 4,
  kI32 = 5,
  kF32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kU64 = 10,
  kI64 = 11,
  kF64 = 12,
};

}  // namespace polyspan::gguf_value_type
