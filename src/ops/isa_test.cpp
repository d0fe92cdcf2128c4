#include "ops/isa.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "ops/kernels.h"

namespace polyspan {
namespace {

TEST(Isa, NamesReadBack) {
  for (const IsaLevel level : {IsaLevel::kScalar, IsaLevel::kAvx2, IsaLevel::kAvx512, IsaLevel::kAvx512Bf16})
    EXPECT_EQ(isa_by_name(isa_name(level)), level);
  for (const char* name : {"", "AVX2", "avx", "avx512 ", "neon"}) EXPECT_FALSE(isa_by_name(name)) << name;
}

// The highest level is selected at start; every supported level has a whole table of its own.
TEST(Isa, SelectsEverySupportedLevel) {
  const std::vector<IsaLevel> levels = supported_isa_levels();
  ASSERT_FALSE(levels.empty());
  EXPECT_EQ(levels.front(), IsaLevel::kScalar);
  EXPECT_TRUE(std::is_sorted(levels.begin(), levels.end()));
  const IsaLevel before = current_isa();
  EXPECT_EQ(before, levels.back());
  const Kernels* previous = nullptr;
  for (const IsaLevel level : levels) {
    SCOPED_TRACE(isa_name(level));
    select_isa(level);
    EXPECT_EQ(current_isa(), level);
    const Kernels& table = kernels();
    EXPECT_NE(&table, previous);
    previous = &table;
    EXPECT_TRUE(table.quantize_activations && table.matmul_tiles && table.rmsnorm_row && table.swiglu_row &&
                table.rope_row && table.add_row && table.write_kv_slot && table.decode_attention &&
                table.prefill_attention && table.max_value && table.sum_exp);
  }
  select_isa(before);
}

}  // namespace
}  // namespace polyspan
