#!/usr/bin/env python3
"""The trained claims of docs/results/hydra.md, one name each: data is made, every model is trained with every seed, the runs
are scored on held-out files, and a Markdown table is printed.

    python3 bench/hydra/claims.py recall -o runs/claims              # two trainings at a time, a thread each
    python3 bench/hydra/claims.py facts language --device cuda --jobs 4 -o runs/claims

What a folder holds is not trained again, and what was begun goes on from its checkpoint: the script can be stopped and
started. Where --deadline ends it, the table shows what was finished.
"""

import argparse
import concurrent.futures
import copy
import json
import os
import pathlib
import random
import shlex
import signal
import subprocess
import sys
import threading
import time


def changed(base, **tables):
    out = copy.deepcopy(base)
    for name, value in tables.items():
        if isinstance(value, dict):
            out.setdefault(name, {}).update(value)
        else:
            out[name] = value
    return out


def transformer(**sizes):
    return {"architecture": "transformer", "model": {**sizes, "vocab_size": 260}}


# A tenth of a million parameters: associative recall in 1,500 steps (recall-toy.toml).
TINY = {
    "architecture": "hydra",
    "model": {"d_model": 64, "n_layers": 2, "vocab_size": 260, "chunk_len": 16, "controller_rank": 8},
    "ssm": {"head_dim": 32, "d_state": 64},
    "attention": {"every": 2, "n_heads": 2, "window": 32, "n_global": 16},
    "moe": {"every": 0},
    "workspace": {"n_slots": 0},
}
TINY_TRANSFORMER = transformer(d_model=64, n_layers=2, n_heads=2, d_ff=144)  # d_ff makes it as large
SLOWER = {"stage": {"lr": 0.001}}  # the rates of the claims were chosen for Hydra
TINY_MODELS = {
    "Hydra": TINY,
    "no global tokens": changed(TINY, attention={"n_global": 0}),
    "diagonal SSM": {**TINY, "ssm": {"kind": "diagonal"}},
    "SSM only": changed(TINY, attention={"every": 0}),
    "diagonal SSM only": changed({**TINY, "ssm": {"kind": "diagonal"}}, attention={"every": 0}),
    # Without the state space both blocks have attention: a block would be empty otherwise.
    "no SSM": changed(TINY, ssm={"enabled": False}, attention={"every": 1}),
    "window only": changed(TINY, ssm={"enabled": False}, attention={"every": 1, "n_global": 0}),
    "transformer": TINY_TRANSFORMER,
    "transformer, rate 0.001": {**TINY_TRANSFORMER, **SLOWER},
}
SLOTS = {"n_slots": 8, "d_slot": 32, "rank": 32}
FAR = changed(TINY, workspace=SLOTS)
SMALL = changed(TINY, model={"d_model": 128, "n_layers": 4}, attention={"n_heads": 4, "window": 64})
LANGUAGE = {
    "architecture": "hydra",
    "model": {"d_model": 256, "n_layers": 6, "vocab_size": 260, "chunk_len": 64, "controller_rank": 16},
    "ssm": {"head_dim": 64, "d_state": 64},
    "attention": {"every": 3, "n_heads": 4, "window": 128, "n_global": 64},
    "moe": {"every": 2, "n_experts": 8, "n_active": 2, "d_expert": 256},
    "workspace": {"n_slots": 16, "d_slot": 64, "rank": 64},
    "pkm": {"layers": [3], "n_sub_keys": 32, "n_heads": 4, "top": 8, "d_query": 64, "d_value": 128},
}
OFF = {"every": 0}
DENSE = {"n_experts": 2, "n_active": 2, "d_expert": 256}  # as many active parameters as 2 of 8
SMALL_TRANSFORMER = transformer(d_model=128, n_layers=4, n_heads=4, d_ff=272)


def experts(n, n_active):
    return changed(SMALL, moe={"every": 2, "n_experts": n, "n_active": n_active, "d_expert": 128})


