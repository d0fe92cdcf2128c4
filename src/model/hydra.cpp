#include "model/hydra.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/error.h"
#include "model/hydra_profiler.h"

namespace polyspan {
namespace {

constexpr int64_t kMaxBatchTokens = 512;

float dot(const float* a, const float* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return static_cast<float>(sum);
}
float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }
float softplus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }

void softmax(float* x, int64_t n) {
  const float most = *std::max_element(x, x + n);
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += x[i] = std::exp(x[i] - most);
  for (int64_t i = 0; i < n; ++i) x[i] /= sum;
}

// Indices of the n largest, best first; the earlier of equal ones.
void best_indices(const std::vector<float>& x, int64_t n, std::vector<int32_t>& out) {
  out.resize(x.size());
  std::iota(out.begin(), out.end(), 0);
  const auto better = [&](int32_t a, int32_t b) {
    const float p = x[static_cast<size_t>(a)], q = x[static_cast<size_t>(b)];
    return p > q || (p == q && a < b);
  };
  std::partial_sort(out.begin(), out.begin() + n, out.end(), better);
  out.resize(static_cast<size_t>(n));
}

ModelConfig read_hydra(const GgufFile& file) {
  const HydraConfig hydra = read_hydra_config(file);
  ModelConfig config;
  config.architecture = "hydra";
  config.name = file.find_string("general.name").value_or("");
  config.n_layers = hydra.n_layers, config.n_heads = hydra.n_heads, config.n_kv_heads = hydra.n_kv_heads,
  config.head_dim = hydra.head_dim;
  config.d_model = hydra.d_model, config.d_ff = hydra.d_expert, config.vocab_size = hydra.vocab_size;
  config.context_length = hydra.context_length;
  config.norm_eps = static_cast<float>(hydra.norm_eps);
  config.rope.n_dims = hydra.head_dim, config.rope.base = hydra.rope_base;
  config.hydra = hydra;
  describe_tensors(file, config);
  return config;
}

std::unique_ptr<Model> make(std::unique_ptr<GgufFile> file, ModelConfig config, OpContext& context,
                            Progress& progress) {
  return std::make_unique<HydraEngineModel>(std::move(file), std::move(config), context, progress);
}

}  // namespace

extern const Architecture kHydraArchitecture;
const Architecture kHydraArchitecture = {"hydra", read_hydra, make};

HydraEngineModel::HydraEngineModel(std::unique_ptr<GgufFile> file, ModelConfig config, OpContext& context,
                                   Progress& progress)
    : Model(std::move(file), std::move(config)),
      hydra_(*config_.hydra),
      context_(context),
      weights_(HydraWeights::load(*file_, hydra_, context, progress)) {}

std::unique_ptr<SpanProfiler> HydraEngineModel::make_span_profiler(Progress&) {
  return std::make_unique<HydraProfiler>(*this);
}

void HydraEngineModel::skip_paths_below(double multiplier) {
  if (!(multiplier >= 0 && multiplier <= 2))
    throw Error::usage("paths below a multiplier of ", multiplier, " cannot be skipped; it must be between 0 and 2");
  skip_below_ = multiplier;
}

int64_t HydraEngineModel::max_batch_tokens() const { return kMaxBatchTokens; }

int64_t HydraEngineModel::bytes_per_token() const {
  int64_t bytes = 0;
  const auto add = [&](const PackedMatrix& m) {
    if (m.data != nullptr) bytes += m.n_tiles() * m.tile_bytes();
  };
  add(weights_.output);
  for (const HydraBlockWeights& w : weights_.blocks) {
    for (const PackedMatrix* m : {&w.ssm_in, &w.ssm_out, &w.ssm_skip, &w.q, &w.k, &w.v, &w.attn_out, &w.read_q,
                                  &w.read_out, &w.write_k, &w.write_v, &w.pkm_query, &w.pkm_out})
      add(*m);
    for (int64_t e = 0; e < std::min<int64_t>(hydra_.n_active_experts, std::ssize(w.gate)); ++e)
      for (const std::vector<PackedMatrix>* m : {&w.gate, &w.up, &w.down}) add((*m)[static_cast<size_t>(e)]);
  }
  return bytes;
}

