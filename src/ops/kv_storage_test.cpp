#include "ops/kv_storage.h"

#include <gtest/gtest.h>

#include "ops/kernels.h"
#include "ops/kv_test_util.h"
#include "ops/test_util.h"

namespace polyspan {
namespace {
using namespace testing_util;

// A slot reads back what was written, rounded as the type says; nothing else in the storage changes.
TEST(KvStorage, WritesOneSlotAndNoOther) {
  for (const KvType type : kKvTypes)
    for (const int64_t head_dim : {2, 15, 16, 17, 20, 64, 80, 128, 512})
      for (const int64_t slot : {0, 1, 15, 16, 31, 47}) {
        SCOPED_TRACE(testing::Message() << kv_type_text(type) << " head_dim " << head_dim << " slot " << slot);
        Random random(static_cast<uint64_t>(head_dim + slot));
        constexpr int64_t kCapacity = 48;
        const int64_t padded = kv_head_dim_padded(head_dim);
        const std::vector<float> k = random.vector(head_dim), v = random.vector(head_dim, 3.0f);
        for_each_isa([&] {
          std::vector<std::byte> storage(static_cast<size_t>(kv_storage_bytes(type, padded, kCapacity)));
          fill_garbage(type, padded, kCapacity, random, storage.data());
          const std::vector<std::byte> before = storage;
          kernels().write_kv_slot(type, k.data(), v.data(), head_dim, padded, kCapacity, slot, storage.data());
          for (const bool is_value : {false, true}) {
            const std::vector<float> expected = round_as(type, is_value ? v : k);
            for (int64_t i = 0; i < padded; ++i)
              ASSERT_EQ(read_slot(type, padded, kCapacity, storage.data(), slot, i, is_value),
                        i < head_dim ? expected[static_cast<size_t>(i)] : 0.0f)
                  << "value " << is_value << ", channel " << i;
            for (int64_t other = 0; other < kCapacity; ++other)
              for (int64_t i = 0; other != slot && i < padded; ++i)
                ASSERT_EQ(read_slot(type, padded, kCapacity, storage.data(), other, i, is_value),
                          read_slot(type, padded, kCapacity, before.data(), other, i, is_value))
                    << "slot " << other;
          }
        });
        if (HasFatalFailure()) return;
      }
}

// Infinity in a cache would make NaN of every masked key (0 * inf): f16 stops at its largest number.
TEST(KvStorage, ExtremesStayFinite) {
  for (const KvType type : kKvTypes)
    for (const float scale : {0.0f, 1e-45f, 1e-40f, 1e-37f, 1e-10f, 65504.0f, 65520.0f, 1e6f, 1e30f}) {
      SCOPED_TRACE(testing::Message() << kv_type_text(type) << " scale " << scale);
      std::vector<float> k(16, 0.0f), v(16, -scale);
      k[3] = scale, k[15] = -scale;
      for_each_isa([&] {
        std::vector<std::byte> storage(static_cast<size_t>(kv_storage_bytes(type, 16, 16)));
        kernels().write_kv_slot(type, k.data(), v.data(), 16, 16, 16, 5, storage.data());
        const float largest = type == KvType::kF16 ? std::min(scale, 65504.0f) : scale;
        const float bound = type == KvType::kQ8 ? largest * 1e-6f + 1e-30f : largest * 0x1p-8f + 0x1p-24f;
        for (int64_t i = 0; i < 16; ++i) {
          const float sign = i == 3 ? 1.0f : i == 15 ? -1.0f : 0.0f;
          ASSERT_NEAR(read_slot(type, 16, 16, storage.data(), 5, i, false), sign * largest, bound) << i;
          ASSERT_NEAR(read_slot(type, 16, 16, storage.data(), 5, i, true), -largest, bound) << i;
        }
      });
      if (HasFatalFailure()) return;
    }
}

}  // namespace
}  // namespace polyspan
