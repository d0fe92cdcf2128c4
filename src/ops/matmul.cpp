#include "ops/matmul.h"

#include <algorithm>

#include "core/error.h"

namespace polyspan {
namespace {

constexpr int64_t kTokensPerItem = 256;  // enough to pay for unpacking a tile

// One item of work: up to two tiles of one output, and a range of tokens.
struct Item {
  int64_t output, first_tile, n_tiles, first_token, n_tokens;
};

MatmulTilesArgs tile_args(const MatmulInput& x, const MatmulOutput& output, const Item& item) {
  const PackedMatrix& w = *output.weight;
  MatmulTilesArgs args{};
  args.type = w.type;
  args.d_in = w.d_in;
  args.n_tiles = item.n_tiles;
  for (int64_t r = 0; r < item.n_tiles; ++r) {
    const int64_t tile = item.first_tile + r, row = tile * kTileRows;
    args.tiles[r] = w.tile(tile);
    args.n_rows[r] = std::min(kTileRows, w.d_out - row);
    args.bias[r] = output.bias == nullptr ? nullptr : output.bias + row;
    args.out[r] = output.out + item.first_token * output.out_stride + row;
    args.out_stride[r] = output.out_stride;
  }
  if (x.blocks != nullptr) args.x_blocks = x.blocks + item.first_token * (x.d_in / kBlockCols);
  if (x.values != nullptr) args.x = x.values + item.first_token * x.d_in;
  args.n_tokens = item.n_tokens;
  args.epilogue = output.epilogue;
  return args;
}

void check_input(const MatmulInput& x, const PackedMatrix& w) {
  POLYSPAN_CHECK(w.d_in == x.d_in);
  POLYSPAN_CHECK(w.is_quantized() ? x.blocks != nullptr : x.values != nullptr);
}

}  // namespace

void matmul(const MatmulInput& x, std::span<const MatmulOutput> outputs, OpContext& context) {
  int64_t total_pairs = 0;
  for (const MatmulOutput& output : outputs) {
    check_input(x, *output.weight);
    total_pairs += (output.weight->n_tiles() + 1) / 2;
  }
  context.reserve_scratch(matmul_scratch_bytes(x.d_in));
  const int64_t n_token_parts = x.n_tokens <= 1 ? 1 : (x.n_tokens + kTokensPerItem - 1) / kTokensPerItem;
  const auto run_item = [&](int64_t pair, int64_t token_part, int thread) {
    Item item{};
    for (; pair >= (outputs[static_cast<size_t>(item.output)].weight->n_tiles() + 1) / 2; ++item.output)
      pair -= (outputs[static_cast<size_t>(item.output)].weight->n_tiles() + 1) / 2;
    const MatmulOutput& output = outputs[static_cast<size_t>(item.output)];
    item.first_tile = 2 * pair;
    item.n_tiles = std::min<int64_t>(2, output.weight->n_tiles() - item.first_tile);
    item.first_token = x.n_tokens * token_part / n_token_parts;
    item.n_tokens = x.n_tokens * (token_part + 1) / n_token_parts - item.first_token;
    MatmulTilesArgs args = tile_args(x, output, item);
    args.scratch = context.scratch(thread);
    kernels().matmul_tiles(args);
  };
  if (x.n_tokens == 1) {
    // Contiguous parts: each thread streams through its own stretch of the weights.
    context.team().split(total_pairs, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t pair = begin; pair < end; ++pair) run_item(pair, 0, thread);
    });
  } else {
    context.team().each(total_pairs * n_token_parts,
                        [&](int64_t item, int thread) { run_item(item % total_pairs, item / total_pairs, thread); });
  }
}

