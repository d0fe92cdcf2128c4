#include "cuda/elementwise.h"

#include <algorithm>
#include <type_traits>

#include "core/error.h"
#include "cuda/blocks.cuh"
#include "cuda/number.cuh"
#include "cuda/overlap.cuh"

namespace polyspan::cuda {
namespace {

constexpr int kThreads = 256, kNormThreads = 512;

unsigned grid_of(int64_t n) {
  return static_cast<unsigned>(std::clamp<int64_t>((n + kThreads - 1) / kThreads, 1, 1 << 16));
}

template <typename Visit>
void visit_activation(ActivationType type, void* out, Visit visit) {
  if (type == ActivationType::kF32) visit(static_cast<float*>(out));
  if (type == ActivationType::kF16) visit(static_cast<__half*>(out));
  if (type == ActivationType::kBF16) visit(static_cast<__nv_bfloat16*>(out));
}

// The sum over a block of kNormThreads. Shared memory: 64 bytes.
__device__ float block_sum(float value) {
  __shared__ float warps[kNormThreads / 32];
  value = warp_sum(value);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  float all = 0;
  for (int i = 0; i < kNormThreads / 32; ++i) all += warps[i];
  return all;
}

// kN values that are read and written at once, aligned to their size.
template <typename T, int kN>
struct alignas(sizeof(T) * kN) Values {
  T value[kN];
};
template <int kN, typename T>
__device__ void load_floats(const T* from, float (&values)[kN]) {
  const Values<T, kN> loaded = *reinterpret_cast<const Values<T, kN>*>(from);
#pragma unroll
  for (int i = 0; i < kN; ++i) values[i] = to_float(loaded.value[i]);
}
template <int kN, typename T>
__device__ void store_floats(const float (&values)[kN], T* to) {
  Values<T, kN> stored;
#pragma unroll
  for (int i = 0; i < kN; ++i) stored.value[i] = from_float<T>(values[i]);
  *reinterpret_cast<Values<T, kN>*>(to) = stored;
}

// Values [at, at + kN) of the output.
template <int kN, typename T>
__device__ void store_at(T* out, int64_t at, const float (&values)[kN]) {
  store_floats(values, out + at);
}
// A block of 32 values belongs to 32 / kN neighbouring lanes. REQUIRES: the first of them has `at` % 32 == 0, and all call.
template <int kN>
__device__ void store_at(const QuantizedRows& out, int64_t at, const float (&values)[kN]) {
  constexpr int kLanes = 32 / kN;
  const int lane = threadIdx.x % 32;
  const uint32_t sharers = ~0u >> (32 - kLanes) << (lane & ~(kLanes - 1));
  float largest = 0.0f;
#pragma unroll
  for (int i = 0; i < kN; ++i) largest = fmaxf(largest, fabsf(values[i]));
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(sharers, largest, step));
  const float inverse = largest > 1e-30f ? 127.0f / largest : 0.0f;
  Values<int8_t, kN> codes;
#pragma unroll
  for (int i = 0; i < kN; ++i) codes.value[i] = static_cast<int8_t>(__float2int_rn(values[i] * inverse));
  *reinterpret_cast<Values<int8_t, kN>*>(out.codes + at) = codes;
  if (lane % kLanes == 0) out.scales[at / 32] = largest / 127.0f;
}

template <typename T>
__global__ void embed_floats_kernel(const T* table, int64_t d, const int32_t* tokens, float* out) {
  const T* const row = table + int64_t{tokens[blockIdx.x]} * d;
  for (int64_t i = threadIdx.x; i < d; i += blockDim.x) out[blockIdx.x * d + i] = to_float(row[i]);
}

template <DType kType>
__global__ void embed_blocks_kernel(DeviceMatrix table, const int32_t* tokens, float* out) {
  for (int unit = threadIdx.x; unit < table.d_in / 32; unit += blockDim.x) {
    const Unit u = load_unit<kType>(table, tokens[blockIdx.x], unit);
    float values[2][16];
    decode_unit(u, values);
#pragma unroll
    for (int run = 0; run < 2; ++run)
#pragma unroll
      for (int i = 0; i < 16; ++i) out[blockIdx.x * table.d_in + u.at[run] + i] = values[run][i];
  }
}

// A row a block; its first kKept * kStep values and weights stay in registers. REQUIRES: d % kN == 0.
template <typename Out, int kN>
__global__ void __launch_bounds__(kNormThreads)
    rmsnorm_kernel(const float* x, const int32_t* rows, const float* weight, int64_t d, float eps, Out out) {
  let_next_kernel_start();
  constexpr int kKept = 4, kStep = kN * kNormThreads;
  const int n = static_cast<int>(d), first = kN * static_cast<int>(threadIdx.x);
  float kept[kKept][kN] = {}, factors[kKept][kN], squares = 0;
#pragma unroll
  for (int part = 0; part < kKept; ++part)  // no kernel writes weights
    if (first + part * kStep < n) load_floats(weight + first + part * kStep, factors[part]);
  wait_for_earlier_kernels();
  const float* const row = x + (rows == nullptr ? int64_t{blockIdx.x} : int64_t{rows[blockIdx.x]}) * d;
#pragma unroll
  for (int part = 0; part < kKept; ++part)
    if (first + part * kStep < n) load_floats(row + first + part * kStep, kept[part]);
#pragma unroll
  for (int part = 0; part < kKept; ++part)
#pragma unroll
    for (int i = 0; i < kN; ++i) squares += kept[part][i] * kept[part][i];
  for (int at = first + kKept * kStep; at < n; at += kStep) {
    float values[kN];
    load_floats(row + at, values);
#pragma unroll
    for (int i = 0; i < kN; ++i) squares += values[i] * values[i];
  }
  const float scale = rsqrtf(block_sum(squares) / static_cast<float>(d) + eps);
  const auto finish = [&](int at, float(&values)[kN], const float(&of_values)[kN]) {
#pragma unroll
    for (int i = 0; i < kN; ++i) values[i] *= scale * of_values[i];
    store_at(out, blockIdx.x * d + at, values);
  };
#pragma unroll
  for (int part = 0; part < kKept; ++part)
    if (first + part * kStep < n) finish(first + part * kStep, kept[part], factors[part]);
  for (int at = first + kKept * kStep; at < n; at += kStep) {
    float values[kN], of_values[kN];
    load_floats(row + at, values);
    load_floats(weight + at, of_values);
    finish(at, values, of_values);
  }
}

// A block: kN * kThreads channels of kTokens tokens, all asked for before any is used. REQUIRES: d_ff % kN == 0.
template <typename In, typename Out, int kN, int kTokens>
__global__ void swiglu_kernel(const In* gate_up, int64_t n_tokens, int64_t d_ff, Out out) {
  let_next_kernel_start();
  const int64_t channel = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kN;
  wait_for_earlier_kernels();
  if (channel >= d_ff) return;
  for (int64_t first = int64_t{blockIdx.y} * kTokens; first < n_tokens; first += int64_t{gridDim.y} * kTokens) {
    float gate[kTokens][kN], up[kTokens][kN];
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      if (first + t >= n_tokens) continue;
      load_floats(gate_up + (first + t) * 2 * d_ff + channel, gate[t]);
      load_floats(gate_up + (first + t) * 2 * d_ff + d_ff + channel, up[t]);
    }
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      if (first + t >= n_tokens) continue;
#pragma unroll
      for (int i = 0; i < kN; ++i) {
        float &g = gate[t][i], &u = up[t][i];
        if constexpr (std::is_same_v<In, __half>) {
          g = to_float(from_float<__half>(g));  // finite
          u = to_float(from_float<__half>(u));
        }
        g = g / (1.0f + __expf(-g)) * u;
      }
      store_at(out, (first + t) * d_ff + channel, gate[t]);
    }
  }
}

