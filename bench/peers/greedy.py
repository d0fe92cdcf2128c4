#!/usr/bin/env python3
"""Greedy text of polyspan and of llama.cpp, token by token, for 20 prompts.

Where they part, llama.cpp's two best logits at that place are printed with the gap between them. Beside it stands the
peer's own rounding: how far that gap moves when llama.cpp reads the same tokens in one batch and one by one and, with
--exact, the furthest that the gap of the two best moves, at any token up to there, against the same weights written as
F32 (where activations are not rounded to 8 bits). A gap below that is a tie; a larger one is a difference to explain.

    greedy.py --model MODEL [--exact] [--tokens 64] [-o docs/results/NAME]
"""

import argparse
import datetime
import os
import pathlib
import sys
import tempfile

import llama_cpp
import numpy as np

import compare
import llama_peer
import machine
import results

PROMPTS = [
    "The capital of France is",
    "Water boils at a temperature of",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n    ",
    "The three primary colours are",
    "To make a good cup of tea, first",
    "#include <stdio.h>\n\nint main(void) {\n",
    "The quick brown fox",
    "In 1969, the first humans landed on",
    "Photosynthesis is the process by which",
    "SELECT name, COUNT(*) FROM orders",
    "Dear Sir or Madam,\n\nI am writing to",
    "1, 1, 2, 3, 5, 8, 13,",
    "The main difference between a virus and a bacterium is",
    "import numpy as np\n\n",
    "Q: What is the largest planet of the solar system?\nA:",
    "Le petit chat est",
    "The meeting starts at 9:30 and ends at",
    "She opened the letter with trembling hands and read:",
    '{"name": "Ada", "born": 1815, "field":',
]


def two_best(logits):
    """[(token, logit), (token, logit)]"""
    best = np.argpartition(logits, -2)[-2:]
    return sorted(((int(token), float(logits[token])) for token in best), key=lambda pair: -pair[1])


def peer_greedy(peer, prompt, n_tokens):
    """The peer's greedy tokens after `prompt` (ids), each with its two best; stops after an end-of-turn token."""
    out = []
    with peer.context(len(prompt) + n_tokens + 8) as context:
        context.feed(prompt)
        while True:
            out.append(two_best(context.logits()))
            token = out[-1][0][0]
            if len(out) == n_tokens or peer.ends(token):
                return out
            context.feed([token])


def gap_at(peer, tokens, best, step):
    """logit(best) - logit(second best) after `tokens`, read `step` at a time."""
    with peer.context(len(tokens) + 8) as context:
        for at in range(0, len(tokens), step):
            context.feed(tokens[at : at + step])
        logits = context.logits()
        return float(logits[best[0][0]] - logits[best[1][0]])


def rounding_at(peer, exact, prompt, theirs):
    """How far the gap between the two best tokens moves over the ways in which the peer can compute it, at the last of
    `theirs`; with `exact`, the furthest that it moves at any of them (one place alone is a draw of luck)."""
    best, tokens = theirs[-1], prompt + [step[0][0] for step in theirs[:-1]]
    gaps = [best[0][1] - best[1][1], gap_at(peer, tokens, best, len(tokens)), gap_at(peer, tokens, best, 1)]
    rounding = max(gaps) - min(gaps)
    if exact:
        with exact.context(len(tokens) + 8) as context:
            context.feed(prompt)
            for step in theirs:
                logits = context.logits()
                gap = float(logits[step[0][0]] - logits[step[1][0]])
                rounding = max(rounding, abs(gap - (step[0][1] - step[1][1])))
                context.feed([step[0][0]])
    return rounding


def exact_peer(args, folder):
    """The peer with the model's weights as F32, in a file of its own in `folder`."""
    path = os.path.join(folder, "exact.gguf")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.nthread = 0, True, args.threads  # 0: all F32
    if llama_cpp.llama_model_quantize(args.model.encode(), path.encode(), params) != 0:
        sys.exit(f"greedy: llama.cpp cannot write {args.model} as F32")
    return llama_peer.Peer(path, args.threads)


