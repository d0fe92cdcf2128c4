// report/run_test_util.h: a small run directory for tests, file by file, so that each can be changed or cut.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <string>

#include "core/error.h"
#include "report/page.h"
#include "report/run_data.h"

namespace polyspan::report {

// Two layers of four heads in two groups, lengths 256 and 512, density 0.5, one round.
class TestRun {
 public:
  TestRun() {
    folder_ = std::filesystem::temp_directory_path() /
              ("polyspan-report-" + std::to_string(::testing::UnitTest::GetInstance()->random_seed()) + "-" +
               ::testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::remove_all(folder_);
    files["run.json"] =
        R"({"format_version": 5, "created_by": "polyspan test", "model": {"name": "small", "file": "small.gguf",
      "fingerprint": "f", "architecture": "llama", "quantization": "F32", "n_layers": 2, "n_heads": 4, "n_kv_heads": 2,
      "head_dim": 64, "context_length": 512}, "options": {"densities": [0.5], "lengths": [256, 512], "extend": [],
      "samples": 2, "kinds": ["text"], "influence": "span", "loss": "log-odds", "rounds": 1, "per_query_head": false,
      "seed": 18446744073709551615, "quick": false, "documents": null, "text": ""},
      "device": {"threads": 2, "isa": "avx2"}, "seconds": {"profile": 1.5}, "finished": true})";
    files["samples.jsonl"] =
        R"({"id": "256/text/0", "role": "profile", "kind": "text", "length": 256, "tokens": [1, 2]})"
        "\n"
        R"({"id": "256/text/1", "role": "validation", "kind": "text", "length": 256, "tokens": []})"
        "\n";
    files["profile/dense/256-text-0.json"] =
        R"({"format_version": 5, "id": "256/text/0", "round": "dense", "accepted": true, "influence": {"span": [1]}})";
    files["search/0.5.json"] =
        R"({"format_version": 5, "density": 0.5, "rounds": [{"round": "dense", "plan_of_round": "dense", "curves": [
        {"length": 256, "source_length": 256, "spans": [64, 128], "loss": [4, 2, 0.4, 0.2, 0, 0, 8, 1]},
        {"length": 512, "source_length": 512, "spans": [64, 256], "loss": [4, 2, 0.4, 0.2, 0, 0, 8, 1]}],
        "candidates": ["round0-sum"]}], "front": [{"name": "round0-sum", "losses": [1.5, 2.5], "densities": [0.5, 0.5]}],
        "curve_lengths": [256, 512]})";
    files["validation/0.5.json"] = R"({"format_version": 5, "density": 0.5, "length": 512, "n_samples": 3,
        "dense_loss": 0.25, "rows": [{"name": "round0-sum", "loss": 0.375, "n_samples": 3, "stopped": null, "right": 0.5,
        "densities": [{"length": 256, "density": 0.5}]}, {"name": "uniform", "loss": 2, "n_samples": 2,
        "stopped": "256/text/1", "right": null, "densities": [{"length": 256, "density": 0.5}]}],
        "winner": "round0-sum", "why": "the least loss"})";
    files["plans/0.5.json"] = kPlan;
    files["candidates/0.5/round0-sum.json"] = kPlan;
    files["candidates/0.5/uniform.json"] =
        R"({"n_kv_heads": 2, "sink": 64, "alphas": [[-64, -64], [-64, -64]], "betas": [[0.5, 0.5], [0.5, 0.5]]})";
    files["measured/passkey-dense-512.json"] =
        R"({"task": "passkey", "kv_type": "f16", "rows": [{"length": 512, "accuracy": 0.75, "n": 4,
        "depths": [{"depth": 0, "accuracy": 0.5, "n": 2}, {"depth": 1, "accuracy": 1, "n": 2}]}], "density": 1, "plan_name": "dense"})";
    files["measured/speed-0.5-plan-512.json"] = R"({"rows": [{"test": "decode", "n_tokens": 32, "depth": 415,
        "tokens_per_s": 123.4}], "threads": 2, "isa": "avx2", "density": 0.5, "plan_name": "plan", "length": 512})";
    files["log.txt"] = "2025-11-02 10:00:00 started\n2025-11-02 10:01:00 finished\n";
  }
  ~TestRun() { std::filesystem::remove_all(folder_); }
  TestRun(const TestRun&) = delete;
  TestRun& operator=(const TestRun&) = delete;

  // Brings the folder to `files` and nothing else.
  const std::filesystem::path& write() {
    std::filesystem::create_directories(folder_);
    for (const auto& [name, contents] : written_)
      if (!files.contains(name)) std::filesystem::remove(folder_ / name);
    for (const auto& [name, contents] : files) {
      if (const auto found = written_.find(name); found != written_.end() && found->second == contents) continue;
      std::filesystem::create_directories((folder_ / name).parent_path());
      std::ofstream(folder_ / name, std::ios::binary) << contents;
    }
    written_ = files;
    return folder_;
  }
  RunData read() { return read_run(write()); }
  // The message of the error that reading gives; "" where it gives none. Page and all: what can be read can be shown.
  std::string error() {
    try {
      report_page(read());
      return "";
    } catch (const Error& error) {
      return error.what();
    }
  }
  void replace(const std::string& file, const std::string& from, const std::string& to) {
    const size_t at = files.at(file).find(from);
    ASSERT_NE(at, std::string::npos) << file << ": " << from;
    files[file].replace(at, from.size(), to);
  }

  std::map<std::string, std::string> files;
  static constexpr const char* kPlan =
      R"({"n_kv_heads": 2, "sink": 64, "density": 0.5, "alphas": [[64, 128], [0, 0]], "betas": [[0, 0], [0.5, 1]]})";

 private:
  std::map<std::string, std::string> written_;
  std::filesystem::path folder_;
};

}  // namespace polyspan::report