void HydraEngineModel::norm(const float* x, const std::vector<float>& weight, int64_t n, int64_t d, float* out) {
  context_.team().split(n, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t)
      kernels().rmsnorm_row(x + t * d, weight.data(), d, config_.norm_eps, out + t * d);
  });
}

MatmulInput HydraEngineModel::input(const float* values, int64_t n_tokens, int64_t d_in) {
  return matmul_input(values, n_tokens, d_in, act_.blocks, context_);
}

// Rows of act_.normed, which was quantised once for all paths of the block.
MatmulInput HydraEngineModel::normed(int64_t row, int64_t n_tokens) const {
  const int64_t d = hydra_.d_model;
  const bool blocks = d % kBlockCols == 0;
  return {act_.normed.data() + row * d, blocks ? act_.normed_blocks.data() + row * d / kBlockCols : nullptr, n_tokens,
          d};
}

void HydraEngineModel::multiply(const MatmulInput& x, const PackedMatrix& weight, float* out) {
  const MatmulOutput output[] = {{&weight, nullptr, out, weight.d_out, Epilogue::kStore}};
  matmul(x, output, context_);
}

// All zeros but the slots.
void HydraEngineModel::begin_sequence(const HydraStateLayout& layout, float* state) {
  std::fill_n(state, layout.n_floats, 0.0f);
  for (int64_t layer = 0; layer < hydra_.n_layers; ++layer) {
    if (!hydra_.has_workspace(layer)) continue;
    const HydraBlockWeights& w = weights_.blocks[static_cast<size_t>(layer)];
    const HydraBlockState& b = layout.blocks[static_cast<size_t>(layer)];
    std::copy(w.slots_init.begin(), w.slots_init.end(), state + b.slots);
    project_slots(w, b, state);
  }
}

void HydraEngineModel::forward(const Batch& batch) {
  const int64_t n = static_cast<int64_t>(batch.tokens.size()), d = hydra_.d_model, len = hydra_.chunk_len;
  POLYSPAN_CHECK(n >= 1 && n <= kMaxBatchTokens);
  const int64_t n_decisions = 3 + 2 * hydra_.n_active_experts;
  std::vector<int64_t> positions;
  parts_.clear();
  for (const BatchSequence& sequence : batch.sequences) {
    POLYSPAN_CHECK(sequence.first_row == std::ssize(positions) && sequence.n_rows >= 1);
    POLYSPAN_CHECK(sequence.cache->n_tokens() + sequence.n_rows <= sequence.cache->max_tokens());
    const HydraStateLayout* const layout = sequence.cache->layout().state.get();
    POLYSPAN_CHECK(layout != nullptr && std::ssize(layout->blocks) == hydra_.n_layers);
    float* const state = reinterpret_cast<float*>(sequence.cache->state());
    if (sequence.cache->n_tokens() == 0) begin_sequence(*layout, state);
    for (int64_t done = 0; done < sequence.n_rows;) {
      const int64_t position = sequence.cache->n_tokens() + done;
      const int64_t n_part = std::min(sequence.n_rows - done, len - position % len);
      parts_.push_back({layout, state, sequence.first_row + done, n_part, position, n_decisions * std::ssize(parts_)});
      done += n_part;
    }
    for (int64_t i = 0; i < sequence.n_rows; ++i) positions.push_back(sequence.cache->n_tokens() + i);
  }
  decisions_.resize(static_cast<size_t>(n_decisions * std::ssize(parts_)));
  if (hydra_.attention_every > 0) rope_table_.compute(config_.rope, positions);
  for (std::vector<float>* values : {&act_.x, &act_.normed, &act_.path}) values->resize(static_cast<size_t>(n * d));
  for (int64_t t = 0; t < n; ++t)
    unpack_row(weights_.output, batch.tokens[static_cast<size_t>(t)], act_.x.data() + t * d);

  // x += m1 SSM(n) + m2 (attention(n) + workspace(n)) + m3 experts(n) + memory(n), n = norm(x).
  for (int64_t layer = 0; layer < hydra_.n_layers; ++layer) {
    const HydraBlockWeights& w = weights_.blocks[static_cast<size_t>(layer)];
    norm(act_.x.data(), w.norm, n, d, act_.normed.data());
    matmul_input(act_.normed.data(), n, d, act_.normed_blocks, context_);
    for (const Part& part : parts_) {
      const HydraBlockState& b = part.block(layer);
      if (part.begins_chunk(len)) decide(w, b, part);
      std::copy_n(part.state + b.decisions, n_decisions, decisions_.data() + part.decisions);
      end_part(b, part);
    }
    if (hydra_.has_mamba2()) run_ssm(w, layer);
    if (hydra_.has_diagonal_ssm()) run_diagonal_ssm(w, layer);
    if (hydra_.has_attention(layer)) run_attention(w, layer);
    if (hydra_.has_workspace(layer)) run_workspace(w, layer);
    if (hydra_.has_moe(layer)) run_experts(w);
    if (hydra_.has_pkm(layer)) run_memory(w);
  }
  for (const BatchSequence& sequence : batch.sequences) sequence.cache->advance(sequence.n_rows);
}

