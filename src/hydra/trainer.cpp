#include "hydra/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>

#include "core/error.h"
#include "core/folder_lock.h"
#include "core/mapped_file.h"
#include "core/thread_team.h"
#include "hydra/batches.h"
#include "hydra/checkpoint.h"
#include "hydra/cpu_threads.h"
#include "hydra/device_memory.h"
#include "hydra/hydra_model.h"
#include "hydra/precision.h"
#include "hydra/processes.h"
#include "hydra/transformer_model.h"

namespace polyspan {
namespace {

using Json = nlohmann::ordered_json;

constexpr HydraPart kAllParts[] = {HydraPart::kSsm,       HydraPart::kAttention, HydraPart::kMoe,
                                   HydraPart::kWorkspace, HydraPart::kPkm,       HydraPart::kFfn};

// REQUIRES: there is such a part (load_train_config has checked it).
HydraPart part_by_name(const std::string& name) {
  for (const HydraPart part : kAllParts)
    if (part_name(part) == name) return part;
  POLYSPAN_CHECK(false, name);
}

// Where a step is in the curriculum.
struct StagePosition {
  const TrainStage* stage;
  size_t index;
  double done;  // share of the stage, [0, 1)
};

StagePosition stage_at(const TrainConfig& config, int64_t step) {
  for (size_t i = 0; i < config.stages.size(); ++i) {
    if (step < config.stages[i].steps)
      return {&config.stages[i], i, static_cast<double>(step) / static_cast<double>(config.stages[i].steps)};
    step -= config.stages[i].steps;
  }
  const TrainStage& last = config.stages.back();
  return {&last, config.stages.size() - 1, 1.0};
}

StageSwitches switches_at(const TrainConfig& config, const StagePosition& at, int64_t step) {
  StageSwitches switches = evaluation_switches(*at.stage);
  for (const std::string& part : at.stage->ramp) switches.share[part_by_name(part)] = std::max(1e-3, at.done);
  switches.router_noise = at.stage->router_noise * (1 - at.done);
  switches.noise_seed = config.seed ^ (static_cast<uint64_t>(step) << 20);
  return switches;
}

// Warm-up, then a cosine over the whole run.
double learning_rate(const TrainConfig& config, const StagePosition& at, int64_t step) {
  const double warm = config.warmup_steps > 0
                          ? std::min(1.0, static_cast<double>(step + 1) / static_cast<double>(config.warmup_steps))
                          : 1.0;
  const double cosine =
      0.5 * (1 + std::cos(M_PI * static_cast<double>(step) / static_cast<double>(config.total_steps())));
  return at.stage->lr * warm * (config.final_lr_share + (1 - config.final_lr_share) * cosine);
}

// metrics.jsonl: one object a line. A resumed run drops what was written after the checkpoint.
class Metrics {
 public:
  Metrics(std::filesystem::path path, int64_t resumed_step) : path_(std::move(path)) {
    std::string kept, line;
    if (std::ifstream before(path_); resumed_step > 0 && before) {
      while (std::getline(before, line)) {
        const Json entry = Json::parse(line, nullptr, /*allow_exceptions=*/false);
        if (!entry.is_object() || !entry.contains("step") || entry["step"].get<int64_t>() > resumed_step) continue;
        kept += line + "\n";
      }
    }
    write_file_atomically(path_, std::as_bytes(std::span(kept)));
    file_.open(path_, std::ios::app);
  }
  void add(const Json& entry) {
    file_ << entry.dump() << std::endl;
    if (!file_) throw Error::io(path_, "the metrics cannot be written; is the disk full?");
  }

 private:
  std::filesystem::path path_;
  std::ofstream file_;
};

// Which tensor a number that is not finite is in: what a stopped run says.
std::string not_finite_in(const Parameters& parameters) {
  for (size_t i = 0; i < parameters.specs().size(); ++i) {
    const TensorSpec& spec = parameters.specs()[i];
    const torch::Tensor& value = parameters.tensors()[i];
    const auto finite = [](const torch::Tensor& t) { return torch::isfinite(t).all().item<bool>(); };
    if (!finite(value.detach())) return "the " + std::string(part_name(spec.part)) + "'s weights " + spec.name;
    torch::Tensor grad = value.grad();
    if (grad.defined() && grad.is_sparse()) grad = grad.coalesce()._values();
    if (grad.defined() && !finite(grad))
      return "the " + std::string(part_name(spec.part)) + "'s gradient of " + spec.name;
  }
  return "the activations (all weights and gradients are finite)";
}

// "model name" of the first processor; empty where the system does not say.
std::string processor_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (const size_t colon = line.find(": "); colon != line.npos && line.starts_with("model name"))
      return line.substr(colon + 2);
  return "";
}

class Run {
 public:
  Run(const TrainOptions& options, Progress& progress);
  TrainResult go();

