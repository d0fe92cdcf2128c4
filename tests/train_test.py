"""Tests of `polyspan prepare`, `train`, `export` and of what they make, by the command line, on a configuration that
trains in seconds. Those that train are skipped where polyspan-train was not built.

usage: POLYSPAN_BIN=build/release/bin/polyspan python3 tests/train_test.py [CLASS.TEST]
"""

import json
import math
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import unittest

import cli_test
import report_test
import tiny_model

# Every part of the model; rows of 32 values, so that its matrices can be stored in blocks of 32.
CONFIG = """architecture = "hydra"
seed = 3

[model]
d_model = 32
n_layers = 2
vocab_size = 260
chunk_len = 16
controller_rank = 4

[ssm]
head_dim = 16
d_state = 16

[attention]
every = 2
n_heads = 2
window = 32
n_global = 8

[moe]
every = 2
n_experts = 4
d_expert = 32

[workspace]
n_slots = 4
d_slot = 32
rank = 32

[pkm]
layers = [1]
n_sub_keys = 8
n_heads = 2
top = 3
d_query = 32
d_value = 32

[data]
train = "train.tokens"
valid = "valid.tokens"

[optimizer]
warmup_steps = 5

[run]
threads = 1
log_every = 1
checkpoint_every = 20
eval_every = 50
eval_sequences = 8

[[stage]]
name = "begin"
steps = 60
length = 64
batch = 4
lr = 0.01
router_noise = 0.5
off = ["pkm"]

[[stage]]
name = "all"
steps = {steps}
length = 64
batch = 4
lr = {lr}
ramp = ["pkm"]
"""
STEPS = 60 + 120
# Of the perplexity; with four seeds it was off by 0.0004 and 0.0034 at most.
QUANTISED = (("q8_0", 0.002), ("q4_0", 0.02))


def sentences(seed, n):
    """Text with something to learn: a few words, each followed by one of two others."""
    generator = random.Random(seed)
    words = ["anna", "bert", "carl", "dora", "emil", "fritz", "greta", "hans"]
    out, at = [], 0
    for _ in range(n):
        at = (3 * at + generator.choice((1, 2))) % len(words)
        out.append(words[at] + (".\n" if generator.random() < 0.1 else " "))
    return "".join(out)


class TrainTest(cli_test.CliTest):
    @classmethod
    def setUpClass(cls):
        program = pathlib.Path(shutil.which(cli_test.BIN) or cli_test.BIN).resolve().parent / "polyspan-train"
        if not program.exists():
            raise unittest.SkipTest("polyspan-train was not built (it needs LibTorch)")
        super().setUpClass()
        for name, seed, n in (("train", 1, 4000), ("valid", 2, 1000)):
            text = cls.write(f"{name}.txt", sentences(seed, n))
            subprocess.run([cli_test.BIN, "prepare", text, "-o", str(cls.folder / f"{name}.tokens")], check=True,
                           stdout=subprocess.DEVNULL)

    @classmethod
    def config(cls, name="config.toml", steps=120, lr=0.01, **changes):
        """Writes a configuration; `changes` replaces the value of a key ("window") wherever it stands first."""
        text = CONFIG.format(steps=steps, lr=lr)
        for key, value in changes.items():
            text, n = re.subn(rf"^{key} = .*$", f"{key} = {value}", text, count=1, flags=re.M)
            assert n == 1, key
        return cls.write(name, text)

    def train(self, config, run, *args):
        done = self.call("train", config, "-o", self.folder / run, *args, seconds=200)
        self.assertEqual(done.returncode, 0, done.err)
        return done

    def check_refused(self, *args, status=1, mentions=()):
        """As check_error, but for its second: loading LibTorch takes longer on a slow machine."""
        with self.subTest(args=[str(arg)[-60:] for arg in args]):
            done = self.call(*args)
            self.assertEqual((done.returncode, done.out), (status, ""), done.err)
            self.assertEqual(len(done.err.splitlines()), 1, done.err)
            for word in mentions:
                self.assertIn(word.lower(), done.err.lower())

    def metrics(self, run, but=("tokens_per_s",)):
        """The lines of steps and evaluations, without what the clock decides."""
        lines = [json.loads(line) for line in (self.folder / run / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in line.items() if key not in but}
                for line in lines if line["type"] != "run"]