// The decisions of a chunk, from the mean of the last chunk and the first token of this one.
void HydraEngineModel::decide(const HydraBlockWeights& w, const HydraBlockState& b, const Part& part) {
  const int64_t d = hydra_.d_model, rank = hydra_.controller_rank;
  std::vector<float> summary(part.state + b.last_mean, part.state + b.last_mean + d);
  summary.insert(summary.end(), act_.normed.begin() + part.row * d, act_.normed.begin() + (part.row + 1) * d);
  std::vector<float> hidden(static_cast<size_t>(rank));
  for (int64_t i = 0; i < rank; ++i) {
    const float h = dot(summary.data(), w.controller_down.data() + i * 2 * d, 2 * d);
    hidden[static_cast<size_t>(i)] = h * sigmoid(h);
  }
  for (int64_t i = 0; i < 3; ++i) {
    const float multiplier = 2 * sigmoid(dot(hidden.data(), w.controller_up.data() + i * rank, rank) +
                                         w.controller_up_bias[static_cast<size_t>(i)]);
    part.state[b.decisions + i] =
        static_cast<double>(multiplier) < skip_below_ ? 0 : multiplier * w.path_scales[static_cast<size_t>(i)];
  }
  if (w.router.empty()) return;
  std::vector<float> probabilities(static_cast<size_t>(hydra_.n_experts));
  for (int64_t e = 0; e < hydra_.n_experts; ++e)
    probabilities[static_cast<size_t>(e)] = dot(summary.data(), w.router.data() + e * 2 * d, 2 * d);
  softmax(probabilities.data(), hydra_.n_experts);
  std::vector<int32_t> best;
  best_indices(probabilities, hydra_.n_active_experts, best);
  float sum = 0;
  for (const int32_t e : best) sum += probabilities[static_cast<size_t>(e)];
  for (int64_t i = 0; i < hydra_.n_active_experts; ++i) {
    part.state[b.decisions + 3 + hydra_.n_active_experts + i] = static_cast<float>(best[static_cast<size_t>(i)]);
    part.state[b.decisions + 3 + i] = probabilities[static_cast<size_t>(best[static_cast<size_t>(i)])] / sum;
  }
}

// Adds the part's normed states to the chunk's sum; at a chunk's end the sum becomes the next chunk's mean.
void HydraEngineModel::end_part(const HydraBlockState& b, const Part& part) {
  const int64_t d = hydra_.d_model;
  float* const sum = part.state + b.chunk_sum;
  for (int64_t t = 0; t < part.n; ++t) kernels().add_row(act_.normed.data() + (part.row + t) * d, d, sum);
  if (!part.ends_chunk(hydra_.chunk_len)) return;
  for (int64_t i = 0; i < d; ++i) {
    part.state[b.last_mean + i] = sum[i] / static_cast<float>(hydra_.chunk_len);
    sum[i] = 0;
  }
}

void HydraEngineModel::add_path(int64_t which) {
  const int64_t d = hydra_.d_model;
  for (const Part& part : parts_) {
    const float scale = multiplier(part, which);
    if (scale == 0) continue;
    for (int64_t t = part.row; t < part.row + part.n; ++t)
      kernels().add_scaled_row(act_.path.data() + t * d, scale, d, act_.x.data() + t * d);
  }
}

std::vector<HydraEngineModel::RowRun> HydraEngineModel::used_rows(int64_t which) const {
  std::vector<RowRun> runs;
  for (const Part& part : parts_) {
    if (multiplier(part, which) == 0) continue;
    if (!runs.empty() && runs.back().begin + runs.back().n == part.row)
      runs.back().n += part.n;
    else
      runs.push_back({part.row, part.n});
  }
  return runs;
}