template <typename T>
__global__ void convert_kernel(const float* x, int64_t n, T* out) {
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < n; i += int64_t{gridDim.x} * kThreads)
    out[i] = from_float<T>(x[i]);
}

// One warp a block of 32 values.
__global__ void quantize_kernel(const float* x, int64_t n_blocks, QuantizedRows out) {
  let_next_kernel_start();
  wait_for_earlier_kernels();
  for (int64_t block = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / 32; block < n_blocks;
       block += int64_t{gridDim.x} * kThreads / 32) {
    const int64_t at = block * 32 + threadIdx.x % 32;
    const float value[1] = {x[at]};
    store_at(out, at, value);
  }
}

__global__ void rope_table_kernel(const double* frequencies, int n_pairs, const int32_t* positions,
                                  int64_t first_position, RopeTurn* table) {
  const int64_t token = blockIdx.x;
  const double position =
      static_cast<double>(positions == nullptr ? first_position + token : int64_t{positions[token]});
  for (int pair = threadIdx.x; pair < n_pairs; pair += blockDim.x) {
    double sine, cosine;
    sincos(position * frequencies[pair], &sine, &cosine);
    table[token * n_pairs + pair] = {static_cast<float>(cosine), static_cast<float>(sine)};
  }
}

// A warp takes kRows heads of a token: of its queries, keys and values, in this order, every n_warps-th. A lane holds the pairs
// lane, lane + 32, ... of a head: those that are rotated, then pairs of neighbours that are not. All heads are asked for before any
// is used. REQUIRES: head_dim <= 128.
template <KvType kType, int kRows>
__global__ void append_kernel(AppendArgs args) {
  using T = typename KvElement<kType>::type;
  constexpr int kMostPairs = 2;  // of a lane
  let_next_kernel_start();       // decode attention may prepare itself
  const int lane = threadIdx.x % 32, first_row = (blockIdx.y * kThreads + threadIdx.x) / 32;
  const int n_warps = static_cast<int>(gridDim.y) * (kThreads / 32);
  const int dim = static_cast<int>(args.head_dim), n_pairs = static_cast<int>(args.n_pairs);
  const int n_keys = static_cast<int>(args.n_heads + args.n_kv_heads),  // rows before the values
      n_rows = n_keys + static_cast<int>(args.n_kv_heads);
  const int64_t token = blockIdx.x;

  // Where keys and values go: the tables are older than the kernel before this one.
  T* to[kRows] = {};
  float* to_scale[kRows] = {};
  const int position = args.positions == nullptr ? 0 : args.positions[token];
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int row = first_row + i * n_warps;
    if (row < args.n_heads || row >= n_rows) continue;
    const bool is_value = row >= n_keys, in_chunk = args.positions == nullptr;
    const int64_t kv_head = row - (is_value ? n_keys : args.n_heads);
    const KvHeadView head = args.heads[in_chunk ? kv_head : token * args.n_kv_heads + kv_head];
    int64_t slot = token;
    if (!in_chunk)
      slot = position < head.n_sink ? position : head.sink_slots + (position - head.n_sink) % head.ring_slots;
    to[i] = const_cast<T*>(is_value ? values_of<T>(head, dim) : keys_of<T>(head)) + slot * dim;
    if constexpr (kType == KvType::kQ8)
      to_scale[i] = (is_value ? value_scales_of(head, dim) : key_scales_of(head, dim)) + slot;
  }
  wait_for_earlier_kernels();

  const auto is_halved = [&](int pair) { return !args.interleaved && pair < n_pairs; };
  float pairs[kRows][kMostPairs][2];
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int row = first_row + i * n_warps;
    const float* const from = args.qkv + (token * n_rows + row) * dim;