def equal_tokens(peer, theirs, ours):
    """How many of the peer's tokens polyspan's answer agrees with: by ids where it gives them, else by bytes."""
    if "tokens" in ours:
        n_equal = 0
        for step, token in zip(theirs, ours["tokens"]):
            if step[0][0] != token:
                break
            n_equal += 1
        return n_equal
    text, n_bytes = ours["text"].encode(), 0
    for n_equal, step in enumerate(theirs):
        piece = b"" if peer.ends(step[0][0]) else peer.piece(step[0][0])
        if text[n_bytes : n_bytes + len(piece)] != piece:
            # A text may end in U+FFFD where the last token holds half a character.
            left = text[n_bytes:]
            return n_equal + (n_equal == len(theirs) - 1 and left == "\ufffd".encode())
        n_bytes += len(piece)
    return len(theirs)


def compare_one(args, peer, exact, prompt):
    command = [
        args.polyspan,
        "run",
        args.model,
        "-p",
        prompt,
        "-n",
        str(args.tokens),
        "--temp",
        "0",
        "-t",
        str(args.threads),
        "--json",
    ]
    ours = compare.run_json(command)
    tokens = peer.tokenize(prompt)
    theirs = peer_greedy(peer, tokens, args.tokens)
    n_equal = equal_tokens(peer, theirs, ours)
    row = {"prompt": prompt, "prompt_tokens": [ours["prompt_tokens"], len(tokens)], "equal": n_equal, "of": len(theirs)}
    if n_equal < len(theirs):
        best = theirs[n_equal]
        row["best"] = [
            {"token": token, "text": peer.piece(token).decode("utf-8", "replace"), "logit": logit}
            for token, logit in best
        ]
        row["gap"] = best[0][1] - best[1][1]
        row["peer_rounding"] = rounding_at(peer, exact, tokens, theirs[: n_equal + 1])
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--polyspan", default=str(machine.BUILD / "polyspan"))
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="only the first so many")
    parser.add_argument("--exact", action="store_true", help="rounding counts the peer's 8-bit activations too")
    parser.add_argument("-o", "--output")
    args = parser.parse_args()
    if not os.access(args.polyspan, os.X_OK):
        sys.exit(f"greedy: no program {args.polyspan}: build it, or name it with --polyspan")
    peer = llama_peer.Peer(args.model, args.threads)
    with tempfile.TemporaryDirectory() as folder:
        exact = exact_peer(args, folder) if args.exact else None
        rows = [compare_one(args, peer, exact, prompt) for prompt in PROMPTS[: args.prompts]]

    cells = []
    for row in rows:
        same_prompt = row["prompt_tokens"][0] == row["prompt_tokens"][1]
        best = "" if "gap" not in row else " / ".join(f"{b['text']!r} {b['logit']:.3f}" for b in row["best"])
        cells.append(
            [
                repr(row["prompt"])[:40],
                f"{row['equal']} of {row['of']}" + ("" if same_prompt else " (prompts differ)"),
                best,
                f"{row['gap']:.4f}" if "gap" in row else "",
                f"{row['peer_rounding']:.4f}" if "gap" in row else "",
            ]
        )
    n_equal = sum(row["equal"] == row["of"] for row in rows)
    n_ties = sum("gap" in row and row["gap"] <= row["peer_rounding"] for row in rows)
    shown = results.table(
        ["prompt", "equal tokens", "the peer's two best where they part", "gap", "the peer's rounding"], cells
    )
    shown += (
        f"\n\n{n_equal} of {len(rows)} prompts equal; {n_ties} part at a tie; "
        f"{len(rows) - n_equal - n_ties} part at a gap above the peer's rounding at that place"
    )
    report = {
        "what": "greedy",
        "date": datetime.date.today().isoformat(),
        "model": pathlib.Path(args.model).name,
        "threads": args.threads,
        "device": machine.describe(),
        "peer": peer.describe(),
        "commands": [f"polyspan run MODEL -p PROMPT -n {args.tokens} --temp 0 -t {args.threads} --json"],
        "rows": rows,
    }
    title = f"Greedy text of {report['model']}: polyspan and llama.cpp"
    results.write(
        report, args.output, "\n".join([*results.head(report, title), "", shown, *results.foot(report)]) + "\n"
    )
    print(shown)


if __name__ == "__main__":
    main()
