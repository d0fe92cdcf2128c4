#!/usr/bin/env python3
"""llama.cpp through its Python package (llama-cpp-python): the peer that bench/peers measures polyspan against.

Imported by perplexity.py and greedy.py; run as a program by compare.py, a fresh process for each repeat:
    llama_peer.py MODEL --prompt 512,7680 --depth 0,7680 --gen 32 --threads 2 --kv f16      prints one JSON document
Flash attention is on and the batch sizes are llama-bench's own (2,048 and 512).
"""

import argparse
import ctypes
import json
import pathlib
import sys
import time

try:
    import numpy as np
    import llama_cpp as L
except ImportError as error:
    sys.exit(f"llama_peer: {error}; make the environment first: bench/peers/README.md")

KV_TYPES = {"f16": (1, 2.0), "q8": (8, 34 / 32)}  # ggml's number of the type, bytes an element
N_BATCH, N_UBATCH = 2048, 512


@L.llama_log_callback
def quiet(level, text, data):
    pass


class Peer:
    def __init__(self, path, threads):
        L.llama_log_set(quiet, None)
        L.llama_backend_init()
        self.model = L.llama_model_load_from_file(path.encode(), L.llama_model_default_params())
        if not self.model:
            sys.exit(f"llama_peer: llama.cpp cannot load {path}")
        self.vocab = L.llama_model_get_vocab(self.model)
        self.n_vocab = L.llama_vocab_n_tokens(self.vocab)
        self.threads = threads

    def describe(self):
        size = ctypes.create_string_buffer(128)
        L.llama_model_desc(self.model, size, len(size))
        return {
            "name": "llama.cpp",
            "package": f"llama-cpp-python {L.__version__}",
            "model": size.value.decode(),
            "system_info": L.llama_print_system_info().decode().strip(" |"),
            "weight_bytes": L.llama_model_size(self.model),
            "parameters": L.llama_model_n_params(self.model),
        }

    def kv_bytes(self, n_tokens, kv):
        heads = L.llama_model_n_head_kv(self.model)
        head_dim = L.llama_model_n_embd(self.model) // L.llama_model_n_head(self.model)
        return int(2 * n_tokens * L.llama_model_n_layer(self.model) * heads * head_dim * KV_TYPES[kv][1])

    def tokenize(self, text):
        """Ids of a text; no BOS, control tokens are text."""
        data = text.encode() if isinstance(text, str) else text
        ids = (L.llama_token * (len(data) + 16))()
        n_tokens = L.llama_tokenize(self.vocab, data, len(data), ids, len(ids), False, False)
        if n_tokens < 0:
            sys.exit("llama_peer: llama.cpp cannot tokenise the text")
        return list(ids[:n_tokens])

    def piece(self, token):
        """The bytes of a token."""
        data = ctypes.create_string_buffer(512)
        n_bytes = L.llama_token_to_piece(self.vocab, token, data, len(data), 0, True)
        return data.raw[:n_bytes]

    def ends(self, token):
        return L.llama_vocab_is_eog(self.vocab, token)

    def context(self, n_tokens, kv="f16"):
        return Context(self, n_tokens, kv)