#pragma unroll
    for (int j = 0; j < kMostPairs; ++j) {
      const int pair = lane + 32 * j;
      if (row >= n_rows || 2 * pair >= dim) continue;
      if (is_halved(pair)) {
        pairs[i][j][0] = from[pair];
        pairs[i][j][1] = from[pair + n_pairs];
      } else {
        load_floats(from + 2 * pair, pairs[i][j]);
      }
    }
  }
  RopeTurn turns[kMostPairs];
#pragma unroll
  for (int j = 0; j < kMostPairs; ++j)
    if (lane + 32 * j < n_pairs) turns[j] = args.rope[token * n_pairs + lane + 32 * j];

#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int row = first_row + i * n_warps;
    if (row >= n_rows) continue;
    float largest = 0.0f;
#pragma unroll
    for (int j = 0; j < kMostPairs; ++j) {
      const int pair = lane + 32 * j;
      if (2 * pair >= dim) continue;
      float &a = pairs[i][j][0], &b = pairs[i][j][1];
      if (args.bias != nullptr) {
        const float* const bias = args.bias + row * dim;
        a += bias[is_halved(pair) ? pair : 2 * pair];
        b += bias[is_halved(pair) ? pair + n_pairs : 2 * pair + 1];
      }
      if (row < n_keys && pair < n_pairs) {
        const float turned = a * turns[j].cosine - b * turns[j].sine;
        b = a * turns[j].sine + b * turns[j].cosine;
        a = turned;
      }
      largest = fmaxf(largest, fmaxf(fabsf(a), fabsf(b)));
    }
    float inverse = 0.0f;
    if (kType == KvType::kQ8 && row >= args.n_heads) {
      largest = warp_max(largest);
      inverse = largest > 1e-30f ? 127.0f / largest : 0.0f;
      if (lane == 0) *to_scale[i] = largest / 127.0f;
    }
