#!/usr/bin/env python3
"""Token ids of llama.cpp for texts that are hard to tokenise: what src/text/tokenizer_oracle_test.cpp compares with.

Needs llama-cpp-python, gguf and numpy.
  tokenizer_oracle.py MODEL.gguf OUT.json [--random N] [--seed S]   ids of this file's tokeniser
  tokenizer_oracle.py MODEL.gguf DIR --all [--random N]             MODEL's vocabulary (byte-level BPE) under every
                                                                    pre-tokeniser, and a small SentencePiece one
The test reads what the second form leaves in DIR: POLYSPAN_TOKENIZER_ORACLE=DIR text_test

A case is {"text" or "base64", "special", "ids"}; "special" is llama_tokenize's parse_special.
"""
import argparse
import base64
import ctypes
import json
import os
import random
import re

import gguf
import llama_cpp

PRE_NAMES = """default llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano dbrx
smaug-bpe glm4 chatglm-bpe gpt-2 phi-2 mpt olmo jais trillion granite-docling exaone4 gigachat
a.x-4.0 mellum modern-bert jina-es jina-de jina-v1-en jina-v2-es jina-v2-de jina-v2-code roberta-bpe
smollm starcoder refact command-r codeshell exaone minerva-7b mellum2 falcon qwen2 deepseek-r1-qwen
kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2 qwen35 laguna ufakzeka minicpm5 jais-2
bailingmoe bailingmoe2 llada-moe seed-coder exaone-moe tekken gpt-4o llama4 kanana2 talkie
minimax-m2 granite-embed-multi-97m deepseek-llm deepseek-coder deepseek-v3 hunyuan-dense joyai-llm
hy_v4 poro-chat bloom gpt3-finnish viking""".split()

