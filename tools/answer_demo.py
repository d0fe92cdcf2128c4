#!/usr/bin/env python3
"""Asks one question about a document of about 4,000 tokens, dense and with a plan, and shows what each run cost.

The document is the beginning of the GPL as Debian ships it; the model continues "... Question: ... Answer:".
Every figure comes from `polyspan run --json`. Used by ./quickstart.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

DOCUMENT = "/usr/share/common-licenses/GPL-3"
DOCUMENT_CHARACTERS = 18900  # about 4,000 tokens of SmolLM2, cut at the paragraph before
QUESTION = "What is the name of this license?"


def prompt_text(path):
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        sys.exit(f"answer_demo: cannot read the document {path}: {error.strerror}")
    text = text[:DOCUMENT_CHARACTERS]
    text = text[: text.rfind("\n\n") + 1] or text
    return f"{text}\n\nQuestion: {QUESTION}\nAnswer:"


def run(command):
    start = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    seconds = time.monotonic() - start
    if done.returncode != 0:
        sys.exit(f"answer_demo: exit status {done.returncode} from: {' '.join(command)}")
    try:
        return json.loads(done.stdout), seconds
    except json.JSONDecodeError as error:
        sys.exit(f"answer_demo: no JSON ({error}) from: {' '.join(command)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--polyspan", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--plan", default="uniform:0.5")
    parser.add_argument("--document", default=DOCUMENT)
    parser.add_argument("--tokens", type=int, default=32)
    args = parser.parse_args()

    results = []
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as prompt:
        prompt.write(prompt_text(args.document))
        prompt.flush()
        print(f"document: {args.document}, its beginning\nquestion: {QUESTION}")
        for plan in ("dense", args.plan):
            command = [
                args.polyspan,
                "run",
                args.model,
                "-f",
                prompt.name,
                "-n",
                str(args.tokens),
                "--temp",
                "0",
                "--plan",
                plan,
                "--json",
            ]
            print("\n$ " + " ".join(command), flush=True)
            result, seconds = run(command)
            answer = result["text"].strip().split("\n")[0]
            print(f"  answer: {answer}")
            results.append((plan, result, seconds))

    rows = [("", *(plan for plan, _, _ in results))]
    for label, key, form in (
        ("prompt, tokens", "prompt_tokens", "{:,.0f}"),
        ("reading the prompt, tokens/s", "prefill_tokens_per_s", "{:,.0f}"),
        ("writing the answer, tokens/s", "decode_tokens_per_s", "{:,.1f}"),
    ):
        rows.append((label, *(form.format(result[key]) for _, result, _ in results)))
    rows.append(("cache memory, MB", *(f"{result['kv_bytes'] / 1e6:,.1f}" for _, result, _ in results)))
    rows.append(("whole run, s", *(f"{seconds:.2f}" for _, _, seconds in results)))
    print()
    for row in rows:
        print(f"  {row[0]:<30}" + "".join(f"{cell:>16}" for cell in row[1:]))


if __name__ == "__main__":
    main()
