// The Hydra model in the engine: causal to the bit, the same however a prompt is cut and batched, under plans too. What
// training computes it is held to where LibTorch is (hydra/trainer_test.cpp).
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "core/error.h"
#include "core/test_util.h"
#include "model/hydra_profiler.h"
#include "model/hydra_test_util.h"

namespace polyspan {
namespace {
using namespace testing_util;

const std::vector<std::vector<double>> kMixed = {{64, 112}, {128, 80}};

TEST(HydraEngine, IsCausalToTheBit) {
  const TinyHydra tiny(tiny_hydra_config());
  const int64_t n = 180, vocab = 260;
  const std::vector<int32_t> tokens = random_bytes(n, 1);
  for (const SpanPlan& plan : {SpanPlan::dense(tiny.shape()), tiny.plan(kMixed)}) {
    const std::vector<float> before = tiny.run(plan, tokens);
    for (int64_t changed = 0; changed < n; changed += plan.is_dense() ? 1 : 13) {
      std::vector<int32_t> others = tokens;
      others[static_cast<size_t>(changed)] = (tokens[static_cast<size_t>(changed)] + 101) % 256;
      const std::vector<float> after = tiny.run(plan, others);
      EXPECT_TRUE(std::equal(before.begin(), before.begin() + changed * vocab, after.begin())) << "token " << changed;
      EXPECT_FALSE(std::equal(before.begin() + changed * vocab, before.begin() + (changed + 1) * vocab,
                              after.begin() + changed * vocab))
          << "token " << changed;
    }
  }
}

TEST(HydraEngine, APromptIsTheSameHoweverItIsCut) {
  const TinyHydra tiny(tiny_hydra_config());
  const std::vector<int32_t> tokens = random_bytes(300, 2);
  for (const SpanPlan& plan : {SpanPlan::dense(tiny.shape()), tiny.plan(kMixed)}) {
    const std::vector<float> whole = tiny.run(plan, tokens);
    for (const int64_t cut : {1, 2, 7, 15, 16, 17, 33, 64, 129, 255, 299})
      EXPECT_TRUE(tiny.run(plan, tokens, cut) == whole) << "cut every " << cut << " tokens";
  }
}

// The diagonal state space: causal to the bit; the same in any cut, on any number of threads and after a restore.
TEST(HydraDiagonal, IsCausalAndTheSameHoweverItIsCut) {
  const TinyHydra tiny(tiny_diagonal_config()), alone(tiny_diagonal_config(), /*n_threads=*/1);
  const SpanPlan plan = SpanPlan::dense(tiny.shape());
  const std::vector<int32_t> tokens = random_bytes(180, 2);
  const std::vector<float> whole = tiny.run(plan, tokens);
  EXPECT_TRUE(alone.run(plan, tokens) == whole);
  EXPECT_FALSE(TinyHydra(tiny_hydra_config()).run(plan, tokens) == whole);
  for (const int64_t cut : {1, 7, 16, 17, 129}) EXPECT_TRUE(tiny.run(plan, tokens, cut) == whole) << "cut " << cut;
  for (const int64_t changed : {0, 1, 15, 16, 100, 179}) {
    std::vector<int32_t> others = tokens;
    others[static_cast<size_t>(changed)] = (tokens[static_cast<size_t>(changed)] + 101) % 256;
    const std::vector<float> after = tiny.run(plan, others);
    EXPECT_TRUE(std::equal(whole.begin(), whole.begin() + changed * 260, after.begin())) << "token " << changed;
    EXPECT_FALSE(
        std::equal(whole.begin() + changed * 260, whole.begin() + (changed + 1) * 260, after.begin() + changed * 260))
        << "token " << changed;
  }
  KvCache first = tiny.cache(plan), second = tiny.cache(plan);
  tiny.run(first, std::span(tokens).first(90), 512);
  second.restore(std::vector<std::byte>(first.saved().begin(), first.saved().end()), 90);
  EXPECT_TRUE(
      std::ranges::equal(tiny.run(second, std::span(tokens).subspan(90), 19), std::span(whole).subspan(90 * 260)));
}

// One number of state a channel in each block, no convolution.
TEST(HydraDiagonal, StateIsSmallAndFilesSayTheirKind) {
  const HydraConfig config = tiny_diagonal_config();
  const HydraStateLayout layout(config);
  EXPECT_EQ(layout.part_bytes.at(HydraPart::kSsm), 4 * config.n_layers * config.d_model);
  EXPECT_EQ(account(config).state_bytes, layout.bytes());
  std::vector<std::byte> bytes = hydra_file(config, random_hydra_tensors(config, 1));
  const std::string kind = "diagonal";
  const auto at = std::search(bytes.begin(), bytes.end(), kind.begin(), kind.end(),
                              [](std::byte a, char b) { return static_cast<char>(a) == b; });
  ASSERT_NE(at, bytes.end());
  *at = std::byte{'D'};
  OpContext context(1);
  EXPECT_EQ(message_of([&] {
              Model::load(std::make_unique<GgufFile>(GgufFile::from_bytes(bytes, "h.gguf")), context, no_progress());
            }),
            "h.gguf: key hydra.ssm.kind is \"Diagonal\"; wanted mamba2 or diagonal");
}

TEST(HydraEngine, ThreadsAndNeighboursChangeNoBit) {
  const TinyHydra tiny(tiny_hydra_config()), alone(tiny_hydra_config(), /*n_threads=*/1);
  const SpanPlan plans[] = {tiny.plan(kMixed), SpanPlan::dense(tiny.shape()), SpanPlan::uniform(tiny.shape(), 0.5)};
  const std::vector<int32_t> tokens = random_bytes(3 * 170, 3);
  std::vector<KvCache> caches;
  for (const SpanPlan& plan : plans) caches.push_back(tiny.cache(plan));
  // Of three sequences, each with a plan of its own, pieces of 1, 20, 150 and 169, 150, 20 tokens in turn.
  std::vector<std::vector<float>> rows(3);
  int64_t done[3] = {};
  for (const std::vector<int64_t>& pieces : {std::vector<int64_t>{1, 20, 150}, {169, 150, 20}}) {
    std::vector<int32_t> batch;
    std::vector<BatchSequence> sequences;
    std::vector<int64_t> all;
    for (int64_t s = 0; s < 3; ++s) {
      sequences.push_back({&caches[static_cast<size_t>(s)], std::ssize(batch), pieces[static_cast<size_t>(s)]});
      const auto from = tokens.begin() + s * 170 + done[s];
      batch.insert(batch.end(), from, from + pieces[static_cast<size_t>(s)]);
      done[s] += pieces[static_cast<size_t>(s)];
    }
    for (int64_t row = 0; row < std::ssize(batch); ++row) all.push_back(row);
    std::vector<float> logits(batch.size() * 260);
    tiny.model->forward({batch, sequences});
    tiny.model->logits(all, logits.data());
    for (size_t s = 0; s < 3; ++s) {
      const auto from = logits.begin() + sequences[s].first_row * 260;
      rows[s].insert(rows[s].end(), from, from + sequences[s].n_rows * 260);
    }
  }
  for (size_t s = 0; s < 3; ++s)
    EXPECT_TRUE(rows[s] == alone.run(plans[s], std::span(tokens).subspan(s * 170, 170))) << "sequence " << s;
}

// What a token does not use is not touched: experts that no chunk chose and values that no token read may
// be anything.
TEST(HydraEngine, ReadsOnlyWhatItUses) {
  HydraConfig config = tiny_hydra_config();
  config.n_experts = 6;
  const HydraTensors tensors = random_hydra_tensors(config, 9);
  const std::vector<int32_t> tokens = random_bytes(3, 10);
  const auto logits_of = [&](const HydraTensors& with) {
    const TinyHydra tiny(config, with);
    return tiny.run(SpanPlan::dense(tiny.shape()), tokens);
  };
  const std::vector<float> expected = logits_of(tensors);
  const auto n_untouched = [&](int64_t n_items, const std::vector<std::string>& names) {
    int64_t n = 0;
    for (int64_t item = 0; item < n_items; ++item) {
      HydraTensors changed = tensors;
      for (const std::string& name : names) {
        std::vector<float>& values = changed.at(name);
        const int64_t size = std::ssize(values) / n_items;
        std::fill_n(values.begin() + item * size, size, 30.0f);
      }
      n += logits_of(changed) == expected;
    }
    return n;
  };
  // One chunk: two of six experts. Three tokens of two heads read three values each, of 64.
  EXPECT_EQ(n_untouched(6, {"blk.1.moe_gate.weight", "blk.1.moe_up.weight", "blk.1.moe_down.weight"}), 4);
  const int64_t n_unread = n_untouched(64, {"blk.2.pkm_values"});
  EXPECT_GE(n_unread, 64 - 3 * 2 * 3);
  EXPECT_LT(n_unread, 64);
  // What the bench takes as read for a token does not grow with the experts that are not.
  HydraConfig more = config;
  more.n_experts = 9;
  EXPECT_EQ(TinyHydra(more).model->bytes_per_token(), TinyHydra(config).model->bytes_per_token());
}

// A path that is skipped in every chunk: the logits are those of a multiplier near 0 to the bit, so what it keeps for
// later was written; and the weights that only it reads are not read, as they may be NaN.
TEST(HydraSkipping, IsAMultiplierOfZeroWithoutItsWork) {
  const std::vector<std::vector<std::string>> unread = {
      {"ssm_norm.weight", "ssm_out.weight", "ssm_skip.weight"},
      {"attn_q.weight", "attn_output.weight", "slots_read_q.weight", "slots_read_out.weight"},
      {"moe_gate.weight", "moe_up.weight", "moe_down.weight"}};
  const std::vector<int32_t> tokens = random_bytes(200, 11);
  for (const HydraConfig& config : {tiny_hydra_config(), tiny_diagonal_config()})
    for (size_t path = 0; path < 3; ++path) {
      HydraTensors tensors = random_hydra_tensors(config, 12);
      const auto set_bias = [&](float bias) {
        for (int64_t layer = 0; layer < config.n_layers; ++layer)
          tensors.at("blk." + std::to_string(layer) + ".controller_up.bias")[path] = bias;
      };
      const auto fill = [&](float value) {  // what only the path reads
        for (auto& [name, values] : tensors) {
          for (const std::string& part : unread[path])
            if (name.ends_with(part)) std::fill(values.begin(), values.end(), value);
          if (path == 0 && config.has_mamba2() && name.ends_with("ssm_in.weight"))
            std::fill_n(values.begin(), config.d_inner * config.d_model, value);  // its rows of z
        }
      };
      const auto logits = [&](double skip_below) {
        const TinyHydra tiny(config, tensors);
        tiny.model->skip_paths_below(skip_below);
        return tiny.run(SpanPlan::dense(tiny.shape()), tokens);
      };
      for (int64_t layer = 0; layer < config.n_layers; ++layer) {
        std::vector<float>& up = tensors.at("blk." + std::to_string(layer) + ".controller_up.weight");
        std::fill_n(up.begin() + std::ssize(up) / 3 * static_cast<int64_t>(path), up.size() / 3, 0.0f);
      }
      set_bias(-80);  // a multiplier of 4e-35: what it adds is rounded away
      const std::vector<float> expected = logits(0);
      EXPECT_TRUE(logits(0.001) == expected) << "path " << path;
      fill(NAN);
      EXPECT_TRUE(logits(0.001) == expected) << "path " << path;
      set_bias(0);  // a multiplier of 1: not skipped, these weights are read
      fill(0.125);
      const std::vector<float> one = logits(0.001);
      fill(0.25);
      EXPECT_FALSE(logits(0.001) == one) << "path " << path;
    }
}

// With a threshold that some chunks' multipliers are below and others' are not.
TEST(HydraSkipping, IsCausalAndTheSameHoweverItIsCut) {
  for (const HydraConfig& config : {tiny_hydra_config(), tiny_diagonal_config()}) {
    const TinyHydra tiny(config), alone(config, /*n_threads=*/1);
    const SpanPlan plan = SpanPlan::dense(tiny.shape());
    const std::vector<int32_t> tokens = random_bytes(180, 13);
    const std::vector<float> all = tiny.run(plan, tokens);
    tiny.model->skip_paths_below(2.0);
    const std::vector<float> none = tiny.run(plan, tokens);
    for (const TinyHydra* model : {&tiny, &alone}) model->model->skip_paths_below(1.0);
    const std::vector<float> some = tiny.run(plan, tokens);
    EXPECT_FALSE(some == all);
    EXPECT_FALSE(some == none);
    EXPECT_TRUE(alone.run(plan, tokens) == some);
    for (const int64_t cut : {1, 7, 15, 16, 17, 129}) EXPECT_TRUE(tiny.run(plan, tokens, cut) == some) << "cut " << cut;
    for (const int64_t changed : {0, 15, 16, 17, 100, 179}) {
      std::vector<int32_t> others = tokens;
      others[static_cast<size_t>(changed)] = (tokens[static_cast<size_t>(changed)] + 101) % 256;
      const std::vector<float> after = tiny.run(plan, others);
      EXPECT_TRUE(std::equal(some.begin(), some.begin() + changed * 260, after.begin())) << "token " << changed;
    }
    tiny.model->skip_paths_below(0);
    EXPECT_TRUE(tiny.run(plan, tokens) == all);
  }
}

TEST(HydraSkipping, SaysWhatIsWrong) {
  const TinyHydra tiny(tiny_hydra_config());
  for (const double bad : {-0.1, 2.5, std::nan("")})
    EXPECT_NE(message_of([&] { tiny.model->skip_paths_below(bad); }).find("it must be between 0 and 2"),
              std::string::npos)
        << bad;
}

// Every key and every tensor that is missing or of another size is named.
TEST(HydraLoad, SaysWhatIsWrong) {
  const HydraConfig config = tiny_hydra_config();
  const HydraTensors tensors = random_hydra_tensors(config, 1);
  const auto refusal = [](const GgufWriter& writer) {
    const std::vector<std::byte> bytes = writer.to_bytes();
    OpContext context(1);
    return message_of([&] {
      Model::load(std::make_unique<GgufFile>(GgufFile::from_bytes(bytes, "h.gguf")), context, no_progress());
    });
  };
  const auto write = [&](const HydraConfig& keys, const std::string& without, int64_t longer_by) {
    GgufWriter writer;
    write_hydra_config(keys, writer);
    for (const TensorSpec& spec : hydra_tensors(config)) {
      std::vector<int64_t> dims(spec.shape.rbegin(), spec.shape.rend());
      std::vector<float> values = tensors.at(spec.name);
      if (spec.name == without) {
        if (longer_by == 0) continue;
        values.resize(values.size() / static_cast<size_t>(dims.back()) * static_cast<size_t>(dims.back() + longer_by));
        dims.back() += longer_by;
      }
      writer.add_f32_tensor(spec.name, dims, std::move(values));
    }
    return writer;
  };
  EXPECT_EQ(refusal(write(config, "", 0)), "no error");
  for (const TensorSpec& spec : hydra_tensors(config))
    for (const int64_t longer_by : {0, 1}) {
      if (longer_by > 0 && spec.name == "token_embd.weight") continue;  // another vocabulary
      const std::string message = refusal(write(config, spec.name, longer_by));
      EXPECT_NE(message.find(spec.name), std::string::npos) << spec.name << ": " << message;
      EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    }
  const auto with = [&](auto change) {
    HydraConfig changed = config;
    change(changed);
    return refusal(write(changed, "", 0));
  };
  EXPECT_NE(
      with([](HydraConfig& c) { c.window = 120; }).find("attention.window is 120; it must be a multiple of chunk_len"),
      std::string::npos);
  EXPECT_NE(with([](HydraConfig& c) { c.n_active_experts = 5; }).find("there are only 4 experts"), std::string::npos);
  EXPECT_NE(with([](HydraConfig& c) { c.d_inner = 40; }).find("ssm.d_inner is 40"), std::string::npos);
  EXPECT_NE(with([](HydraConfig& c) { c.pkm_layers = {4}; }).find("the blocks are 0 to 3"), std::string::npos);
  EXPECT_NE(with([](HydraConfig& c) { c.d_state = 0; }).find("hydra.ssm.state_size is 0"), std::string::npos);
  EXPECT_NE(with([](HydraConfig& c) { c.n_layers = 5; }).find("blk.4."), std::string::npos);
  GgufWriter nothing;
  nothing.add_string("general.architecture", "hydra");
  EXPECT_NE(refusal(nothing).find("hydra.embedding_length"), std::string::npos);
}

TEST(HydraEngine, ASavedStateGoesOn) {
  const TinyHydra tiny(tiny_hydra_config());
  const std::vector<int32_t> tokens = random_bytes(260, 4);
  for (const SpanPlan& plan : {SpanPlan::dense(tiny.shape()), tiny.plan(kMixed)})
    for (const size_t at : {1, 100, 128, 150}) {
      KvCache first = tiny.cache(plan), second = tiny.cache(plan);
      tiny.run(first, std::span(tokens).first(at), 512);
      const std::vector<std::byte> saved(first.saved().begin(), first.saved().end());
      const std::vector<float> expected = tiny.run(first, std::span(tokens).subspan(at), 512);
      second.restore(saved, static_cast<int64_t>(at));
      EXPECT_TRUE(tiny.run(second, std::span(tokens).subspan(at), 19) == expected) << "saved at " << at;
    }
}

// What a plan means: a model whose heads all have the span S is the model of window S, to the bit.
TEST(HydraPlan, AUniformPlanIsTheModelOfThatWindow) {
  const HydraConfig config = tiny_hydra_config();
  const TinyHydra whole(config);
  HydraConfig narrow = config;
  narrow.window = 64;
  const TinyHydra other(narrow);
  const std::vector<int32_t> tokens = random_bytes(400, 5);
  const std::vector<float> planned = whole.run(SpanPlan::uniform(whole.shape(), 0.5), tokens);
  EXPECT_TRUE(planned == other.run(SpanPlan::dense(other.shape()), tokens));
  EXPECT_FALSE(planned == whole.run(SpanPlan::dense(whole.shape()), tokens));
}

// Attention of one block in double, with the masks that the definition gives.
class MaskReference {
 public:
  MaskReference(const HydraConfig& config, const HydraTensors& tensors) : c_(config), w_(tensors) {}

