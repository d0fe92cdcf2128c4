// ops/isa_tables.h: declares the kernels of the level that is being compiled (POLYSPAN_ISA).
#pragma once

#include "ops/kernels.h"

namespace polyspan::POLYSPAN_ISA {

void matmul_tiles(const MatmulTilesArgs& args);
void quantize_activations(const float* x, int64_t n, ActBlock* out);
void rmsnorm_row(const float* x, const float* weight, int64_t n, float eps, float* out);
void swiglu_row(const float* gate, const float* up, int64_t n, float* out);
void rmsnorm_gradient_row(const float* x, const float* weight, const float* d_y, int64_t n, float eps, float* d_x);
void swiglu_gradient_row(const float* gate, const float* up, const float* d_y, int64_t n, float* d_gate, float* d_up);
void to_f16_row(const float* x, int64_t n, uint16_t* out);
void from_f16_row(const uint16_t* x, int64_t n, float* out);
void rope_row(const RopeRowArgs& args);
void add_row(const float* x, int64_t n, float* out);
void write_kv_slot(KvType type, const float* k, const float* v, int64_t head_dim, int64_t head_dim_padded,
                   int64_t capacity, int64_t slot, std::byte* storage);
void decode_attention(const DecodeAttentionArgs& args);
void prefill_attention(const PrefillAttentionArgs& args);
void whole_attention(const WholeAttentionArgs& args);
void attention_gradient(const AttentionGradientArgs& args);
void scan_head(const ScanArgs& args);
void conv_silu_row(const ConvRowArgs& args);
void attend_row(const AttendRowArgs& args);
void add_scaled_row(const float* x, float scale, int64_t n, float* out);
float max_value(const float* x, int64_t n);
double sum_exp(const float* x, int64_t n, float max);

extern const Kernels kTable;

}  // namespace polyspan::POLYSPAN_ISA