class Whole(TrainTest):
    """One run that nobody disturbs, which the tests below look at."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.run_folder = cls.folder / "whole"
        done = subprocess.run([cli_test.BIN, "train", cls.config(), "-o", str(cls.run_folder), "--json"], check=True,
                              stdout=subprocess.PIPE, timeout=200 * cli_test.TIME_FACTOR)
        cls.result = json.loads(done.stdout)

    def export(self, name, *args):
        path = self.folder / name
        done = self.call("export", self.run_folder, "-o", path, *args)
        self.assertEqual(done.returncode, 0, done.err)
        return path

    def perplexity(self, path, *more):
        document = self.call_json("eval", path, "--task", "ppl", "--text", self.folder / "valid.txt", "--ctx", "256",
                                  "--windows", "8", *more)
        return document["rows"][0]["perplexity"]

    def test_it_learns_and_says_so(self):
        lines = self.metrics("whole")
        steps = [line for line in lines if line["type"] == "step"]
        self.assertEqual([line["step"] for line in steps], list(range(1, STEPS + 1)))
        self.assertEqual([line["step"] for line in lines if line["type"] == "eval"], [50, 60, 100, 150, STEPS])
        self.assertEqual((self.result["steps"], self.result["loss"]), (STEPS, steps[-1]["loss"]))
        self.assertGreater(steps[0]["loss"], 5)  # 260 tokens alike: 5.56
        self.assertLess(self.result["eval_loss"], 0.5)  # 0.21 where the next word is all that is uncertain

    def test_killed_and_resumed_is_the_same_to_the_bit(self):
        config, metrics = self.config(), self.folder / "killed" / "metrics.jsonl"
        process = subprocess.Popen([cli_test.BIN, "train", config, "-o", str(self.folder / "killed")],
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 200 * cli_test.TIME_FACTOR
            while time.monotonic() < deadline and process.poll() is None:
                if metrics.exists() and metrics.read_text().count('"type":"step"') >= 70:
                    break
                time.sleep(0.01)
        finally:
            process.send_signal(signal.SIGKILL)
        self.assertEqual(process.wait(), -signal.SIGKILL, "it ended before it could be killed")
        n_before = len(self.metrics_so_far("killed"))
        self.assertLess(n_before, STEPS)
        self.train(config, "killed", "--resume")
        self.assertEqual(self.metrics("killed"), self.metrics("whole"))
        self.assertEqual((self.folder / "killed" / "checkpoint.safetensors").read_bytes(),
                         (self.run_folder / "checkpoint.safetensors").read_bytes())

    def metrics_so_far(self, run):
        """Of a run that was killed: its last line may be cut."""
        text = (self.folder / run / "metrics.jsonl").read_text()
        return [line for line in text.split("\n")[:-1] if '"type":"step"' in line]

    def test_export_runs(self):
        path = self.export("model.gguf")
        model, config = self.call_json("inspect", path), self.call_json("inspect", self.folder / "config.toml")
        self.assertEqual((model["architecture"], model["quantisation"], model["vocab_size"]), ("hydra", "F32", 260))
        self.assertEqual(model["parameters"], config["parameters"])
        done = self.call_json("run", path, "-p", "anna ", "-n", "24", "--temp", "0")
        self.assertEqual((done["prompt_tokens"], done["generated_tokens"]), (5, 24))
        alone = self.call_json("run", path, "-p", "anna ", "-n", "24", "--temp", "0", "-t", "1")
        self.assertEqual(done["text"], alone["text"])
        # Words of the text it learned: most of what it writes.
        known = set(sentences(1, 4000).replace(".", "").split())
        written = done["text"].replace(".", "").split()[:-1]  # the last may be cut
        self.assertGreater(sum(word in known for word in written), len(written) / 2, done["text"])

    def test_spans_of_its_heads(self):
        """compress on an exported model, and every command that takes the plan."""
        self.check_error("compress", self.export("narrow.gguf"), "-o", self.folder / "narrow", "--text",
                         self.folder / "valid.txt", mentions=["windows of 32", "64"])
        self.train(self.config("wide.toml", window=128), "wide", "--stop-after", "2")
        model, text, spans = self.folder / "wide.gguf", self.folder / "valid.txt", self.folder / "spans"
        self.assertEqual(self.call("export", self.folder / "wide", "-o", model).returncode, 0)
        done = self.call_json("compress", model, "-o", spans, "--text", text, "--kinds", "text", "--density", "0.75",
                              "--lengths", "256", "--extend", "0", "--samples", "1", "--validation-samples", "1")
        plan = spans / "plans" / "0.75.json"
        self.assertEqual(done["plans"][0]["file"], str(plan))
        whole, planned = (self.call_json("inspect", model, *more, "--heads", "--length", "4096")
                          for more in ((), ("--plan", plan)))
        self.assertEqual((whole["window"], whole["attention_blocks"]), (128, [1]))
        self.assertEqual(whole["spans"]["kv_heads"], [[128, 128]])
        self.assertLessEqual(planned["densities"][0]["density"], 0.75)
        kept = sum(planned["spans"]["kv_heads"][0])
        self.assertLess(kept, 256)
        # Keys and values of 16 floats; the scores of the longest window are kept once.
        saved = 2 * 16 * 4 * (256 - kept) + 4 * (128 - max(planned["spans"]["kv_heads"][0]))
        self.assertLessEqual(abs(whole["densities"][0]["kv_bytes"] - planned["densities"][0]["kv_bytes"] - saved), 256)
        self.assertEqual(self.call_json("inspect", plan, "--length", "77")["densities"][0]["density"],
                         planned["densities"][0]["density"])
        compared = self.call_json("eval", model, "--task", "ppl", "--text", text, "--ctx", "512", "--windows", "1",
                                  "--plan", plan, "--compare")
        self.assertNotEqual(compared["rows"][0]["perplexity"], compared["compare"]["dense"][0]["perplexity"])
        for command in (("run", "-p", sentences(5, 60), "-n", "8"), ("bench", "--depth", "300", "--gen", "4")):
            self.call_json(command[0], model, *command[1:], "--plan", plan)
        self.assertEqual(self.call("report", spans, "-o", self.folder / "spans.html").returncode, 0)

    def test_skipping_paths(self):
        path = self.export("skip.gguf")
        whole = self.perplexity(path)
        self.assertEqual(self.perplexity(path, "--skip-below", "0"), whole)
        self.assertGreater(self.perplexity(path, "--skip-below", "2"), 2 * whole)  # nothing but the memory is left
        self.check_error("run", path, "-p", "a", "--skip-below", "3", status=2, mentions=["--skip-below", "3"])

    def test_quantised_exports_are_near(self):
        exact = self.export("f32.gguf")
        whole, size = self.perplexity(exact), exact.stat().st_size
        # The engine's perplexity is of the same text as the trainer's held-out loss, cut otherwise.
        self.assertLess(abs(whole / math.exp(self.result["eval_loss"]) - 1), 0.05)
        for kind, bound in QUANTISED:
            with self.subTest(kind):
                path = self.export(f"{kind}.gguf", "--type", kind)
                self.assertIn(kind.upper(), self.call_json("inspect", path)["quantisation"])
                self.assertLess(path.stat().st_size, size)
                ratio = self.perplexity(path) / whole
                self.assertNotEqual(ratio, 1)  # it is quantised
                self.assertLess(abs(ratio - 1), bound, f"perplexity {whole} as it is, {ratio * whole} as {kind}")

    def test_report_of_the_run(self):
        out = self.folder / "page.html"
        done = self.call("report", self.run_folder, "-o", out)
        self.assertEqual((done.returncode, done.out), (0, ""), done.err)
        page = report_test.Page(out.read_text("utf-8"))
        self.assertEqual(page.problems, [])
        words = "".join(page.text)
        for part in (f"step {STEPS} of {STEPS}", "LibTorch", "Use of the experts", "Slots touched", "Memory values"):
            self.assertIn(part, words + str(page.attributes))

    def test_a_run_is_not_overwritten(self):
        before = (self.run_folder / "checkpoint.safetensors").read_bytes()
        self.check_refused("train", self.folder / "config.toml", "-o", self.run_folder, status=2,
                           mentions=["holds a run already", "--resume"])
        for changes, said in (({"d_model": 64}, "64"), ({"seed": 4}, "seed 4"), ({"steps": 121}, "121"),
                              ({"window": 48}, "48")):
            other = self.config("other.toml", **changes)
            self.check_refused("train", other, "-o", self.run_folder, "--resume",
                               mentions=["another configuration", said])
        self.assertEqual((self.run_folder / "checkpoint.safetensors").read_bytes(), before)

    def test_cut_checkpoints(self):
        folder = self.folder / "cut"
        shutil.copytree(self.run_folder, folder)
        checkpoint, out = folder / "checkpoint.safetensors", self.folder / "cut.gguf"
        whole = checkpoint.read_bytes()
        for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
            checkpoint.write_bytes(whole[:length])
            self.check_refused("train", self.folder / "config.toml", "-o", folder, "--resume",
                               mentions=["checkpoint.safetensors"])
            self.check_error("export", folder, "-o", out, mentions=["checkpoint.safetensors"])
            self.assertEqual(checkpoint.read_bytes(), whole[:length])
            self.assertFalse(out.exists())
        checkpoint.unlink()
        self.check_refused("train", self.folder / "config.toml", "-o", folder, "--resume", status=2,
                           mentions=["no checkpoint"])

    def test_export_refuses(self):
        out = self.folder / "none.gguf"
        self.check_error("export", self.run_folder, "-o", out, "--tokenizer", self.tiny,
                         mentions=["tokens of bytes", "tiny.gguf"])
        self.check_error("export", self.run_folder, "-o", out, "--type", "q5_9", status=2, mentions=["q5_9", "Q8_0"])
        self.check_error("export", self.run_folder, "-o", out, "--type", "q4_k", status=2, mentions=["Q4_K", "Q8_0"])
        self.check_error("export", self.folder / "missing", "-o", out, mentions=["missing"])
        self.check_error("export", self.run_folder, "-o", self.folder / "no" / "x.gguf", mentions=["x.gguf"])
        self.check_error("export", self.run_folder, status=2, mentions=["output"])
        self.assertFalse(out.exists())


class Processes(TrainTest):
    """Several processes that share the batches of a run: the losses of one, but for the order of sums."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.run_config = cls.config("shared.toml", steps=20)
        done = subprocess.run([cli_test.BIN, "train", cls.run_config, "-o", str(cls.folder / "two"), "--processes", "2",
                               "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              timeout=200 * cli_test.TIME_FACTOR)
        assert done.returncode == 0, done.stderr
        cls.result = json.loads(done.stdout)  # one of the two prints

    def losses(self, run):
        return [line["loss"] for line in self.metrics(run) if line["type"] == "step"]

    def test_two_are_one(self):
        self.train(self.run_config, "one")
        one, two = self.losses("one"), self.losses("two")
        self.assertEqual(len(one), 80)
        self.assertEqual(len(two), 80)
        for step, (a, b) in enumerate(zip(one, two), 1):
            self.assertAlmostEqual(a, b, delta=1e-4 * a, msg=f"step {step}")
        # The bound tells runs apart: each process by itself, on its own half, would be as far off as another seed.
        self.train(self.config("seed.toml", steps=20, seed=4), "seed")
        self.assertGreater(max(abs(a - b) / a for a, b in zip(one, self.losses("seed"))), 1e-3)

    def test_they_go_on_from_a_checkpoint(self):
        self.train(self.run_config, "stopped", "--processes", "2", "--stop-after", "30")
        self.train(self.run_config, "stopped", "--processes", "2", "--resume")
        for a, b in zip(self.losses("stopped"), self.losses("two")):
            self.assertAlmostEqual(a, b, delta=1e-4 * a)

    def test_batches_that_cannot_be_shared(self):
        self.check_refused("train", self.run_config, "-o", self.folder / "three", "--processes", "3",
                           mentions=["batches of 4", "3 processes"])

    def test_when_one_is_killed_all_end(self):
        config = self.config("long.toml", steps=20000)
        process = subprocess.Popen([cli_test.BIN, "train", config, "-o", str(self.folder / "long"), "--processes", "2"],
                                   stderr=subprocess.PIPE, text=True)
        try:
            children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
            deadline = time.monotonic() + 60 * cli_test.TIME_FACTOR
            workers = []
            while time.monotonic() < deadline and not (self.folder / "long" / "checkpoint.safetensors").exists():
                workers = [int(pid) for pid in children.read_text().split()]
                time.sleep(0.1)
            self.assertEqual(len(workers), 2)
            os.kill(workers[1], signal.SIGKILL)
            self.assertNotEqual(process.wait(60 * cli_test.TIME_FACTOR), 0)
            for pid in workers:
                self.assertFalse(pathlib.Path(f"/proc/{pid}").exists(), pid)
        finally:
            process.kill()
            process.communicate()


class Bench(TrainTest):
    def test_decode(self):
        program = pathlib.Path(shutil.which(cli_test.BIN) or cli_test.BIN).resolve().parent / "polyspan-hydra-bench"
        if not program.exists():
            self.skipTest("polyspan-hydra-bench was not built")
        wide = self.config("wide.toml", window=64)
        dense = self.write("dense.toml", 'architecture = "transformer"\n[model]\nd_model = 32\nn_layers = 2\nn_heads = 2\n')
        done = subprocess.run([program, "decode", wide, dense, "--lengths", "128,4096", "--gen", "20", "--reps", "1"],
                              check=True, stdout=subprocess.PIPE, timeout=60 * cli_test.TIME_FACTOR)
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        self.assertEqual([(row["config"], row["depth"]) for row in rows],
                         [("wide", 128), ("wide", 4096), ("dense", 128), ("dense", 4096)])
        for row in rows:
            self.assertGreater(row["tokens_per_s"], 0)
        self.assertEqual(rows[0]["state_bytes"], rows[1]["state_bytes"])
        # Keys and values of two heads of 16 floats in two layers, for the depth and what is decoded.
        self.assertEqual([row["state_bytes"] for row in rows[2:]], [2 * 2 * 2 * 16 * 4 * (n + 40) for n in (128, 4096)])


class Refused(TrainTest):
    def check_config(self, config, mentions, status=1):
        run = self.folder / "refused"
        self.check_refused("train", config, "-o", run, status=status, mentions=mentions)
        self.assertFalse((run / "checkpoint.safetensors").exists())

    def test_wrong_configurations(self):
        text = CONFIG.format(steps=1, lr=0.01)
        for key, wrong, nearest in (("d_model", "d_modle", "d_model"), ("window", "windows", "window"),
                                    ("[ssm]", "[smm]", "ssm"), ("log_every", "log_evry", "log_every")):
            path = self.write("wrong.toml", text.replace(key, wrong, 1))
            line = text[:text.index(key)].count("\n") + 1
            self.check_config(path, [f"wrong.toml:{line}", wrong.strip("[]"), f"did you mean {nearest}?"])
        for changes, mentions in (({"window": 40}, ["attention.window is 40", "multiple of chunk_len, 16"]),
                                  ({"head_dim": 12}, ["ssm.d_inner is 64", "ssm.head_dim, 12"]),
                                  ({"d_query": 31}, ["pkm.d_query is 31"]),
                                  ({"n_experts": 1}, ["moe.n_active is 2", "only 1"]),
                                  ({"vocab_size": 100}, ["train.tokens", "260", "vocab_size is 100"]),
                                  ({"d_model": '"x"'}, ["wrong.toml:5", "d_model", "whole number"]),
                                  ({"off": '["smm"]'}, ["smm", "did you mean ssm?"])):
            self.check_config(self.config("wrong.toml", **changes), mentions)
        self.check_config(self.write("wrong.toml", text.split("[[stage]]")[0]), ["wrong.toml", "[[stage]]"])
        self.check_config(self.write("wrong.toml", text + "\nx = ["), ["wrong.toml", "line"])
        self.check_config(self.folder / "no.toml", ["no.toml"])

    def test_wrong_options(self):
        config = self.config("good.toml")
        self.check_refused("train", config, status=2, mentions=["output"])
        self.check_refused("train", config, "-o", self.folder / "r", "--resme", status=2, mentions=["--resme"])
        self.check_refused("train", config, "-o", self.folder / "r", "--device", "tpu", status=2, mentions=["tpu"])
        self.check_refused("train", config, "-o", self.folder / "r", "--resume", status=2, mentions=["no checkpoint"])
        self.check_refused("train", config, "-o", self.write("file", "x"), mentions=["file"])

    def test_wrong_corpora(self):
        self.check_config(self.config("corpus.toml", train='"missing.tokens"'), ["missing.tokens"])
        self.check_config(self.config("corpus.toml", train='"train.txt"'), ["train.txt", "polyspan prepare"])
        text = self.write("short.txt", "too short")
        self.assertEqual(self.call("prepare", text, "-o", self.folder / "short.tokens").returncode, 0)
        self.check_config(self.config("corpus.toml", train='"short.tokens"'),
                          ["short.tokens", "too short", "10 tokens", "65"])
        self.check_config(self.config("corpus.toml", valid='"short.tokens"'), ["short.tokens", "too short"])
        whole = (self.folder / "train.tokens").read_bytes()
        for length in (0, 20, len(whole) - 1):
            self.write("cut.tokens", whole[:length])
            self.check_config(self.config("corpus.toml", train='"cut.tokens"'), ["cut.tokens"])
        done = self.call("prepare", "--task", "recall", "--pairs", "2", "--gap", "4", "--length", "32", "--examples",
                         "9", "-o", self.folder / "recall.tokens")
        self.assertEqual(done.returncode, 0, done.err)
        self.check_config(self.config("corpus.toml", train='"recall.tokens"'), ["examples of 32", "asks for 64"])

    def test_a_bad_step_keeps_the_last_good_checkpoint(self):
        config, run = self.config("bad.toml", lr=10), self.folder / "bad"
        self.check_refused("train", config, "-o", run, mentions=["training stopped at step", "last good checkpoint"])
        checkpoint = (run / "checkpoint.safetensors").read_bytes()
        done = self.call("export", run, "-o", self.folder / "bad.gguf")
        self.assertEqual(done.returncode, 0, done.err)
        answer = self.call_json("run", self.folder / "bad.gguf", "-p", "a", "-n", "4", "--ignore-eos")
        self.assertEqual(answer["generated_tokens"], 4)
        # The same happens again, and the checkpoint is still there.
        self.check_refused("train", config, "-o", run, "--resume", mentions=["training stopped at step"])
        self.assertEqual((run / "checkpoint.safetensors").read_bytes(), checkpoint)

    def test_too_little_memory_keeps_the_last_good_checkpoint(self):
        begin, end = CONFIG.format(steps=5, lr=0.01).rsplit("batch = 4", 1)
        config, run = self.write("wide.toml", begin + "batch = 200000" + end), self.folder / "wide"
        limit = 4 << 30  # a first tensor of such a batch has 1.5 GiB
        done = subprocess.run([cli_test.BIN, "train", config, "-o", run], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              text=True, timeout=200 * cli_test.TIME_FACTOR,
                              preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)))
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn("needs more memory than there is", done.stderr.splitlines()[-1])
        done = self.call("export", run, "-o", self.folder / "wide.gguf")
        self.assertEqual(done.returncode, 0, done.err)

    def test_rows_that_fill_no_block(self):
        config = self.config("narrow.toml", steps=1, d_model=48)
        self.train(config, "narrow", "--stop-after", "1")
        out = self.folder / "narrow.gguf"
        self.check_error("export", self.folder / "narrow", "-o", out, "--type", "q8_0",
                         mentions=["rows of 48", "32", "Q8_0"])
        self.assertFalse(out.exists())