 private:
  void check_data();
  ForwardOutput forward(const TokenBatch& batch, const StageSwitches& switches) {
    const Bf16Products products(device_.type(), config_.precision == "bf16");
    return model_->forward(batch.inputs, switches);
  }
  // Forward, backward, update; returns the cross-entropy.
  double step(int64_t step);
  std::pair<double, double> evaluate(const TrainStage& stage);
  [[noreturn]] void stop(int64_t step, const std::string& what);

  const TrainOptions& options_;
  Progress& progress_;
  std::string config_text_;
  TrainConfig config_;
  torch::Device device_;
  std::unique_ptr<Processes> processes_;
  std::optional<FolderLock> lock_;  // of the first process: it alone writes
  std::unique_ptr<LanguageModel> model_;
  std::unique_ptr<AdamW> optimizer_;
  std::optional<TokenFile> train_tokens_, valid_tokens_;
  TrainState state_;
  double grad_norm_ = 0;
  ForwardOutput last_;  // of the last step, its statistics
};

Run::Run(const TrainOptions& options, Progress& progress)
    : options_(options),
      progress_(progress),
      config_text_(read_config_text(options.config_file)),
      config_(parse_train_config(config_text_, options.config_file)),
      device_(torch::kCPU),
      processes_(Processes::from_environment()) {
  if (config_.stages.empty())
    throw Error::bad_input(options.config_file.string(), ": no [[stage]]: there is nothing to train");
  if (options.device == "cuda") {
    if (!torch::cuda::is_available()) throw Error::unsupported("--device cuda: this LibTorch finds no CUDA device");
    device_ = torch::Device(torch::kCUDA, static_cast<c10::DeviceIndex>(
                                              processes_->rank() % static_cast<int64_t>(torch::cuda::device_count())));
  } else if (options.device != "cpu") {
    throw Error::usage("--device is \"", options.device, "\"; wanted cpu or cuda");
  }
  check_data();
  for (const TrainStage& stage : config_.stages)
    if (stage.batch % processes_->size() != 0)
      throw Error::bad_input(options.config_file.string(), ": stage \"", stage.name, "\" has batches of ", stage.batch,
                             " sequences, which ", processes_->size(), " processes cannot share evenly");
  std::error_code error;
  std::filesystem::create_directories(options.folder, error);
  if (!std::filesystem::is_directory(options.folder)) throw Error::io(options.folder, "the folder cannot be made");
  const std::filesystem::path checkpoint = options.folder / "checkpoint.safetensors";
  if (processes_->is_first()) lock_.emplace(options.folder);
  const bool there = std::filesystem::exists(checkpoint);
  if (there && !options.resume)
    throw Error::usage(options.folder.string(),
                       " holds a run already: go on with it with --resume, or choose another folder");
  if (!there && options.resume) throw Error::usage(options.folder.string(), " holds no checkpoint to resume from");
  set_cpu_threads(config_.threads > 0 ? static_cast<int>(config_.threads)
                                      : std::max(1, default_thread_count() / static_cast<int>(processes_->size())));
  model_ = make_model(config_, torch::TensorOptions().dtype(torch::kFloat32).device(device_));
  optimizer_ = std::make_unique<AdamW>(
      model_->parameters(), AdamSettings{config_.beta1, config_.beta2, config_.adam_eps, config_.weight_decay,
                                         config_.clip, config_.value_lr_scale});
  if (there) state_ = load_checkpoint(checkpoint, config_, model_->parameters(), *optimizer_);
  if (there && state_.tokenizer != train_tokens_->info().tokenizer)
    throw Error::bad_input(config_.train_tokens.string(), " was made with the tokenizer ",
                           train_tokens_->info().tokenizer, "; the checkpoint's tokens with ", state_.tokenizer);
  state_.tokenizer = train_tokens_->info().tokenizer;
  if (processes_->is_first())
    write_file_atomically(options.folder / "config.toml", std::as_bytes(std::span(config_text_)));
}

void Run::check_data() {
  if (config_.train_tokens.empty())
    throw Error::bad_input(options_.config_file.string(), ": [data] train is missing: the token file to learn from");
  train_tokens_.emplace(TokenFile::open(config_.train_tokens));
  if (!config_.valid_tokens.empty()) valid_tokens_.emplace(TokenFile::open(config_.valid_tokens));
  for (const std::optional<TokenFile>* file : {&train_tokens_, &valid_tokens_}) {
    if (!file->has_value()) continue;
    if ((*file)->info().vocab_size > config_.vocab_size())
      throw Error::bad_input((*file)->path().string(), " has a vocabulary of ", (*file)->info().vocab_size,
                             ", the model's vocab_size is ", config_.vocab_size());
    for (const TrainStage& stage : config_.stages) check_length(**file, stage.length);
  }
  if (valid_tokens_ && valid_tokens_->info().tokenizer != train_tokens_->info().tokenizer)
    throw Error::bad_input(config_.valid_tokens.string(), " was made with another tokenizer than ",
                           config_.train_tokens.string());
}

void Run::stop(int64_t step, const std::string& what) {
  const bool saved = std::filesystem::exists(options_.folder / "checkpoint.safetensors");
  throw Error::bad_input("training stopped at step ", step + 1, ": ", what, "; ",
                         saved ? "the last good checkpoint is of step " + std::to_string(state_.step)
                               : std::string("there is no checkpoint yet"));
}

double Run::step(int64_t step) {
  const StagePosition at = stage_at(config_, step);
  for (const HydraPart part : kAllParts)
    model_->parameters().set_trained(
        part, std::find(at.stage->frozen.begin(), at.stage->frozen.end(), part_name(part)) == at.stage->frozen.end());
  const int64_t n_processes = processes_->size(), share = at.stage->batch / n_processes,
                first = processes_->rank() * share;
  const TokenBatch batch =
      train_batch(*train_tokens_, at.stage->batch, at.stage->length, config_.seed, step, first, first + share)
          .to(device_);
  StageSwitches switches = switches_at(config_, at, step);
  if (n_processes > 1) {
    switches.first_sequence = first;
    switches.mean_over_processes = [&](const torch::Tensor& x) {
      return processes_->sum(x) / static_cast<double>(n_processes);
    };
  }
  last_ = forward(batch, switches);
  // Of several processes each has its part of the sum; so gradients add up to those of the whole batch.
  const torch::Tensor loss = summed_cross_entropy(last_.logits, batch) / processes_->sum(batch.mask.sum()).clamp_min(1);
  torch::Tensor total = loss;
  if (last_.balance_loss.defined())
    total = total + (config_.balance_weight * last_.balance_loss + config_.z_weight * last_.z_loss) /
                        static_cast<double>(n_processes);
  const double value = processes_->sum(loss.item<double>());
  if (!std::isfinite(processes_->sum(total.item<double>())))
    stop(step, "the loss is " + std::to_string(value) + "; the first number that is not finite is in " +
                   not_finite_in(model_->parameters()));
  if (step > 0 && config_.max_loss_jump > 0 && value > state_.smoothed_loss + config_.max_loss_jump)
    stop(step, "the loss jumped from " + std::to_string(state_.smoothed_loss) + " to " + std::to_string(value) +
                   ", more than max_loss_jump");
  total.backward();
  processes_->sum_gradients(model_->parameters());
  grad_norm_ = optimizer_->step(learning_rate(config_, at, step));
  if (!std::isfinite(grad_norm_)) stop(step, "the gradient is not finite, in " + not_finite_in(model_->parameters()));
  return value;
}

std::pair<double, double> Run::evaluate(const TrainStage& stage) {
  if (!processes_->is_first()) return {0, 0};
  const torch::NoGradGuard no_grad;
  const TokenFile& file = valid_tokens_ ? *valid_tokens_ : *train_tokens_;
  const int64_t n = std::min(config_.eval_sequences, n_eval_sequences(file, stage.length));
  double loss = 0, right = 0, scored = 0;
  const StageSwitches switches = evaluation_switches(stage);
  for (int64_t first = 0; first < n; first += stage.batch) {
    const TokenBatch batch = eval_batch(file, first, std::min(stage.batch, n - first), n, stage.length).to(device_);
    const ForwardOutput out = forward(batch, switches);
    const double count = batch.mask.sum().item<double>();
    loss += (summed_cross_entropy(out.logits, batch) / batch.mask.sum().clamp_min(1)).item<double>() * count;
    right += ((out.logits.argmax(-1) == batch.targets) * batch.mask).sum().item<double>();
    scored += count;
  }
  return {loss / std::max(1.0, scored), right / std::max(1.0, scored)};
}

TrainResult Run::go() {
  using Clock = std::chrono::steady_clock;
  const int64_t total = config_.total_steps(), first = state_.step;
  const int64_t end = options_.stop_after > 0 ? std::min(total, first + options_.stop_after) : total;
  std::optional<Metrics> metrics;
  if (processes_->is_first()) metrics.emplace(options_.folder / "metrics.jsonl", first);
  if (first < end && metrics)
    metrics->add({{"type", "run"},
                  {"step", first},
                  {"device", options_.device},
                  {"processor", processor_name()},
                  {"threads", at::get_num_threads()},
                  {"processes", processes_->size()},
                  {"libtorch", TORCH_VERSION}});
  TrainResult result;
  result.is_first = processes_->is_first();
  result.steps = first;
  for (const TensorSpec& spec : model_->parameters().specs()) result.parameters += spec.n_values();
  const auto seconds_since = [](Clock::time_point then) {
    return std::chrono::duration<double>(Clock::now() - then).count();
  };
  double train_seconds = 0;
  int64_t n_tokens = 0;
  progress_.start("training", end - first);
  for (int64_t step = first; step < end; ++step) {
    const StagePosition at = stage_at(config_, step);
    const Clock::time_point begin = Clock::now();
    const double loss = this->step(step);
    train_seconds += seconds_since(begin);
    n_tokens += at.stage->batch * at.stage->length;
    state_.smoothed_loss = step == 0 ? loss : 0.95 * state_.smoothed_loss + 0.05 * loss;
    result.loss = loss;
    result.steps = step + 1;
    const bool last = step + 1 == end, stage_ends = stage_at(config_, step + 1).index != at.index;
    if (metrics && (last || stage_ends || (step + 1) % config_.log_every == 0)) {
      Json entry = {{"type", "step"},
                    {"step", step + 1},
                    {"stage", at.stage->name},
                    {"loss", loss},
                    {"lr", learning_rate(config_, at, step)},
                    {"grad_norm", grad_norm_},
                    {"tokens_per_s", static_cast<double>(n_tokens) / train_seconds}};
      if (const int64_t bytes = peak_device_bytes(device_); bytes > 0) entry["peak_device_bytes"] = bytes;
      if (last_.balance_loss.defined())
        entry["balance_loss"] = last_.balance_loss.item<double>(), entry["z_loss"] = last_.z_loss.item<double>();
      for (const auto& [name, value] : last_.statistics) {
        const torch::Tensor host = value.to(torch::kCPU).to(torch::kFloat64).contiguous();
        entry[name] = host.dim() == 0
                          ? Json(host.item<double>())
                          : Json(std::vector<double>(host.data_ptr<double>(), host.data_ptr<double>() + host.numel()));
      }
      metrics->add(entry);
    }
    last_ = {};
    if (metrics && (last || stage_ends || (step + 1) % config_.eval_every == 0)) {
      std::tie(result.eval_loss, result.eval_accuracy) = evaluate(*at.stage);
      metrics->add({{"type", "eval"},
                    {"step", step + 1},
                    {"stage", at.stage->name},
                    {"loss", result.eval_loss},
                    {"accuracy", result.eval_accuracy}});
    }
    if (config_.checkpoint_every > 0 && (last || (step + 1) % config_.checkpoint_every == 0)) {
      state_.step = step + 1;
      if (processes_->is_first())
        save_checkpoint(options_.folder / "checkpoint.safetensors", config_, config_text_, model_->parameters(),
                        *optimizer_, state_);
    }
    progress_.update(step + 1 - first);
  }
  progress_.finish();
  if (first >= end) std::tie(result.eval_loss, result.eval_accuracy) = evaluate(config_.stages.back());
  result.tokens_per_s = train_seconds > 0 ? static_cast<double>(n_tokens) / train_seconds : 0;
  return result;
}

}  // namespace

StageSwitches evaluation_switches(const TrainStage& stage) {
  StageSwitches switches;
  for (const std::string& part : stage.off) switches.share[part_by_name(part)] = 0;
  return switches;
}

std::unique_ptr<LanguageModel> make_model(const TrainConfig& config, const torch::TensorOptions& options) {
  if (config.architecture == "hydra") return std::make_unique<HydraModel>(config.hydra, config.seed, options);
  return std::make_unique<TransformerModel>(config.transformer, config.seed, options);
}

TrainResult train(const TrainOptions& options, Progress& progress) {
  try {
    return Run(options, progress).go();
  } catch (const c10::Error& error) {  // LibTorch's own: memory, above all
    const std::string message = error.what_without_backtrace();
    if (message.find("memory") != std::string::npos)
      throw Error::out_of_memory(
          "training on ", options.device, " needs more memory than there is; a smaller batch, a ",
          "shorter length or precision = \"bf16\" needs less. LibTorch: ", message.substr(0, message.find('\n')));
    throw;
  }
}

}  // namespace polyspan
