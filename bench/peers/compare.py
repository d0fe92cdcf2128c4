#!/usr/bin/env python3
"""Speed of polyspan and of llama.cpp on the same model file with the same threads.

Repeats are interleaved (peer, ours, peer, ours, ...), each in a fresh process; a figure is the median of its repeats.
Decoding is compared with the roof too: measured memory reads / (weights + cache read for each token).

    compare.py --model MODEL --prompt 512,7680 --depth 0,7680 --gen 32 --plans dense,uniform:0.5,uniform:0.25 \\
               --kv f16,q8 --reps 3 -o docs/results/NAME        writes NAME.json and NAME.md
"""

import argparse
import datetime
import json
import os
import pathlib
import statistics
import subprocess
import sys

import machine
import results

HERE = pathlib.Path(__file__).resolve().parent
BUSY_BEFORE, BUSY_DURING = 0.1, 0.05  # a run is disturbed when others use this share of the processors


def say(text):
    print(text, file=sys.stderr, flush=True)


def run_watched(command):
    """(the JSON document that a program prints, the machine.Watched that ran it)"""
    say("  $ " + results.shown(command))
    done = machine.Watched(command)
    if done.returncode != 0:
        sys.exit(f"compare: exit status {done.returncode} from {results.shown(command)}: {done.stderr.strip()[-500:]}")
    try:
        return json.loads(done.stdout), done
    except json.JSONDecodeError as error:
        sys.exit(f"compare: no JSON ({error}) from {results.shown(command)}")


def run_json(command):
    return run_watched(command)[0]


def shapes(args):
    """The options of every process: all lengths together or, with --split, each length by itself."""
    gen = ["--gen", str(args.gen)]
    if not args.split:
        return [["--prompt", args.prompt, "--depth", args.depth, *gen]]
    options = [("--prompt", args.prompt), ("--depth", args.depth)]
    return [[option, length, *gen] for option, lengths in options for length in lengths.split(",") if length]


def programs(args):
    """(name, plan, kv, command) of everything that a repeat runs, in this order."""
    out = []
    for shape in shapes(args):
        for kv in args.kv.split(","):
            peer = [args.python, "-B", str(HERE / "llama_peer.py"), args.model, *shape]
            states = ["--states", args.states] if args.states else []
            out.append(("llama.cpp", "dense", kv, [*peer, "--threads", str(args.threads), "--kv", kv, *states]))
            for plan in args.plans.split(","):
                ours = [args.polyspan, "bench", args.model, *shape, "--reps", "1", "-t", str(args.threads)]
                out.append(("polyspan", plan, kv, [*ours, "--plan", plan, "--kv", kv, "--json"]))
    return out


def measured_s(rows):
    """Seconds at the end of a run that count: a run that only decodes is timed after it read its prompt."""
    if any(row["test"] != "decode" for row in rows):
        return None
    return sum(row["n_tokens"] / row["tokens_per_s"] for row in rows) if len(rows) == 1 else None


def run_undisturbed(command, args):
    """(answer, what others used before and during it, whether that was too much, runs thrown away before it)"""
    for n_discarded in range(args.retries + 1):
        before = machine.wait_until_idle(patience_s=args.patience)
        answer, run = run_watched(command)
        last_s = measured_s(answer["rows"])
        during = run.used_by_others(last_s)
        disturbed = during >= BUSY_DURING or (before >= BUSY_BEFORE and last_s is None)
        if not disturbed:
            break
        say(f"  others used {before:.1%} of the processors before and {during:.1%} during it: not clean")
    return answer, before, during, disturbed, n_discarded


def measure(args):
    series, peer, ours = {}, {}, {}
    others = {"before_each_run": [], "during_each_run": [], "disturbed_runs": 0, "discarded_runs": 0}
    for repeat in range(args.reps):
        say(f"repeat {repeat + 1} of {args.reps}")
        for name, plan, kv, command in programs(args):
            answer, before, during, disturbed, n_discarded = run_undisturbed(command, args)
            others["before_each_run"].append(before)
            others["during_each_run"].append(during)
            others["disturbed_runs"] += disturbed
            others["discarded_runs"] += n_discarded
            if name == "llama.cpp":
                peer = {key: value for key, value in answer.items() if key != "rows"}
            else:
                ours = {key: value for key, value in answer.items() if key not in ("rows", "plan")}
            for row in answer["rows"]:
                key = (name, plan, kv, row["test"], row["n_tokens"], row["depth"])
                entry = series.setdefault(key, {"kv_bytes": row["kv_bytes"], "repeats": []})
                entry["repeats"].append(row["tokens_per_s"])
                say(f"    {row['test']} {row['n_tokens']} at {row['depth']}: {row['tokens_per_s']:.1f}")
    return series, peer, ours, others