class Tokenizers(TrainTest):
    def test_tokenizer_of_a_gguf_file(self):
        """Training on tokens of a model's tokenizer, and export with it, without it and with another."""
        for name in ("train", "valid"):
            done = self.call("prepare", self.folder / f"{name}.txt", "--tokenizer", self.tiny, "-o",
                             self.folder / f"{name}-tiny.tokens")
            self.assertEqual(done.returncode, 0, done.err)
        config = self.config("tiny.toml", steps=1, vocab_size=len(tiny_model.TOKENS), train='"train-tiny.tokens"',
                             valid='"valid-tiny.tokens"')
        mixed = self.config("mixed.toml", vocab_size=len(tiny_model.TOKENS), train='"train-tiny.tokens"')
        self.check_refused("train", mixed, "-o", self.folder / "mixed", mentions=["valid.tokens", "another tokenizer"])
        self.train(config, "tiny-run", "--stop-after", "2")
        run, out = self.folder / "tiny-run", self.folder / "out.gguf"
        self.check_error("export", run, "-o", out, status=2, mentions=["gpt2-", "--tokenizer"])
        # Another last token, which is no merge's.
        vocabulary = {"tokenizer__ggml__tokens": [*tiny_model.TOKENS[:-1], "anna"],
                      "tokenizer__ggml__merges": tiny_model.MERGES[:-1]}
        other = self.write("other.gguf", tiny_model.model_bytes(**vocabulary)[0])
        self.check_error("export", run, "-o", out, "--tokenizer", other,
                         mentions=["other.gguf", "trained on tokens of gpt2-"])
        self.assertFalse(out.exists())
        done = self.call("export", run, "-o", out, "--tokenizer", self.tiny)
        self.assertEqual(done.returncode, 0, done.err)
        self.assertEqual(self.call_json("run", out, "-p", "the", "-n", "2", "--ignore-eos")["prompt_tokens"], 1)


