// Products are held to matmul_reference (double) within the rounding of float sums. A sum of n rounded steps of random
// sign wanders sqrt(n) half ulps of what has been added up so far; the tests allow six times that.
#include "ops/matmul.h"

#include <gtest/gtest.h>

#include <deque>
#include <memory>

#include "ops/test_util.h"

namespace polyspan {
namespace {
using namespace testing_util;

// A random matrix in file layout and packed.
struct RandomMatrix {
  DType type;
  std::vector<std::byte> rows, packed;
  PackedMatrix matrix;
  RandomMatrix(DType t, int64_t d_out, int64_t d_in, Random& random)
      : type(t), rows(random_rows(t, d_out, d_in, random)) {
    packed.resize(static_cast<size_t>(packed_bytes(t, d_out, d_in)));
    matrix = {t, d_out, d_in, packed.data()};
    pack_tiles(t, rows.data(), d_out, d_in, 0, matrix.n_tiles(), packed.data());
  }
};

// Random activations, as floats and quantised at the current level.
struct RandomInput {
  std::vector<float> values;
  std::vector<ActBlock> blocks;
  int64_t n_tokens, d_in;
  RandomInput(int64_t n, int64_t width, Random& random) : values(random.vector(n * width)), n_tokens(n), d_in(width) {
    OpContext context(1);
    blocks.resize(static_cast<size_t>(n * width / kBlockCols));
    if (width % kBlockCols == 0) quantize_activations(values.data(), n, width, blocks.data(), context);
  }
  MatmulInput all() const { return {values.data(), blocks.data(), n_tokens, d_in}; }
  MatmulInput token(int64_t t) const {
    return {values.data() + t * d_in, blocks.data() + t * (d_in / kBlockCols), 1, d_in};
  }
};

// Root of the sum of squares of what is added up: the size of the wandering; [n_tokens, d_out]. Scales and minimums are
// added apart, hence the four: |scale * code| may be that much more than |weight| near the cancellation.
std::vector<double> tolerances(const RandomMatrix& w, const MatmulInput& x) {
  std::vector<double> out;
  std::vector<float> row(static_cast<size_t>(x.d_in));
  for (int64_t t = 0; t < x.n_tokens; ++t)
    for (int64_t i = 0; i < w.matrix.d_out; ++i) {
      dequantize_row(w.type, w.rows.data() + i * row_bytes(w.type, x.d_in), x.d_in, row.data());
      double largest = 0;
      for (int64_t col = 0; col < x.d_in; ++col)
        largest += std::abs(static_cast<double>(row[static_cast<size_t>(col)]) *
                            static_cast<double>(x.values[t * x.d_in + col]));
      const double n_steps = static_cast<double>(w.matrix.is_quantized() ? x.d_in / 8 + 4 : x.d_in + 4);
      out.push_back(4 * 6 * std::sqrt(n_steps) * 0x1p-24 * largest + 1e-7);
    }
  return out;
}

std::vector<float> reference(const RandomMatrix& w, const MatmulInput& x) {
  std::vector<float> out(static_cast<size_t>(x.n_tokens * w.matrix.d_out));
  matmul_reference(w.type, w.rows.data(), w.matrix.d_out, x, out.data());
  return out;
}

// Started once: threads that come and go for every case would take most of the test's time.
struct Contexts {
  OpContext one{1}, two{2}, three{3};
};
Contexts& contexts() {
  static Contexts instance;
  return instance;
}

void check_product(DType type, int64_t n_tokens, int64_t d_out, int64_t d_in, uint64_t seed) {
  SCOPED_TRACE(testing::Message() << dtype_name(type) << " n_tokens " << n_tokens << " d_out " << d_out << " d_in "
                                  << d_in << " seed " << seed);
  Random random(seed);
  const RandomMatrix w(type, d_out, d_in, random);
  const RandomInput x(n_tokens, d_in, random);
  const std::vector<float> expected = reference(w, x.all()), bias = random.vector(d_out);
  const std::vector<double> tolerance = tolerances(w, x.all());
  const int64_t step = n_tokens > 20 ? 37 : 1;  // of the tokens computed alone
  OpContext &one = contexts().one, &two = contexts().two, &three = contexts().three;
  for_each_isa([&] {
    Poisoned out(n_tokens * d_out);
    const MatmulOutput plain[] = {{&w.matrix, nullptr, out.data(), d_out, Epilogue::kStore}};
    matmul(x.all(), plain, one);
    ASSERT_NO_FATAL_FAILURE(expect_close(out.values(), expected, [&](size_t i) { return tolerance[i]; }));

    // Bias, then a second product on top.
    Poisoned sum(n_tokens * d_out);
    const MatmulOutput store[] = {{&w.matrix, bias.data(), sum.data(), d_out, Epilogue::kStore}};
    const MatmulOutput add[] = {{&w.matrix, bias.data(), sum.data(), d_out, Epilogue::kAdd}};
    matmul(x.all(), store, one);
    matmul(x.all(), add, one);
    std::vector<double> twice(expected.size());
    for (size_t i = 0; i < twice.size(); ++i)
      twice[i] = 2.0 * (static_cast<double>(expected[i]) + static_cast<double>(bias[i % bias.size()]));
    ASSERT_NO_FATAL_FAILURE(expect_close(
        sum.values(), twice, [&](size_t i) { return 2 * tolerance[i] + 0x1p-22 * (std::abs(twice[i]) + 2); }));

    for (OpContext* context : {&two, &three}) {
      if (w.matrix.n_tiles() <= 2 && n_tokens <= 256) continue;  // one item: nothing to share out
      SCOPED_TRACE(testing::Message() << context->n_threads() << " threads");
      Poisoned other(n_tokens * d_out);
      const MatmulOutput again[] = {{&w.matrix, nullptr, other.data(), d_out, Epilogue::kStore}};
      matmul(x.all(), again, *context);
      ASSERT_NO_FATAL_FAILURE(expect_same_bits(other.values(), out.values()));
    }
    for (int64_t t = 0; t < n_tokens; t += step) {
      SCOPED_TRACE(testing::Message() << "token " << t << " alone");
      Poisoned alone(d_out);
      const MatmulOutput single[] = {{&w.matrix, nullptr, alone.data(), d_out, Epilogue::kStore}};
      matmul(x.token(t), single, one);
      ASSERT_NO_FATAL_FAILURE(expect_same_bits(
          alone.values(), out.values().subspan(static_cast<size_t>(t * d_out), static_cast<size_t>(d_out))));
    }
  });
}

TEST(Matmul, MatchesReferenceAndItselfAtEveryEdge) {
  for (const DTypeInfo& info : all_dtypes())
    for (const int64_t n_tokens : {1, 2, 5, 6, 7, 12, 13})  // around the group of six
      for (const int64_t d_out : {1, 15, 16, 17, 33}) {
        const int64_t d_in = info.block_len == 256 ? 256 * (1 + n_tokens % 2) : 32 * (1 + (n_tokens + d_out) % 5);
        check_product(info.type, n_tokens, d_out, d_in, static_cast<uint64_t>(n_tokens * 100 + d_out));
        if (HasFatalFailure()) return;
      }
}

TEST(Matmul, MatchesReferenceForLongBatches) {
  for (const DTypeInfo& info : all_dtypes())
    for (const int64_t n_tokens : {256, 257, 300}) {  // around the 256 tokens of an item
      check_product(info.type, n_tokens, /*d_out=*/17, /*d_in=*/256, static_cast<uint64_t>(n_tokens));
      if (HasFatalFailure()) return;
    }
}

// Rows of floats need no multiple of 32 columns.
TEST(Matmul, FloatTypesTakeAnyWidth) {
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16})
    for (const int64_t d_in : {1, 2, 15, 33, 100}) {
      Random random(static_cast<uint64_t>(d_in));
      SCOPED_TRACE(testing::Message() << dtype_name(type) << " d_in " << d_in);
      const RandomMatrix w(type, 19, d_in, random);
      const std::vector<float> values = random.vector(7 * d_in);
      const MatmulInput x{values.data(), nullptr, 7, d_in};
      const std::vector<float> expected = reference(w, x);
      const std::vector<double> tolerance = tolerances(w, x);
      for_each_isa([&] {
        OpContext context(2);
        Poisoned out(7 * 19);
        const MatmulOutput outputs[] = {{&w.matrix, nullptr, out.data(), 19, Epilogue::kStore}};
        matmul(x, outputs, context);
        ASSERT_NO_FATAL_FAILURE(expect_close(out.values(), expected, [&](size_t i) { return tolerance[i]; }));
      });
      if (HasFatalFailure()) return;
    }
}

