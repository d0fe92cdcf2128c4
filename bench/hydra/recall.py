#!/usr/bin/env python3
"""The recall task of recall-toy.toml for the Hydra toy, for it without one part or the other, and for a transformer of
about its parameters: same data, steps, batch and rate; the same seeds for each. Prints a Markdown table.

    python3 bench/hydra/recall.py -o runs/recall

Two trainings run at a time, with one thread each. What a folder holds is not trained again, and what was begun goes on
from its checkpoint: the script can be stopped and started.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import threading

TASK = ["--task", "recall", "--pairs", "4", "--gap", "40", "--length", "96"]  # as recall-toy.toml says
N_TRAIN, N_VALID = 40000, 500

COMMON = """
[data]
train = "../train.tokens"
valid = "../valid.tokens"

[optimizer]
weight_decay = 0.0
warmup_steps = 50

[run]
checkpoint_every = 250
log_every = 10
eval_every = 250
eval_sequences = 500
threads = 1

[[stage]]
name = "recall"
steps = {steps}
length = 96
batch = 16
lr = {lr}
"""

HYDRA = """architecture = "hydra"
seed = {seed}

[model]
d_model = 64
n_layers = 2
vocab_size = 260
chunk_len = 16
controller_rank = 8

[ssm]
enabled = {ssm}
head_dim = 32
d_state = 64

[attention]
every = {every}
n_heads = 2
window = 32
n_global = {n_global}

[moe]
every = 0

[workspace]
n_slots = 0
""" + COMMON

# d_ff makes it as large as the Hydra toy.
TRANSFORMER = """architecture = "transformer"
seed = {seed}

