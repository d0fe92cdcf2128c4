"""A tiny GGUF model with random weights, made with nothing but Python: for tests of the whole program.

Architecture llama: 2 layers, 4 query heads in groups of 2, d_model 256, context 512, F32. Tokens: the 256 bytes, a few
merges, three control tokens. Format: github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import random
import struct

U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9  # value types of the format
N_LAYERS, N_HEADS, N_KV_HEADS, HEAD_DIM, D_FF, CONTEXT = 2, 4, 2, 64, 512, 512
D_MODEL = N_HEADS * HEAD_DIM
ALIGNMENT = 32


def byte_tokens():
    """The printable stand-ins that byte-level BPE writes for the 256 bytes, in order of the byte."""
    printable = set(range(33, 127)) | set(range(161, 173)) | set(range(174, 256))
    tokens, shift = [], 0
    for byte in range(256):
        tokens.append(chr(byte) if byte in printable else chr(256 + shift))
        shift += byte not in printable
    return tokens


CONTROL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["t h", "th e", "Ġ the", "a n", "an d"]
TOKENS = CONTROL_TOKENS + byte_tokens() + [merge.replace(" ", "") for merge in MERGES]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + "
    "'<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def text(value):
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def metadata(**changes):
    """(key, type, value) of every metadata entry; `changes` (dots as double underscores) replace values, None drops."""
    entries = [
        ("general.architecture", STRING, "llama"),
        ("general.name", STRING, "tiny"),
        ("llama.context_length", U32, CONTEXT),
        ("llama.embedding_length", U32, D_MODEL),
        ("llama.block_count", U32, N_LAYERS),
        ("llama.feed_forward_length", U32, D_FF),
        ("llama.attention.head_count", U32, N_HEADS),
        ("llama.attention.head_count_kv", U32, N_KV_HEADS),
        ("llama.rope.dimension_count", U32, HEAD_DIM),
        ("llama.rope.freq_base", F32, 10000.0),
        ("llama.attention.layer_norm_rms_epsilon", F32, 1e-5),
        ("llama.vocab_size", U32, len(TOKENS)),
        ("tokenizer.ggml.model", STRING, "gpt2"),
        ("tokenizer.ggml.pre", STRING, "smollm"),
        ("tokenizer.ggml.tokens", (ARRAY, STRING), TOKENS),
        ("tokenizer.ggml.merges", (ARRAY, STRING), MERGES),
        (
            "tokenizer.ggml.token_type",
            (ARRAY, I32),
            [3] * len(CONTROL_TOKENS) + [1] * (len(TOKENS) - len(CONTROL_TOKENS)),
        ),
        ("tokenizer.ggml.bos_token_id", U32, 1),
        ("tokenizer.ggml.eos_token_id", U32, 2),
        ("tokenizer.ggml.add_bos_token", BOOL, False),
        ("tokenizer.chat_template", STRING, CHAT_TEMPLATE),
    ]
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    return [
        (key, kind, changes.get(key, value))
        for key, kind, value in entries
        if not (key in changes and changes[key] is None)
    ]


def tensors():
    """(name, dims with the contiguous one first) of every tensor, in file order."""
    kv = N_KV_HEADS * HEAD_DIM
    out = [("token_embd.weight", (D_MODEL, len(TOKENS))), ("output_norm.weight", (D_MODEL,))]
    for layer in range(N_LAYERS):
        for name, dims in (
            ("attn_norm", (D_MODEL,)),
            ("attn_q", (D_MODEL, D_MODEL)),
            ("attn_k", (D_MODEL, kv)),
            ("attn_v", (D_MODEL, kv)),
            ("attn_output", (D_MODEL, D_MODEL)),
            ("ffn_norm", (D_MODEL,)),
            ("ffn_gate", (D_MODEL, D_FF)),
            ("ffn_up", (D_MODEL, D_FF)),
            ("ffn_down", (D_FF, D_MODEL)),
        ):
            out.append((f"blk.{layer}.{name}.weight", dims))
    return out


def encode_value(kind, value):
    if isinstance(kind, tuple):
        return struct.pack("<IQ", kind[1], len(value)) + b"".join(encode_value(kind[1], v) for v in value)
    if kind == STRING:
        return text(value)
    return struct.pack({U32: "<I", I32: "<i", F32: "<f", BOOL: "<?"}[kind], value)


def encode_metadata(entries):
    out = b""
    for key, kind, value in entries:
        out += text(key) + struct.pack("<I", kind[0] if isinstance(kind, tuple) else kind) + encode_value(kind, value)
    return out


_data = {}  # dims -> bytes: the same random weights for every file of a process


def tensor_data(dims):
    if dims not in _data:
        generator = random.Random(repr(dims))
        n_values = dims[0] * (dims[1] if len(dims) > 1 else 1)
        values = [generator.uniform(-0.1, 0.1) for _ in range(n_values)] if len(dims) > 1 else [1.0] * n_values
        _data[dims] = struct.pack(f"<{n_values}f", *values)
    return _data[dims]


def model_bytes(
    tensor_list=None, magic=b"GGUF", version=3, n_tensors=None, n_metadata=None, tensor_type=0, shift=0, **changes
):
    """The bytes of a model; every argument makes one thing wrong. Returns (bytes, ends of the file's parts)."""
    infos = tensors() if tensor_list is None else tensor_list
    entries = metadata(**changes)
    head = magic + struct.pack(
        "<IQQ",
        version,
        len(infos) if n_tensors is None else n_tensors,
        len(entries) if n_metadata is None else n_metadata,
    )
    body, directory, data = encode_metadata(entries), b"", b""
    for name, dims in infos:
        directory += text(name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        directory += struct.pack("<IQ", tensor_type, len(data) + shift)
        data += tensor_data(dims)
        data += bytes(-len(data) % ALIGNMENT)
    header = head + body + directory
    padding = bytes(-len(header) % ALIGNMENT)
    ends = [len(head), len(head + body), len(header), len(header + padding)]
    return header + padding + data, ends