// Several outputs of different types, widths and strides in one call equal as many calls.
TEST(Matmul, SeveralOutputsEqualSeveralCalls) {
  constexpr int64_t kWidth = 256;
  for (const int64_t n_tokens : {1, 3, 8}) {
    Random random(static_cast<uint64_t>(n_tokens));
    std::deque<RandomMatrix> weights;
    for (const DType type : {DType::kQ4_1, DType::kF16, DType::kQ6_K, DType::kQ8_0})
      weights.emplace_back(type, 1 + random.below(70), kWidth, random);
    const RandomInput x(n_tokens, kWidth, random);
    const std::vector<float> bias = random.vector(100);
    for_each_isa([&] {
      SCOPED_TRACE(testing::Message() << "n_tokens " << n_tokens);
      OpContext two(2), one(1);
      std::deque<Poisoned> together, apart;
      std::vector<MatmulOutput> outputs;
      for (const RandomMatrix& w : weights) {
        const int64_t stride = w.matrix.d_out + 5;
        together.emplace_back(n_tokens * stride);
        outputs.push_back({&w.matrix, bias.data(), together.back().data(), stride, Epilogue::kStore});
      }
      matmul(x.all(), outputs, two);
      for (size_t i = 0; i < outputs.size(); ++i) {
        MatmulOutput output = outputs[i];
        apart.emplace_back(n_tokens * output.out_stride);
        output.out = apart.back().data();
        matmul(x.all(), std::span(&output, 1), one);
        // Bits, the untouched NaNs between the rows included.
        ASSERT_NO_FATAL_FAILURE(expect_same_bits(together[i].values(), apart[i].values()));
      }
    });
    if (HasFatalFailure()) return;
  }
}