void HydraEngineModel::multiply_normed(std::vector<MatmulOutput> of_all, std::span<const MatmulOutput> of_used,
                                       std::span<const RowRun> used) {
  const bool together = used.size() == 1 && used[0].n == n_rows();  // one parallel section
  if (together) of_all.insert(of_all.end(), of_used.begin(), of_used.end());
  matmul(normed(0, n_rows()), of_all, context_);
  if (together) return;
  for (const RowRun& run : used) {
    std::vector<MatmulOutput> outputs(of_used.begin(), of_used.end());
    for (MatmulOutput& output : outputs) output.out += run.begin * output.out_stride;
    if (!outputs.empty()) matmul(normed(run.begin, run.n), outputs, context_);
  }
}

void HydraEngineModel::project_path(int64_t which, const std::vector<float>& values, const PackedMatrix& weight,
                                    std::span<const RowRun> used) {
  for (const RowRun& run : used)
    multiply(input(values.data() + run.begin * weight.d_in, run.n, weight.d_in), weight,
             act_.path.data() + run.begin * hydra_.d_model);
  add_path(which);
}

void HydraEngineModel::run_ssm(const HydraBlockWeights& w, int64_t layer) {
  const HydraConfig& c = hydra_;
  const int64_t n = n_rows(), d_in = c.d_ssm_in(), channels = c.d_conv_channels(), n_heads = c.n_ssm_heads();
  act_.ssm_in.resize(static_cast<size_t>(n * d_in));
  act_.conv.resize(static_cast<size_t>(n * channels));
  act_.scanned.resize(static_cast<size_t>(n * c.d_inner));
  for (std::vector<float>* values : {&act_.dt, &act_.decay}) values->resize(static_cast<size_t>(n * n_heads));
  const std::vector<RowRun> used = used_rows(0);            // z, (x, B, C), dt:
  const int64_t d_z = c.d_inner % 16 == 0 ? c.d_inner : 0;  // rows of a matrix can be cut off in tiles of 16
  const PackedMatrix z = first_rows(w.ssm_in, d_z), others = rows_from(w.ssm_in, d_z);
  const MatmulOutput gate[] = {{&z, nullptr, act_.ssm_in.data(), d_in, Epilogue::kStore}};
  multiply_normed({{&others, nullptr, act_.ssm_in.data() + d_z, d_in, Epilogue::kStore}},
                  std::span(gate).first(d_z > 0 ? 1 : 0), used);

  // Row t of the convolution reads rows t - d_conv + 1 .. t, those before the part from the state.
  const int64_t past = c.d_conv - 1;
  const auto conv_row = [&](const Part& part, int64_t t) {
    std::vector<const float*> rows;
    for (int64_t k = t - past; k <= t; ++k)
      rows.push_back(k < 0 ? part.state + part.block(layer).conv + (past + k) * channels
                           : act_.ssm_in.data() + (part.row + k) * d_in + c.d_inner);
    kernels().conv_silu_row({channels, c.d_conv, rows.data(), w.conv_weight.data(), w.conv_bias.data(),
                             act_.conv.data() + (part.row + t) * channels});
    for (int64_t head = 0; head < n_heads; ++head) {
      const size_t at = static_cast<size_t>((part.row + t) * n_heads + head), h = static_cast<size_t>(head);
      act_.dt[at] = softplus(act_.ssm_in[static_cast<size_t>((part.row + t) * d_in + c.d_inner + channels + head)] +
                             w.dt_bias[h]);
      act_.decay[at] = std::exp(act_.dt[at] * w.A[h]);
    }
  };
  for (const Part& part : parts_) {
    const HydraBlockState& b = part.block(layer);
    context_.team().split(part.n, [&](int64_t begin, int64_t end, int) {
      for (int64_t t = begin; t < end; ++t) conv_row(part, t);
    });
    std::vector<float> last;
    for (int64_t k = part.n - past; k < part.n; ++k) {
      const float* const row =
          k < 0 ? part.state + b.conv + (past + k) * channels : act_.ssm_in.data() + (part.row + k) * d_in + c.d_inner;
      last.insert(last.end(), row, row + channels);
    }
    std::copy(last.begin(), last.end(), part.state + b.conv);
  }

  // Heads are independent; a sequence's parts follow one another.
  context_.team().each(n_heads, [&](int64_t head, int) {
    for (const Part& part : parts_) {
      const float* const xbc = act_.conv.data() + part.row * channels;
      const int64_t at = part.row * n_heads + head;
      kernels().scan_head({part.n, c.ssm_head_dim, c.d_state, xbc + head * c.ssm_head_dim, channels, xbc + c.d_inner,
                           xbc + c.d_inner + c.d_state, channels, act_.decay.data() + at, act_.dt.data() + at, n_heads,
                           w.ssm_d[static_cast<size_t>(head)],
                           act_.scanned.data() + part.row * c.d_inner + head * c.ssm_head_dim, c.d_inner,
                           part.state + part.block(layer).scan + head * c.d_state * c.ssm_head_dim});
    }
  });
  for (const RowRun& run : used)
    context_.team().split(run.n, [&](int64_t begin, int64_t end, int) {
      for (int64_t t = run.begin + begin; t < run.begin + end; ++t) {
        float* const y = act_.scanned.data() + t * c.d_inner;
        kernels().swiglu_row(act_.ssm_in.data() + t * d_in, y, c.d_inner, y);  // y * silu(z)
        kernels().rmsnorm_row(y, w.ssm_norm.data(), c.d_inner, config_.norm_eps, y);
      }
    });
  project_path(0, act_.scanned, w.ssm_out, used);
}

