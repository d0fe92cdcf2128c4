#!/usr/bin/env python3
"""Quality of the plans of a run of `polyspan compress`, beside dense and uniform: retrieval and perplexity, as Markdown.

    quality.py --model MODEL --run RUN --text wiki.txt --samples 32 -o FOLDER > docs/results/NAME.md

Every measurement is one `polyspan eval --json` whose output is kept in FOLDER; what is there is not measured again, so the
script can be stopped and started. Uniform plans take --uniform-samples prompts. Relative figures are the mean over both texts,
divided by dense's.
"""

import argparse
import json
import pathlib
import subprocess
import sys


def measure(args, name, options):
    path = args.output / f"{name}.json"
    if not path.exists():
        command = [args.polyspan, "eval", args.model, *options, "--text", args.text, "--json"]
        print(f"quality: {name}", file=sys.stderr, flush=True)
        done = subprocess.run(command, stdout=subprocess.PIPE)
        if done.returncode != 0:
            sys.exit(f"quality: exit status {done.returncode} from {' '.join(map(str, command))}")
        beside = path.with_suffix(".tmp")
        beside.write_bytes(done.stdout)
        beside.rename(path)
    return {row["length"]: row for row in json.loads(path.read_text())["rows"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--polyspan", default="build/release/bin/polyspan")
    parser.add_argument("--model", required=True)
    parser.add_argument("--run", required=True, type=pathlib.Path)
    parser.add_argument("--text", required=True)
    parser.add_argument("--lengths", default="2048,4096,8192")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--uniform-samples", type=int, default=16)
    parser.add_argument("--seed", type=int, default=77)
    parser.add_argument("--densities", default="0.5,0.25,0.125")
    parser.add_argument("--ppl-lengths", default="4096,8192")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--no-uniform", action="store_true")
    parser.add_argument("--no-ppl", action="store_true")
    parser.add_argument("--extra", action="append", default=[], help="NAME=PLAN: another plan, retrieval alone")
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)

    plans = [("dense", "dense")]
    for density in args.densities.split(","):
        plans.append((f"p{density}", args.run / "plans" / f"{density}.json"))
        if not args.no_uniform:
            plans.append((f"u{density}", f"uniform:{density}"))
    plans += [tuple(extra.split("=", 1)) for extra in args.extra]
    label = {"dense": "dense", **{f"p{d}": f"{d}, found" for d in args.densities.split(",")}}
    label |= {f"u{d}": f"{d}, uniform" for d in args.densities.split(",")}
    lengths = [int(n) for n in args.lengths.split(",")]

    rows, dense = [], None
    for name, plan in plans:
        samples = args.uniform_samples if name.startswith("u") else args.samples
        result = measure(args, f"pk-{name}", ["--task", "passkey", "--lengths", args.lengths, "--samples", str(samples),
                                              "--seed", str(args.seed), "--plan", str(plan)])  # fmt: skip
        dense = dense or result
        rows.append((label.get(name, name), samples, result))
    print("| plan | prompts a cell | " + " | ".join(f"{n:,}: repeated / natural" for n in lengths) + " | " + " | ".join(f"rel. {n:,}" for n in lengths) + " |")
    print("|---" * (2 + 2 * len(lengths)) + "|")
    for name, samples, result in rows:
        cells = [f"{result[n]['repeated']['accuracy']:.2f} / {result[n]['natural']['accuracy']:.2f}" for n in lengths]
        cells += [f"{result[n]['accuracy'] / dense[n]['accuracy']:.2f}" if dense[n]["accuracy"] > 0 else "-" for n in lengths]
        print(f"| {name} | {samples} | " + " | ".join(cells) + " |")
    if args.no_ppl:
        return
    ppl_lengths = [int(n) for n in args.ppl_lengths.split(",")]
    print("\n| plan | " + " | ".join(f"perplexity {n:,} | above dense" for n in ppl_lengths) + " |")
    print("|---" * (1 + 2 * len(ppl_lengths)) + "|")
    dense = None
    for name, plan in plans:
        if name not in label:
            continue
        result = measure(args, f"ppl-{name}", ["--task", "ppl", "--lengths", args.ppl_lengths, "--windows", str(args.windows),
                                               "--plan", str(plan)])  # fmt: skip
        dense = dense or result
        cells = [f"{result[n]['perplexity']:.2f} | {100 * (result[n]['perplexity'] / dense[n]['perplexity'] - 1):+.1f}%" for n in ppl_lengths]
        print(f"| {label[name]} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