  // spans: [n_kv_heads]. Logits [n_tokens, vocab_size].
  std::vector<double> logits(const std::vector<int32_t>& tokens, const std::vector<double>& spans) const {
    const int64_t n = std::ssize(tokens), d = c_.d_model;
    Rows x, normed;
    for (const int32_t token : tokens) {
      const float* const row = w_.at("token_embd.weight").data() + token * d;
      x.emplace_back(row, row + d);
      normed.push_back(norm(x.back(), "blk.0.norm.weight"));
    }
    const Rows q = rotated(times(normed, "blk.0.attn_q.weight"), 1 / std::sqrt(static_cast<double>(c_.head_dim))),
               k = rotated(times(normed, "blk.0.attn_k.weight"), 1), v = times(normed, "blk.0.attn_v.weight");
    std::vector<double> scores;
    for (const auto& row : times(normed, "blk.0.attn_score.weight"))
      scores.push_back(row[0] + static_cast<double>(w_.at("blk.0.attn_score.bias")[0]));
    Rows attention(static_cast<size_t>(n), std::vector<double>(static_cast<size_t>(c_.n_heads * c_.head_dim)));
    for (int64_t t = 0; t < n; ++t)
      for (int64_t head = 0; head < c_.n_heads; ++head) {
        const int64_t kv_head = head * c_.n_kv_heads / c_.n_heads;
        const std::vector<std::pair<int64_t, double>> seen = visible(t, spans[static_cast<size_t>(kv_head)], scores);
        double total = 0, largest = -INFINITY;
        std::vector<double> logit;
        for (const auto& [j, bias] : seen) {
          double sum = bias;
          for (int64_t i = 0; i < c_.head_dim; ++i)
            sum += at(q, t, head * c_.head_dim + i) * at(k, j, kv_head * c_.head_dim + i);
          logit.push_back(sum), largest = std::max(largest, sum);
        }
        for (double& value : logit) total += value = std::exp(value - largest);
        for (size_t s = 0; s < seen.size(); ++s)
          for (int64_t i = 0; i < c_.head_dim; ++i)
            attention[static_cast<size_t>(t)][static_cast<size_t>(head * c_.head_dim + i)] +=
                logit[s] / total * at(v, seen[s].first, kv_head * c_.head_dim + i);
      }
    const Rows out = times(attention, "blk.0.attn_output.weight");
    std::vector<double> all;
    for (int64_t t = 0; t < n; ++t) {
      for (int64_t i = 0; i < d; ++i) x[static_cast<size_t>(t)][static_cast<size_t>(i)] += at(out, t, i);
      const Rows last = times({norm(x[static_cast<size_t>(t)], "output_norm.weight")}, "token_embd.weight");
      all.insert(all.end(), last[0].begin(), last[0].end());
    }
    return all;
  }

