#!/usr/bin/env python3
"""Asks for a note hidden in a document of about 4,000 tokens, once under each plan, and shows what each run cost.

The document is the beginning of the GPL as Debian ships it, with a note put between two of its paragraphs, a third of the
way in; the model continues "... Question: ... Answer: ...". Every figure comes from `polyspan run --json`. Used by ./quickstart.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

DOCUMENT = "/usr/share/common-licenses/GPL-3"
DOCUMENT_CHARACTERS = 18700  # about 4,000 tokens of SmolLM2, cut at the paragraph before
NOTE_AT = 1 / 3
KEY = "48213"
NOTE = f"The pass key is {KEY}. Remember it. {KEY} is the pass key."
QUESTION = "What is the pass key?"


def prompt_text(path):
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        sys.exit(f"answer_demo: cannot read the document {path}: {error.strerror}")
    text = text[:DOCUMENT_CHARACTERS]
    text = text[: text.rfind("\n\n") + 1] or text
    at = text.find("\n\n", int(NOTE_AT * len(text))) + 2
    return f"{text[:at]}{NOTE}\n\n{text[at:]}\n\nQuestion: {QUESTION}\nAnswer: The pass key is "


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
    parser.add_argument("--plans", nargs="+", default=["dense", "uniform:0.25"])
    parser.add_argument("--document", default=DOCUMENT)
    parser.add_argument("--tokens", type=int, default=8)
    args = parser.parse_args()

    results = []
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as prompt:
        prompt.write(prompt_text(args.document))
        prompt.flush()
        print(f"document: the beginning of {args.document}, a third of the way in the note: {NOTE}")
        print(f"question: {QUESTION}")
        for plan in args.plans:
            command = [args.polyspan, "run", args.model, "-f", prompt.name, "-n", str(args.tokens), "--temp", "0"]
            command += ["--plan", plan, "--json"]
            print("\n$ " + " ".join(command), flush=True)
            result, seconds = run(command)
            answer = result["text"].strip().split("\n")[0]
            print(f"  The pass key is {answer}")
            results.append((plan, result, seconds, "yes" if KEY in answer else "no"))

    rows = [("", *(pathlib.Path(plan).parent.parent.name + " " + pathlib.Path(plan).stem if plan.endswith(".json") else plan for plan, *_ in results))]
    rows.append(("answered rightly", *(right for *_, right in results)))
    for label, key, form in (
        ("prompt, tokens", "prompt_tokens", "{:,.0f}"),
        ("reading the prompt, tokens/s", "prefill_tokens_per_s", "{:,.0f}"),
        ("writing the answer, tokens/s", "decode_tokens_per_s", "{:,.1f}"),
    ):
        rows.append((label, *(form.format(result[key]) for _, result, *_ in results)))
    rows.append(("cache memory, MB", *(f"{result['kv_bytes'] / 1e6:,.1f}" for _, result, *_ in results)))
    rows.append(("whole run, s", *(f"{seconds:.2f}" for _, _, seconds, _ in results)))
    print()
    for row in rows:
        print(f"  {row[0]:<30}" + "".join(f"{cell:>18}" for cell in row[1:]))


if __name__ == "__main__":
    main()
