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

// A row a block; its first kKept * kStep values stay in registers. REQUIRES: d % kN == 0.
template <typename T, int kN>
__global__ void __launch_bounds__(kNormThreads)
    rmsnorm_kernel(const float* x, const int32_t* rows, const float* weight, int64_t d, float eps, T* out) {
  constexpr int kKept = 4, kStep = kN * kNormThreads;
  const float* const row = x + (rows == nullptr ? int64_t{blockIdx.x} : int64_t{rows[blockIdx.x]}) * d;
  const int n = static_cast<int>(d), first = kN * static_cast<int>(threadIdx.x);
  float kept[kKept][kN] = {}, squares = 0;
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
  const auto finish = [&](int at, float(&values)[kN]) {
    float factors[kN];
    load_floats(weight + at, factors);
#pragma unroll
    for (int i = 0; i < kN; ++i) values[i] *= scale * factors[i];
    store_floats(values, out + blockIdx.x * d + at);
  };
#pragma unroll
  for (int part = 0; part < kKept; ++part)
    if (first + part * kStep < n) finish(first + part * kStep, kept[part]);
  for (int at = first + kKept * kStep; at < n; at += kStep) {
    float values[kN];
    load_floats(row + at, values);
    finish(at, values);
  }
}

// A block: kN * kThreads channels of tokens blockIdx.y, + gridDim.y, ... REQUIRES: d_ff % kN == 0.
template <typename In, typename T, int kN>
__global__ void swiglu_kernel(const In* gate_up, int64_t n_tokens, int64_t d_ff, T* out) {
  const int64_t channel = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kN;
  if (channel >= d_ff) return;
  for (int64_t token = blockIdx.y; token < n_tokens; token += gridDim.y) {
    float gate[kN], up[kN];
    load_floats(gate_up + token * 2 * d_ff + channel, gate);
    load_floats(gate_up + token * 2 * d_ff + d_ff + channel, up);
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      if constexpr (std::is_same_v<In, __half>) {
        gate[i] = to_float(from_float<__half>(gate[i]));  // finite
        up[i] = to_float(from_float<__half>(up[i]));
      }
      gate[i] = gate[i] / (1.0f + __expf(-gate[i])) * up[i];
    }
    store_floats(gate, out + token * d_ff + channel);
  }
}

template <typename T>
__global__ void convert_kernel(const float* x, int64_t n, T* out) {
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < n; i += int64_t{gridDim.x} * kThreads)
    out[i] = from_float<T>(x[i]);
}

