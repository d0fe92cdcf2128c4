#!/usr/bin/env python3
"""Whether a model says the same on the GPU as on the CPU: greedy text of 20 prompts, and perplexity.

usage: gpu_agree.py POLYSPAN MODEL TEXT [-o FILE.json]

Reported: how many greedy answers are equal, how many tokens come before the first difference of each, and the gap there: by
how much (natural logarithm) the CPU takes its own token for more likely than the GPU's, and the GPU its own than the CPU's. Small
gaps are near-ties. Perplexity must agree within 0.5%.
"""

import argparse
import json
import subprocess
import sys

PROMPTS = [
    "Name three rivers.", "What is the capital of France?", "Write a short poem about the sea.", "Explain how a bicycle stays upright.",
    "Count from one to twenty.", "What is 12 times 12?", "Tell me about the moon.", "Who wrote Hamlet?", "Give me a recipe for pancakes.",
    "What does photosynthesis do?", "List the planets of the solar system.", "Translate 'good morning' to Spanish.",
    "Why is the sky blue?", "Write a sentence with the word 'lantern'.", "What is a prime number?", "Describe a forest in winter.",
    "How do vaccines work?", "What is the largest animal?", "Explain gravity to a child.", "Suggest a name for a cat.",
]


def polyspan(binary, *arguments):
    done = subprocess.run([binary, *arguments, "--json"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"gpu_agree: {binary} {' '.join(arguments)}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def gap(answer, at, other):
    """How much more likely than the token `other` the answer's own token at `at` was to its device; None: not among the told."""
    entry = answer["logprobs"][at]
    return next((entry["logprob"] - likely["logprob"] for likely in entry["top"] if likely["token"] == other), None)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("polyspan")
    parser.add_argument("model")
    parser.add_argument("text", help="running text for perplexity")
    parser.add_argument("-n", type=int, default=64, help="tokens of each answer")
    parser.add_argument("-o", "--output")
    args = parser.parse_args()
    result = {"model": args.model, "answers": [], "perplexity": {}, "decode_tokens_per_s": {}}
    equal_answers = equal_tokens = tokens = 0
    for prompt in PROMPTS:
        answers = {}
        for device in ("cpu", "cuda"):
            answers[device] = polyspan(args.polyspan, "run", args.model, "--chat", "-p", prompt, "-n", str(args.n), "--temp", "0",
                                       "--repeat-penalty", "1", "--logprobs", "20", "--device", device)
        cpu, cuda = (answers[device]["tokens"] for device in ("cpu", "cuda"))
        same = next((i for i, (a, b) in enumerate(zip(cpu, cuda)) if a != b), min(len(cpu), len(cuda)))
        equal_answers += cpu == cuda
        equal_tokens += same
        tokens += max(len(cpu), len(cuda))
        entry = {"prompt": prompt, "equal_tokens": same, "tokens": len(cpu), "cpu": answers["cpu"]["text"], "cuda": answers["cuda"]["text"]}
        if same < min(len(cpu), len(cuda)):
            entry["gaps"] = [gap(answers["cpu"], same, cuda[same]), gap(answers["cuda"], same, cpu[same])]
        result["answers"].append(entry)
    for device in ("cpu", "cuda"):
        rows = polyspan(args.polyspan, "eval", args.model, "--task", "ppl", "--text", args.text, "--ctx", "2048", "--windows", "4", "--device", device)["rows"]
        result["perplexity"][device] = rows[0]["perplexity"]
    ratio = result["perplexity"]["cuda"] / result["perplexity"]["cpu"]
    print(f"greedy: {equal_answers} of {len(PROMPTS)} answers equal, {equal_tokens} of {tokens} tokens before the first difference")
    pairs = [entry["gaps"] for entry in result["answers"] if "gaps" in entry]
    gaps = sorted(max(pair) for pair in pairs if None not in pair)
    print("gaps at the first differences (the larger of both devices'): " + ", ".join(f"{g:.3f}" for g in gaps)
          + f"; {len(pairs) - len(gaps)} beyond the 20 most likely tokens")  # fmt: skip
    print(f"perplexity: cpu {result['perplexity']['cpu']:.4f}, cuda {result['perplexity']['cuda']:.4f}: {100 * (ratio - 1):+.3f}%")
    for plan in ("dense", "uniform:0.25"):
        rows = polyspan(args.polyspan, "bench", args.model, "--prompt", "512,7680", "--depth", "0,7680", "--plan", plan, "--device", "cuda")["rows"]
        result["speed " + plan] = rows
        for row in rows:
            print(f"{plan}: {row['test']} at depth {row['depth']}: {row['tokens_per_s']:.0f} tokens/s of {row['n_tokens']} tokens")
    if args.output:
        with open(args.output, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)
    return 0 if abs(ratio - 1) < 0.005 else 1


if __name__ == "__main__":
    sys.exit(main())
