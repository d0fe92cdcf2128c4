// cli/cli.h: what the subcommands share. Each subcommand is one file: it parses, calls and prints.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/progress.h"
#include "engine/engine.h"
#include "engine/sampler.h"

namespace polyspan::cli {

// Options of every command that loads a model.
struct ModelOptions {
  std::string model;
  std::string plan;  // empty: the model's own
  std::string kv = "f16";
  int threads = 0;              // 0: physical cores
  std::string isa;              // empty: the best
  std::string device = "auto";  // cuda/device.h
  double skip_below = 0;        // Model::skip_paths_below
  bool json = false;
  void add_to(CLI::App& app);
  std::unique_ptr<Engine> load() const;
  SpanPlan load_plan(const ModelConfig& config) const;
  std::string plan_name() const { return plan.empty() ? "dense" : plan; }
};

void add_sampling(CLI::App& app, SamplingOptions& options);
// A check of CLI11, which by itself takes -1 for 2^64 - 1: what is wrong with a seed, or "".
std::string check_seed(const std::string& text);

// A bar on standard error with the time left; silent when standard error is no terminal and the work is short.
std::unique_ptr<Progress> make_progress();

std::string read_text_file(const std::filesystem::path& path);
std::string human_bytes(int64_t bytes);
// Prints on standard output; throws Error (kIo) when it cannot be written.
void print(const std::string& text);

void add_run(CLI::App& app);
void add_chat(CLI::App& app);
void add_bench(CLI::App& app);
void add_eval(CLI::App& app);
void add_compress(CLI::App& app);
void add_inspect(CLI::App& app);
// Of a training run's TOML file, by `inspect`.
void inspect_config(const std::string& path, std::vector<int64_t> lengths, bool json);
void add_report(CLI::App& app);
void add_prepare(CLI::App& app);
void add_train(CLI::App& app);
void add_export(CLI::App& app);

}  // namespace polyspan::cli