void matmul_swiglu(const MatmulInput& x, const PackedMatrix& gate, const PackedMatrix& up, float* out,
                   OpContext& context) {
  check_input(x, gate);
  check_input(x, up);
  POLYSPAN_CHECK(gate.d_out == up.d_out);
  if (gate.type != up.type) {  // rare (mixed quantisation): two products, then the pointwise part
    std::vector<float> up_out(static_cast<size_t>(x.n_tokens * up.d_out));
    const MatmulOutput both[] = {{&gate, nullptr, out, gate.d_out, Epilogue::kStore},
                                 {&up, nullptr, up_out.data(), up.d_out, Epilogue::kStore}};
    matmul(x, both, context);
    kernels().swiglu_row(out, up_out.data(), x.n_tokens * gate.d_out, out);
    return;
  }
  context.reserve_scratch(matmul_scratch_bytes(x.d_in));
  const int64_t n_tiles = gate.n_tiles();
  const int64_t n_token_parts = x.n_tokens <= 1 ? 1 : (x.n_tokens + kTokensPerItem - 1) / kTokensPerItem;
  const auto run_item = [&](int64_t tile, int64_t token_part, int thread) {
    Item item{0, tile, 1, x.n_tokens * token_part / n_token_parts, 0};
    item.n_tokens = x.n_tokens * (token_part + 1) / n_token_parts - item.first_token;
    MatmulTilesArgs args = tile_args(x, {&gate, nullptr, out, gate.d_out, Epilogue::kSwiglu}, item);
    args.n_tiles = 2;
    args.tiles[1] = up.tile(tile);
    args.n_rows[1] = args.n_rows[0];
    args.scratch = context.scratch(thread);
    kernels().matmul_tiles(args);
  };
  if (x.n_tokens == 1) {
    context.team().split(n_tiles, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t tile = begin; tile < end; ++tile) run_item(tile, 0, thread);
    });
  } else {
    context.team().each(n_tiles * n_token_parts,
                        [&](int64_t item, int thread) { run_item(item % n_tiles, item / n_tiles, thread); });
  }
}

void quantize_activations(const float* x, int64_t n_tokens, int64_t d_in, ActBlock* out, OpContext& context) {
  POLYSPAN_CHECK(d_in % kBlockCols == 0);
  context.team().split(n_tokens, [&](int64_t begin, int64_t end, int) {
    kernels().quantize_activations(x + begin * d_in, (end - begin) * d_in, out + begin * (d_in / kBlockCols));
  });
}

MatmulInput matmul_input(const float* x, int64_t n_tokens, int64_t d_in, std::vector<ActBlock>& blocks,
                         OpContext& context) {
  if (d_in % kBlockCols != 0) return {x, nullptr, n_tokens, d_in};
  const size_t n = static_cast<size_t>(n_tokens * d_in / kBlockCols);
  if (blocks.size() < n) blocks.resize(n);
  quantize_activations(x, n_tokens, d_in, blocks.data(), context);
  return {x, blocks.data(), n_tokens, d_in};
}

void matmul_reference(DType type, const std::byte* rows, int64_t d_out, const MatmulInput& x, float* out) {
  std::vector<float> row(static_cast<size_t>(x.d_in));
  const bool quantized = PackedMatrix{type, d_out, x.d_in, rows}.is_quantized();
  for (int64_t i = 0; i < d_out; ++i) {
    dequantize_row(type, rows + i * row_bytes(type, x.d_in), x.d_in, row.data());
    for (int64_t token = 0; token < x.n_tokens; ++token) {
      double sum = 0;
      for (int64_t col = 0; col < x.d_in; ++col) {
        const ActBlock* block = quantized ? x.blocks + token * (x.d_in / kBlockCols) + col / kBlockCols : nullptr;
        const double value = quantized ? static_cast<double>(block->scale) * block->codes[col % kBlockCols]
                                       : static_cast<double>(x.values[token * x.d_in + col]);
        sum += static_cast<double>(row[static_cast<size_t>(col)]) * value;
      }
      out[token * d_out + i] = static_cast<float>(sum);
    }
  }
}

}  // namespace polyspan
