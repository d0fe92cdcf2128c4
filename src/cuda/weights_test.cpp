#include "cuda/weights.h"

#include "cuda/cuda_test_util.h"
#include "cuda/elementwise.h"
#include "io/random_model.h"
#include "ops/matmul.h"

namespace polyspan::cuda {
namespace {
using namespace testing_util;

constexpr DType kBlockTypes[] = {DType::kQ8_0, DType::kQ4_0, DType::kQ4_1, DType::kQ4_K, DType::kQ6_K};

struct TestMatrix {
  std::vector<std::byte> rows;
  DeviceBuffer memory;
  DeviceMatrix w;
  TestMatrix(DType type, int64_t d_out, int64_t d_in, uint64_t seed, const Stream& stream)
      : rows(static_cast<size_t>(d_out * row_bytes(type, d_in))) {
    fill_random_blocks(type, 0.5f, seed, rows);
    const DeviceBuffer raw = to_device(std::span<const std::byte>(rows), "a test", stream);
    memory = DeviceBuffer(raw.size_bytes(), "a test");
    w = {type, d_out, d_in, memory.data()};
    if (has_device_blocks(type)) {  // in two parts, as matrices that are joined come
      const int64_t first = d_out / 3;
      if (first > 0) sort_blocks(type, raw.data(), first, 0, d_out, d_in, memory.data(), stream);
      sort_blocks(type, raw.data() + first * row_bytes(type, d_in), d_out - first, first, d_out, d_in, memory.data(),
                  stream);
    } else {
      copy_to_device(memory.data(), rows.data(), static_cast<int64_t>(rows.size()), stream);
    }
    stream.synchronize();
  }
  std::vector<float> values() const {
    std::vector<float> out(static_cast<size_t>(w.d_out * w.d_in));
    for (int64_t row = 0; row < w.d_out; ++row)
      dequantize_row(w.type, rows.data() + row * row_bytes(w.type, w.d_in), w.d_in, out.data() + row * w.d_in);
    return out;
  }
};

TEST(DeviceWeights, DecodesTheFilesValues) {
  POLYSPAN_NEEDS_GPU();
  const Stream stream;
  for (const DType type : kBlockTypes)
    for (const int64_t d_in : {256, 768, 4096}) {
      SCOPED_TRACE(testing::Message() << dtype_name(type) << " " << d_in);
      const TestMatrix matrix(type, 37, d_in, 7 + static_cast<uint64_t>(d_in), stream);
      DeviceBuffer out(20 * d_in * 2, "a test");
      dequantize(matrix.w, 11, 20, out.data(), stream);
      const std::vector<uint16_t> actual = to_host<uint16_t>(out.data(), 20 * d_in, stream);
      const std::vector<float> expected = matrix.values();
      for (size_t i = 0; i < actual.size(); ++i) {
        const float wanted = expected[static_cast<size_t>(11 * d_in) + i], found = f16_to_f32(actual[i]);
        ASSERT_NEAR(found, wanted, 1e-3 * std::abs(wanted) + 1e-4) << "value " << i;
      }
    }
}

TEST(DeviceWeights, DecodesToFloatsOfEveryType) {
  POLYSPAN_NEEDS_GPU();
  const Stream stream;
  for (const DType type :
       {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0, DType::kQ4_1, DType::kQ4_K, DType::kQ6_K}) {
    SCOPED_TRACE(dtype_name(type));
    const TestMatrix matrix(type, 37, 768, 9, stream);
    PoisonedDevice out(20 * 768, stream);
    decode(matrix.w, 11, 20, out.data(), stream);
    const std::vector<float> expected = matrix.values();
    // Not rounded to f16: what differs is the order of two products.
    expect_close(out.values(), std::span(expected).subspan(11 * 768, 20 * 768),
                 [&](size_t i) { return 1e-6 * std::abs(static_cast<double>(expected[11 * 768 + i])) + 1e-6; });
  }
}

TEST(DeviceWeights, QuantizesAsTheCpu) {
  POLYSPAN_NEEDS_GPU();
  const Stream stream;
  Random random(3);
  const int64_t n = 5, d = 416;
  std::vector<float> x = random.vector(n * d, 3.0f);
  std::fill_n(x.begin() + 64, 32, 0.0f);  // a block of zeros
  const DeviceBuffer x_device = to_device(std::span<const float>(x), "a test", stream);
  DeviceBuffer codes(n * d, "a test"), scales(n * d / 32 * 4, "a test");
  quantize(x_device.as<float>(), n, d, {codes.as<int8_t>(), scales.as<float>()}, stream);
  const std::vector<int8_t> found = to_host<int8_t>(codes.data(), n * d, stream);
  const std::vector<float> found_scales = to_host<float>(scales.data(), n * d / 32, stream);
  OpContext context(1);
  std::vector<ActBlock> blocks(static_cast<size_t>(n * d / 32));
  quantize_activations(x.data(), n, d, blocks.data(), context);
  for (size_t block = 0; block < blocks.size(); ++block) {
    EXPECT_FLOAT_EQ(found_scales[block], blocks[block].scale);
    for (size_t i = 0; i < 32; ++i) EXPECT_NEAR(found[block * 32 + i], blocks[block].codes[i], 1);
  }
}

TEST(DeviceWeights, ProductsMatchReference) {
  POLYSPAN_NEEDS_GPU();
  const Stream stream;
  const Products products(stream);
  std::vector<DType> types(std::begin(kBlockTypes), std::end(kBlockTypes));
  types.insert(types.end(), {DType::kF32, DType::kF16, DType::kBF16});
  uint64_t seed = 20;
  for (const DType type : types)
    for (const auto& [d_out, d_in] : {std::pair<int64_t, int64_t>{37, 256}, {130, 768}, {1, 2304}, {19, 416}})
      for (const int64_t n_tokens : {1, 2, 3, 5, 8, 9, 17, 33, 97})
        for (const bool add : {false, true}) {
          if (d_in % dtype_info(type).block_len != 0) continue;
          SCOPED_TRACE(testing::Message() << dtype_name(type) << " [" << d_out << ", " << d_in << "] x " << n_tokens
                                          << (add ? " added" : ""));
          const TestMatrix matrix(type, d_out, d_in, ++seed, stream);
          Random random(seed);
          const std::vector<float> x = random.vector(n_tokens * d_in), before = random.vector(n_tokens * d_out);
          const DeviceBuffer x_device = to_device(std::span<const float>(x), "a test", stream);
          DeviceBuffer f16(n_tokens * d_in * 2, "a test"), bf16(n_tokens * d_in * 2, "a test"),
              codes(n_tokens * d_in, "a test"), scales(n_tokens * d_in / 8, "a test");
          convert(x_device.as<float>(), n_tokens * d_in, ActivationType::kF16, f16.data(), stream);
          convert(x_device.as<float>(), n_tokens * d_in, ActivationType::kBF16, bf16.data(), stream);
          quantize(x_device.as<float>(), n_tokens, d_in, {codes.as<int8_t>(), scales.as<float>()}, stream);
          // What the product reads, as floats.
          const InputForm form = input_form(type, n_tokens);
          std::vector<float> read = x;
          if (form == InputForm::kBlocks) {
            const std::vector<int8_t> c = to_host<int8_t>(codes.data(), n_tokens * d_in, stream);
            const std::vector<float> s = to_host<float>(scales.data(), n_tokens * d_in / 32, stream);
            for (size_t i = 0; i < read.size(); ++i) read[i] = s[i / 32] * static_cast<float>(c[i]);
          }
          for (float& value : read) {
            if (form == InputForm::kF16) value = f16_to_f32(f32_to_f16(value));
            if (form == InputForm::kBF16) value = bf16_to_f32(f32_to_bf16(value));
          }
          std::vector<float> w = matrix.values();
          if (form == InputForm::kF16)
            for (float& value : w) value = f16_to_f32(f32_to_f16(value));
          const int64_t stride = d_out + 3;
          std::vector<float> expected(static_cast<size_t>(n_tokens * d_out));
          for (int64_t token = 0; token < n_tokens; ++token)
            for (int64_t row = 0; row < d_out; ++row) {
              double sum = add ? static_cast<double>(before[static_cast<size_t>(token * d_out + row)]) : 0.0;
              for (int64_t i = 0; i < d_in; ++i)
                sum += static_cast<double>(w[static_cast<size_t>(row * d_in + i)]) *
                       static_cast<double>(read[static_cast<size_t>(token * d_in + i)]);
              expected[static_cast<size_t>(token * d_out + row)] = static_cast<float>(sum);
            }
          PoisonedDevice out(n_tokens * stride, stream);
          if (add)
            for (int64_t token = 0; token < n_tokens; ++token)
              copy_to_device(out.data() + token * stride, before.data() + token * d_out, d_out * 4, stream);
          const DeviceInput input = {.n_tokens = n_tokens,
                                     .d_in = d_in,
                                     .f32 = x_device.as<float>(),
                                     .f16 = f16.data(),
                                     .bf16 = bf16.data(),
                                     .quantized = {codes.as<int8_t>(), scales.as<float>()}};
          products.multiply(matrix.w, input, DType::kF32, out.data(), stride, add);
          const std::vector<float> all = out.values();
          std::vector<float> actual;
          for (int64_t token = 0; token < n_tokens; ++token) {
            actual.insert(actual.end(), all.begin() + token * stride, all.begin() + token * stride + d_out);
            for (int64_t i = d_out; i < stride; ++i)
              EXPECT_TRUE(std::isnan(all[static_cast<size_t>(token * stride + i)]));
          }
          // Tiles of these two are decoded with one rounding more.
          const bool twice =
              (type == DType::kQ4_K || type == DType::kQ6_K) && form == InputForm::kF16 && n_tokens <= kMostTileTokens;
          EXPECT_LT(error_norm(actual, expected), twice ? 1e-3 : 1e-5);
          const DType shortest = output_type(type, n_tokens);
          if (shortest == DType::kF32 || add) continue;
          PoisonedDevice rounded(n_tokens * stride, stream);
          products.multiply(matrix.w, input, shortest, rounded.data(), stride, false);
          const std::vector<uint16_t> bits = to_host<uint16_t>(rounded.data(), n_tokens * stride, stream);
          for (int64_t i = 0; i < n_tokens * d_out; ++i) {
            const uint16_t value = bits[static_cast<size_t>(i / d_out * stride + i % d_out)];
            actual[static_cast<size_t>(i)] = shortest == DType::kF16 ? f16_to_f32(value) : bf16_to_f32(value);
          }
          EXPECT_LT(error_norm(actual, expected), shortest == DType::kF16 ? 1e-3 : 6e-3);
        }
}

}  // namespace
}  // namespace polyspan::cuda
