#include "cuda/elementwise.h"

#include "core/dtype.h"
#include "cuda/cuda_test_util.h"
#include "ops/rope.h"

namespace polyspan::cuda {
namespace {
using namespace testing_util;

std::vector<float> as_floats(ActivationType type, const void* data, int64_t n, const Stream& stream) {
  if (type == ActivationType::kF32) return to_host<float>(data, n, stream);
  std::vector<float> out;
  for (const uint16_t bits : to_host<uint16_t>(data, n, stream))
    out.push_back(type == ActivationType::kF16 ? f16_to_f32(bits) : bf16_to_f32(bits));
  return out;
}

double bound_of(ActivationType type) {
  return type == ActivationType::kF32 ? 2e-6 : type == ActivationType::kF16 ? 1e-3 : 6e-3;
}
constexpr ActivationType kActivations[] = {ActivationType::kF32, ActivationType::kF16, ActivationType::kBF16};

TEST(Elementwise, RmsnormAndSwiglu) {
  POLYSPAN_NEEDS_GPU();
  const Stream stream;
  Random random(1);
  for (const int64_t d : {8, 96, 255, 2051, 4096, 8196})
    for (const ActivationType type : kActivations) {
      const int64_t n = 3;
      const std::vector<float> x = random.vector(n * d, 3.0f), w = random.vector(d),
                               gate_up = random.vector(n * 2 * d, 8.0f);
      const int32_t rows[] = {2, 0, 2};
      const DeviceBuffer x_device = to_device(std::span<const float>(x), "a test", stream),
                         w_device = to_device(std::span<const float>(w), "a test", stream);
      const DeviceBuffer rows_device = to_device(std::span<const int32_t>(rows), "a test", stream),
                         gate_device = to_device(std::span<const float>(gate_up), "a test", stream);
      std::vector<float> normed, gated;
      for (const int32_t row : rows) {
        double squares = 0;
        for (int64_t i = 0; i < d; ++i)
          squares += std::pow(static_cast<double>(x[static_cast<size_t>(row * d + i)]), 2);
        for (int64_t i = 0; i < d; ++i)
          normed.push_back(static_cast<float>(static_cast<double>(x[static_cast<size_t>(row * d + i)]) *
                                              static_cast<double>(w[static_cast<size_t>(i)]) /
                                              std::sqrt(squares / static_cast<double>(d) + 1e-5)));
      }
      for (int64_t t = 0; t < n; ++t)
        for (int64_t i = 0; i < d; ++i) {
          const double gate = static_cast<double>(gate_up[static_cast<size_t>(t * 2 * d + i)]),
                       up = static_cast<double>(gate_up[static_cast<size_t>(t * 2 * d + d + i)]);
          gated.push_back(static_cast<float>(gate / (1 + std::exp(-gate)) * up));
        }
      PoisonedDevice out(n * d, stream), out2(n * d, stream);
      rmsnorm(x_device.as<float>(), rows_device.as<int32_t>(), w_device.as<float>(), n, d, 1e-5f, type, out.data(),
              stream);
      EXPECT_LT(error_norm(as_floats(type, out.data(), n * d, stream), normed), bound_of(type)) << d;
      swiglu(DType::kF32, gate_device.data(), n, d, type, out2.data(), stream);
      EXPECT_LT(error_norm(as_floats(type, out2.data(), n * d, stream), gated), bound_of(type)) << d;
    }
}

// Norms and gates that leave quantised are those that leave as floats, quantised: the same bits.
TEST(Elementwise, RmsnormAndSwigluQuantized) {
  POLYSPAN_NEEDS_GPU();
  const Stream stream;
  Random random(5);
  const int64_t n = 3;
  for (const int64_t d : {32, 96, 2080, 4096, 8224}) {
    std::vector<float> gate_up = random.vector(n * 2 * d, 8.0f);
    std::fill_n(gate_up.begin() + d, 32, 0.0f);  // a block of zeros
    const std::vector<float> x = random.vector(n * d, 3.0f), w = random.vector(d);
    const int32_t rows[] = {2, 0, 2};
    const DeviceBuffer x_device = to_device(std::span<const float>(x), "a test", stream),
                       w_device = to_device(std::span<const float>(w), "a test", stream),
                       rows_device = to_device(std::span<const int32_t>(rows), "a test", stream),
                       gate_device = to_device(std::span<const float>(gate_up), "a test", stream);
    const DeviceBuffer floats(n * d * 4, "a test");
    const auto expect_same = [&](auto as_floats, auto as_codes) {
      PoisonedDevice codes(n * d / 4, stream), scales(n * d / 32, stream), found_codes(n * d / 4, stream),
          found_scales(n * d / 32, stream);
      as_floats();
      quantize(floats.as<float>(), n, d,
               {reinterpret_cast<int8_t*>(codes.data()), reinterpret_cast<float*>(scales.data())}, stream);
      as_codes(
          QuantizedRows{reinterpret_cast<int8_t*>(found_codes.data()), reinterpret_cast<float*>(found_scales.data())});
      found_codes.values(), found_scales.values();  // nothing is written behind them
      EXPECT_EQ(to_host<int8_t>(found_codes.data(), n * d, stream), to_host<int8_t>(codes.data(), n * d, stream)) << d;
      EXPECT_EQ(to_host<float>(found_scales.data(), n * d / 32, stream),
                to_host<float>(scales.data(), n * d / 32, stream))
          << d;
    };
    expect_same(
        [&] {
          rmsnorm(x_device.as<float>(), rows_device.as<int32_t>(), w_device.as<float>(), n, d, 1e-5f,
                  ActivationType::kF32, floats.data(), stream);
        },
        [&](const QuantizedRows& out) {
          rmsnorm(x_device.as<float>(), rows_device.as<int32_t>(), w_device.as<float>(), n, d, 1e-5f, out, stream);
        });
    expect_same([&] { swiglu(DType::kF32, gate_device.data(), n, d, ActivationType::kF32, floats.data(), stream); },
                [&](const QuantizedRows& out) { swiglu(gate_device.as<float>(), n, d, out, stream); });
  }
}

// Of gates and ups of 2 bytes, with values that f16 does not hold.
TEST(Elementwise, SwigluOfShortTypes) {
  POLYSPAN_NEEDS_GPU();
  const Stream stream;
  Random random(5);
  for (const DType in : {DType::kF16, DType::kBF16})
    for (const int64_t d : {6, 96, 255, 2052, 2056})
      for (const ActivationType type : kActivations) {
        const int64_t n = 3;
        std::vector<uint16_t> gate_up;
        std::vector<float> expected;
        for (const float value : random.vector(n * 2 * d, 8.0f))
          gate_up.push_back(in == DType::kF16 ? f32_to_f16(value) : f32_to_bf16(value));
        if (in == DType::kF16) gate_up[0] = 0x7c00, gate_up[static_cast<size_t>(d)] = 0x3800;      // infinity, 1/2
        if (in == DType::kF16) gate_up[1] = 0x0000, gate_up[static_cast<size_t>(d) + 1] = 0xfc00;  // 0, -infinity
        const auto value_at = [&](int64_t i) {
          const uint16_t bits = gate_up[static_cast<size_t>(i)];
          return in == DType::kF16 ? std::clamp(f16_to_f32(bits), -65504.0f, 65504.0f) : bf16_to_f32(bits);
        };
        for (int64_t t = 0; t < n; ++t)
          for (int64_t i = 0; i < d; ++i) {
            const double gate = static_cast<double>(value_at(t * 2 * d + i)),
                         up = static_cast<double>(value_at(t * 2 * d + d + i));
            expected.push_back(static_cast<float>(gate / (1 + std::exp(-gate)) * up));
          }
        const DeviceBuffer gate_device = to_device(std::span<const uint16_t>(gate_up), "a test", stream);
        PoisonedDevice out(n * d, stream);
        swiglu(in, gate_device.data(), n, d, type, out.data(), stream);
        const std::vector<float> actual = as_floats(type, out.data(), n * d, stream);
        for (size_t i = 0; i < actual.size(); ++i)
          EXPECT_NEAR(actual[i], expected[i], std::max(1e-5, bound_of(type)) * (std::abs(expected[i]) + 1e-3))
              << d << " at " << i;
      }
}

// Bias, both pairings, dimensions that are not rotated, positions past the ring's wrap; then keys and values of a chunk
// go into the rings.
TEST(Elementwise, AppendWritesWhatTheCpuWould) {
  POLYSPAN_NEEDS_GPU();
  const Stream stream;
  Random random(2);
  for (const KvType type : kCudaKvTypes)
    for (const int64_t d : {64, 128})
      for (const bool interleaved : {true, false})
        for (const bool in_chunk : {true, false}) {
          const int64_t n_heads = 4, n_kv_heads = 2, n_tokens = 40, first = 77, n_dims = d == 64 ? 64 : 96,
                        n_rows = n_heads + 2 * n_kv_heads;
          SCOPED_TRACE(testing::Message() << kv_type_text(type) << " of " << d
                                          << (interleaved ? " interleaved" : " halves") << (in_chunk ? " chunk" : ""));
          RopeConfig rope;
          rope.n_dims = n_dims;
          rope.pairing = interleaved ? RopePairing::kInterleaved : RopePairing::kHalves;
          const std::vector<float> qkv = random.vector(n_tokens * n_rows * d), bias = random.vector(n_rows * d);
          std::vector<int64_t> positions;
          std::vector<int32_t> positions32;
          for (int64_t t = 0; t < n_tokens; ++t) {
            positions.push_back(in_chunk ? first + t : random.below(300));
            positions32.push_back(static_cast<int32_t>(positions.back()));
          }
          std::vector<float> rotated = qkv;
          for (size_t i = 0; i < rotated.size(); ++i) rotated[i] += bias[i % bias.size()];
          RopeTable table;
          table.compute(rope, positions);
          OpContext context(1);
          apply_rope(rope, table, rotated.data(), n_tokens, n_rows * d, n_heads + n_kv_heads, d, 1.0f, context);

          const SlotLayout ring{20, 32, 48}, chunk{0, 0, 48};
          std::vector<HostStorage> expected_rings, expected_chunk, empty_rings, empty_chunk;
          std::vector<SlotLayout> ring_layouts, chunk_layouts(static_cast<size_t>(n_kv_heads), chunk);
          const int64_t n_sequences = in_chunk ? 1 : n_tokens;
          for (int64_t i = 0; i < n_sequences * n_kv_heads; ++i) {
            expected_rings.emplace_back(type, d, ring.capacity());
            empty_rings.emplace_back(type, d, ring.capacity());
            ring_layouts.push_back(ring);
          }
          for (int64_t i = 0; i < n_kv_heads; ++i) {
            expected_chunk.emplace_back(type, d, chunk.capacity());
            empty_chunk.emplace_back(type, d, chunk.capacity());
          }
          std::vector<float> expected_q;
          for (int64_t t = 0; t < n_tokens; ++t) {
            const auto row = [&](int64_t r) {
              return std::vector<float>(rotated.begin() + (t * n_rows + r) * d,
                                        rotated.begin() + (t * n_rows + r + 1) * d);
            };
            expected_q.insert(expected_q.end(), rotated.begin() + t * n_rows * d,
                              rotated.begin() + (t * n_rows + n_heads) * d);
            for (int64_t kv_head = 0; kv_head < n_kv_heads; ++kv_head) {
              const int64_t index = in_chunk ? kv_head : t * n_kv_heads + kv_head,
                            slot = ring.slot(positions[static_cast<size_t>(t)]);
              for (const bool is_value : {false, true}) {
                const std::vector<float> values = row(n_heads + (is_value ? n_kv_heads : 0) + kv_head);
                expected_rings[static_cast<size_t>(index)].write(slot, is_value, values);
                if (in_chunk) expected_chunk[static_cast<size_t>(kv_head)].write(t, is_value, values);
              }
            }
          }
          const DeviceStorages rings(empty_rings, ring_layouts, stream), chunks(empty_chunk, chunk_layouts, stream);
          std::vector<double> frequencies;
          for (int64_t pair = 0; pair < n_dims / 2; ++pair)
            frequencies.push_back(std::pow(rope.base, -2.0 * static_cast<double>(pair) / static_cast<double>(n_dims)));
          const DeviceBuffer frequencies_device = to_device(std::span<const double>(frequencies), "a test", stream),
                             qkv_device = to_device(std::span<const float>(qkv), "a test", stream),
                             bias_device = to_device(std::span<const float>(bias), "a test", stream),
                             positions_device = to_device(std::span<const int32_t>(positions32), "a test", stream);
          DeviceBuffer turns(n_tokens * n_dims / 2 * 8, "a test");
          rope_table(frequencies_device.as<double>(), n_dims / 2, in_chunk ? nullptr : positions_device.as<int32_t>(),
                     first, n_tokens, turns.as<RopeTurn>(), stream);
          PoisonedDevice q(n_tokens * n_heads * d, stream);
          append({.type = type,
                  .n_tokens = n_tokens,
                  .n_heads = n_heads,
                  .n_kv_heads = n_kv_heads,
                  .head_dim = d,
                  .qkv = qkv_device.as<float>(),
                  .bias = bias_device.as<float>(),
                  .rope = turns.as<RopeTurn>(),
                  .n_pairs = n_dims / 2,
                  .interleaved = interleaved,
                  .heads = (in_chunk ? chunks : rings).views.as<KvHeadView>(),
                  .positions = in_chunk ? nullptr : positions_device.as<int32_t>(),
                  .q = q.data()},
                 stream);
          if (in_chunk)
            keep_chunk(type, n_kv_heads, d, chunks.views.as<KvHeadView>(), rings.views.as<KvHeadView>(), first,
                       n_tokens, stream);
          EXPECT_LT(error_norm(q.values(), expected_q), 1e-6);
          // Bytes may differ where a value lies at a rounding's edge: count them.
          const auto differing = [&](const DeviceStorages& actual, const std::vector<HostStorage>& expected) {
            int64_t differ = 0, offset = 0;
            const std::vector<std::byte> bytes =
                to_host<std::byte>(actual.memory.data(), actual.memory.size_bytes(), stream);
            for (const HostStorage& storage : expected) {
              for (size_t i = 0; i < storage.bytes().size(); ++i)
                differ += storage.bytes()[i] != bytes[static_cast<size_t>(offset) + i];
              offset = round_up_to(offset + std::ssize(storage.bytes()), 64);
            }
            return static_cast<double>(differ) / static_cast<double>(bytes.size());
          };
          EXPECT_LT(differing(rings, expected_rings), 2e-3);
          if (in_chunk) {
            EXPECT_LT(differing(chunks, expected_chunk), 2e-3);
          }
        }
}

}  // namespace
}  // namespace polyspan::cuda