HARD_TEXTS = [
    "", " ", "  ", "a", "\n", "\n\n", "\r\n", " \n", "\t", "Hello, world!", "Hello  world", " Hello", "Hello ",
    "I'm you're he'd they'll we've it's don't CAN'T WE'LL I'D you'Re 'S 's' 'tis o'clock rock'n'roll ''s '",
    "0 1 12 123 1234 12345 1234567890 3.14159 1,000,000.00 0xDEADBEEF 1e-9 -42 +7 1/2 50% $9.99 ½ ¾ ² ³ ① Ⅷ ٣٤٥ "
    "१२३ ９９９",
    "def f(x: int) -> int:\n    return x + 1\n\n\nclass A(B):\n\tpass\n",
    "for (int i = 0; i < n; ++i) { a[i] += b[i] * c[i]; }  // sum\n/* x */ #include "
    "<vector>\r\n\r\n\ttemplate<class T>",
    '{"key": [1, 2.5, null, true], "nested": {"a\\n": "\\u00e9"}}', "SELECT * FROM t WHERE a >= 10 AND b != 'x''y';",
    "https://example.com/a/b?c=d&e=f#g user@example.com C:\\path\\file.txt ~/x/*.c `code` **bold** _it_ ~~no~~",
    "camelCaseWords HTTPServerError XMLHttpRequest iPhone McDonald snake_case_name kebab-case-name ALLCAPS "
    "ÉCOLE éCole ßẞ",
    "😀 😀😀 👨‍👩‍👧‍👦 👍🏽 🇩🇪🇫🇷 🏴󠁧󠁢󠁥󠁮󠁧󠁿 ❤️ ☺ ⌨️ 1️⃣ #️⃣", "中文分词测试，你好世界。「引用」！？；：…… 漢字かなカナ한국어 日本語のテスト ｶﾅ ＡＢＣ１２３",
    "مرحبا بالعالم، كيف الحال؟ ١٢٣ السَّلامُ עליכם שָׁלוֹם עולם 123",
    "สวัสดีชาวโลก ภาษาไทย ๑๒๓ ลาวລາວ ខ្មែរ မြန်မာ བོད་",
    "हिन्दी में लिखा हुआ। বাংলা தமிழ் తెలుగు ಕನ್ನಡ മലയാളം සිංහල",
    "Ελληνικά Русский Українська Ђорђе Հայերեն ქართული Ქართული",
    "e\u0301 n\u0303 a\u0308\u0301\u0323 Z\u0351\u036b\u0343a\u0363l\u0368g\u0321o\u0322 \u0301alone x\u20dd",
    "Ǆ ǅ ǆ ﬁ ﬂ ſ K Å Ω ª º µ ʰ ˢ ⁿ ₂ ℵ ℝ ℮ ⅓ Ⅻ ⓐ ㍿ ㎏",
    "a\u00a0b\u00a0 c "
    "\u3000d\u2003e\u2009f\u200bg\u200ch\u200di\u2060j\ufeffk\u180el\u1680m\u2028n\u2029o\u0085p\u202fq\u205fr",
    "\u00a0\u00a0 x", " \u3000 \u3000。", "a \u2003\n\u00a0b", "\t\tx\t y \t\t\n \t\n  z", "   \n   \n\n   x   \n",
    "x\n\n\n\n\ny\r\r\n\n\rz\r",
    "\x00\x01\x02\x04\x07\x08\x0b\x0c\x0e\x1b[0m\x1f\x7f\x80\x9f", "a\x00b\x00\x00c", "\v\f \x1c\x1d",
    "soft\u00adhyphen \u061c\u200e\u200f\u202a\u202e\u2066",
    "\ufffd \uffff \ufffe \ue000 \U000f0000 \U0010ffff \u0378 \u0e00 \U0003fffe \U00040000 \U000e0041",
    "\U0001F6DC \U00031350 \U0002EBF0 \U00011F02 \u2ffc \u31ef \U0001fae8",
    "~ ~~ ~a a~ ~1 $ $$ $a a$b + <= >= == ^^ || `a` !@#$%^&*()_+-=[]{}|;':\",./<>?\\",
    "¡¿§¶«»‹›„“”‘’–—―…‰′″※⁂€£¥©®™×÷±≠≤≥∞∫√∂→⇒∀∃∈",
    "a.b,c;d:e!f?g(h)i[j]k{l}m", "...... ,,,, !!!!!?? ---- ==== #### //// \\\\\\\\ ****\n****\n",
    "word/\nword //\r\n///\n\n/ [\n\n]", "。。。、、！？ … a…b、c।d۔e،f",
    "aaaa" * 50, " " * 100, "\n" * 100, "\t" * 40, "ab" * 80, "1" * 100, "!" * 100, "é" * 60, "中" * 80, "😀" * 30,
    " \n" * 40, "a " * 60,
    "x" + " " * 63 + "y", "x" + " " * 64, "\u3000" * 30, "=" * 77 + "\n", "\u0301" * 20, "A" * 64, "aA" * 40, "Aa" * 40,
    "ÀB" * 30,
    "<|im_start|>user\nhi<|im_end|>\n", "<|im_start|><|im_end|><|endoftext|>", "a<|im_end|>b <|im_end|> c", "<|im_end|",
    "<|im_<|im_end|>end|>",
    "<|im_start|>\n\n  <|im_end|>  ", "<reponame><filename><file_sep><gh_stars>", "<repo_name>x<issue_start>",
    "<s></s><unk><pad>", "[INST] <<SYS>>",
    "<0x0A> <0xFF> ▁ ▁▁a a▁b ĠĊ Ġa", "The quick brown fox jumps over the lazy dog. " * 5,
]
BAD_UTF8 = [
    b"\xff", b"\xfe\xff", b"a\x80b", b"\xc3", b"abc\xc3", b"\xc3(", b"\xe2\x82", b"\xe2\x82 x", b"\xf0\x9f\x98",
    b"\xf0\x9f\x98 \xf0\x9f",
    b"\xc0\x80", b"\xc1\xbf", b"\xe0\x80\x80", b"\xf0\x80\x80\x80", b"\xed\xa0\x80", b"\xed\xa0\xbd\xed\xb8\x80",
    b"\xf8\x88\x80\x80\x80",
    b"caf\xe9 au lait", b"\xa0\xa1 \xa2", b"\x80" * 20, b"ok \xf0\x28\x8c\x28 ok", b"\xe4\xb8", b"\xbf\xe4\xb8\xad\xbf",
    b"1\xff2\xff", b" \xff \xff",
    b"\xff\xfe<|im_end|>\xff",
]
# A code point past U+10FFFF makes llama.cpp throw through its C interface: not asked.
TOO_LARGE = re.compile(rb"\xf4[\x90-\xbf][\x80-\xbf]{2}|[\xf5-\xf7][\x80-\xbf]{3}")
RANGES = [(0x20, 0x7E)] * 4 + [(0, 0x1F), (0x80, 0x24F), (0x2B0, 0x36F), (0x370, 0x52F), (0x590, 0x6FF), (0x900, 0xDFF),
          (0xE00, 0xEFF),
          (0x1E00, 0x1FFF), (0x2000, 0x206F), (0x2070, 0x2BFF), (0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3),
          (0xF900, 0xFFFF),
          (0x10000, 0x1FFFF), (0x1F300, 0x1FAFF), (0x20000, 0x323AF), (0xE0000, 0xE01EF), (0, 0xD7FF), (0x10000,
          0x10FFFF)]