class Prepare(cli_test.CliTest):
    """These need no LibTorch."""

    def test_text_and_tasks(self):
        text = self.write("a.txt", "caf\u00e9")
        done = self.call_json("prepare", text, "-o", self.folder / "a.tokens")
        self.assertEqual((done["tokens"], done["vocab_size"], done["tokenizer"]), (6, 260, "bytes"))
        done = self.call_json("prepare", text, "--tokenizer", self.tiny, "-o", self.folder / "a.tokens")
        self.assertEqual(done["vocab_size"], len(tiny_model.TOKENS))
        self.assertTrue(done["tokenizer"].startswith("gpt2-"), done)
        made = {}
        for name, seed in (("b", 7), ("c", 7), ("d", 8)):
            path = self.folder / f"{name}.tokens"
            done = self.call_json("prepare", "--task", "chain", "--hops", "2", "--pairs", "2", "--length", "40",
                                  "--examples", "5", "--seed", seed, "-o", path)
            self.assertEqual((done["example_length"], done["tokens"]), (41, 5 * 41))
            made[name] = path.read_bytes()
        self.assertEqual(made["b"], made["c"])
        self.assertNotEqual(made["b"], made["d"])

    def test_refused(self):
        out = self.folder / "none.tokens"
        text = self.write("text.txt", "some text")
        for args, status, mentions in (
            ([], 2, ["text files or --task"]),
            ([text, "--task", "copy"], 2, ["text files or --task"]),
            ([self.folder / "missing.txt"], 1, ["missing.txt"]),
            ([self.write("empty.txt", "")], 1, ["empty.txt", "no text"]),
            ([text, "--tokenizer", self.folder / "no.gguf"], 1, ["no.gguf"]),
            ([text, "--tokenizer", text], 1, ["text.txt"]),
            (["--task", "recal"], 2, ["recal", "wanted recall"]),
            (["--task", "recall", "--pairs", "8", "--length", "10"], 1, ["--length is 10"]),
            (["--task", "recall", "--pairs", "27"], 1, ["26"]),
            (["--task", "copy", "--seed", "-1"], 2, ["seed"]),
        ):
            self.check_error("prepare", *args, "-o", out, status=status, mentions=mentions)
            self.assertFalse(out.exists())

    def test_a_build_without_libtorch_says_so(self):
        alone = self.folder / "polyspan"
        shutil.copy(shutil.which(cli_test.BIN) or cli_test.BIN, alone)
        done = subprocess.run([alone, "train", "x.toml", "-o", "run"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              text=True)
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertIn("LibTorch", done.stderr)


if __name__ == "__main__":
    if not (shutil.which(cli_test.BIN) or os.access(cli_test.BIN, os.X_OK)):
        sys.exit(f"train_test: no program {cli_test.BIN}; set POLYSPAN_BIN")
    unittest.main(verbosity=1)
