#!/usr/bin/env python3
"""Perplexity of polyspan and of llama.cpp on the same text and model file.

Both cut the text's tokens into windows of --ctx, put no BOS in front, and score the second half of each window.

    perplexity.py --model MODEL --text wiki.test.txt --ctx 2048 --windows 4 [--plan dense] [-o docs/results/NAME]
"""

import argparse
import datetime
import math
import os
import pathlib
import sys

import numpy as np

import compare
import llama_peer
import machine
import results


def peer_perplexity(peer, text, window, n_windows):
    """(perplexity, scored tokens, perplexity of each window)"""
    tokens = peer.tokenize(text)
    n_windows = min(n_windows, len(tokens) // window)
    if n_windows == 0:
        sys.exit(f"perplexity: the text has {len(tokens)} tokens, wanted at least one window of {window}")
    total, count, each = 0.0, 0, []
    for first in range(0, n_windows * window, window):
        part, loss, n_scored = tokens[first : first + window], 0.0, 0
        with peer.context(window) as context:
            # The logits of the last token would predict the next window's first token.
            for i, logits in context.feed_scored(part[:-1], window // 2):
                row = logits.astype(np.float64)
                largest = row.max()
                loss += largest + math.log(np.exp(row - largest).sum()) - row[part[i + 1]]
                n_scored += 1
        each.append(math.exp(loss / n_scored))
        total, count = total + loss, count + n_scored
        compare.say(f"  llama.cpp: {len(each)} of {n_windows} windows, perplexity so far {math.exp(total / count):.4f}")
    return math.exp(total / count), count, each


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--polyspan", default=str(machine.BUILD / "polyspan"))
    parser.add_argument("--ctx", type=int, default=2048)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--plan", default="dense")
    parser.add_argument("-o", "--output")
    args = parser.parse_args()
    try:
        text = pathlib.Path(args.text).read_bytes()
    except OSError as error:
        sys.exit(f"perplexity: cannot read {args.text}: {error.strerror}")

    command = [
        args.polyspan,
        "eval",
        args.model,
        "--task",
        "ppl",
        "--text",
        args.text,
        "--ctx",
        str(args.ctx),
        "--windows",
        str(args.windows),
        "--plan",
        args.plan,
        "-t",
        str(args.threads),
        "--json",
    ]
    if not os.access(args.polyspan, os.X_OK):
        sys.exit(f"perplexity: no program {args.polyspan}: build it, or name it with --polyspan")
    ours = compare.run_json(command)["rows"][0]
    peer = llama_peer.Peer(args.model, args.threads)
    theirs, n_scored, each = peer_perplexity(peer, text, args.ctx, args.windows)
    difference = ours["perplexity"] / theirs - 1
    report = {
        "what": "perplexity",
        "date": datetime.date.today().isoformat(),
        "model": pathlib.Path(args.model).name,
        "text": pathlib.Path(args.text).name,
        "threads": args.threads,
        "device": machine.describe(),
        "peer": peer.describe(),
        "commands": [results.shown(command)],
        "rows": [
            {"engine": "llama.cpp", "plan": "dense", "perplexity": theirs, "n": n_scored, "windows": each},
            {"engine": "polyspan", "plan": args.plan, "perplexity": ours["perplexity"], "n": ours.get("n")},
        ],
        "relative_difference": difference,
    }
    rows = [[row["engine"], row["plan"], f"{row['perplexity']:.4f}", str(row["n"])] for row in report["rows"]]
    shown = (
        results.table(["engine", "plan", "perplexity", "tokens scored"], rows)
        + f"\n\npolyspan - llama.cpp: {difference:+.3%} ({report['text']}, {len(each)} windows of {args.ctx})"
    )
    title = f"Perplexity of {report['model']}: polyspan and llama.cpp"
    results.write(
        report, args.output, "\n".join([*results.head(report, title), "", shown, *results.foot(report)]) + "\n"
    )
    print(shown)


if __name__ == "__main__":
    main()