#pragma unroll
    for (int j = 0; j < kMostPairs; ++j) {
      const int pair = lane + 32 * j;
      if (2 * pair >= dim) continue;
      const auto store = [&](auto* out, auto a, auto b) {
        using Stored = std::remove_pointer_t<decltype(out)>;
        if (is_halved(pair)) {
          out[pair] = a;
          out[pair + n_pairs] = b;
        } else {
          *reinterpret_cast<Values<Stored, 2>*>(out + 2 * pair) = {{a, b}};
        }
      };
      const auto& [a, b] = pairs[i][j];
      if (row < args.n_heads) {
        store(args.q + (token * args.n_heads + row) * dim, a, b);
      } else if constexpr (kType == KvType::kQ8) {
        store(to[i], static_cast<int8_t>(__float2int_rn(a * inverse)),
              static_cast<int8_t>(__float2int_rn(b * inverse)));
      } else {
        store(to[i], from_float<T>(a), from_float<T>(b));
      }
    }
  }
}

// One warp a (token, KV head).
template <typename T, bool kScaled>
__global__ void keep_chunk_kernel(int n_kv_heads, int dim, const KvHeadView* chunk, const KvHeadView* heads,
                                  int64_t first_position, int64_t n_tokens) {
  const int lane = threadIdx.x % 32;
  const int64_t index = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / 32, token = index / n_kv_heads;
  if (token >= n_tokens) return;
  const KvHeadView from = chunk[index % n_kv_heads], to = heads[index % n_kv_heads];
  const int64_t position = first_position + token;
  if (position >= to.n_sink && position < first_position + n_tokens - to.ring_slots)
    return;  // overwritten within this chunk
  const int64_t slot = position < to.n_sink ? position : to.sink_slots + (position - to.n_sink) % to.ring_slots;
  const int vectors = dim * static_cast<int>(sizeof(T)) / 16;
  for (int part = 0; part < 2; ++part) {
    const T* const source = part == 0 ? keys_of<T>(from) : values_of<T>(from, dim);
    T* const target = const_cast<T*>(part == 0 ? keys_of<T>(to) : values_of<T>(to, dim));
    if (lane < vectors)
      reinterpret_cast<uint4*>(target + slot * dim)[lane] = reinterpret_cast<const uint4*>(source + token * dim)[lane];
  }
  if (kScaled && lane == 0) {
    key_scales_of(to, dim)[slot] = key_scales_of(from, dim)[token];
    value_scales_of(to, dim)[slot] = value_scales_of(from, dim)[token];
  }
}

template <typename T>
__global__ void fill_random_kernel(T* out, int64_t n, float limit, uint64_t seed) {
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < n; i += int64_t{gridDim.x} * kThreads) {
    uint64_t z = seed + 0x9e3779b97f4a7c15u * static_cast<uint64_t>(i + 1);  // SplitMix64 (Steele, Lea, Flood 2014)
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    out[i] = from_float<T>(limit * static_cast<float>(static_cast<int64_t>(z) >> 40) * 0x1p-23f);
  }
}

}  // namespace