// One warp a block of 32 values.
__global__ void quantize_kernel(const float* x, int64_t n_blocks, int8_t* codes, float* scales) {
  const int lane = threadIdx.x % 32;
  for (int64_t block = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / 32; block < n_blocks;
       block += int64_t{gridDim.x} * kThreads / 32) {
    const float value = x[block * 32 + lane], largest = warp_max(fabsf(value));
    const float inverse = largest > 1e-30f ? 127.0f / largest : 0.0f;
    codes[block * 32 + lane] = static_cast<int8_t>(__float2int_rn(value * inverse));
    if (lane == 0) scales[block] = largest / 127.0f;
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

// One warp a head of a token: queries, then keys, then values. A lane holds the pairs lane, lane + 32, ... of the head:
// those that are rotated, then pairs of neighbours that are not. REQUIRES: head_dim <= 128.
template <KvType kType>
__global__ void append_kernel(AppendArgs args) {
  using T = typename KvElement<kType>::type;
  constexpr int kMostPairs = 2;  // of a lane
  let_next_kernel_start();       // decode attention may prepare itself
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = kThreads / 32;
  const int dim = static_cast<int>(args.head_dim), n_pairs = static_cast<int>(args.n_pairs);
  const int n_rows = static_cast<int>(args.n_heads + 2 * args.n_kv_heads);
  const int64_t token = blockIdx.x;
  for (int row = blockIdx.y * warps + warp; row < n_rows; row += gridDim.y * warps) {
    const float* const from = args.qkv + (token * n_rows + row) * dim;
    const bool is_value = row >= args.n_heads + args.n_kv_heads;
    float first[kMostPairs] = {}, second[kMostPairs] = {};
    int first_at[kMostPairs], second_at[kMostPairs];
#pragma unroll
    for (int i = 0; i < kMostPairs; ++i) {
      const int pair = lane + 32 * i;
      const bool halves = !args.interleaved && pair < n_pairs;
      first_at[i] = halves ? pair : 2 * pair;
      second_at[i] = halves ? pair + n_pairs : 2 * pair + 1;
      if (2 * pair >= dim) continue;
      float a = from[first_at[i]], b = from[second_at[i]];
      if (args.bias != nullptr) {
        a += args.bias[row * dim + first_at[i]];
        b += args.bias[row * dim + second_at[i]];
      }
      if (!is_value && pair < n_pairs) {
        const RopeTurn turn = args.rope[token * n_pairs + pair];
        const float turned = a * turn.cosine - b * turn.sine;
        b = a * turn.sine + b * turn.cosine;
        a = turned;
      }
      first[i] = a;
      second[i] = b;
    }
    if (row < args.n_heads) {
      float* const to = args.q + (token * args.n_heads + row) * dim;
#pragma unroll
      for (int i = 0; i < kMostPairs; ++i)
        if (2 * (lane + 32 * i) < dim) {
          to[first_at[i]] = first[i];
          to[second_at[i]] = second[i];
        }
      continue;
    }
    const int kv_head = static_cast<int>(row - args.n_heads - (is_value ? args.n_kv_heads : 0));
    const bool in_chunk = args.positions == nullptr;
    const KvHeadView head = args.heads[in_chunk ? kv_head : token * args.n_kv_heads + kv_head];
    int64_t slot = token;
    if (!in_chunk) {
      const int position = args.positions[token];
      slot = position < head.n_sink ? position : head.sink_slots + (position - head.n_sink) % head.ring_slots;
    }
    T* const to = const_cast<T*>(is_value ? values_of<T>(head, dim) : keys_of<T>(head)) + slot * dim;
    float inverse = 0.0f;
    if constexpr (kType == KvType::kQ8) {
      float largest = 0.0f;
#pragma unroll
      for (int i = 0; i < kMostPairs; ++i) largest = fmaxf(largest, fmaxf(fabsf(first[i]), fabsf(second[i])));
      largest = warp_max(largest);
      inverse = largest > 1e-30f ? 127.0f / largest : 0.0f;
      if (lane == 0) (is_value ? value_scales_of(head, dim) : key_scales_of(head, dim))[slot] = largest / 127.0f;
    }
#pragma unroll
    for (int i = 0; i < kMostPairs; ++i) {
      if (2 * (lane + 32 * i) >= dim) continue;
      if constexpr (kType == KvType::kQ8) {
        to[first_at[i]] = static_cast<int8_t>(__float2int_rn(first[i] * inverse));
        to[second_at[i]] = static_cast<int8_t>(__float2int_rn(second[i] * inverse));
      } else {
        to[first_at[i]] = from_float<T>(first[i]);
        to[second_at[i]] = from_float<T>(second[i]);
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
    if (d % 4 == 0)
      rmsnorm_kernel<T, 4><<<grid, kNormThreads, 0, stream.get()>>>(x, rows, weight, d, eps, to);
    else
      rmsnorm_kernel<T, 1><<<grid, kNormThreads, 0, stream.get()>>>(x, rows, weight, d, eps, to);
  });
  check_launch("rmsnorm");
}

void swiglu(DType type, const void* gate_up, int64_t n_tokens, int64_t d_ff, ActivationType out_type, void* out,
            const Stream& stream) {
  const int64_t most = type == DType::kF32 ? 4 : 8, at_once = d_ff % most == 0 ? most : 1,
                width = (d_ff + at_once * kThreads - 1) / (at_once * kThreads);
  const dim3 grid(static_cast<unsigned>(width), static_cast<unsigned>(std::min<int64_t>(n_tokens, 65535)));
  const auto launch = [&]<typename In>(const In* in) {
    visit_activation(out_type, out, [&]<typename T>(T* to) {
      constexpr int kMost = 16 / sizeof(In);
      if (at_once == kMost)
        swiglu_kernel<In, T, kMost><<<grid, kThreads, 0, stream.get()>>>(in, n_tokens, d_ff, to);
      else
        swiglu_kernel<In, T, 1><<<grid, kThreads, 0, stream.get()>>>(in, n_tokens, d_ff, to);
    });
  };
  POLYSPAN_CHECK(type == DType::kF32 || type == DType::kF16 || type == DType::kBF16);
  if (type == DType::kF32) launch(static_cast<const float*>(gate_up));
  if (type == DType::kF16) launch(static_cast<const __half*>(gate_up));
  if (type == DType::kBF16) launch(static_cast<const __nv_bfloat16*>(gate_up));
  check_launch("swiglu");
}

void quantize(const float* x, int64_t n_tokens, int64_t d_in, int8_t* codes, float* scales, const Stream& stream) {
  POLYSPAN_CHECK(d_in % 32 == 0);
  quantize_kernel<<<grid_of(n_tokens * d_in), kThreads, 0, stream.get()>>>(x, n_tokens * d_in / 32, codes, scales);
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
  const int64_t rows = args.n_heads + 2 * args.n_kv_heads;
  const dim3 grid(static_cast<unsigned>(args.n_tokens),
                  static_cast<unsigned>((rows + kThreads / 32 - 1) / (kThreads / 32)));
  if (args.type == KvType::kF16) append_kernel<KvType::kF16><<<grid, kThreads, 0, stream.get()>>>(args);
  if (args.type == KvType::kBF16) append_kernel<KvType::kBF16><<<grid, kThreads, 0, stream.get()>>>(args);
  if (args.type == KvType::kQ8) append_kernel<KvType::kQ8><<<grid, kThreads, 0, stream.get()>>>(args);
  if (args.type == KvType::kF8) append_kernel<KvType::kF8><<<grid, kThreads, 0, stream.get()>>>(args);
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