// y_t = C_t s_t + W_skip x_t, s_{t+1} = exp(-softplus(Delta_t) lambda) s_t + B_t U_t: what a token adds is read from the
// next one on.
void HydraEngineModel::run_diagonal_ssm(const HydraBlockWeights& w, int64_t layer) {
  const int64_t n = n_rows(), d = hydra_.d_model;
  act_.ssm_in.resize(static_cast<size_t>(n * 4 * d));
  const MatmulOutput skip[] = {{&w.ssm_skip, nullptr, act_.path.data(), d, Epilogue::kStore}};
  multiply_normed({{&w.ssm_in, nullptr, act_.ssm_in.data(), 4 * d, Epilogue::kStore}}, skip, used_rows(0));
  context_.team().split(d, [&](int64_t begin, int64_t end, int) {  // channels are independent
    for (const Part& part : parts_) {
      float* const s = part.state + part.block(layer).scan;
      const bool used = multiplier(part, 0) != 0;
      for (int64_t row = part.row; row < part.row + part.n; ++row) {
        const float* const delta = act_.ssm_in.data() + row * 4 * d;
        const float *const B = delta + d, *const C = B + d, *const U = C + d;
        for (int64_t i = begin; i < end; ++i) {
          if (used) act_.path[static_cast<size_t>(row * d + i)] += C[i] * s[i];
          s[i] = std::exp(-softplus(delta[i]) * w.lambda[static_cast<size_t>(i)]) * s[i] + B[i] * U[i];
        }
      }
    }
  });
  add_path(0);
}

void HydraEngineModel::run_attention(const HydraBlockWeights& w, int64_t layer) {
  const HydraConfig& c = hydra_;
  const int64_t n = n_rows(), q_dim = c.n_heads * c.head_dim, kv_dim = c.n_kv_heads * c.head_dim;
  for (std::vector<float>* values : {&act_.q, &act_.attention}) values->resize(static_cast<size_t>(n * q_dim));
  for (std::vector<float>* values : {&act_.k, &act_.v}) values->resize(static_cast<size_t>(n * kv_dim));
  const std::vector<RowRun> used = used_rows(1);
  const MatmulOutput q[] = {{&w.q, nullptr, act_.q.data(), q_dim, Epilogue::kStore}};
  multiply_normed({{&w.k, nullptr, act_.k.data(), kv_dim, Epilogue::kStore},
                   {&w.v, nullptr, act_.v.data(), kv_dim, Epilogue::kStore}},
                  q, used);
  const float scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
  apply_rope(config_.rope, rope_table_, act_.q.data(), n, q_dim, c.n_heads, c.head_dim, scale, context_);
  apply_rope(config_.rope, rope_table_, act_.k.data(), n, kv_dim, c.n_kv_heads, c.head_dim, 1.0f, context_);
  const int64_t n_keys = c.window + c.n_global;
  context_.reserve_scratch(static_cast<int64_t>(sizeof(float)) * (2 * n_keys + 64));
  for (const Part& part : parts_) {
    const HydraBlockState& b = part.block(layer);
    if (part.begins_chunk(c.chunk_len)) update_far_tokens(c, b, part.position / c.chunk_len, part.state);
    context_.team().each(c.n_kv_heads, [&](int64_t kv_head, int thread) { attend_head(b, part, kv_head, thread); });
    for (int64_t t = 0; t < part.n && c.n_global > 0; ++t)
      part.state[b.near_scores + (part.position + t) % b.longest_window] =
          dot(act_.normed.data() + (part.row + t) * c.d_model, w.score.data(), c.d_model) + w.score_bias;
  }
  project_path(1, act_.attention, w.attn_out, used);
}