 private:
  using Rows = std::vector<std::vector<double>>;
  static double at(const Rows& rows, int64_t row, int64_t i) {
    return rows[static_cast<size_t>(row)][static_cast<size_t>(i)];
  }
  std::vector<double> norm(const std::vector<double>& x, const char* weight) const {
    double squares = 0;
    for (const double value : x) squares += value * value;
    const double scale = 1 / std::sqrt(squares / static_cast<double>(x.size()) + c_.norm_eps);
    std::vector<double> out;
    for (size_t i = 0; i < x.size(); ++i) out.push_back(x[i] * scale * static_cast<double>(w_.at(weight)[i]));
    return out;
  }
  Rows times(const Rows& x, const char* weight) const {
    const std::vector<float>& matrix = w_.at(weight);
    const size_t d_in = x[0].size();
    Rows out;
    for (const auto& row : x) {
      std::vector<double>& y = out.emplace_back(matrix.size() / d_in);
      for (size_t o = 0; o < y.size(); ++o)
        for (size_t i = 0; i < d_in; ++i) y[o] += row[i] * static_cast<double>(matrix[o * d_in + i]);
    }
    return out;
  }
  Rows rotated(Rows x, double scale) const {
    for (size_t t = 0; t < x.size(); ++t)
      for (size_t i = 0; i < x[t].size(); i += 2) {
        const double pair = static_cast<double>(static_cast<int64_t>(i) % c_.head_dim),
                     angle = static_cast<double>(t) * std::pow(c_.rope_base, -pair / static_cast<double>(c_.head_dim)),
                     a = x[t][i], b = x[t][i + 1];
        x[t][i] = scale * (a * std::cos(angle) - b * std::sin(angle));
        x[t][i + 1] = scale * (a * std::sin(angle) + b * std::cos(angle));
      }
    return x;
  }
  // The keys that a query sees, with what is added to their logits: the newest `span`, and the n_global best of the tokens
  // whose chunks had begun to leave these when the query's chunk began.
  std::vector<std::pair<int64_t, double>> visible(int64_t t, double span_tokens,
                                                  const std::vector<double>& scores) const {
    const auto span = static_cast<int64_t>(span_tokens);
    std::vector<std::pair<int64_t, double>> seen;
    for (int64_t j = std::max<int64_t>(0, t - span + 1); j <= t; ++j) seen.emplace_back(j, 0.0);
    const int64_t chunk = t / c_.chunk_len,
                  n_left = std::max<int64_t>(0, (chunk - span / c_.chunk_len + 1) * c_.chunk_len);
    std::vector<std::pair<double, int64_t>> left;
    for (int64_t j = 0; j < n_left; ++j) left.emplace_back(-scores[static_cast<size_t>(j)], j);
    std::sort(left.begin(), left.end());
    left.resize(std::min(left.size(), static_cast<size_t>(c_.n_global)));
    for (const auto& [score, j] : left)
      if (t - j >= span) seen.emplace_back(j, -score);
    return seen;
  }