TEST(MatmulSwiglu, MatchesReference) {
  const auto check = [](DType gate_type, DType up_type, int64_t n_tokens, int64_t d_ff) {
    SCOPED_TRACE(testing::Message() << dtype_name(gate_type) << " and " << dtype_name(up_type) << " n_tokens "
                                    << n_tokens << " d_ff " << d_ff);
    constexpr int64_t kWidth = 256;
    Random random(static_cast<uint64_t>(n_tokens * 100 + d_ff));
    const RandomMatrix gate(gate_type, d_ff, kWidth, random), up(up_type, d_ff, kWidth, random);
    const RandomInput x(n_tokens, kWidth, random);
    const std::vector<float> g = reference(gate, x.all()), u = reference(up, x.all());
    const std::vector<double> g_tolerance = tolerances(gate, x.all()), u_tolerance = tolerances(up, x.all());
    std::vector<double> expected(g.size());
    for (size_t i = 0; i < g.size(); ++i) {
      const double gi = static_cast<double>(g[i]);
      expected[i] = gi / (1 + std::exp(-gi)) * static_cast<double>(u[i]);
    }
    // |silu'| <= 1.1; the exponential is good to 2 ulps.
    const auto tolerance = [&](size_t i) {
      return 1.1 * (g_tolerance[i] * std::abs(static_cast<double>(u[i])) +
                    u_tolerance[i] * std::abs(static_cast<double>(g[i]))) +
             g_tolerance[i] * u_tolerance[i] + 0x1p-21 * std::abs(expected[i]) + 1e-7;
    };
    OpContext &one = contexts().one, &two = contexts().two, &three = contexts().three;
    for_each_isa([&] {
      Poisoned out(n_tokens * d_ff);
      matmul_swiglu(x.all(), gate.matrix, up.matrix, out.data(), one);
      ASSERT_NO_FATAL_FAILURE(expect_close(out.values(), expected, tolerance));
      for (OpContext* context : {&two, &three}) {
        Poisoned other(n_tokens * d_ff);
        matmul_swiglu(x.all(), gate.matrix, up.matrix, other.data(), *context);
        ASSERT_NO_FATAL_FAILURE(expect_same_bits(other.values(), out.values()));
      }
      for (int64_t t = 0; t < n_tokens; ++t) {
        Poisoned alone(d_ff);
        matmul_swiglu(x.token(t), gate.matrix, up.matrix, alone.data(), one);
        ASSERT_NO_FATAL_FAILURE(expect_same_bits(
            alone.values(), out.values().subspan(static_cast<size_t>(t * d_ff), static_cast<size_t>(d_ff))));
      }
    });
  };
  for (const DTypeInfo& info : all_dtypes())
    for (const int64_t n_tokens : {1, 7})
      for (const int64_t d_ff : {1, 16, 33}) {
        check(info.type, info.type, n_tokens, d_ff);
        if (HasFatalFailure()) return;
      }
  for (const int64_t n_tokens : {1, 7}) {  // mixed files: the wider type may be on either side
    check(DType::kQ4_K, DType::kQ6_K, n_tokens, 33);
    check(DType::kQ8_0, DType::kF16, n_tokens, 33);
    check(DType::kF32, DType::kQ5_0, n_tokens, 17);
    if (HasFatalFailure()) return;
  }
}