def task(name, examples, seed, **sizes):
    words = ["--task", name, "--examples", str(examples), "--seed", str(seed)]
    for key, value in sizes.items():
        words += [f"--{key}", str(value)]
    return words


RECALL = {"pairs": 4, "gap": 40, "length": 96}
CHAIN = {"pairs": 3, "hops": 5, "length": 52}
CHAIN_TRAIN = {**CHAIN, "length": 97, "questions": 10}
PREMISE = 1000
CLAIMS = {
    "recall": {
        "what": "associative recall: 4 pairs, 40 tokens of filler, a window of 32; held-out accuracy (chance 0.04; 0.25 by "
                "guessing among the example's values)",
        "data": {"train": task("recall", 40000, 1, **RECALL), "valid": task("recall", 500, 2, **RECALL)},
        "models": TINY_MODELS,
        "stage": {"steps": 1500, "length": 96, "batch": 16, "lr": 0.005},
    },
    "copy": {
        "what": "16 random letters, 40 tokens of filler, then the letters again; held-out accuracy a letter (chance 0.04)",
        "data": {"train": task("copy", 40000, 1, pairs=16, gap=40, length=96),
                 "valid": task("copy", 500, 2, pairs=16, gap=40, length=96)},
        "models": TINY_MODELS,
        "stage": {"steps": 1500, "length": 96, "batch": 16, "lr": 0.005},
    },
    "passkey": {
        "what": "four digits somewhere in noise, asked for at the end (a window of 32 in one block); trained at 256 tokens, scored on "
                "1,000 held-out examples there and at 1,024, 200 at 4,096 and 16,384; accuracy a digit (chance 0.1)",
        "data": {"train": task("passkey", 40000, 1, pairs=4, length=256),
                 "valid": task("passkey", 500, 2, pairs=4, length=256),
                 **{str(n): task("passkey", 1000 if n < 4096 else 200, 10 + n, pairs=4, length=n) for n in (256, 1024, 4096, 16384)}},
        "models": TINY_MODELS,
        "stage": {"steps": 1500, "length": 256, "batch": 16, "lr": 0.005},
        "scores": ["256", "1024", "4096", "16384"],
    },
    "phonebook": {
        "what": "8 names of three letters, each with a number of four digits, 40 tokens of filler, then 4 of them are asked for; held-out "
                "accuracy a digit (chance 0.1)",
        "data": {"train": task("phonebook", 40000, 1, pairs=8, gap=40, questions=4, length=148),
                 "valid": task("phonebook", 500, 2, pairs=8, gap=40, questions=4, length=148)},
        "models": TINY_MODELS,
        "stage": {"steps": 3000, "length": 148, "batch": 16, "lr": 0.005},
    },
    "chain": {
        "what": "chains of 5 facts, 3 of them shuffled together, asked for the letter 1 to 5 steps on; trained on ten questions an "
                "example, scored on 1,000 held-out examples of one question for each number of steps (chance 0.06; 0.17 for the end of a chain by rarity)",
        "data": {"train": task("chain", 100000, 1, asked=0, **CHAIN_TRAIN),
                 "valid": task("chain", 500, 2, asked=0, **CHAIN_TRAIN),
                 **{f"{n} steps": task("chain", 1000, 10 + n, asked=n, **CHAIN) for n in range(1, 6)}},
        "models": {"Hydra": SMALL, "SSM only": changed(SMALL, attention=OFF),
                   "transformer": SMALL_TRANSFORMER, "transformer, rate 0.001": {**SMALL_TRANSFORMER, **SLOWER}},
        "stage": {"steps": 3000, "length": 97, "batch": 32, "lr": 0.003},
        "scores": [f"{n} steps" for n in range(1, 6)],
    },
    "premise": {
        "what": "4 pairs told 1,000 tokens before they are asked for (a window of 32 in one block); trained at 1K, scored on "
                "1,000 held-out examples (200 from 4K on) there and further away; chance 0.04",
        "data": {"train": task("recall", 20000, 1, pairs=4, gap=PREMISE, length=PREMISE + 56),
                 "valid": task("recall", 64, 2, pairs=4, gap=PREMISE, length=PREMISE + 56),
                 **{f"{n}K": task("recall", 1000 if n < 4 else 200, 10 + n, pairs=4, gap=1000 * n, length=1000 * n + 56)
                    for n in (1, 2, 4, 8, 16)}},
        "models": {"Hydra": FAR, "no global tokens": changed(FAR, attention={"n_global": 0}),
                   "no workspace": TINY, "neither": changed(TINY, attention={"n_global": 0}),
                   "neither, no SSM": changed(TINY, ssm={"enabled": False}, attention={"every": 1, "n_global": 0}),
                   "transformer": TINY_TRANSFORMER, "transformer, rate 0.001": {**TINY_TRANSFORMER, **SLOWER}},
        "stage": {"steps": 1500, "length": PREMISE + 56, "batch": 16, "lr": 0.005},
        "scores": ["1K", "2K", "4K", "8K", "16K"],
    },
    "facts": {
        "what": "closed book: 16,384 facts (a three-letter key, a letter), each seen about 95 times, asked without context; "
                "accuracy on the facts that were trained (chance 0.04)",
        "data": {"train": task("facts", 100000, 1, pairs=16384, length=95),
                 "valid": task("facts", 500, 2, pairs=16384, length=95)},
        "models": {"no memory": TINY,
                   "memory of 1,024 values": changed(TINY, pkm={"layers": [1], "n_sub_keys": 32, "n_heads": 4, "top": 8,
                                                                "d_query": 32, "d_value": 64}),
                   "memory of 4,096 values": changed(TINY, pkm={"layers": [1], "n_sub_keys": 64, "n_heads": 4, "top": 8,
                                                                "d_query": 32, "d_value": 64}),
                   # As many parameters as with the memories, in wider blocks.
                   "no memory, 186 thousand": changed(TINY, model={"d_model": 88}, ssm={"d_inner": 192}),
                   "no memory, 391 thousand": changed(TINY, model={"d_model": 136}, ssm={"d_inner": 288}, attention={"n_heads": 4}),
                   "transformer": TINY_TRANSFORMER, "transformer, rate 0.001": {**TINY_TRANSFORMER, **SLOWER}},
        "stage": {"steps": 3000, "length": 95, "batch": 32, "lr": 0.005},
    },
    "sums": {
        "what": "conditional compute: sum, difference, larger and smaller of two numbers of four digits, problems hardly ever seen "
                "before (4e8 there are, half a million are trained on); held-out accuracy a digit (chance 0.1)",
        "data": {"train": task("sums", 100000, 1, pairs=4, length=95), "valid": task("sums", 1000, 2, pairs=4, length=95)},
        "models": {"2 of 8 experts": experts(8, 2), "2 of 2, equal active": experts(2, 2), "8 of 8, equal total": experts(8, 8),
                   "no experts": SMALL, "transformer, equal active": transformer(d_model=128, n_layers=4, n_heads=4, d_ff=352)},
        "stage": {"steps": 2500, "length": 95, "batch": 32, "lr": 0.003},
    },
    "language": {
        "what": "bytes of WikiText-2: trained on its validation split (1.1 MB, all that the machine had), scored on the test "
                "split; nats a byte",
        "text": {"train": ["wikitext-2/valid.txt"], "valid": ["wikitext-2/test.txt"]},
        "models": {"Hydra, 2 of 8 experts": LANGUAGE, "Hydra, 2 of 2 experts": changed(LANGUAGE, moe=DENSE),
                   "no memory, no workspace": changed(LANGUAGE, workspace={"n_slots": 0}, pkm={"layers": []}),
                   "SSM only": changed(LANGUAGE, attention=OFF, moe=OFF, workspace={"n_slots": 0}, pkm={"layers": []}),
                   "transformer, same total": transformer(d_model=256, n_layers=10, n_heads=4, d_ff=736),
                   "transformer, same active": transformer(d_model=256, n_layers=6, n_heads=4, d_ff=736)},
        "stage": {"steps": 600, "length": 512, "batch": 16, "lr": 0.002},
        "optimizer": {"weight_decay": 0.1},
        "measure": "loss",
    },
    "specialise": {
        "what": "which experts serve which domain: prose, C++ sources and tables of numbers mixed in training; mutual information "
                "between held-out domain and expert, bits (at most 1.58)",
        "text": {"train": ["domains/prose.train.txt", "domains/code.train.txt", "domains/tables.train.txt"],
                 **{name: [f"domains/{name}.valid.txt"] for name in ("prose", "code", "tables")}},
        "valid": "prose",
        "models": {"Hydra, 2 of 8 experts": LANGUAGE},
        "stage": {"steps": 600, "length": 512, "batch": 16, "lr": 0.002},
        "optimizer": {"weight_decay": 0.1},
        "scores": ["prose", "code", "tables"],
        "measure": "loss",
    },
}


