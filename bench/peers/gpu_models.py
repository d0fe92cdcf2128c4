"""Whole-model greedy decode in PyTorch, beside polyspan-cuda-bench models: random bf16 weights of the same shapes, the cache filled
to the length, at the largest batch that runs within the memory that our dense run of the shape took (and at batch 1).

  dense engine   static cache, cuDNN attention, one CUDA graph a step: the strongest dense decode that PyTorch makes
  transformers   the transformers library's LlamaForCausalLM with SDPA and its DynamicCache, where it is installed; else
  cat loop       what it does there, written out: separate projections, keys and values grown by torch.cat, SDPA, no graph

usage: gpu_models.py [--ours MODELS.json] [-o FILE.json] [--seconds N] [--model NAME] [--length N] [--peer NAME]

The batch is found by running: from what weights and caches leave room for, down until nothing runs out of memory. --ours names the
results of polyspan-cuda-bench models; then the ratios of our rows are printed too. No new measurement begins after --seconds.
"""

import argparse
import gc
import json
import os
import time

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # growing caches leave no holes

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

try:
    import transformers
except ImportError:
    transformers = None

HALF = torch.bfloat16
DEVICE = "cuda"
# name: layers, d_model, heads, KV heads, d_ff, vocabulary
SHAPES = {"vicuna-7b": (32, 4096, 32, 32, 11008, 32000), "llama-3-8b": (32, 4096, 32, 8, 14336, 128256),
          "vicuna-13b": (40, 5120, 40, 40, 13824, 32000)}
LENGTHS = (8192, 4096, 16384)
PEERS = ("dense engine", "transformers", "cat loop")
DEFAULT_BYTES = 80 * 10**9
GRAPH_STEPS, LOOP_STEPS, WARM_STEPS = 9, 8, 3


def weight(*shape):
    return torch.randn(*shape, device=DEVICE, dtype=HALF).mul_(0.02)


class Weights:
    def __init__(self, shape):
        self.n_layers, self.d, self.heads, self.kv_heads, self.d_ff, self.vocab = shape
        self.dim = self.d // self.heads
        kv = self.kv_heads * self.dim
        self.layers = [(weight(self.d + 2 * kv, self.d), weight(self.d, self.d), weight(2 * self.d_ff, self.d), weight(self.d, self.d_ff))
                       for _ in range(self.n_layers)]
        self.head, self.embedding = weight(self.vocab, self.d), weight(self.vocab, self.d)
        self.norm = torch.ones(self.d, device=DEVICE, dtype=HALF)

    def caches(self, batch, length):
        return [[weight(batch, self.kv_heads, length, self.dim) for _ in range(2)] for _ in range(self.n_layers)]


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


