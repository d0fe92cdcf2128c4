"""Writes a run directory of `polyspan compress` (docs/compress.md) with invented, plausible numbers, the same every time.

usage: python3 tests/make_run_dir.py FOLDER [--layers 30] [--heads 9] [--kv-heads 3] [--per-query-head] [--measured]
                                            [--lengths 1024,2048,4096] [--unfinished]
Used by the tests of `polyspan report`, and to look at a page without hours of profiling.
"""

import argparse
import json
import math
import pathlib
import random

KINDS = ["passkey-repeated", "passkey-natural", "multikey", "copy", "section", "text"]
SINK = 64


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")


def span(rule, length):
    """docs/plans.md: S(N) = clamp(floor(alpha + beta * N), 64, N)."""
    return min(length, max(min(64, length), math.floor(rule[0] + rule[1] * length)))


class Run:
    def __init__(self, layers=30, heads=9, kv_heads=3, per_query_head=False, lengths=(1024, 2048, 4096), extend=(8192,),
                 densities=(0.5, 0.25), name="SmolLM2 135M Instruct", head_dim=64, context=8192, architecture="llama",
                 quantization="Q4_1", file="models/SmolLM2-135M-Instruct.Q4_1.gguf"):
        self.random = random.Random(7)
        self.layers, self.heads, self.kv_heads, self.per_query_head = layers, heads, kv_heads, per_query_head
        self.lengths, self.extend, self.densities = list(lengths), list(extend), list(densities)
        self.per_layer = heads if per_query_head else kv_heads
        self.model = {
            "name": name, "file": file, "fingerprint": "5e1f-00c4", "architecture": architecture,
            "quantization": quantization, "n_layers": layers, "n_heads": heads, "n_kv_heads": kv_heads,
            "head_dim": head_dim, "context_length": context,
        }
        # What a head is like: how much it matters, and how far it looks (as a share of the length).
        self.weight = [10 ** self.random.uniform(-3.5, -0.6) * (1 + (head // self.per_layer) / layers)
                       for head in range(layers * self.per_layer)]
        self.reach = [self.random.choice([0.03, 0.08, 0.2, 0.6]) * self.random.uniform(0.6, 1.5) for _ in self.weight]

    def head_loss(self, head, share):
        return 0.0 if share >= 1 else self.weight[head] * math.exp(-share / self.reach[head]) * (1 - share)

    def curve(self, length, source):
        spans = sorted({min(source, max(64, round(source * part / 64) * 64)) for part in
                        (0.016, 0.03, 0.06, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)} - {source})
        loss = [self.head_loss(head, s / source) for head in range(len(self.weight)) for s in spans]
        return {"length": length, "source_length": source, "spans": spans, "loss": loss}

    def rules(self, density, tilt):
        """A plan of about this density: heads that reach far get long spans; tilt moves length from short inputs to long."""
        order = sorted(range(len(self.weight)), key=lambda head: -self.weight[head] * self.reach[head])
        rules = [None] * len(order)
        for place, head in enumerate(order):
            beta = round(8 * min(1, max(0, 2 * density * (1 - place / len(order)))), 0) / 8
            alpha = 0
            if 0 < beta < 1 and place % 3 == 0:
                alpha = -512 * tilt if beta > 0.25 else 256 * tilt
            if beta == 0:
                alpha = 64 * self.random.choice([1, 2, 4])
            rules[head] = (alpha, beta)
        return rules

    def plan(self, rules, density):
        def rows(part):
            return [[rule[part] for rule in rules[layer * self.per_layer:(layer + 1) * self.per_layer]]
                    for layer in range(self.layers)]
        return {
            "format_version": 1, "model": {"name": self.model["name"], "fingerprint": self.model["fingerprint"]},
            "sink": SINK, "n_heads": self.heads, "n_kv_heads": self.kv_heads, "lengths": self.lengths,
            "density": density, "influence": "span", "created_by": "tests/make_run_dir.py",
            "alphas": rows(0), "betas": rows(1),
        }

    def density(self, rules, length):
        group = self.per_layer // self.kv_heads
        kept = 0
        for first in range(0, len(rules), group):
            kept += min(length, SINK + max(span(rule, length) for rule in rules[first:first + group]))
        return kept / (length * len(rules) / group)

    def plan_loss(self, rules, length):
        return sum(self.head_loss(head, span(rule, length) / length) for head, rule in enumerate(rules))

    def write(self, folder, measured=False, finished=True):
        folder = pathlib.Path(folder)
        write_json(folder / "run.json", {
            "format_version": 5, "created_by": "polyspan 0.1.0", "model": self.model,
            "options": {"densities": self.densities, "lengths": self.lengths, "extend": self.extend, "samples": 12,
                        "kinds": KINDS, "influence": "span", "loss": "log-odds", "rounds": 2,
                        "per_query_head": self.per_query_head, "seed": 1, "quick": False, "documents": None,
                        "text": "/usr/share/common-licenses"},
            "device": {"processor": "Example 9000, 2 cores", "threads": 2, "isa": "avx512"},
            "seconds": {"profile": 151.2, "search": 6.1, "validation": 80.4}, "finished": finished,
        })
        self.write_samples(folder)
        for density in self.densities:
            self.write_density(folder, density)
        if measured:
            self.write_measured(folder)
        (folder / "log.txt").write_text("2025-11-02 14:03:11 compress begins\n2025-11-02 14:05:42 profiles done\n"
                                        "2025-11-02 14:07:09 finished\n")

    def write_samples(self, folder):
        lines = []
        for length in self.lengths:
            for kind in KINDS:
                for index in range(4):
                    role = "profile" if index < 3 else "validation"
                    name = f"{length}/{kind}/{index}"
                    lines.append(json.dumps({"id": name, "role": role, "kind": kind, "length": length, "seed": index,
                                             "retrieval": kind != "text", "answer": "12345", "tokens": [1, 2, 3],
                                             "targets": [2]}))
                    if role != "profile":
                        continue
                    accepted = kind != "copy" or index != 1
                    profile = {"format_version": 5, "id": name, "round": "dense", "accepted": accepted, "loss": 0.4,
                               "n_targets": 1, "n_right": int(accepted), "forward_s": 0.5, "backward_s": 1.0,
                               "candidate_spans": [64], "n_layers": self.layers, "n_heads": self.heads}
                    if accepted:
                        zeros = [0.0] * (self.layers * self.heads)
                        profile["influence"] = {"span": zeros, "span_abs": zeros, "span_square": zeros, "pairwise": zeros}
                    write_json(folder / "profile" / "dense" / f"{length}-{kind}-{index}.json", profile)
        (folder / "samples.jsonl").write_text("\n".join(lines) + "\n")

    def write_density(self, folder, density):
        everywhere = self.lengths + self.extend
        longest = self.lengths[-1]
        uniform = [(-SINK, density)] * len(self.weight)
        order = sorted(range(len(self.weight)), key=lambda head: -self.weight[head] * self.reach[head])
        dense_heads = set(order[:int(len(order) * density * 0.85)])
        two = [(0, 1) if head in dense_heads else (256, 0) for head in range(len(order))]
        plans = {"uniform": uniform, "two-valued": two}
        for name, tilt in (("round0-sum", 0), ("round0-front1", 1), ("round1-sum", 0.5), ("round1-front1", 1.5),
                           ("round1-front2", -0.5), ("round1-front3", -1)):
            plans[name] = self.rules(density * (0.97 + 0.01 * abs(tilt)), tilt)
        curves = [self.curve(length, min(length, longest)) for length in everywhere]
        searched = [name for name in plans if name.startswith("round1")]
        write_json(folder / "search" / f"{density}.json", {
            "format_version": 5, "density": density,
            "rounds": [{"round": 0, "plan_of_round": "dense", "curves": curves,
                        "candidates": [name for name in plans if name.startswith("round0")]},
                       {"round": 1, "plan_of_round": "round0-sum", "curves": curves, "candidates": searched}],
            "front": [{"name": name, "losses": [self.plan_loss(plans[name], length) for length in everywhere],
                       "densities": [self.density(plans[name], length) for length in everywhere]} for name in searched],
            "curve_lengths": everywhere,
        })
        for name, rules in plans.items():
            write_json(folder / "candidates" / str(density) / f"{name}.json", self.plan(rules, density))
        rows = [{"name": name, "loss": 0.412 + 0.9 * self.plan_loss(rules, longest) + 0.01 * self.random.random(),
                 "n_samples": 12, "stopped": None, "right": round(max(0, 0.95 - 0.2 * self.plan_loss(rules, longest)), 3),
                 "densities": [{"length": length, "density": self.density(rules, length)} for length in everywhere]}
                for name, rules in plans.items()]
        rows.sort(key=lambda row: row["loss"])
        rows[-1].update(stopped=f"{longest}/copy/3", n_samples=5)
        write_json(folder / "validation" / f"{density}.json", {
            "format_version": 5, "density": density, "length": longest, "n_samples": 12, "dense_loss": 0.412,
            "rows": rows, "winner": rows[0]["name"], "why": "the least held-out loss of 8 candidates",
        })
        write_json(folder / "plans" / f"{density}.json", self.plan(plans[rows[0]["name"]], density))

    def write_measured(self, folder):
        subjects = [("dense", 1)] + [(name, density) for density in self.densities for name in ("uniform", "plan")]
        for name, density in subjects:
            for length in self.lengths + self.extend:
                depths = []
                for depth in (0, 0.25, 0.5, 0.75, 1):
                    inside = name != "uniform" or depth >= 1 - density or depth == 0
                    lost = 0.25 if name == "plan" and self.random.random() < 0.3 / density / 4 else 0
                    depths.append({"depth": depth, "accuracy": 1 - lost if inside else 0.0, "n": 4})
                mean = sum(cell["accuracy"] for cell in depths) / len(depths)
                common = {"model": self.model["file"], "plan": name, "kv_type": "f16", "seed": 1}
                extra = {"density": density, "plan_name": name, "length": length}
                kept = 1 if name == "dense" else density
                label = name if name == "dense" else f"{density}-{name}"
                write_json(folder / "measured" / f"passkey-{label}-{length}.json", {
                    "task": "passkey", **common, "keys": 1,
                    "rows": [{"length": length, "accuracy": mean, "n": 20, "depths": depths, "kv_bytes": 1,
                              "density": kept}], **extra})
                decode, prefill = 1 / (0.0022 + 6e-7 * length * kept), 1 / (0.00026 + 8.5e-8 * length * kept)
                write_json(folder / "measured" / f"speed-{label}-{length}.json", {
                    "rows": [{"test": "prefill", "n_tokens": length, "depth": 0, "tokens_per_s": prefill, "kv_bytes": 1,
                              "repeats": [prefill]},
                             {"test": "decode", "n_tokens": 32, "depth": length - 97, "tokens_per_s": decode,
                              "kv_bytes": 1, "repeats": [decode]}],
                    **common, "threads": 2, "isa": "avx512", **extra})


def main():
    parser = argparse.ArgumentParser(description="writes an invented run directory")
    parser.add_argument("folder")
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--heads", type=int, default=9)
    parser.add_argument("--kv-heads", type=int, default=3)
    parser.add_argument("--per-query-head", action="store_true")
    parser.add_argument("--lengths", default="1024,2048,4096")
    parser.add_argument("--measured", action="store_true")
    parser.add_argument("--unfinished", action="store_true")
    args = parser.parse_args()
    run = Run(args.layers, args.heads, args.kv_heads, args.per_query_head, [int(n) for n in args.lengths.split(",")])
    run.write(args.folder, args.measured, not args.unfinished)


if __name__ == "__main__":
    main()