[model]
d_model = 64
n_layers = 2
n_heads = 2
d_ff = 144
vocab_size = 260
""" + COMMON

# Without the state space both blocks have attention: a block would be empty otherwise.
MODELS = {
    "hydra": ("Hydra toy", HYDRA, {"ssm": "true", "every": 2, "n_global": 16}),
    "no-global": ("no global tokens", HYDRA, {"ssm": "true", "every": 2, "n_global": 0}),
    "ssm-only": ("SSM only", HYDRA, {"ssm": "true", "every": 0, "n_global": 0}),
    "window-only": ("window only, in both blocks", HYDRA, {"ssm": "false", "every": 1, "n_global": 0}),
    "transformer": ("transformer", TRANSFORMER, {}),
}


def say(text):
    print(f"recall: {text}", file=sys.stderr, flush=True)


def write(path, text):
    beside = path.with_suffix(".tmp")
    beside.write_text(text)
    beside.rename(path)


class Bench:
    def __init__(self, args):
        self.args, self.processes, self.lock, self.stopped = args, {}, threading.Lock(), threading.Event()

    def call(self, *words):
        done = subprocess.run([self.args.polyspan, *map(str, words)], stdout=subprocess.PIPE)
        if done.returncode != 0:
            sys.exit(f"recall: exit status {done.returncode} from {shlex.join(map(str, words))}")
        return done.stdout

    def prepare(self):
        for name, n, seed in (("train", N_TRAIN, 1), ("valid", N_VALID, 2)):
            path = self.args.output / f"{name}.tokens"
            if not path.exists():
                self.call("prepare", *TASK, "--examples", n, "--seed", seed, "-o", path)

    def config(self, model, seed):
        _, template, values = MODELS[model]
        return template.format(seed=seed, steps=self.args.steps, lr=self.args.lr, **values)

    def train(self, model, seed):
        """The result of one training, as it stands in result.json."""
        name = f"{model}-{seed}"
        folder = self.args.output / name
        folder.mkdir(exist_ok=True)
        config, result, run = folder / "recall.toml", folder / "result.json", folder / "run"
        text = self.config(model, seed)
        if config.exists() and config.read_text() != text:
            sys.exit(f"recall: {folder} is of another configuration (steps, rate?): name another folder with -o")
        write(config, text)
        if result.exists():
            return json.loads(result.read_text())
        resume = ["--resume"] if (run / "checkpoint.safetensors").exists() else []
        with self.lock, open(folder / "train.log", "w") as log:
            if self.stopped.is_set():
                return None
            process = subprocess.Popen([self.args.polyspan, "train", config, "-o", run, *resume, "--json"],
                                       stdout=subprocess.PIPE, stderr=log, text=True)
            self.processes[name] = process
        out = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)  # its processor time, which subprocess does not give
        process.returncode = os.waitstatus_to_exitcode(status)
        with self.lock:
            del self.processes[name]
        if process.returncode != 0:
            if not self.stopped.is_set():
                say(f"{name}: exit status {process.returncode}; see {folder / 'train.log'}")
            return None
        document = json.loads(out)
        inspected = json.loads(self.call("inspect", config, "--json"))
        done = {"model": model, "seed": seed, "steps": document["steps"], "accuracy": document["eval_accuracy"],
                "loss": document["eval_loss"], "parameters": inspected["parameters"],
                "processor_s": usage.ru_utime + usage.ru_stime, "resumed": bool(resume)}
        write(result, json.dumps(done, indent=1) + "\n")
        return done

    def position(self, name):
        try:
            lines = (self.args.output / name / "run" / "metrics.jsonl").read_text().splitlines()
            return next((json.loads(line)["step"] for line in reversed(lines) if '"type":"step"' in line), 0)
        except (OSError, ValueError):
            return 0

    def run(self):
        jobs = [(model, seed) for seed in range(1, self.args.seeds + 1) for model in self.args.models]
        results = {}
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            pending = {pool.submit(self.train, *job): job for job in jobs}
            try:
                while pending:
                    done, _ = concurrent.futures.wait(pending, timeout=20,
                                                      return_when=concurrent.futures.FIRST_COMPLETED)
                    for future in done:
                        job = pending.pop(future)
                        results[job] = future.result()
                        if results[job]:
                            say(f"{job[0]}-{job[1]}: accuracy {results[job]['accuracy']:.3f}")
                    with self.lock:
                        running = sorted(self.processes)
                    at = ", ".join(f"{name} at step {self.position(name)}" for name in running)
                    say(f"{len(results)} of {len(jobs)} done{'; ' + at if at else ''}")
            except BaseException:
                self.stopped.set()
                for future in pending:
                    future.cancel()
                with self.lock:
                    for process in self.processes.values():
                        process.terminate()
                raise
        if not all(results.values()):
            sys.exit("recall: not all trainings ended well; run it again to go on")
        return results


def table(args, results):
    seeds = range(1, args.seeds + 1)
    print(f"| model | parameters | steps | accuracy, mean | seeds {', '.join(map(str, seeds))} | processor time a run |")
    print("|---|---|---|---|---|---|")
    for model in args.models:
        rows = [results[model, seed] for seed in seeds]
        each = [row["accuracy"] for row in rows]
        # Of a training that went on after a stop only the last call is known.
        whole = [row["processor_s"] for row in rows if not row["resumed"]]
        time = f"{sum(whole) / len(whole):.0f} s" if whole else "unknown"
        print(f"| {MODELS[model][0]} | {rows[0]['parameters']:,} | {rows[0]['steps']:,} | {sum(each) / len(each):.3f} | "
              f"{', '.join(f'{accuracy:.3f}' for accuracy in each)} | {time} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True, help="folder for data, runs and results")
    parser.add_argument("--polyspan", default="build/release/bin/polyspan")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lr", type=float, default=0.005)
    parser.add_argument("--models", type=lambda text: text.split(","), default=list(MODELS), help="comma separated")
    args = parser.parse_args()
    for model in args.models:
        if model not in MODELS:
            parser.error(f"model {model} is not known; there are {', '.join(MODELS)}")
    args.output.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("recall: stopped"))  # and the trainings with it
    bench = Bench(args)
    bench.prepare()
    table(args, bench.run())


if __name__ == "__main__":
    main()