PIECES = ["'s", "'LL", " ", "  ", "\n", "\r\n", "\t", "the", " The", "ing", "12", "3456", ".", ", ", "!?", "é", "中",
          "한", "ก", "\u0301", "😀", "\u00a0",
          "\u3000", "_", "-", "~", "`", "$", "<|im_end|>", "<|", "|>", "ſ", "ǅ", "½", "。", "/", "\x00", "\u200d",
          "\u00ad", "A", "a", "Z", "É"]


def random_texts(rng, n):
    out = []
    for i in range(n):
        kind = i % 4
        if kind == 0:
            text = bytes(rng.choice([rng.randrange(256), rng.randrange(32, 127)]) for _ in range(rng.randrange(1, 40)))
        elif kind == 1:
            text = "".join(rng.choice(PIECES) for _ in range(rng.randrange(1, 40))).encode()
        elif kind == 2:
            low, high = rng.choice(RANGES)
            n_chars = rng.randrange(1, 24)
            codes = [rng.randint(low, high) if rng.random() < 0.8 else rng.choice(b" \n'a1.") for _ in range(n_chars)]
            text = "".join(chr(c) for c in codes if not 0xD800 <= c <= 0xDFFF).encode()
        else:
            codes = (rng.randint(*rng.choice(RANGES)) for _ in range(rng.randrange(1, 24)))
            text = "".join(chr(c) for c in codes if not 0xD800 <= c <= 0xDFFF).encode()
        if not TOO_LARGE.search(text):
            out.append(text)
    return out


def corpus(n_random, seed):
    return [t.encode() for t in HARD_TEXTS] + BAD_UTF8 + random_texts(random.Random(seed), n_random)


@llama_cpp.llama_log_callback
def no_log(*_):
    pass


class Peer:
    """llama.cpp's tokeniser of a GGUF file."""

    def __init__(self, path):
        llama_cpp.llama_log_set(no_log, ctypes.c_void_p(0))
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = True
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), params)
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)

    def __del__(self):
        if getattr(self, "model", None):
            llama_cpp.llama_model_free(self.model)

    def ids(self, text, special):
        n_max = len(text) * 2 + 8
        out = (llama_cpp.llama_token * n_max)()
        n = llama_cpp.llama_tokenize(self.vocab, text, len(text), out, n_max, False, special)
        assert n >= 0, (text, n)
        return list(out[:n])

    def ends(self):
        n = llama_cpp.llama_vocab_n_tokens(self.vocab)
        return [i for i in range(n) if llama_cpp.llama_vocab_is_eog(self.vocab, i)]