void embed(const DeviceMatrix& table, const int32_t* tokens, int64_t n_tokens, float* out, const Stream& stream) {
  const unsigned grid = static_cast<unsigned>(n_tokens);
  const auto floats = [&](const auto* rows) {
    embed_floats_kernel<<<grid, kThreads, 0, stream.get()>>>(rows, table.d_in, tokens, out);
  };
  if (table.type == DType::kF32) floats(reinterpret_cast<const float*>(table.data));
  if (table.type == DType::kF16) floats(reinterpret_cast<const __half*>(table.data));
  if (table.type == DType::kBF16) floats(reinterpret_cast<const __nv_bfloat16*>(table.data));
  visit_block_type(table.type, [&]<DType kType>() {
    embed_blocks_kernel<kType><<<grid, kThreads, 0, stream.get()>>>(table, tokens, out);
  });
  check_launch("embed");
}

void rmsnorm(const float* x, const int32_t* rows, const float* weight, int64_t n_rows, int64_t d, float eps,
             ActivationType out_type, void* out, const Stream& stream) {
  const unsigned grid = static_cast<unsigned>(n_rows);
  visit_activation(out_type, out, [&]<typename T>(T* to) {
    launch_overlapping(d % 4 == 0 ? rmsnorm_kernel<T*, 4> : rmsnorm_kernel<T*, 1>, grid, kNormThreads, 0, stream.get(),
                       x, rows, weight, d, eps, to);
  });
  check_launch("rmsnorm");
}

void rmsnorm(const float* x, const int32_t* rows, const float* weight, int64_t n_rows, int64_t d, float eps,
             const QuantizedRows& out, const Stream& stream) {
  POLYSPAN_CHECK(d % 32 == 0);
  launch_overlapping(rmsnorm_kernel<QuantizedRows, 4>, static_cast<unsigned>(n_rows), kNormThreads, 0, stream.get(), x,
                     rows, weight, d, eps, out);
  check_launch("rmsnorm");
}

void swiglu(DType type, const void* gate_up, int64_t n_tokens, int64_t d_ff, ActivationType out_type, void* out,
            const Stream& stream) {
  constexpr int64_t kManyTokens = 128;  // from here on two a thread still leave each multiprocessor several blocks
  const int64_t most = type == DType::kF32 ? 4 : 8, at_once = d_ff % most == 0 ? most : 1,
                width = (d_ff + at_once * kThreads - 1) / (at_once * kThreads);
  const bool in_pairs = n_tokens >= kManyTokens;
  const int64_t height = std::min<int64_t>(in_pairs ? (n_tokens + 1) / 2 : n_tokens, 65535);
  const dim3 grid(static_cast<unsigned>(width), static_cast<unsigned>(height));
  const auto launch = [&]<typename In>(const In* in) {
    visit_activation(out_type, out, [&]<typename T>(T* to) {
      constexpr int kMost = 16 / sizeof(In);
      const auto kernel = at_once == kMost
                              ? (in_pairs ? swiglu_kernel<In, T*, kMost, 2> : swiglu_kernel<In, T*, kMost, 1>)
                              : swiglu_kernel<In, T*, 1, 1>;
      launch_overlapping(kernel, grid, kThreads, 0, stream.get(), in, n_tokens, d_ff, to);
    });
  };
  POLYSPAN_CHECK(type == DType::kF32 || type == DType::kF16 || type == DType::kBF16);
  if (type == DType::kF32) launch(static_cast<const float*>(gate_up));
  if (type == DType::kF16) launch(static_cast<const __half*>(gate_up));
  if (type == DType::kBF16) launch(static_cast<const __nv_bfloat16*>(gate_up));
  check_launch("swiglu");
}

void swiglu(const float* gate_up, int64_t n_tokens, int64_t d_ff, const QuantizedRows& out, const Stream& stream) {
  POLYSPAN_CHECK(d_ff % 32 == 0 && n_tokens <= 65535);
  constexpr int kN = 4;
  const dim3 grid(static_cast<unsigned>((d_ff + kN * kThreads - 1) / (kN * kThreads)), static_cast<unsigned>(n_tokens));
  launch_overlapping(swiglu_kernel<float, QuantizedRows, kN, 1>, grid, kThreads, 0, stream.get(), gate_up, n_tokens,
                     d_ff, out);
  check_launch("swiglu");
}