  const HydraConfig& c_;
  const HydraTensors& w_;
};

TEST(HydraPlan, EqualsTheMask) {
  const HydraConfig config = attention_only_config();
  HydraTensors tensors = random_hydra_tensors(config, 6);
  for (const char* name : {"blk.0.controller_up.weight", "blk.0.controller_up.bias"})
    std::fill(tensors.at(name).begin(), tensors.at(name).end(), 0.0f);  // multipliers are 1
  tensors.at("blk.0.path_scales")[1] = 1;
  const TinyHydra tiny(config, tensors);
  const std::vector<int32_t> tokens = random_bytes(330, 7);
  const MaskReference reference(config, tensors);
  std::vector<float> last;
  for (const std::vector<double>& spans : {std::vector<double>{128, 128}, {64, 128}, {96, 64}, {80, 80}}) {
    const std::vector<float> logits = tiny.run(tiny.plan({spans}), tokens);
    const std::vector<double> expected = reference.logits(tokens, spans);
    double worst = 0, largest = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
      worst = std::max(worst, std::abs(static_cast<double>(logits[i]) - expected[i]));
      largest = std::max(largest, std::abs(expected[i]));
    }
    EXPECT_LT(worst, 1e-4 * largest) << spans[0] << ", " << spans[1];
    EXPECT_FALSE(logits == last);
    last = logits;
  }
}

TEST(HydraPlan, StateShrinksWithTheSpans) {
  const TinyHydra tiny(tiny_hydra_config());
  const ModelConfig& config = tiny.model->config();
  const auto bytes = [&](const SpanPlan& plan, int64_t length) {
    return KvLayout(config, plan, length, KvType::kF16).bytes;
  };
  const SpanPlan dense = SpanPlan::dense(tiny.shape()), half = SpanPlan::uniform(tiny.shape(), 0.5);
  EXPECT_EQ(bytes(dense, 100), HydraStateLayout(*config.hydra).bytes());
  // Two blocks of two KV heads lose 64 keys and values of 16 floats each; each block 64 scores.
  EXPECT_EQ(bytes(dense, 100) - bytes(half, 100), 4 * (2 * 2 * 64 * 2 * 16 + 2 * 64));
  for (const int64_t length : {1, 100, 4096}) {  // a window is the same at every length
    EXPECT_EQ(bytes(half, length), bytes(half, 100));
    EXPECT_EQ(half.density(length), 0.5);
    EXPECT_EQ(dense.density(length), 1.0);
    EXPECT_EQ(tiny.plan(kMixed).density(length), (64.0 + 112 + 128 + 80) / (4 * 128));
  }
  // Whole chunks, never more than the density asked for; the smallest span is a block of 64 tokens.
  EXPECT_EQ(SpanPlan::uniform(tiny.shape(), 0.7).spans(4096).kv_head_spans[1][1], 80);
  EXPECT_EQ(SpanPlan::uniform(tiny.shape(), 0.1).spans(4096).kv_head_spans[0][0], 64);
}

TEST(HydraPlan, SaysWhatDoesNotFit) {
  const TinyHydra tiny(tiny_hydra_config());
  const auto refusal = [&](const std::string& json) {
    return message_of([&] { SpanPlan::parse(json, "p.json", tiny.shape()); });
  };
  const std::string rows = "\"alphas\": [[64, 128], [64, 64]], \"betas\": [[0, 0], [0, 0]]";
  EXPECT_EQ(refusal("{" + rows + "}"), "no error");
  EXPECT_EQ(refusal("{\"window\": 128, \"span_step\": 16, \"sink\": 0, " + rows + "}"), "no error");
  EXPECT_EQ(refusal("{\"window\": 256, " + rows + "}"), "p.json: window: found 256, wanted 128 as the model has");
  EXPECT_EQ(refusal("{\"sink\": 64, " + rows + "}"),
            "p.json: sink: found 64, wanted 0: heads with windows keep global tokens in place of the first ones");
  EXPECT_EQ(refusal("{\"alphas\": [[64, 64]], \"betas\": [[0, 0]]}"),
            "p.json: found rules for 1 layers, wanted 2, one for each block with attention");
  EXPECT_EQ(refusal("{\"alphas\": [[64, 64, 64, 64], [64, 64, 64, 64]], \"betas\": [[0, 0, 0, 0], [0, 0, 0, 0]]}"),
            "p.json: alphas, layer 0: found 4 heads, wanted 2: heads with windows have spans by KV head");
  // A plan file comes back with its window, with a model and without.
  const std::string json = tiny.plan(kMixed).to_json();
  for (const SpanPlan& read : {SpanPlan::parse(json, "p.json", tiny.shape()), SpanPlan::parse(json, "p.json", {})}) {
    EXPECT_EQ(read.to_json(), json);
    EXPECT_EQ(read.density(1 << 20), tiny.plan(kMixed).density(100));
  }
  EXPECT_EQ(message_of([&] {
              SpanPlan::parse(json, "p.json", HeadShape{2, 4, 2});
            }),
            "p.json: window: found 128, wanted 0 as the model has");

  HydraConfig config = tiny_hydra_config();
  config.attention_every = 0, config.n_slots = 0;
  const TinyHydra without(config);
  EXPECT_EQ(message_of([&] { without.cache(SpanPlan::uniform(without.shape(), 0.5)); }),
            "this model has no attention: there are no heads for a plan");
  EXPECT_EQ(without.run(without.model->config().default_plan(), random_bytes(40, 1)).size(), 40u * 260);
}

// Each effect is that of the plan with this one span changed: of log-odds the change itself, of text the divergence of the
// narrower span's prediction from the wider one's.
TEST(HydraProfiler, EffectsAreThoseOfThePlans) {
  const TinyHydra tiny(tiny_hydra_config());
  const std::vector<int32_t> tokens = random_bytes(600, 8);
  const std::vector<int64_t> targets = {5, 130, 131, 300, 512, 513, 599}, candidates = {64, 96, 128};
  const double share = 1.0 / static_cast<double>(targets.size());
  using Spans = std::vector<std::vector<double>>;
  const auto score = [&](const std::vector<float>& logits, int64_t target) {
    return score_target(logits.data() + (target - 1) * 260, 260, tokens[static_cast<size_t>(target)]);
  };
  const auto log_probabilities = [](const std::vector<float>& logits, int64_t target) {
    std::vector<double> row(logits.begin() + (target - 1) * 260, logits.begin() + target * 260);
    double total = 0;
    for (const double x : row) total += std::exp(x);
    for (double& x : row) x -= std::log(total);
    return row;
  };
  HydraProfiler profiler(*tiny.model);
  for (const Spans& base : {Spans{{128, 128}, {128, 128}}, kMixed}) {
    const std::vector<float> before = tiny.run(tiny.plan(base), tokens);
    const std::vector<AttentionSpan> spans = query_spans(tiny.plan(base), 600);
    const ProfileRequest log_odds{tokens, targets, spans, candidates, ProfileLoss::kLogOdds},
        text{tokens, targets, spans, candidates, ProfileLoss::kCrossEntropy};
    EXPECT_EQ(profiler.forward(text).at(3).log_probability, score(before, 300).log_probability);
    const SpanInfluence of_odds = profiler.backward(log_odds), of_text = profiler.backward(text);
    ASSERT_EQ(of_odds.span.size(), 2u * 4 * 3);
    for (int64_t layer = 0; layer < 2; ++layer)
      for (int64_t head = 0; head < 4; ++head)
        for (int64_t c = 0; c < 3; ++c) {
          double odds = 0, odds_abs = 0, odds_square = 0, text_abs = 0, lost = 0;
          if (head % 2 == 0) {  // the first of its group
            Spans changed = base;
            double& span = changed[static_cast<size_t>(layer)][static_cast<size_t>(head / 2)];
            const double own = span, candidate = static_cast<double>(candidates[static_cast<size_t>(c)]);
            span = candidate;
            const std::vector<float> after = tiny.run(tiny.plan(changed), tokens);
            for (const int64_t t : targets) {
              const double change = score(before, t).log_odds - score(after, t).log_odds;
              odds += share * change, odds_abs += share * std::abs(change), odds_square += share * change * change;
              text_abs += share * std::abs(score(before, t).log_probability - score(after, t).log_probability);
              const std::vector<double> wider = log_probabilities(candidate < own ? before : after, t),
                                        narrower = log_probabilities(candidate < own ? after : before, t);
              for (size_t i = 0; i < wider.size(); ++i)
                lost += (candidate < own ? share : -share) * std::exp(wider[i]) * (wider[i] - narrower[i]);
            }
          }
          SCOPED_TRACE(std::to_string(layer) + ", " + std::to_string(head) + ", " + std::to_string(c));
          const size_t at = of_odds.at(layer, head, c);
          EXPECT_NEAR(of_odds.span[at], odds, 1e-12);
          EXPECT_NEAR(of_odds.span_abs[at], odds_abs, 1e-12);
          EXPECT_NEAR(of_odds.span_square[at], odds_square, 1e-12);
          EXPECT_NEAR(of_text.span_abs[at], text_abs, 1e-12);
          EXPECT_NEAR(of_text.span[at], lost, 1e-4 * std::abs(lost) + 1e-8);  // the engine sums exponentials of floats
          EXPECT_NEAR(of_text.span_square[at], 2 * std::abs(lost), 2e-4 * std::abs(lost) + 2e-8);
          EXPECT_EQ(of_text.pairwise[at], 0);
        }
    EXPECT_NE(of_odds.span[of_odds.at(0, 2, 0)], 0);
    EXPECT_GT(std::abs(of_text.span[of_text.at(0, 2, 0)]), 1e-7);
  }
}

}  // namespace
}  // namespace polyspan