def write_oracle(model_path, out_path, texts):
    peer = Peer(model_path)
    cases = []
    for text in texts:
        for special in (False, True) if b"<" in text else (False,):
            try:
                case = {"text": text.decode()}
            except UnicodeDecodeError:
                case = {"base64": base64.b64encode(text).decode()}
            cases.append({**case, "special": special, "ids": peer.ids(text, special)})
    lines = ",\n".join(json.dumps(c, ensure_ascii=False, separators=(",", ":")) for c in cases)
    with open(out_path, "w", encoding="utf-8") as out:
        name = os.path.basename(model_path)
        out.write(f'{{"model":{json.dumps(name)},"ends":{json.dumps(peer.ends())},"cases":[\n{lines}\n]}}\n')


def write_vocab(path, model, tokens, types, merges=None, scores=None, pre=None, ids=(None, None, None)):
    """A GGUF file of a vocabulary without weights."""
    writer = gguf.GGUFWriter(path, "llama")
    for add, value in ((writer.add_context_length, 128), (writer.add_embedding_length, 64), (writer.add_block_count, 1),
                       (writer.add_feed_forward_length, 64), (writer.add_head_count, 1), (writer.add_head_count_kv, 1),
                       (writer.add_rope_dimension_count, 64), (writer.add_vocab_size, len(tokens))):
        add(value)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model(model)
    if pre:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if merges:
        writer.add_token_merges(merges)
    if scores:
        writer.add_token_scores(scores)
    for add, value in zip((writer.add_bos_token_id, writer.add_eos_token_id, writer.add_unk_token_id), ids):
        if value is not None:
            add(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_spm_vocab(path, seed):
    """A SentencePiece-style vocabulary: parts of words with scores that often tie, bytes, one user-defined token."""
    rng = random.Random(seed)
    words = sorted({w for t in HARD_TEXTS for w in re.findall(r"\w+|[^\w\s]+", t)})
    pieces = set()
    for word in words:
        for start in range(len(word)):
            for length in range(1, 7):
                part = word[start:start + length]
                if rng.random() < (0.9 if length == 1 else 0.5):
                    pieces.add(part)
                if start == 0 and rng.random() < 0.6:
                    pieces.add("▁" + part)
    pieces |= {"▁", "▁▁", "▁▁▁▁", "\n\n"}
    specials = ["<unk>", "<s>", "</s>"]
    pieces = sorted(p for p in pieces if p not in specials and "\0" not in p)  # llama.cpp ends a token at NUL
    tokens = specials + [f"<0x{b:02X}>" for b in range(256)] + pieces + ["<user>"]
    types = [2, 3, 3] + [6] * 256 + [1] * len(pieces) + [4]
    scores = [0.0] * 259 + [-float(rng.randrange(200)) for _ in pieces] + [0.0]
    # No piece mixes "<" with letters: text must not spell control or byte tokens, which only llama.cpp would let it.
    write_vocab(path, "llama", tokens, types, scores=scores, ids=(1, 2, 0))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--random", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    texts = corpus(args.random, args.seed)
    if not args.all:
        return write_oracle(args.model, args.out, texts)
    os.makedirs(args.out, exist_ok=True)
    fields = gguf.GGUFReader(args.model).fields
    tokens, types, merges = (fields["tokenizer.ggml." + key].contents() for key in ("tokens", "token_type", "merges"))
    for pre in PRE_NAMES:
        path = os.path.join(args.out, f"pre-{pre}.gguf")
        write_vocab(path, "gpt2", tokens, types, merges=merges, pre=pre, ids=(1, 2, None))
        write_oracle(path, path.replace(".gguf", ".json"), texts)
    path = os.path.join(args.out, "spm.gguf")
    write_spm_vocab(path, args.seed)
    write_oracle(path, path.replace(".gguf", ".json"), texts)


if __name__ == "__main__":
    main()