class Context:
    """A sequence of tokens that grows. Free it with `with`."""

    def __init__(self, peer, n_tokens, kv):
        params = L.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = n_tokens, N_BATCH, N_UBATCH
        params.n_threads = params.n_threads_batch = peer.threads
        params.flash_attn_type = 1  # on: an error where it cannot be
        params.type_k = params.type_v = KV_TYPES[kv][0]
        self.peer, self.position = peer, 0
        self.handle = L.llama_init_from_model(peer.model, params)
        if not self.handle:
            sys.exit(f"llama_peer: llama.cpp makes no context of {n_tokens} tokens")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        L.llama_free(self.handle)

    def feed(self, tokens):
        """Adds tokens; logits are kept for the last one."""
        ids = (L.llama_token * len(tokens))(*tokens)
        for at in range(0, len(tokens), N_BATCH):
            n_tokens = min(N_BATCH, len(tokens) - at)
            part = ctypes.cast(ctypes.byref(ids, at * ctypes.sizeof(L.llama_token)), ctypes.POINTER(L.llama_token))
            self._decode(L.llama_batch_get_one(part, n_tokens), n_tokens)

    def feed_scored(self, tokens, first_scored):
        """Adds tokens; yields (index, logits [vocab_size]) of each token from `first_scored` on."""
        for at in range(0, len(tokens), N_UBATCH):
            part = tokens[at : at + N_UBATCH]
            batch = L.llama_batch_init(len(part), 0, 1)
            batch.n_tokens = len(part)
            for i, token in enumerate(part):
                batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, self.position + i, 1
                batch.seq_id[i][0] = 0
                batch.logits[i] = at + i >= first_scored
            self._decode(batch, len(part))
            for i in range(len(part)):
                if at + i >= first_scored:
                    yield at + i, self.logits(i)
            L.llama_batch_free(batch)

    def logits(self, row=-1):
        return np.ctypeslib.as_array(L.llama_get_logits_ith(self.handle, row), shape=(self.peer.n_vocab,))

    def save(self, path):
        ids = (L.llama_token * 1)()
        if not L.llama_state_save_file(self.handle, str(path).encode(), ids, 0):
            sys.exit(f"llama_peer: llama.cpp cannot save its cache to {path}")

    def load(self, path, n_tokens):
        """The cache that save() wrote when it held `n_tokens`."""
        ids, n_ids = (L.llama_token * 1)(), ctypes.c_size_t(0)
        if not L.llama_state_load_file(self.handle, str(path).encode(), ids, 1, ctypes.byref(n_ids)):
            sys.exit(f"llama_peer: llama.cpp cannot load its cache from {path}")
        self.position = n_tokens

    def _decode(self, batch, n_tokens):
        status = L.llama_decode(self.handle, batch)
        if status != 0:
            sys.exit(f"llama_peer: llama.cpp cannot decode {n_tokens} tokens at {self.position}: status {status}")
        self.position += n_tokens


def bench(peer, prompts, depths, n_generated, kv, states=None):
    """Rows like those of `polyspan bench --json`. A length that is prompt and depth is read once.

    `states` is a folder for the caches of depths that are no prompts: a later run loads them and reads no prompt.
    """
    rows = []
    tokens = np.random.default_rng(1).integers(100, min(peer.n_vocab, 40000), max([1, *prompts, *depths])).tolist()
    with peer.context(64, kv) as context:  # threads start, weights are repacked and cached
        context.feed(tokens[:2])
        context.feed(tokens[:1])
    for length in sorted({*prompts, *depths}):
        with peer.context(length + n_generated + 64, kv) as context:
            state = pathlib.Path(states) / f"{length}-{kv}.state" if states and length and length not in prompts else None
            if state and state.is_file():
                context.load(state, length)
            elif length > 0:
                start = time.perf_counter()
                context.feed(tokens[:length])
                seconds = time.perf_counter() - start
                if length in prompts:
                    rows.append(
                        {
                            "test": "prefill",
                            "n_tokens": length,
                            "depth": 0,
                            "tokens_per_s": length / seconds,
                            "kv_bytes": peer.kv_bytes(length, kv),
                        }
                    )
            if state and not state.is_file():
                context.save(state)
            if length in depths:
                context.feed(tokens[:1])
                start = time.perf_counter()
                for _ in range(n_generated):
                    context.feed(tokens[:1])
                seconds = time.perf_counter() - start
                rows.append(
                    {
                        "test": "decode",
                        "n_tokens": n_generated,
                        "depth": length,
                        "tokens_per_s": n_generated / seconds,
                        "kv_bytes": peer.kv_bytes(length + n_generated, kv),
                    }
                )
    return rows


def lengths(text):
    return [int(part) for part in text.split(",") if part]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--prompt", type=lengths, default=[])
    parser.add_argument("--depth", type=lengths, default=[])
    parser.add_argument("--gen", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kv", choices=KV_TYPES, default="f16")
    parser.add_argument("--states", help="a folder that keeps filled caches of this model from run to run")
    args = parser.parse_args()
    peer = Peer(args.model, args.threads)
    rows = bench(peer, args.prompt, args.depth, args.gen, args.kv, args.states)
    print(json.dumps({**peer.describe(), "threads": args.threads, "kv": args.kv, "rows": rows}))


if __name__ == "__main__":
    main()
