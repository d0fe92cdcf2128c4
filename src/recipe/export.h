// recipe/export.h: from a run's checkpoint to a GGUF model that the engine runs. Needs no LibTorch.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "core/dtype.h"

namespace polyspan {

struct ExportOptions {
  std::filesystem::path run, out;
  DType type = DType::kF32;    // of the matrices: F32, F16, BF16, Q8_0 or Q4_0; small tensors stay F32
  std::string tokenizer = {};  // over the configuration's: "bytes" or a GGUF file
};

// Throws Error: kBadFile (damaged checkpoint), kBadInput (a tokeniser that the model was not trained with, a type that
// does not fit the matrices' rows).
void export_run(const ExportOptions& options);

}  // namespace polyspan
