"""Attention of PyTorch (cuDNN and FlashAttention-2) at the sizes of polyspan-cuda-bench. Prints one line a measurement; -o writes
JSON. Whole models: gpu_models.py."""

import argparse
import json
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION)
HALF = torch.bfloat16


def median_us(work, runs=15):
    """Median microseconds of `work`, a CUDA graph of it replayed."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    times = []
    for _ in range(runs + 2):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    return sorted(times[2:])[runs // 2]


def decode(rows):
    for n_kv_heads in (32, 8):
        for batch, n_keys in ((1, 16384), (8, 8192), (16, 16384), (64, 4096)):
            layer_bytes = 4 * batch * n_kv_heads * n_keys * 128
            n_layers = max(2, min(64, (512 << 20) // layer_bytes))
            q = torch.randn(batch, 32, 1, 128, device="cuda", dtype=HALF)
            kv = [torch.randn(2, batch, n_kv_heads, n_keys, 128, device="cuda", dtype=HALF) for _ in range(n_layers)]
            for backend in BACKENDS:
                def work():
                    for layer in kv:
                        with sdpa_kernel(backend):
                            F.scaled_dot_product_attention(q, layer[0], layer[1], enable_gqa=n_kv_heads != 32)
                try:
                    us = median_us(work) / n_layers
                except RuntimeError as error:
                    print(f"peer decode {backend.name} {n_kv_heads} {batch} {n_keys}: {str(error)[:80]}")
                    continue
                rows.append({"test": "decode", "peer": backend.name, "n_heads": 32, "n_kv_heads": n_kv_heads,
                             "batch": batch, "n_keys": n_keys, "microseconds": us, "gb_per_s": layer_bytes / us / 1e3})
                print(f"peer decode  {backend.name:16} 32/{n_kv_heads:2} batch {batch:2} {n_keys:6} keys "
                      f"{us:8.1f} us {layer_bytes / us / 1e3:5.0f} GB/s", flush=True)
            del kv
            torch.cuda.empty_cache()


def prefill(rows):
    for n in (8192, 16384):
        q, k, v = (torch.randn(1, 32, n, 128, device="cuda", dtype=HALF) for _ in range(3))
        for backend in BACKENDS:
            def work():
                with sdpa_kernel(backend):
                    F.scaled_dot_product_attention(q, k, v, is_causal=True)
            torch.cuda.synchronize()
            time.sleep(0.3)  # as polyspan-cuda-bench: work at the power limit lowers the clock of what follows
            us = median_us(work, 5)
            flops = 4 * 128 * 32 * n * (n + 1) / 2
            rows.append({"test": "prefill", "peer": backend.name, "n_tokens": n, "milliseconds": us / 1e3,
                         "tflops": flops / us / 1e6})
            print(f"peer prefill {backend.name:16} {n:6} tokens {us / 1e3:8.2f} ms {flops / us / 1e6:5.0f} TFLOP/s", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output")
    args = parser.parse_args()
    rows = []
    decode(rows)
    prefill(rows)
    if args.output:
        with open(args.output, "w", encoding="utf-8") as file:
            json.dump({"device": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
