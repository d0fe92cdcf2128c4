#include "hydra/hydra_model.h"

#include "eval/random_source.h"
#include "hydra/controller.h"
#include "hydra/device_stream.h"
#include "hydra/experts.h"
#include "hydra/fused_block.h"
#include "hydra/precision.h"
#include "hydra/product_keys.h"
#include "hydra/sparse_attention.h"
#include "hydra/ssm.h"
#include "hydra/workspace.h"

namespace polyspan {
namespace {

// Noise that depends on the seed alone, not on the device.
torch::Tensor router_noise(const HydraConfig& c, const StageSwitches& switches, int64_t layer,
                           const torch::Tensor& summary) {
  if (switches.router_noise <= 0) return {};
  RandomSource random{switches.noise_seed, static_cast<uint64_t>(layer)};
  for (int64_t i = 0; i < switches.first_sequence * summary.size(1) * c.n_experts * 4; ++i) random.unit();
  std::vector<float> noise(static_cast<size_t>(summary.size(0) * summary.size(1) * c.n_experts));
  for (float& value : noise)  // Irwin-Hall: near enough to normal, and the same everywhere
    value = static_cast<float>(switches.router_noise *
                               (random.unit() + random.unit() + random.unit() + random.unit() - 2.0) * 1.7320508);
  return torch::tensor(at::ArrayRef<float>(noise))
      .view({summary.size(0), summary.size(1), c.n_experts})
      .to(summary.options());
}

void add_to(torch::Tensor& sum, const torch::Tensor& value) { sum = sum.defined() ? sum + value : value; }

}  // namespace

HydraModel::HydraModel(HydraConfig config, uint64_t seed, const torch::TensorOptions& options)
    : LanguageModel(Parameters(hydra_tensors(config), seed, options)), config_(std::move(config)) {
  config_.check();
}

// y = x + m1 g1 SSM(n) + m2 g2 (SGA(n) + workspace(n)) + m3 g3 MoE(n) + PKM(n), n = norm(x).
torch::Tensor HydraModel::block(int64_t layer, const torch::Tensor& x, const StageSwitches& switches,
                                ForwardOutput& out) const {
  const HydraConfig& c = config_;
  const BlockParameters w(parameters_, layer);
  const torch::Tensor n = rms_norm(x, w["norm.weight"], c.norm_eps);
  const torch::Tensor summary = chunk_summary(n, c.chunk_len);
  const torch::Tensor multipliers = path_multipliers(w, summary) * w["path_scales"];  // [n_seqs, n_chunks, 3]
  const auto share = [&](HydraPart part) { return switches.share_of(part); };
  const std::string name = std::to_string(layer);

  // What the products read: rounded once where kernels take bf16, else by each product for itself.
  const bool rounded = DeviceStream::is_for(n.device()) && Bf16Products::are_on(n.device().type());
  const torch::Tensor in = rounded ? n.to(torch::kBFloat16) : n;
  std::vector<Path> paths;
  if (c.has_ssm && share(HydraPart::kSsm) > 0) paths.push_back({ssm(c, w, in), 0, share(HydraPart::kSsm)});
  if (c.has_attention(layer) && share(HydraPart::kAttention) > 0)
    paths.push_back({sparse_attention(c, w, in), 1, share(HydraPart::kAttention)});
  if (c.has_workspace(layer) && share(HydraPart::kWorkspace) > 0) {
    const WorkspaceOutput slots = workspace(c, w, n);
    paths.push_back({slots.y, 1, share(HydraPart::kWorkspace)});
    out.statistics["workspace.touched." + name] = slots.touched;
  }
  if (c.has_moe(layer) && share(HydraPart::kMoe) > 0) {
    const Routing routing =
        route(c, w, summary, router_noise(c, switches, layer, summary), switches.mean_over_processes);
    const torch::Tensor chunks = n.view({n.size(0), n.size(1) / c.chunk_len, c.chunk_len, c.d_model});
    const torch::Tensor mixed = grouped_experts(chunks, routing.experts, routing.weights, w["moe_gate.weight"],
                                                w["moe_up.weight"], w["moe_down.weight"]);
    paths.push_back({mixed.view(n.sizes()), 2, share(HydraPart::kMoe)});
    add_to(out.balance_loss, routing.balance_loss);
    add_to(out.z_loss, routing.z_loss);
    out.statistics["moe.use." + name] = routing.use.detach();
  }
  if (c.has_pkm(layer) && share(HydraPart::kPkm) > 0) {
    const MemoryOutput memory = product_keys(c, w, n);
    paths.push_back({memory.y, -1, share(HydraPart::kPkm)});
    out.statistics["pkm.gate." + name] = memory.gate;
    out.statistics["pkm.values_read." + name] =
        torch::zeros({c.n_sub_keys * c.n_sub_keys}, x.options()).index_fill_(0, memory.indices.reshape({-1}), 1).sum();
  }
  out.statistics["multipliers." + name] = multipliers.detach().mean(at::IntArrayRef({0, 1}));
  return add_paths(x, paths, multipliers, c.chunk_len);
}

ForwardOutput HydraModel::forward(const torch::Tensor& tokens, const StageSwitches& switches) {
  const int64_t n_tokens = tokens.size(1), len = config_.chunk_len, n_padded = (len - n_tokens % len) % len;
  ForwardOutput out;
  const torch::Tensor ids =
      n_padded == 0 ? tokens : torch::cat({tokens, torch::zeros({tokens.size(0), n_padded}, tokens.options())}, 1);
  torch::Tensor x = torch::embedding(parameters_["token_embd.weight"], ids);
  for (int64_t layer = 0; layer < config_.n_layers; ++layer) x = block(layer, x, switches, out);
  if (n_padded > 0) x = x.slice(1, 0, n_tokens);
  out.logits = output_logits(parameters_, x, config_.norm_eps);
  return out;
}

}  // namespace polyspan