// Codes, scales and sums against plain C++. `n` values from the vector, the rest of the block zeros.
void check_blocks(const std::vector<float>& x, const std::vector<ActBlock>& blocks) {
  for (size_t b = 0; b < blocks.size(); ++b) {
    SCOPED_TRACE(testing::Message() << "block " << b);
    const ActBlock& block = blocks[b];
    float largest = 0;
    for (size_t i = 0; i < 32; ++i) largest = std::max(largest, std::abs(x[32 * b + i]));
    int32_t sums[2] = {0, 0};
    for (size_t i = 0; i < 32; ++i) {
      const double value = static_cast<double>(block.scale) * block.codes[i];
      // Half a step, and the rounding of 127 / largest; what is too small for a scale becomes zero.
      const double bound = static_cast<double>(largest) / 253.9 + 1e-30;
      ASSERT_NEAR(value, static_cast<double>(x[32 * b + i]), bound) << "value " << i << ", largest " << largest;
      sums[i / 16] += block.codes[i];
    }
    ASSERT_EQ(block.sum_half[0], sums[0]);
    ASSERT_EQ(block.sum_half[1], sums[1]);
    ASSERT_EQ(block.sum, sums[0] + sums[1]);
    ASSERT_EQ(block.scaled_sum, block.scale * static_cast<float>(sums[0] + sums[1]));
    ASSERT_EQ(block.scaled_sum_half[0], block.scale * static_cast<float>(sums[0]));
    ASSERT_EQ(block.scaled_sum_half[1], block.scale * static_cast<float>(sums[1]));
  }
}

TEST(QuantizeActivations, EveryMagnitude) {
  for (const float scale : {0.0f, 1e-45f, 1e-40f, 1e-38f, 1e-37f, 1e-30f, 1e-8f, 1.0f, 1e8f, 1e30f, 1e36f})
    for (const int64_t n_tokens : {1, 2, 5}) {
      SCOPED_TRACE(testing::Message() << "scale " << scale << " n_tokens " << n_tokens);
      Random random(3);
      std::vector<float> x = random.vector(n_tokens * 96);
      for (float& value : x) value *= scale;
      x[0] = scale;  // the largest, at both ends of a block
      x[x.size() - 1] = -scale;
      for_each_isa([&] {
        std::vector<ActBlock> blocks(static_cast<size_t>(n_tokens * 3), ActBlock{});
        OpContext context(2);
        quantize_activations(x.data(), n_tokens, 96, blocks.data(), context);
        ASSERT_NO_FATAL_FAILURE(check_blocks(x, blocks));
      });
      if (HasFatalFailure()) return;
    }
}

// One value in a block that is otherwise tiny, and ties of the rounding (to the even code).
TEST(QuantizeActivations, PlacesAndTies) {
  for (size_t place = 0; place < 32; ++place) {
    std::vector<float> x(32, 1e-3f);
    x[place] = place % 2 == 0 ? 127.0f : -127.0f;  // scale 1: codes are the values themselves
    x[(place + 1) % 32] = 0.5f;
    x[(place + 2) % 32] = 1.5f;
    x[(place + 3) % 32] = -2.5f;
    for_each_isa([&] {
      SCOPED_TRACE(testing::Message() << "place " << place);
      ActBlock block;
      kernels().quantize_activations(x.data(), 32, &block);
      EXPECT_EQ(block.scale, 1.0f);
      EXPECT_EQ(block.codes[place], place % 2 == 0 ? 127 : -127);
      EXPECT_EQ(block.codes[(place + 1) % 32], 0);
      EXPECT_EQ(block.codes[(place + 2) % 32], 2);
      EXPECT_EQ(block.codes[(place + 3) % 32], -2);
      EXPECT_EQ(block.codes[(place + 4) % 32], 0);
    });
  }
}

}  // namespace
}  // namespace polyspan