// Writes each key, then lets its query see the window and the global tokens that are not in it.
void HydraEngineModel::attend_head(const HydraBlockState& b, const Part& part, int64_t kv_head, int thread) {
  const HydraConfig& c = hydra_;
  const HydraHeadState& h = b.heads[static_cast<size_t>(kv_head)];
  const int64_t n_rep = c.n_heads / c.n_kv_heads, dim = c.head_dim;
  float* const scratch = reinterpret_cast<float*>(context_.scratch(thread));
  float* const far_bias = scratch + c.window + c.n_global + 32;
  const int64_t n_far = c.n_global > 0 ? n_far_tokens(c, h.window, part.position / c.chunk_len) : 0;
  for (int64_t t = 0; t < part.n; ++t) {
    const int64_t position = part.position + t, slot = position % h.window, row = part.row + t;
    std::copy_n(act_.k.data() + (row * c.n_kv_heads + kv_head) * dim, dim, part.state + h.near_keys + slot * dim);
    std::copy_n(act_.v.data() + (row * c.n_kv_heads + kv_head) * dim, dim, part.state + h.near_values + slot * dim);
    if (multiplier(part, 1) == 0) continue;
    AttendRun runs[2] = {
        {part.state + h.near_keys, part.state + h.near_values, nullptr, std::min(position + 1, h.window)}, {}};
    if (n_far > 0) {
      const int64_t* const at = reinterpret_cast<const int64_t*>(part.state + h.far_positions);
      for (int64_t i = 0; i < n_far; ++i)
        far_bias[i] =
            position - at[i] >= h.window ? part.state[h.far_scores + i] : -std::numeric_limits<float>::infinity();
      runs[1] = {part.state + h.far_keys, part.state + h.far_values, far_bias, n_far};
    }
    for (int64_t head = kv_head * n_rep; head < (kv_head + 1) * n_rep; ++head)
      kernels().attend_row({dim, dim, act_.q.data() + (row * c.n_heads + head) * dim, runs, n_far > 0 ? 2 : 1,
                            act_.attention.data() + (row * c.n_heads + head) * dim, scratch});
  }
}

void HydraEngineModel::project_slots(const HydraBlockWeights& w, const HydraBlockState& b, float* state) {
  const MatmulOutput outputs[] = {{&w.read_k, nullptr, state + b.slot_keys, hydra_.slot_rank, Epilogue::kStore},
                                  {&w.read_v, nullptr, state + b.slot_values, hydra_.slot_rank, Epilogue::kStore}};
  matmul(input(state + b.slots, hydra_.n_slots, hydra_.d_slot), outputs, context_);
}