def make_domains(texts):
    """domains/NAME.train.txt and .valid.txt, about 0.9 and 0.1 MB each: WikiText-2, the C++ of this repository, tables."""
    root, folder = pathlib.Path(__file__).resolve().parents[2], texts / "domains"
    if folder.exists():
        return
    folder.mkdir()
    draw = random.Random(1)
    rows = (",".join(str(draw.randrange(10 ** draw.randrange(1, 7))) for _ in range(8)) for _ in range(40000))
    sources = {"prose": (texts / "wikitext-2/valid.txt").read_bytes(),
               "code": b"".join(path.read_bytes() for path in sorted((root / "src").rglob("*.cpp"))),
               "tables": "\n".join(rows).encode()}
    for name, data in sources.items():
        (folder / f"{name}.train.txt").write_bytes(data[:900_000])
        (folder / f"{name}.valid.txt").write_bytes(data[900_000:1_000_000])


def say(text):
    print(f"claims: {text}", file=sys.stderr, flush=True)


def write(path, text):
    beside = path.with_suffix(".tmp")
    beside.write_text(text)
    beside.rename(path)


def toml(tables):
    def value(v):
        return json.dumps(v)  # numbers, strings, lists and booleans are written alike in both

    lines = [f"{key} = {value(v)}" for key, v in tables.items() if not isinstance(v, (dict, list))]
    for name, table in tables.items():
        if isinstance(table, dict):
            lines += ["", f"[{name}]"] + [f"{key} = {value(v)}" for key, v in table.items()]
    for name, entries in tables.items():
        if isinstance(entries, list):
            for table in entries:
                lines += ["", f"[[{name}]]"] + [f"{key} = {value(v)}" for key, v in table.items()]
    return "\n".join(lines) + "\n"


