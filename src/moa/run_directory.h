// moa/run_directory.h: where a run of `compress` keeps what it made (docs/compress.md: the files and their fields). Every
// file is written beside and renamed, so what is there is whole; a run goes on from what is there.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/folder_lock.h"
#include "io/gguf.h"
#include "moa/calibration.h"
#include "moa/influence.h"
#include "model/config.h"

namespace polyspan {

using OrderedJson = nlohmann::ordered_json;
inline constexpr int64_t kRunFormatVersion = 5;

// A sample and what it is for.
struct StoredSample {
  CalibrationSample sample;
  std::string role;  // "profile", "validation", or of a refinement "refine", "choose", "check"
};

// Held by one process at a time.
class RunDirectory {
 public:
  // Makes the folder where it is missing and takes its lock. Throws Error: kIo; kBadInput where another process holds it.
  explicit RunDirectory(std::filesystem::path folder);

  const std::filesystem::path& folder() const { return folder_; }
  std::filesystem::path path(std::string_view name) const { return folder_ / name; }
  bool has_run() const { return has("run.json"); }
  bool has(std::string_view name) const;

  // Makes the folders on the way. Read: throws Error (kBadFile) for what is no JSON object of kRunFormatVersion.
  void write_json(std::string_view name, OrderedJson document) const;
  OrderedJson read_json(std::string_view name) const;
  void remove(std::string_view name) const;
  void log(std::string_view line) const;

  std::vector<StoredSample> read_samples() const;  // none: no file
  void write_samples(const std::vector<StoredSample>& samples) const;
  // "profile/ROUND/LENGTH-KIND-INDEX.json"
  static std::string profile_name(std::string_view round, std::string_view sample_id);
  void write_profile(std::string_view round, const SampleProfile& profile) const;
  SampleProfile read_profile(std::string_view round, const CalibrationSample& sample) const;

 private:
  std::filesystem::path folder_;
  std::optional<FolderLock> lock_;  // taken once the folder is there
};

// Tells models apart: size, everything before the tensors' data, and the first 4 KiB of each tensor (FNV-1a, 64 bits).
std::string model_fingerprint(const GgufFile& file);
// The block "model" of run.json.
OrderedJson describe_model(const GgufFile& file, const ModelConfig& config);

}  // namespace polyspan