def rows_of(series, weight_bytes, gb_per_s):
    rows = []
    for (name, plan, kv, test, n_tokens, depth), entry in series.items():
        row = {
            "engine": name,
            "plan": plan,
            "kv": kv,
            "test": test,
            "n_tokens": n_tokens,
            "depth": depth,
            "tokens_per_s": statistics.median(entry["repeats"]),
            "repeats": entry["repeats"],
            "kv_bytes": entry["kv_bytes"],
        }
        peer = series.get(("llama.cpp", "dense", kv, test, n_tokens, depth))
        if name == "polyspan" and peer:
            row["ratio"] = row["tokens_per_s"] / statistics.median(peer["repeats"])
        if test == "decode":
            row["bytes_per_token"] = weight_bytes + entry["kv_bytes"]
            row["roof_tokens_per_s"] = gb_per_s * 1e9 / row["bytes_per_token"]
            row["share_of_roof"] = row["tokens_per_s"] / row["roof_tokens_per_s"]
        rows.append(row)
    order = ["prefill", "decode"]
    return sorted(
        rows,
        key=lambda row: (
            order.index(row["test"]),
            row["depth"],
            row["n_tokens"],
            row["kv"],
            row["engine"] != "llama.cpp",
        ),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--polyspan", default=str(machine.BUILD / "polyspan"))
    parser.add_argument(
        "--python", default=sys.executable, help="the Python that has llama-cpp-python (default: this one)"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--prompt", default="512,7680")
    parser.add_argument("--depth", default="0,7680")
    parser.add_argument("--split", action="store_true", help="each length in a process of its own, for long ones")
    parser.add_argument(
        "--states", help="an empty folder: the peer reads the tokens of a --depth once and loads its cache from there later"
    )
    parser.add_argument("--gen", type=int, default=32)
    parser.add_argument("--plans", default="dense,uniform:0.5,uniform:0.25")
    parser.add_argument(
        "--kv", default="f16", help="cache elements, comma separated: f16, q8; each against the peer's own"
    )
    parser.add_argument("--patience", type=int, default=60, help="seconds to wait for other programs before each run")
    parser.add_argument("--retries", type=int, default=3, help="times that a run is repeated because others disturbed it")
    parser.add_argument("-o", "--output", help="writes OUTPUT.json and OUTPUT.md")
    args = parser.parse_args()
    if not os.access(args.model, os.R_OK):
        sys.exit(f"compare: cannot read the model {args.model}")
    if not os.access(args.polyspan, os.X_OK):
        sys.exit(f"compare: no program {args.polyspan}: build it, or name it with --polyspan")

    say("the roof (memory reads)")
    machine.wait_until_idle(patience_s=args.patience)
    roof = machine.roof(args.threads)
    series, peer, ours, others = measure(args)
    machine.wait_until_idle(patience_s=args.patience)
    roof = machine.better_roof(roof, machine.roof(args.threads))
    warning = machine.check_peer_is_native(peer["system_info"])
    gb_per_s = max(row["read_gb_per_s"] for row in roof if row["threads"] <= args.threads)
    report = {
        "what": "speed",
        "date": datetime.date.today().isoformat(),
        "model": pathlib.Path(args.model).name,
        "model_bytes": os.path.getsize(args.model),
        "threads": args.threads,
        "device": machine.describe(),
        "roof": roof,
        "peer": peer,
        "polyspan": ours,
        "warnings": [warning] if warning else [],
        "used_by_others": {"limit": BUSY_BEFORE, "limit_during": BUSY_DURING, **others},
        "commands": [results.shown(command) for _, _, _, command in programs(args)],
        "rows": rows_of(series, peer["weight_bytes"], gb_per_s),
    }
    # The same model by another path (a temporary folder, a home) is nobody's business.
    report["polyspan"]["model"] = report["model"]
    results.write(report, args.output, results.speed_markdown(report))
    print(results.speed_table(report))
    for line in report["warnings"]:
        say("warning: " + line)


if __name__ == "__main__":
    main()
