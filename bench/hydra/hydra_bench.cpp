// polyspan-hydra-bench: what training costs, on the CPU or a GPU, and what a trained run does on other token files. One
// JSON object a line on standard output.
//
//   polyspan-hydra-bench lengths CONFIG.toml... --lengths 1024,8192,65536 --tokens 65536 [--device cuda] [--precision bf16]
//   polyspan-hydra-bench decode CONFIG.toml... --lengths 8192,65536 [--gen 64] [--device cuda [--graphs]] [--precision bf16]
//   polyspan-hydra-bench scan | experts
//   polyspan-hydra-bench score RUN TOKENS... [--device cuda]
#include <CLI/CLI.hpp>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "core/error.h"
#include "core/thread_team.h"
#include "hydra/batches.h"
#include "hydra/checkpoint.h"
#include "hydra/cpu_memory.h"
#include "hydra/cpu_threads.h"
#include "hydra/decoder.h"
#include "hydra/device_graph.h"
#include "hydra/device_memory.h"
#include "hydra/experts.h"
#include "hydra/precision.h"
#include "hydra/scan.h"
#include "hydra/trainer.h"

namespace polyspan {
namespace {

using Json = nlohmann::ordered_json;

void put(const Json& row) {
  std::printf("%s\n", row.dump().c_str());
  std::fflush(stdout);
}

void wait_for(const torch::Device& device) {
  if (device.is_cuda()) torch::cuda::synchronize();
}

// Seconds of each of `reps` calls, after one that is not counted.
std::vector<double> seconds_of(const std::function<void()>& work, int64_t reps, const torch::Device& device) {
  std::vector<double> seconds;
  for (int64_t i = 0; i <= reps; ++i) {
    wait_for(device);
    const auto begin = std::chrono::steady_clock::now();
    work();
    wait_for(device);
    if (i > 0) seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds;
}

double median(const std::vector<double>& sorted) { return sorted[sorted.size() / 2]; }

struct Arguments {
  std::vector<std::string> files;
  std::vector<int64_t> lengths = {1024, 4096, 16384, 65536};
  std::vector<std::string> what = {"forward", "train"};
  std::string device = "cpu", precision = "f32", run;
  int64_t tokens = 65536, gen = 64, reps = 3, threads = 0, sequences = 256;
  bool graphs = false;
  torch::Device place() const { return torch::Device(device == "cuda" ? torch::kCUDA : torch::kCPU); }
};

// False where the device's memory did not reach: the row says so.
bool within_memory(Json& row, const std::function<void()>& measure) {
  try {
    measure();
    return true;
  } catch (const c10::Error& error) {
    const std::string message = error.what_without_backtrace();
    if (message.find("memory") == std::string::npos) throw;
    row["error"] = "out of memory";
    return false;
  }
}

// Tokens a second of a forward pass and of a training step, a batch of `tokens` tokens at each length; random tokens.
void lengths(const Arguments& a) {
  const torch::Device device = a.place();
  for (const std::string& file : a.files) {
    const TrainConfig config = load_train_config(file);
    const std::unique_ptr<LanguageModel> model =
        make_model(config, torch::TensorOptions().dtype(torch::kFloat32).device(device));
    int64_t n_parameters = 0;
    for (const TensorSpec& spec : model->parameters().specs()) n_parameters += spec.n_values();
    std::optional<AdamW> optimizer;  // made when it is needed: its moments are twice the model's memory
    for (const std::string& what : a.what) {
      if (what == "train") optimizer.emplace(model->parameters(), AdamSettings{});
      for (const int64_t length : a.lengths) {
        if (length > a.tokens) continue;
        torch::manual_seed(1);
        const torch::Tensor tokens = torch::randint(config.vocab_size(), {a.tokens / length, length}, torch::kInt64);
        const torch::Tensor inputs = tokens.to(device), targets = tokens.roll(-1, 1).to(device);
        const auto logits = [&] {
          const Bf16Products products(device.type(), a.precision == "bf16");
          return model->forward(inputs, {}).logits;
        };
        const auto forward = [&] {
          const torch::NoGradGuard no_grad;
          logits();
        };
        const auto step = [&] {
          torch::cross_entropy_loss(not_bf16(logits()).flatten(0, 1), targets.flatten()).backward();
          optimizer->step(1e-6);
        };
        Json row = {{"test", what},
                    {"config", std::filesystem::path(file).stem().string()},
                    {"length", length},
                    {"batch", a.tokens / length},
                    {"device", a.device},
                    {"precision", a.precision},
                    {"threads", at::get_num_threads()},
                    {"parameters", n_parameters},
                    {"libtorch", TORCH_VERSION}};
        reset_peak_device_bytes(device);
        const bool fits = within_memory(row, [&] {
          const std::vector<double> seconds =
              what == "train" ? seconds_of(step, a.reps, device) : seconds_of(forward, a.reps, device);
          row["tokens_per_s"] = static_cast<double>(a.tokens) / median(seconds);
          row["seconds"] = seconds;
        });
        if (!fits && optimizer) optimizer->drop_gradients();
        row["peak_device_bytes"] = peak_device_bytes(device);
        put(row);
        empty_device_cache(device);
      }
    }
  }
}

// Tokens a second decoded one by one at each depth, by LibTorch: of Hydra the recurrent state, of a transformer its cache. The
// state is as after `length` tokens, with zeros in it; random weights. In bf16 the matrices are kept in bf16. With graphs, three
// chunks of tokens come first, in which the kinds of steps are recorded.
void decode(const Arguments& a) {
  const torch::NoGradGuard no_grad;
  const torch::Device device = a.place();
  if (a.graphs && !DeviceGraph::is_for(device))
    throw Error::usage("--graphs wants --device cuda and the kernels of our own (POLYSPAN_HYDRA_KERNELS)");
  for (const std::string& file : a.files) {
    const TrainConfig config = load_train_config(file);
    const std::unique_ptr<LanguageModel> model =
        make_model(config, torch::TensorOptions().dtype(torch::kFloat32).device(device));
    if (a.precision == "bf16") store_matrices_in_bf16(model->parameters());
    empty_device_cache(device);
    for (const int64_t length : a.lengths) {
      const Bf16Products products(device.type(), a.precision == "bf16");
      const int64_t chunk_len = config.hydra.chunk_len, depth = length / chunk_len * chunk_len;
      Json row = {{"test", "decode"},         {"config", std::filesystem::path(file).stem().string()},
                  {"depth", depth},           {"gen", a.gen},
                  {"device", a.device},       {"precision", a.precision},
                  {"graphs", a.graphs},       {"threads", at::get_num_threads()},
                  {"libtorch", TORCH_VERSION}};
      reset_peak_device_bytes(device);
      within_memory(row, [&] {
        const int64_t n_first = a.graphs ? 3 * chunk_len : 0;
        const std::unique_ptr<Decoder> decoder =
            make_decoder(config, *model, {.capacity = depth + n_first + a.gen * (a.reps + 1), .graphs = a.graphs});
        decoder->pretend(depth);
        torch::Tensor token = torch::zeros({1}, torch::TensorOptions().dtype(torch::kInt64).device(device));
        const auto decode_tokens = [&](int64_t n) {
          for (int64_t i = 0; i < n; ++i) token = decoder->step(token).argmax(-1);
        };
        decode_tokens(n_first);
        const std::vector<double> seconds = seconds_of([&] { decode_tokens(a.gen); }, a.reps, device);
        row["tokens_per_s"] = static_cast<double>(a.gen) / median(seconds);
        row["seconds"] = seconds;
        row["state_bytes"] = decoder->state_bytes();
        if (a.graphs) row["launches_per_token"] = decoder->launches_per_step();
      });
      row["peak_device_bytes"] = peak_device_bytes(device);
      put(row);
      empty_device_cache(device);
    }
  }
}

// The chunked scan against a loop over tokens, forward and backward: the toy's 8 heads of 64, state 64.
void scan(const Arguments& a) {
  for (const int64_t length : {int64_t{1024}, int64_t{4096}}) {
    torch::manual_seed(1);
    const int64_t n_seqs = 4096 / length, n_heads = 8;
    const auto leaf = [](const torch::Tensor& t) { return t.clone().set_requires_grad(true); };
    const ScanInput in{leaf(torch::randn({n_seqs, length, n_heads, 64})),
                       leaf(torch::rand({n_seqs, length, n_heads}) * 0.1),
                       leaf(-torch::rand({n_heads}) * 15 - 1),
                       leaf(torch::randn({n_seqs, length, 64})),
                       leaf(torch::randn({n_seqs, length, 64})),
                       {}};
    const auto step = [&](bool chunked) {
      for (const torch::Tensor* tensor : {&in.x, &in.dt, &in.A, &in.B, &in.C}) tensor->mutable_grad() = torch::Tensor();
      (chunked ? chunked_scan(in, 64) : recurrent_scan(in)).y.square().sum().backward();
    };
    const std::vector<double> fast = seconds_of([&] { step(true); }, a.reps, torch::kCPU),
                              slow = seconds_of([&] { step(false); }, a.reps, torch::kCPU);
    put({{"test", "scan"},
         {"length", length},
         {"batch", n_seqs},
         {"chunked_s", fast},
         {"loop_s", slow},
         {"speedup", median(slow) / median(fast)},
         {"threads", at::get_num_threads()}});
  }
}

// The best 2 of 8 experts against one dense SwiGLU as wide as the two, forward and backward, 4,096 tokens of the toy.
void experts(const Arguments& a) {
  torch::manual_seed(1);
  const int64_t d = 256, d_expert = 512, n_experts = 8, n_chunks = 64, len = 64;
  const auto weight = [](at::IntArrayRef shape) { return (torch::randn(shape) * 0.05).set_requires_grad(true); };
  const torch::Tensor x = torch::randn({1, n_chunks, len, d}).set_requires_grad(true);
  const torch::Tensor gate = weight({n_experts, d_expert, d}), up = weight({n_experts, d_expert, d}),
                      down = weight({n_experts, d, d_expert});
  const torch::Tensor wide_gate = weight({2 * d_expert, d}), wide_up = weight({2 * d_expert, d}),
                      wide_down = weight({d, 2 * d_expert});
  const auto [weights, chosen] = torch::softmax(torch::randn({1, n_chunks, n_experts}), -1).topk(2, -1);
  const torch::Tensor shares = weights, which = chosen;
  const auto drop = [&] {
    for (const torch::Tensor* t : {&x, &gate, &up, &down, &wide_gate, &wide_up, &wide_down})
      t->mutable_grad() = torch::Tensor();
  };
  const std::vector<double> sparse = seconds_of(
      [&] {
        drop();
        grouped_experts(x, which, shares, gate, up, down).square().sum().backward();
      },
      a.reps, torch::kCPU);
  const std::vector<double> dense = seconds_of(
      [&] {
        drop();
        const torch::Tensor h = torch::silu(torch::linear(x, wide_gate)) * torch::linear(x, wide_up);
        torch::linear(h, wide_down).square().sum().backward();
      },
      a.reps, torch::kCPU);
  put({{"test", "experts"},
       {"top", 2},
       {"experts", n_experts},
       {"sparse_s", sparse},
       {"dense_s", dense},
       {"ratio", median(sparse) / median(dense)},
       {"threads", at::get_num_threads()}});
}

// A run's checkpoint on token files: loss, accuracy, and which experts each file uses. Of several files of one length, the
// mutual information between file and expert, in bits, the files taken as equally likely.
void score(const Arguments& a) {
  const torch::NoGradGuard no_grad;
  const torch::Device device = a.place();
  const std::filesystem::path folder = a.run;
  const TrainConfig config = load_train_config(folder / "config.toml");
  const std::unique_ptr<LanguageModel> model =
      make_model(config, torch::TensorOptions().dtype(torch::kFloat32).device(device));
  {
    AdamW optimizer(model->parameters(), {});
    load_checkpoint(folder / "checkpoint.safetensors", config, model->parameters(), optimizer);
  }
  const StageSwitches switches = evaluation_switches(config.stages.back());
  std::map<std::string, std::vector<torch::Tensor>> use;  // by block: the files' shares of the experts
  for (const std::string& name : a.files) {
    const TokenFile file = TokenFile::open(name);
    const int64_t length =
        file.info().example_length > 0 ? file.info().example_length - 1 : config.stages.back().length;
    const int64_t n = std::min(a.sequences, n_eval_sequences(file, length));
    const int64_t batch_size = std::max<int64_t>(1, 16384 / length);
    double loss = 0, right = 0, scored = 0;
    std::map<std::string, torch::Tensor> sums;
    for (int64_t first = 0; first < n; first += batch_size) {
      const int64_t n_seqs = std::min(batch_size, n - first);
      const TokenBatch batch = eval_batch(file, first, n_seqs, n, length).to(device);
      const Bf16Products products(device.type(), a.precision == "bf16");
      const ForwardOutput out = model->forward(batch.inputs, switches);
      loss += summed_cross_entropy(out.logits, batch).item<double>();
      right += ((out.logits.argmax(-1) == batch.targets) * batch.mask).sum().item<double>();
      scored += batch.mask.sum().item<double>();
      for (const auto& [key, value] : out.statistics) {
        if (!key.starts_with("moe.use.")) continue;
        const torch::Tensor share = value.to(torch::kCPU).to(torch::kFloat64) * (double(n_seqs) / double(n));
        sums[key] = sums.count(key) > 0 ? sums[key] + share : share;
      }
    }
    for (const auto& [key, value] : sums) use[key].push_back(value);
    put({{"test", "score"},
         {"run", a.run},
         {"file", name},
         {"length", length},
         {"sequences", n},
         {"scored", scored},
         {"loss", loss / scored},
         {"accuracy", right / scored}});
  }
  for (const auto& [key, shares] : use) {
    if (shares.size() < 2) continue;
    const torch::Tensor by_file = torch::stack(shares), mean = by_file.mean(0);
    const double bits =
        (by_file * (by_file.clamp_min(1e-30) / mean.clamp_min(1e-30)).log2()).sum(-1).mean().item<double>();
    Json rows = Json::array();
    for (const torch::Tensor& row : shares)
      rows.push_back(std::vector<double>(row.data_ptr<double>(), row.data_ptr<double>() + row.numel()));
    put({{"test", "specialisation"}, {"run", a.run}, {"block", key}, {"mutual_information_bits", bits}, {"use", rows}});
  }
}

int run(int argc, char** argv) {
  Arguments a;
  CLI::App app{"What training costs, and what a trained run does on token files"};
  app.require_subcommand(1);
  const auto common = [&a](CLI::App* command) {
    command->add_option("--device", a.device, "cpu or cuda")->check(CLI::IsMember({"cpu", "cuda"}));
    command->add_option("--precision", a.precision, "f32 or bf16")->check(CLI::IsMember({"f32", "bf16"}));
    command->add_option("--reps", a.reps, "repetitions")->check(CLI::Range(1, 1000));
    command->add_option("--threads", a.threads, "of the CPU; 0: its cores")->check(CLI::Range(0, 1024));
    return command;
  };
  CLI::App* by_length = common(app.add_subcommand("lengths", "forward and training throughput over the length"));
  by_length->add_option("config", a.files, "configurations")->required();
  by_length->add_option("--lengths", a.lengths, "tokens of a sequence")->delimiter(',');
  by_length->add_option("--tokens", a.tokens, "tokens of a batch");
  by_length->add_option("--what", a.what, "forward, train")->delimiter(',');
  by_length->callback([&] { lengths(a); });
  CLI::App* decoded = common(app.add_subcommand("decode", "tokens one by one at a depth"));
  decoded->add_option("config", a.files, "configurations")->required();
  decoded->add_option("--lengths", a.lengths, "tokens that came before")->delimiter(',');
  decoded->add_option("--gen", a.gen, "tokens of a repetition")->check(CLI::Range(1, 1 << 20));
  decoded->add_flag("--graphs", a.graphs, "record the steps as CUDA graphs and replay them");
  decoded->callback([&] { decode(a); });
  CLI::App* by_scan = common(app.add_subcommand("scan", "the chunked scan against a loop over tokens"));
  by_scan->callback([&] { scan(a); });
  CLI::App* by_experts = common(app.add_subcommand("experts", "the best 2 of 8 experts against a dense layer"));
  by_experts->callback([&] { experts(a); });
  CLI::App* scored = common(app.add_subcommand("score", "a run on token files"));
  scored->add_option("run", a.run, "folder of the run")->required();
  scored->add_option("tokens", a.files, "token files")->required();
  scored->add_option("--sequences", a.sequences, "of each file, at most");
  scored->callback([&] { score(a); });
  app.parse_complete_callback(
      [&a] { set_cpu_threads(a.threads > 0 ? static_cast<int>(a.threads) : default_thread_count()); });
  try {
    app.parse(argc, argv);
    return 0;
  } catch (const CLI::ParseError& error) {
    return app.exit(error);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "polyspan-hydra-bench: %s\n", error.what());
    return 1;
  }
}

}  // namespace
}  // namespace polyspan

int main(int argc, char** argv) {
  polyspan::keep_freed_memory();
  return polyspan::run(argc, argv);
}