void quantize(const float* x, int64_t n_tokens, int64_t d_in, const QuantizedRows& out, const Stream& stream) {
  POLYSPAN_CHECK(d_in % 32 == 0);
  launch_overlapping(quantize_kernel, grid_of(n_tokens * d_in), kThreads, 0, stream.get(), x, n_tokens * d_in / 32,
                     out);
  check_launch("quantize");
}

void convert(const float* x, int64_t n, ActivationType out_type, void* out, const Stream& stream) {
  visit_activation(out_type, out,
                   [&](auto* to) { convert_kernel<<<grid_of(n), kThreads, 0, stream.get()>>>(x, n, to); });
  check_launch("convert");
}

void rope_table(const double* frequencies, int64_t n_pairs, const int32_t* positions, int64_t first_position,
                int64_t n_tokens, RopeTurn* table, const Stream& stream) {
  rope_table_kernel<<<static_cast<unsigned>(n_tokens), 64, 0, stream.get()>>>(frequencies, static_cast<int>(n_pairs),
                                                                              positions, first_position, table);
  check_launch("rope_table");
}

void append(const AppendArgs& args, const Stream& stream) {
  POLYSPAN_CHECK(args.head_dim <= 128 && args.head_dim % 2 == 0 && 2 * args.n_pairs <= args.head_dim);
  // Of many tokens all heads are on their way at once: 483 tokens of 48 heads fit the GPU as one wave of blocks.
  constexpr int kManyRows = 6;
  constexpr int64_t kManyTokens = 128, kWarps = kThreads / 32;
  const int64_t n_rows = args.n_heads + 2 * args.n_kv_heads;
  const auto launch = [&](auto kernel, int64_t rows_of_warp) {
    const dim3 grid(static_cast<unsigned>(args.n_tokens),
                    static_cast<unsigned>((n_rows + kWarps * rows_of_warp - 1) / (kWarps * rows_of_warp)));
    launch_overlapping(kernel, grid, kThreads, 0, stream.get(), args);
  };
  const auto launch_type = [&]<KvType kType>() {
    if (args.n_tokens >= kManyTokens) return launch(append_kernel<kType, kManyRows>, kManyRows);
    launch(append_kernel<kType, 1>, 1);
  };
  if (args.type == KvType::kF16) launch_type.template operator()<KvType::kF16>();
  if (args.type == KvType::kBF16) launch_type.template operator()<KvType::kBF16>();
  if (args.type == KvType::kQ8) launch_type.template operator()<KvType::kQ8>();
  if (args.type == KvType::kF8) launch_type.template operator()<KvType::kF8>();
  check_launch("append");
}

void keep_chunk(KvType type, int64_t n_kv_heads, int64_t head_dim, const KvHeadView* chunk, const KvHeadView* heads,
                int64_t first_position, int64_t n_tokens, const Stream& stream) {
  const int64_t warps = n_tokens * n_kv_heads;
  const unsigned grid = static_cast<unsigned>((warps * 32 + kThreads - 1) / kThreads);
  const int n = static_cast<int>(n_kv_heads), dim = static_cast<int>(head_dim);
  const auto keep = [&](auto kernel) {
    kernel<<<grid, kThreads, 0, stream.get()>>>(n, dim, chunk, heads, first_position, n_tokens);
  };
  if (type == KvType::kQ8) {
    keep(keep_chunk_kernel<int8_t, true>);
  } else if (type == KvType::kF8) {
    keep(keep_chunk_kernel<int8_t, false>);
  } else {  // f16 and bf16 alike: bytes are copied
    keep(keep_chunk_kernel<__half, false>);
  }
  check_launch("keep_chunk");
}

void fill_random(DType type, void* out, int64_t n, float deviation, uint64_t seed, const Stream& stream) {
  const float limit = deviation * 1.7320508f;  // a uniform value in [-1, 1] has the deviation 1 / sqrt(3)
  const auto fill = [&](auto* to) {
    fill_random_kernel<<<grid_of(n), kThreads, 0, stream.get()>>>(to, n, limit, seed);
  };
  if (type == DType::kF32) fill(static_cast<float*>(out));
  if (type == DType::kF16) fill(static_cast<__half*>(out));
  if (type == DType::kBF16) fill(static_cast<__nv_bfloat16*>(out));
  check_launch("fill_random");
}

}  // namespace polyspan::cuda
