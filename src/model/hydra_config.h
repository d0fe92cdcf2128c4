// model/hydra_config.h: the sizes of a Hydra model and the list of its tensors (arXiv 2508.15099; docs/hydra.md).
//
// The list is the one place that knows which tensors there are and how large they are: training makes its parameters
// from it, a checkpoint and a GGUF file use its names, the engine checks a file against it, the accounting adds it up.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/gguf.h"
#include "io/gguf_writer.h"

namespace polyspan {

// The state-space path of a block.
enum class SsmKind {
  kMamba2,    // arXiv 2405.21060
  kDiagonal,  // the Hydra paper's own equation: one number of state a channel (hydra/diagonal_ssm.h)
};
std::string_view ssm_kind_name(SsmKind kind);  // "mamba2", "diagonal": in TOML and GGUF files

// d_: widths, n_: counts. A part with a count or an interval of 0 is absent.
struct HydraConfig {
  int64_t d_model = 256, n_layers = 8, vocab_size = 260;
  int64_t context_length = 1 << 20;  // that a sequence may have; nothing grows with it
  double norm_eps = 1e-5;
  int64_t chunk_len = 64;  // tokens that share their decisions
  int64_t controller_rank = 32;

  // Selective state space, every block. The sizes are Mamba-2's; the diagonal one has d_model channels.
  bool has_ssm = true;
  SsmKind ssm_kind = SsmKind::kMamba2;
  int64_t d_inner = 512, ssm_head_dim = 64, d_state = 64, d_conv = 4;

  // Sparse global attention, every attention_every-th block.
  int64_t attention_every = 3, n_heads = 4, n_kv_heads = 4, head_dim = 64;
  int64_t window = 256;   // keys of the window, the query's own included; a multiple of chunk_len
  int64_t n_global = 64;  // tokens kept from before the window
  double rope_base = 10000.0;

  // Chunk-level experts, every moe_every-th block.
  int64_t moe_every = 2, n_experts = 4, n_active_experts = 2, d_expert = 512;

  // Workspace, in blocks that have attention.
  int64_t n_slots = 32, d_slot = 128, slot_rank = 128;

  // Product-key memory (arXiv 1907.05242), in the blocks named.
  std::vector<int64_t> pkm_layers;
  int64_t n_sub_keys = 64, pkm_heads = 4, pkm_top = 8, d_pkm_query = 64, d_value = 128;

  int64_t n_ssm_heads() const { return d_inner / ssm_head_dim; }
  int64_t d_conv_channels() const { return d_inner + 2 * d_state; }                 // x, B, C
  int64_t d_ssm_in() const { return d_inner + d_conv_channels() + n_ssm_heads(); }  // z, (x, B, C), dt
  bool has_mamba2() const { return has_ssm && ssm_kind == SsmKind::kMamba2; }
  bool has_diagonal_ssm() const { return has_ssm && ssm_kind == SsmKind::kDiagonal; }
  bool has_attention(int64_t layer) const { return attention_every > 0 && (layer + 1) % attention_every == 0; }
  int64_t n_attention_layers() const { return attention_every > 0 ? n_layers / attention_every : 0; }
  bool has_moe(int64_t layer) const { return moe_every > 0 && (layer + 1) % moe_every == 0; }
  bool has_workspace(int64_t layer) const { return n_slots > 0 && has_attention(layer); }
  bool has_pkm(int64_t layer) const;

  // Throws Error (kBadInput) naming the key ("ssm.d_inner"), what it is and what it must be.
  void check() const;
};

// The keys of the GGUF file, "hydra.*". Read: throws Error (kBadFile) naming the key.
HydraConfig read_hydra_config(const GgufFile& file);
void write_hydra_config(const HydraConfig& config, GgufWriter& writer);

// To which part of the model a tensor belongs, in the accounting and in the stages of training.
enum class HydraPart { kEmbedding, kNorm, kController, kSsm, kAttention, kMoe, kWorkspace, kPkm, kFfn };
std::string_view part_name(HydraPart part);

// How a parameter begins.
enum class TensorInit {
  kNormal,      // normal, deviation `scale`
  kConstant,    // all `scale`
  kPathScales,  // g1, g2, g3 = 0.8, 0.2, 0.5
  kLogUniform,  // a_log: log of uniform (1, 16)
  kTimeStep,    // dt bias: softplus of it is log-uniform in (1e-3, 1e-1)
  kLogRate,     // lambda_log: uniform in (log 0.01, log 1)
};

struct TensorSpec {
  std::string name;            // of the parameter, in checkpoints and in GGUF files
  std::vector<int64_t> shape;  // row-major, last axis contiguous: W [d_out, d_in] of y = W x
  HydraPart part = HydraPart::kNorm;
  TensorInit init = TensorInit::kNormal;
  double scale = 0.02;
  bool decays = false;     // weight decay
  bool is_matrix = false;  // multiplied by activations: may be stored quantised
  int64_t n_values() const;
};
std::vector<TensorSpec> hydra_tensors(const HydraConfig& config);

// What one token costs and what a sequence keeps.
struct HydraAccount {
  struct Part {
    std::string name;
    int64_t parameters = 0;
    int64_t active_parameters = 0;  // read for one token
    double flops_per_token = 0;     // forward, multiply and add counted as two
    int64_t state_bytes = 0;        // of one sequence in decode, full windows, float32
  };
  std::vector<Part> parts;
  int64_t parameters = 0, active_parameters = 0, state_bytes = 0;
  double flops_per_token = 0;
};
HydraAccount account(const HydraConfig& config);

}  // namespace polyspan