class Bench:
    def __init__(self, args):
        self.args, self.processes, self.lock, self.stopped = args, {}, threading.Lock(), threading.Event()
        self.score_program = pathlib.Path(args.polyspan).parent / "polyspan-hydra-bench"

    def call(self, name, words, log):
        """Standard output of a program and the processor time it took; None where it was stopped or failed."""
        with self.lock:
            if self.stopped.is_set():
                return None
            with open(log, "a") as errors:
                process = subprocess.Popen([str(word) for word in words], stdout=subprocess.PIPE, stderr=errors, text=True)
            self.processes[name] = process
        out = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)  # its processor time, which subprocess does not give
        process.returncode = os.waitstatus_to_exitcode(status)
        with self.lock:
            del self.processes[name]
        if process.returncode != 0:
            if not self.stopped.is_set():
                say(f"{name}: exit status {process.returncode} from {shlex.join(map(str, words))}; see {log}")
            return None
        return out, usage.ru_utime + usage.ru_stime

    def prepare(self, name):
        claim, folder = CLAIMS[name], self.args.output / name
        folder.mkdir(parents=True, exist_ok=True)
        if name == "specialise":
            make_domains(self.args.texts)
        for what in ("data", "text"):
            for file, words in claim.get(what, {}).items():
                path = folder / f"{file}.tokens"
                if what == "text":
                    words = [self.args.texts / text for text in words]
                if not path.exists() and self.call(f"{name}: {file}", [self.args.polyspan, "prepare", *words, "-o", path],
                                                   folder / "prepare.log") is None:
                    sys.exit(f"claims: the data of {name} could not be made")

    def config(self, name, model, seed):
        claim = CLAIMS[name]
        of_model = dict(claim["models"][model])
        stage = {**claim["stage"], **of_model.pop("stage", {})}
        return toml({
            "seed": seed, **of_model,
            "data": {"train": "../train.tokens", "valid": f"../{claim.get('valid', 'valid')}.tokens"},
            "optimizer": {"weight_decay": 0.0, "warmup_steps": 50, **claim.get("optimizer", {})},
            "run": {"checkpoint_every": 250, "log_every": 10, "eval_every": 250, "eval_sequences": 500, "threads": 1,
                    "precision": self.args.precision},
            "stage": [{"name": name, **stage, "steps": int(stage["steps"] * self.args.share_of_steps)}],
        })

    def train(self, name, model, seed):
        """The result of one training, as it stands in result.json."""
        slug = f"{model}-{seed}".replace(" ", "-").replace(",", "").lower()
        folder = self.args.output / name / slug
        folder.mkdir(exist_ok=True)
        config, result, run = folder / "config.toml", folder / "result.json", folder / "run"
        text = self.config(name, model, seed)
        if config.exists() and config.read_text() != text:
            sys.exit(f"claims: {folder} is of another configuration: name another folder with -o")
        write(config, text)
        if result.exists():
            return json.loads(result.read_text())
        resume = ["--resume"] if (run / "checkpoint.safetensors").exists() else []
        begin = time.monotonic()
        trained = self.call(f"{name}/{slug}", [self.args.polyspan, "train", config, "-o", run, *resume, "--json", "--device",
                                               self.args.device], folder / "train.log")
        if trained is None:
            return None
        document = json.loads(trained[0])
        done = {"claim": name, "model": model, "seed": seed, "steps": document["steps"], "loss": document["eval_loss"],
                "accuracy": document["eval_accuracy"], "parameters": document["parameters"], "device": self.args.device,
                "precision": self.args.precision, "tokens_per_s": document["tokens_per_s"], "processor_s": trained[1],
                "wall_s": time.monotonic() - begin, "resumed": bool(resume), "scores": {}}
        files = CLAIMS[name].get("scores", [])
        if files:
            scored = self.call(f"{name}/{slug}: scores",
                               [self.score_program, "score", run, *[self.args.output / name / f"{f}.tokens" for f in files],
                                "--device", self.args.device, "--precision", self.args.precision, "--threads", "1",
                                "--sequences", "1000"], folder / "score.log")
            if scored is None:
                return None
            for line in scored[0].splitlines():
                row = json.loads(line)
                if row["test"] == "score":
                    done["scores"][pathlib.Path(row["file"]).stem] = {k: row[k] for k in ("loss", "accuracy", "sequences")}
                else:
                    done.setdefault("specialisation", {})[row["block"]] = row["mutual_information_bits"]
        write(result, json.dumps(done, indent=1) + "\n")
        return done

    def position(self, key):
        try:
            lines = (self.args.output / key / "run" / "metrics.jsonl").read_text().splitlines()
            return next((json.loads(line)["step"] for line in reversed(lines) if '"type":"step"' in line), 0)
        except (OSError, ValueError):
            return 0

    def stop(self):
        with self.lock:
            self.stopped.set()
            for process in self.processes.values():
                process.terminate()

    def run(self, jobs):
        """Results by job (claim, model, seed); begun in the order given."""
        results, begin, said = {}, time.monotonic(), 0.0
        with concurrent.futures.ThreadPoolExecutor(self.args.jobs) as pool:
            pending = {pool.submit(self.train, *job): job for job in jobs}
            try:
                while pending:
                    done, _ = concurrent.futures.wait(pending, timeout=2,
                                                      return_when=concurrent.futures.FIRST_COMPLETED)
                    for future in done:
                        job = pending.pop(future)
                        results[job] = future.result()
                        if results[job]:
                            say(f"{job}: accuracy {results[job]['accuracy']:.3f}, loss {results[job]['loss']:.3f}")
                    if time.monotonic() - begin > self.args.deadline and not self.stopped.is_set():
                        say("the deadline is over")
                        self.stop()
                    if time.monotonic() - said > 20:
                        said = time.monotonic()
                        with self.lock:
                            running = sorted(self.processes)
                        say(f"{len(results)} of {len(jobs)} done; " +
                            ", ".join(f"{key} at step {self.position(key)}" for key in running))
            except BaseException:
                self.stop()
                for future in pending:
                    future.cancel()
                raise
        return results