// Reads before writes: a chunk's tokens see the slots as the last chunk left them.
void HydraEngineModel::run_workspace(const HydraBlockWeights& w, int64_t layer) {
  const HydraConfig& c = hydra_;
  const int64_t n = n_rows(), rank = c.slot_rank;
  for (std::vector<float>* values : {&act_.read_q, &act_.write_k, &act_.read})
    values->resize(static_cast<size_t>(n * rank));
  act_.write_v.resize(static_cast<size_t>(n * c.d_slot));
  const std::vector<RowRun> used = used_rows(1);
  const MatmulOutput read_q[] = {{&w.read_q, nullptr, act_.read_q.data(), rank, Epilogue::kStore}};
  multiply_normed({{&w.write_k, nullptr, act_.write_k.data(), rank, Epilogue::kStore},
                   {&w.write_v, nullptr, act_.write_v.data(), c.d_slot, Epilogue::kStore}},
                  read_q, used);
  const float scale = 1.0f / std::sqrt(static_cast<float>(rank));
  for (float& q : act_.read_q) q *= scale;
  context_.reserve_scratch(static_cast<int64_t>(sizeof(float)) * (std::max(c.n_slots, c.chunk_len) + 64));
  for (const Part& part : parts_) {
    const HydraBlockState& b = part.block(layer);
    const auto read = [&](int64_t begin, int64_t end, int thread) {
      const AttendRun slots = {part.state + b.slot_keys, part.state + b.slot_values, nullptr, c.n_slots};
      for (int64_t row = part.row + begin; row < part.row + end; ++row)
        kernels().attend_row({rank, rank, act_.read_q.data() + row * rank, &slots, 1, act_.read.data() + row * rank,
                              reinterpret_cast<float*>(context_.scratch(thread))});
    };
    if (multiplier(part, 1) != 0) context_.team().split(part.n, read);
    const int64_t in_chunk = part.position % c.chunk_len;
    std::copy_n(act_.write_k.data() + part.row * rank, part.n * rank, part.state + b.write_keys + in_chunk * rank);
    std::copy_n(act_.write_v.data() + part.row * c.d_slot, part.n * c.d_slot,
                part.state + b.write_values + in_chunk * c.d_slot);
    if (part.ends_chunk(c.chunk_len)) write_slots(w, b, part.state);
  }
  project_path(1, act_.read, w.read_out, used);
}

// slot <- slot + z (u - slot): u what the slot finds in the chunk, z its gate.
void HydraEngineModel::write_slots(const HydraBlockWeights& w, const HydraBlockState& b, float* state) {
  const HydraConfig& c = hydra_;
  const int64_t rank = c.slot_rank, d = c.d_slot;
  std::vector<float> q(static_cast<size_t>(c.n_slots * rank)), both(static_cast<size_t>(c.n_slots * 2 * d)),
      gate(static_cast<size_t>(c.n_slots * d));
  multiply(input(state + b.slots, c.n_slots, d), w.write_q, q.data());
  const float scale = 1.0f / std::sqrt(static_cast<float>(rank));
  for (float& value : q) value *= scale;
  const AttendRun chunk = {state + b.write_keys, state + b.write_values, nullptr, c.chunk_len};
  context_.team().split(c.n_slots, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t slot = begin; slot < end; ++slot) {
      float* const row = both.data() + slot * 2 * d;
      std::copy_n(state + b.slots + slot * d, d, row);
      kernels().attend_row(
          {rank, d, q.data() + slot * rank, &chunk, 1, row + d, reinterpret_cast<float*>(context_.scratch(thread))});
    }
  });
  multiply(input(both.data(), c.n_slots, 2 * d), w.slot_gate, gate.data());
  for (int64_t slot = 0; slot < c.n_slots; ++slot) {
    for (int64_t i = 0; i < d; ++i) {
      float& value = state[b.slots + slot * d + i];
      const float z = sigmoid(gate[static_cast<size_t>(slot * d + i)] + w.slot_gate_bias[static_cast<size_t>(i)]);
      value += z * (both[static_cast<size_t>((2 * slot + 1) * d + i)] - value);
    }
  }
  project_slots(w, b, state);
}

// Only the chosen experts' weights are read.
void HydraEngineModel::run_experts(const HydraBlockWeights& w) {
  const HydraConfig& c = hydra_;
  const int64_t d = c.d_model;
  act_.ffn.resize(static_cast<size_t>(c.chunk_len * c.d_expert));
  for (const Part& part : parts_) {
    const float* const chosen = decisions_.data() + part.decisions;
    for (int64_t i = 0; i < c.n_active_experts && chosen[2] != 0; ++i) {
      const size_t expert = static_cast<size_t>(chosen[3 + c.n_active_experts + i]);
      matmul_swiglu(normed(part.row, part.n), w.gate[expert], w.up[expert], act_.ffn.data(), context_);
      multiply(input(act_.ffn.data(), part.n, c.d_expert), w.down[expert], act_.path.data());
      const float share = chosen[3 + i] * chosen[2];
      for (int64_t t = 0; t < part.n; ++t)
        kernels().add_scaled_row(act_.path.data() + t * d, share, d, act_.x.data() + (part.row + t) * d);
    }
  }
}

