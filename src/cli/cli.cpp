#include "cli/cli.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iterator>

#include "core/error.h"
#include "ops/isa.h"

namespace polyspan::cli {
namespace {

class TerminalProgress final : public Progress {
 public:
  void start(std::string_view what, int64_t total) override {
    what_ = what;
    total_ = std::max<int64_t>(1, total);
    begin_ = last_ = Clock::now();
    shown_ = false;
  }
  void update(int64_t done) override {
    const Clock::time_point now = Clock::now();
    const double elapsed = seconds(now - begin_);
    const bool terminal = isatty(STDERR_FILENO) != 0;
    // A log gets a line every 10 seconds, a terminal ten updates a second after the first half second.
    if (elapsed < (terminal ? 0.5 : 10.0) || seconds(now - last_) < (terminal ? 0.1 : 10.0)) return;
    last_ = now;
    shown_ = true;
    const double share = static_cast<double>(done) / static_cast<double>(total_);
    const double left = done > 0 ? elapsed * (1 - share) / share : 0;
    std::fprintf(stderr, terminal ? "\r%s: %3.0f%%, %.0f s left \033[K" : "%s: %3.0f%%, %.0f s left\n", what_.c_str(),
                 100 * share, left);
    std::fflush(stderr);
  }
  void finish() override {
    if (shown_ && isatty(STDERR_FILENO) != 0) std::fprintf(stderr, "\r\033[K");
  }

 private:
  using Clock = std::chrono::steady_clock;
  static double seconds(Clock::duration d) { return std::chrono::duration<double>(d).count(); }
  std::string what_;
  int64_t total_ = 1;
  Clock::time_point begin_, last_;
  bool shown_ = false;
};

}  // namespace

void ModelOptions::add_to(CLI::App& app) {
  app.add_option("model", model, "GGUF file of the model")->required();
  app.add_option(
      "--plan", plan,
      "spans: a plan file, uniform:DENSITY (for example uniform:0.5) or dense (default: the model's own attention)");
  app.add_option("--kv", kv, "element type of the KV cache: f16, bf16, q8 or f8 (on a GPU only)")
      ->capture_default_str();
  app.add_option("-t,--threads", threads, "threads (default: physical cores)")->check(CLI::Range(1, 1024));
  app.add_option("--isa", isa, "instruction level: " + isa_names() + " (default: the best of this machine)");
  app.add_option("--device", device, "where the model runs: cpu, cuda, cuda:N, or auto (a GPU if there is one)")
      ->capture_default_str();
  app.add_option(
         "--skip-below", skip_below,
         "of a Hydra model: leave a path out of the chunks in which its multiplier is below this (default: none)")
      ->check(CLI::Range(0.0, 2.0));
  app.add_flag("--json", json, "print one JSON document on standard output");
}

std::unique_ptr<Engine> ModelOptions::load() const {
  if (!isa.empty()) {
    const std::optional<IsaLevel> level = isa_by_name(isa);
    if (!level) throw Error::usage("instruction level \"", isa, "\" is not known; wanted ", isa_names());
    const std::vector<IsaLevel> supported = supported_isa_levels();
    if (std::find(supported.begin(), supported.end(), *level) == supported.end())
      throw Error::unsupported("this machine does not have the instructions of ", isa, "; its best level is ",
                               isa_name(supported.back()));
    select_isa(*level);
  }
  kv_type_by_name(kv);  // before the long work
  const Device where = parse_device(device);
  const std::unique_ptr<Progress> progress = make_progress();
  std::unique_ptr<Engine> engine =
      Engine::load(model, threads == 0 ? default_thread_count() : threads, *progress, where);
  if (skip_below != 0) engine->model().skip_paths_below(skip_below);
  return engine;
}

SpanPlan ModelOptions::load_plan(const ModelConfig& config) const {
  return plan.empty() ? config.default_plan() : SpanPlan::from_spec(plan, config.head_shape());
}

void add_sampling(CLI::App& app, SamplingOptions& options) {
  app.add_option("--temp", options.temperature, "temperature; 0 picks the most likely token")->capture_default_str();
  app.add_option("--top-k", options.top_k, "keep the k most likely tokens; 0 keeps all")->capture_default_str();
  app.add_option("--top-p", options.top_p, "keep the smallest set of tokens with this probability")
      ->capture_default_str();
  app.add_option("--min-p", options.min_p, "drop tokens less likely than this share of the most likely one")
      ->capture_default_str();
  app.add_option("--repeat-penalty", options.repetition_penalty, "penalty on the last 64 tokens; 1 is none")
      ->capture_default_str();
  app.add_option("--seed", options.seed, "seed of the sampler")->check(check_seed)->capture_default_str();
}

std::string check_seed(const std::string& text) {
  uint64_t seed = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, seed);
  if (error == std::errc() && stop == end) return {};
  return "the seed is " + text + "; it must be a whole number from 0 to 18446744073709551615";
}

std::unique_ptr<Progress> make_progress() { return std::make_unique<TerminalProgress>(); }

std::string read_text_file(const std::filesystem::path& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) throw Error::io(path, "this is a directory; a text file is wanted");
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Error::io(path, "the file cannot be opened");
  constexpr std::streamsize kMost = std::streamsize{1} << 30;
  std::string text;
  char buffer[1 << 16];
  while (file.read(buffer, sizeof buffer) || file.gcount() > 0) {
    text.append(buffer, static_cast<size_t>(file.gcount()));
    if (static_cast<std::streamsize>(text.size()) > kMost) throw Error::bad_file(path, "the text is larger than 1 GiB");
  }
  return text;
}

std::string human_bytes(int64_t bytes) {
  const char* const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  for (; value >= 1024 && unit + 1 < std::size(units); ++unit) value /= 1024;
  char text[32];
  std::snprintf(text, sizeof text, unit == 0 ? "%.0f %s" : "%.1f %s", value, units[unit]);
  return text;
}

void print(const std::string& text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0)
    throw Error(ErrorKind::kIo, "standard output cannot be written");
}

}  // namespace polyspan::cli