def table(args, name, results):
    claim = CLAIMS[name]
    measure, files = claim.get("measure", "accuracy"), claim.get("scores", [])
    print(f"\n{name}: {claim['what']}\n")
    print(f"| model | parameters | {' | '.join(files or [measure])} | seeds | steps | device, time a run |")
    print("|---" * (5 + len(files or [measure])) + "|")
    for model in claim["models"]:
        rows = [row for (of, which, _), row in sorted(results.items()) if of == name and which == model and row]
        if not rows:
            continue

        def cell(values):
            mean = f"{sum(values) / len(values):.3f}"
            return mean if len(values) == 1 else f"{mean} ({', '.join(f'{v:.3f}' for v in values)})"

        cells = [cell([row["scores"][f][measure] for row in rows]) for f in files] or [cell([row[measure] for row in rows])]
        whole = [row["wall_s"] for row in rows if not row["resumed"]]
        seconds = f"{sum(whole) / len(whole):.0f} s" if whole else "unknown"
        print(f"| {model} | {rows[0]['parameters']:,} | {' | '.join(cells)} | {len(rows)} | {rows[0]['steps']:,} | "
              f"{rows[0]['device']}, {seconds} |")
        for row in rows:
            if "specialisation" in row:
                bits = ", ".join(f"block {key.rsplit('.', 1)[1]}: {value:.3f}" for key, value in row["specialisation"].items())
                print(f"| seed {row['seed']}, bits | | {bits} |" + " |" * (2 + len(files)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("claims", nargs="+", choices=list(CLAIMS))
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True, help="folder for data, runs and results")
    parser.add_argument("--polyspan", default="build/release/bin/polyspan", help="with its other programs beside it")
    parser.add_argument("--texts", type=pathlib.Path, default=pathlib.Path("."), help="folder of wikitext-2/ and domains/")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="f32", choices=["f32", "bf16"])
    parser.add_argument("--models", type=lambda text: text.split(";"), default=[], help="by name, with ; between them")
    parser.add_argument("--share-of-steps", type=float, default=1.0, help="for a quick look")
    parser.add_argument("--order", default="claims", choices=["claims", "seeds"],
                        help="claim after claim, or the first seed of all before the second")
    parser.add_argument("--deadline", type=float, default=1e9, help="seconds after which it stops")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("claims: stopped"))  # and the trainings with it
    bench = Bench(args)
    for name in args.claims:
        bench.prepare(name)
    jobs = [(name, model, seed) for name in args.claims for seed in range(args.first_seed, args.first_seed + args.seeds)
            for model in CLAIMS[name]["models"] if not args.models or model in args.models]
    if args.order == "seeds":
        jobs.sort(key=lambda job: job[2])
    results = bench.run(jobs)
    for name in args.claims:
        table(args, name, results)
    if not all(results.values()):
        sys.exit("claims: not all trainings ended well; run it again to go on")


if __name__ == "__main__":
    main()