void HydraEngineModel::run_memory(const HydraBlockWeights& w) {
  const HydraConfig& c = hydra_;
  const int64_t n = n_rows(), half = c.d_pkm_query / 2, q_dim = c.pkm_heads * c.d_pkm_query, top = c.pkm_top;
  act_.pkm_q.resize(static_cast<size_t>(n * q_dim));
  act_.pkm_read.assign(static_cast<size_t>(n * c.d_value), 0.0f);
  multiply(normed(0, n), w.pkm_query, act_.pkm_q.data());
  norm(act_.pkm_q.data(), w.pkm_query_norm, n * c.pkm_heads, c.d_pkm_query, act_.pkm_q.data());
  const int64_t value_bytes = row_bytes(w.pkm_values->type, c.d_value);
  const auto read_token = [&](int64_t t) {
    std::vector<float> scores(static_cast<size_t>(c.n_sub_keys)), sums(static_cast<size_t>(top * top)),
        weights(static_cast<size_t>(top));
    std::vector<float> value(static_cast<size_t>(c.d_value)), best_scores[2];
    std::vector<int32_t> best[2], pairs;
    for (int64_t head = 0; head < c.pkm_heads; ++head) {
      for (int64_t side = 0; side < 2; ++side) {
        const float* const q = act_.pkm_q.data() + t * q_dim + head * c.d_pkm_query + side * half;
        const float* const keys = w.pkm_keys.data() + (head * 2 + side) * half * c.n_sub_keys;
        std::fill(scores.begin(), scores.end(), 0.0f);
        for (int64_t i = 0; i < half; ++i)
          kernels().add_scaled_row(keys + i * c.n_sub_keys, q[i], c.n_sub_keys, scores.data());
        best_indices(scores, top, best[side]);
        best_scores[side].clear();
        for (const int32_t key : best[side]) best_scores[side].push_back(scores[static_cast<size_t>(key)]);
      }
      for (int64_t i = 0; i < top * top; ++i)
        sums[static_cast<size_t>(i)] =
            best_scores[0][static_cast<size_t>(i / top)] + best_scores[1][static_cast<size_t>(i % top)];
      best_indices(sums, top, pairs);
      for (int64_t i = 0; i < top; ++i)
        weights[static_cast<size_t>(i)] = sums[static_cast<size_t>(pairs[static_cast<size_t>(i)])];
      softmax(weights.data(), top);
      for (int64_t i = 0; i < top; ++i) {
        const int64_t pair = pairs[static_cast<size_t>(i)];
        const int64_t index =
            best[0][static_cast<size_t>(pair / top)] * c.n_sub_keys + best[1][static_cast<size_t>(pair % top)];
        dequantize_row(w.pkm_values->type, w.pkm_values->data.data() + index * value_bytes, c.d_value, value.data());
        kernels().add_scaled_row(value.data(), weights[static_cast<size_t>(i)], c.d_value,
                                 act_.pkm_read.data() + t * c.d_value);
      }
    }
  };
  context_.team().split(n, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) read_token(t);
  });
  multiply(input(act_.pkm_read.data(), n, c.d_value), w.pkm_out, act_.path.data());
  for (int64_t t = 0; t < n; ++t) {
    const float gate = sigmoid(dot(act_.normed.data() + t * c.d_model, w.pkm_gate.data(), c.d_model) + w.pkm_gate_bias);
    kernels().add_scaled_row(act_.path.data() + t * c.d_model, gate, c.d_model, act_.x.data() + t * c.d_model);
  }
}

void HydraEngineModel::logits(std::span<const int64_t> rows, float* out) {
  const int64_t n = std::ssize(rows), d = hydra_.d_model;
  POLYSPAN_CHECK(n >= 1 && n * d <= std::ssize(act_.x));
  std::vector<float> normed(static_cast<size_t>(n * d));
  for (int64_t i = 0; i < n; ++i)
    kernels().rmsnorm_row(act_.x.data() + rows[static_cast<size_t>(i)] * d, weights_.output_norm.data(), d,
                          config_.norm_eps, normed.data() + i * d);
  multiply(input(normed.data(), n, d), weights_.output, out);
}

}  // namespace polyspan
