// ops/table.isa.cpp: the kernel table of one instruction level.
#include "ops/isa_tables.h"

namespace polyspan::POLYSPAN_ISA {

const Kernels kTable = {
    .quantize_activations = quantize_activations,
    .matmul_tiles = matmul_tiles,
    .rmsnorm_row = rmsnorm_row,
    .swiglu_row = swiglu_row,
    .rmsnorm_gradient_row = rmsnorm_gradient_row,
    .swiglu_gradient_row = swiglu_gradient_row,
    .to_f16_row = to_f16_row,
    .from_f16_row = from_f16_row,
    .rope_row = rope_row,
    .add_row = add_row,
    .write_kv_slot = write_kv_slot,
    .decode_attention = decode_attention,
    .prefill_attention = prefill_attention,
    .whole_attention = whole_attention,
    .attention_gradient = attention_gradient,
    .scan_head = scan_head,
    .conv_silu_row = conv_silu_row,
    .attend_row = attend_row,
    .add_scaled_row = add_scaled_row,
    .max_value = max_value,
    .sum_exp = sum_exp,
};

}  // namespace polyspan::POLYSPAN_ISA