def timed(step, n):
    """Milliseconds a step, of n."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(n):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) / n * 1e3


def dense_engine(w, batch, length):
    caches = w.caches(batch, length)
    token = torch.zeros(batch, dtype=torch.long, device=DEVICE)
    cos, sin = weight(1, 1, 1, w.dim), weight(1, 1, 1, w.dim)

    def step():
        x = w.embedding[token]
        for (qkv, out, gate_up, down), (k, v) in zip(w.layers, caches):
            h = (F.rms_norm(x, (w.d,), w.norm) @ qkv.T).view(batch, 1, w.heads + 2 * w.kv_heads, w.dim).transpose(1, 2)
            q = rotate(h[:, :w.heads], cos, sin)
            k[:, :, length - 1:] = rotate(h[:, w.heads:w.heads + w.kv_heads], cos, sin)
            v[:, :, length - 1:] = h[:, w.heads + w.kv_heads:]
            with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                o = F.scaled_dot_product_attention(q, k, v, enable_gqa=w.heads != w.kv_heads)
            x = x + o.transpose(1, 2).reshape(batch, w.d) @ out.T
            a, b = (F.rms_norm(x, (w.d,), w.norm) @ gate_up.T).chunk(2, -1)
            x = x + (F.silu(a) * b) @ down.T
        token.copy_((F.rms_norm(x, (w.d,), w.norm) @ w.head.T).argmax(-1))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())  # weights, caches and tokens are there
    with torch.cuda.stream(stream):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for _ in range(WARM_STEPS):
        graph.replay()
    return timed(graph.replay, GRAPH_STEPS)


def llama_norm(x, norm):
    wide = x.float()
    return norm * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype)


def cat_loop(w, batch, length):
    steps = WARM_STEPS + LOOP_STEPS
    caches = w.caches(batch, length - steps)
    kv = w.kv_heads * w.dim
    split = [(qkv[:w.d], qkv[w.d:w.d + kv], qkv[w.d + kv:], out, gate_up[:w.d_ff], gate_up[w.d_ff:], down)
             for qkv, out, gate_up, down in w.layers]
    state = {"token": torch.zeros(batch, 1, dtype=torch.long, device=DEVICE)}
    cos, sin = weight(1, 1, 1, w.dim), weight(1, 1, 1, w.dim)

    def heads_of(x, n):
        return x.view(batch, 1, n, w.dim).transpose(1, 2)

    def step():
        x = F.embedding(state["token"], w.embedding)
        for (wq, wk, wv, out, gate, up, down), cache in zip(split, caches):
            h = llama_norm(x, w.norm)
            q = rotate(heads_of(F.linear(h, wq), w.heads), cos, sin)
            k = rotate(heads_of(F.linear(h, wk), w.kv_heads), cos, sin)
            cache[0] = torch.cat((cache[0], k), dim=-2)
            cache[1] = torch.cat((cache[1], heads_of(F.linear(h, wv), w.kv_heads)), dim=-2)
            o = F.scaled_dot_product_attention(q, cache[0], cache[1], enable_gqa=w.heads != w.kv_heads)
            x = x + F.linear(o.transpose(1, 2).reshape(batch, 1, w.d), out)
            h = llama_norm(x, w.norm)
            x = x + F.linear(F.silu(F.linear(h, gate)) * F.linear(h, up), down)
        state["token"] = F.linear(llama_norm(x[:, -1], w.norm), w.head).float().argmax(-1, keepdim=True)
        bool((state["token"] == -1).all())  # generate() asks each step whether all sequences have ended

    for _ in range(WARM_STEPS):
        step()
    return timed(step, LOOP_STEPS)


def transformers_model(shape):
    n_layers, d, heads, kv_heads, d_ff, vocab = shape
    config = transformers.LlamaConfig(hidden_size=d, intermediate_size=d_ff, num_hidden_layers=n_layers, num_attention_heads=heads,
                                      num_key_value_heads=kv_heads, vocab_size=vocab, max_position_embeddings=262144)
    config._attn_implementation = "sdpa"  # pylint: disable=protected-access
    before = torch.get_default_dtype()
    torch.set_default_dtype(HALF)
    try:
        with torch.device(DEVICE):
            return transformers.LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


@torch.no_grad()
def transformers_loop(model, batch, length):
    steps = WARM_STEPS + LOOP_STEPS
    c = model.config
    cache = transformers.DynamicCache()
    for layer in range(c.num_hidden_layers):
        k, v = (weight(batch, c.num_key_value_heads, length - steps, c.hidden_size // c.num_attention_heads) for _ in range(2))
        cache.update(k, v, layer)
        del k, v
    state = {"token": torch.zeros(batch, 1, dtype=torch.long, device=DEVICE)}

    def step():
        logits = model(input_ids=state["token"], past_key_values=cache, use_cache=True).logits
        state["token"] = logits[:, -1].float().argmax(-1, keepdim=True)
        bool((state["token"] == -1).all())

    for _ in range(WARM_STEPS):
        step()
    return timed(step, LOOP_STEPS)


def clean():
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def largest(run, n_most):
    """(batch, ms) of the largest batch of at most n_most that runs; None where none does."""
    batch = n_most
    for _ in range(20):
        if batch < 1:
            break
        clean()
        try:
            return batch, run(batch)
        except RuntimeError as error:  # out of memory; in a graph's recording it comes as a failed recording too
            if "memory" not in str(error) and "captur" not in str(error):
                raise
        batch -= max(1, batch // 40)
    return None


def measure(rows, peer, run, shape, name, length, limit, batch=None):
    n_layers, d, heads, kv_heads, _, _ = shape
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total))
    clean()
    room = limit - torch.cuda.memory_allocated()
    n_most = int(room // (4 * n_layers * kv_heads * (d // heads) * length)) if batch is None else batch
    try:
        found = largest(run, n_most)
    except RuntimeError as error:
        print(f"peer {peer} {name} {length}: {str(error)[:150]}", flush=True)
        return
    if found is None:
        print(f"peer {peer} {name} {length}: no batch fits in {limit / 1e9:.1f} GB", flush=True)
        return
    batch, ms = found
    gigabytes = torch.cuda.max_memory_reserved() / 1e9
    rows.append({"peer": peer, "model": name, "length": length, "batch": batch, "milliseconds": ms, "tokens_per_s": batch / ms * 1e3,
                 "gigabytes": gigabytes, "limit_gigabytes": limit / 1e9})
    print(f"peer {peer:12} {name:10} {length:6} tokens  batch {batch:3}  {ms:8.2f} ms  {batch / ms * 1e3:6.0f} tokens/s  "
          f"{gigabytes:5.1f} of {limit / 1e9:5.1f} GB", flush=True)


def our_bytes(row):
    return row["kv_bytes"] + row["weight_bytes"] + row["working_bytes"]


def best(rows, **wanted):
    """The fastest of the rows that have these values."""
    found = [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]
    return max(found, key=lambda row: row["tokens_per_s"], default=None)


def print_ratios(rows, ours):
    ratios = []
    for name in SHAPES:
        for length in sorted(LENGTHS):
            for plan in ("dense", "published", "uniform:0.5", "uniform:0.25"):
                us = best(ours, model=name, length=length, plan=plan, sampling="greedy")
                for peer in sorted({row["peer"] for row in rows}):
                    them = best(rows, model=name, length=length, peer=peer)
                    if us and them:
                        ratio = us["tokens_per_s"] / them["tokens_per_s"]
                        ratios.append({"model": name, "length": length, "plan": plan, "peer": peer, "ratio": ratio})
                        print(f"ratio {name:10} {length:6} {plan:12} batch {us['batch']:3} {us['tokens_per_s']:6.0f} tokens/s "
                              f"{our_bytes(us) / 1e9:5.1f} GB  over {peer} (batch {them['batch']}, {them['gigabytes']:.1f} GB): "
                              f"{ratio:.2f}x", flush=True)
    return ratios


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", help="JSON file of polyspan-cuda-bench models")
    parser.add_argument("-o", "--output")
    parser.add_argument("--seconds", type=float, default=110)
    parser.add_argument("--model", choices=SHAPES, help="this one alone")
    parser.add_argument("--length", type=int, choices=LENGTHS, help="this one alone, without batch 1")
    parser.add_argument("--peer", choices=PEERS, help="this one alone")
    args = parser.parse_args()
    begin, rows, ours = time.time(), [], []
    if args.ours and os.path.exists(args.ours):
        with open(args.ours, encoding="utf-8") as file:
            ours = json.load(file)["models"]
    print(f"torch {torch.__version__}, transformers {transformers.__version__ if transformers else 'not installed'}", flush=True)

    def limit_of(name, length):
        dense = [our_bytes(row) for row in ours if (row["model"], row["length"], row["plan"]) == (name, length, "dense")]
        return max(dense, default=DEFAULT_BYTES)

    def late():
        return time.time() - begin > args.seconds

    for name, shape in SHAPES.items():
        if args.model not in (None, name):
            continue
        for peer in PEERS if args.peer is None else (args.peer,):
            if late():
                break
            if peer == "transformers" and not transformers:
                continue
            if peer == "cat loop" and any((row["peer"], row["model"]) == ("transformers", name) for row in rows):
                continue
            clean()
            torch.cuda.set_per_process_memory_fraction(1.0)
            try:
                if peer == "transformers":
                    model = transformers_model(shape)
                    run = lambda batch, n, m=model: transformers_loop(m, batch, n)
                else:
                    model = Weights(shape)
                    loop = dense_engine if peer == "dense engine" else cat_loop
                    run = lambda batch, n, m=model, f=loop: f(m, batch, n)
                for length in LENGTHS if args.length is None else (args.length,):
                    if late():
                        break
                    measure(rows, peer, lambda batch: run(batch, length), shape, name, length, limit_of(name, length))
                if args.length is None and not late():
                    measure(rows, peer, lambda batch: run(batch, 8192), shape, name, 8192, limit_of(name, 8192), batch=1)
            except Exception as error:  # pylint: disable=broad-except
                print(f"peer {peer} {name}: {type(error).__name__}: {str(error)[:200]}", flush=True)
            model = run = None
    ratios = print_ratios(rows, ours)
    if args.output:
        with open(args.output, "w", encoding="utf-8") as file:
            json.dump({"device": torch.cuda.get_device_name(), "torch": torch.__version__,
                       "transformers": transformers.__version__ if transformers else None, "rows": rows, "ratios": ratios}, file, indent=1)


if __name__ == "__main__":
    main()
