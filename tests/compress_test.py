"""Tests of `polyspan compress` by its command line: what it says and leaves, interruptions, and what it refuses.

usage: POLYSPAN_BIN=build/release/bin/polyspan python3 tests/compress_test.py [CLASS.TEST]
The tiny model is random and retrieves nothing, so its samples are running text. Runs on the default model (small ones)
need POLYSPAN_MODEL and are skipped without it.
"""

import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time
import unittest

import tiny_model
from cli_test import BIN, MODEL, TIME_FACTOR, CliTest

WORDS = "the quick brown fox and the lazy dog went to the river again. The sun is yellow and the grass is green. "
TINY = ("--kinds", "text", "--lengths", "256", "--extend", "512", "--samples", "1", "--steps", "2",
        "--validation-samples", "2", "--density", "0.6,0.5")  # fmt: skip


class CompressTest(CliTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.text = cls.write("text.txt", WORDS * 40)

    def options(self, run, *more):
        return ("compress", self.tiny, "-o", run, "--text", self.text, *more)

    def finished_run(self, name):
        run = self.folder / name
        done = self.call(*self.options(run, *TINY))
        self.assertEqual(done.returncode, 0, done.err)
        return run

    def plans(self, run):
        return {name: (run / "plans" / name).read_bytes() for name in ("0.6.json", "0.5.json")}


class Runs(CompressTest):
    def test_what_it_says_and_leaves(self):
        run = self.folder / "says"
        done = self.call(*self.options(run, *TINY))
        self.assertEqual(done.returncode, 0, done.err)
        lines = done.out.splitlines()
        self.assertEqual(len(lines), 2)
        for line, density in zip(lines, ("0.6", "0.5")):
            self.assertIn(str(run / "plans" / f"{density}.json"), line)
            self.assertIn("uniform", line)
        description = json.loads((run / "run.json").read_text())
        self.assertTrue(description["finished"])
        self.assertEqual(description["options"]["densities"], [0.6, 0.5])
        for density in ("0.6", "0.5"):
            found = self.call_json("inspect", run / "plans" / f"{density}.json", "--length", "512")["densities"]
            self.assertLessEqual(max(row["density"] for row in found if row["length"] == 512), float(density) + 1e-9)
        result = self.call_json("run", self.tiny, "-p", "x" * 300, "-n", "4", "--plan", run / "plans" / "0.5.json")
        self.assertGreater(result["prompt_tokens"], 299)
        page = self.folder / "report.html"
        self.assertEqual(self.call("report", run, "-o", page).returncode, 0)
        self.assertIn("<svg", page.read_text())

    def test_json(self):
        result = self.call_json(*self.options(self.folder / "json", *TINY))
        self.assertEqual([plan["density"] for plan in result["plans"]], [0.6, 0.5])
        for plan in result["plans"]:
            self.assertTrue(pathlib.Path(plan["file"]).is_file())
            self.assertEqual([row["length"] for row in plan["densities"]], [256, 512])

    def test_a_plan_of_another_model_is_refused(self):
        run = self.finished_run("other")
        rules = json.loads((run / "plans" / "0.5.json").read_text())
        rules["alphas"], rules["betas"] = rules["alphas"] * 2, rules["betas"] * 2
        path = self.write("other.json", json.dumps(rules))
        self.check_error("run", self.tiny, "-p", "a", "--plan", path, mentions=["4 layers", "2"])

    def test_kill_at_any_time_and_resume(self):
        whole = self.plans(self.finished_run("whole"))
        run = self.folder / "killed"
        for attempt in range(60):
            args = [BIN, *map(str, self.options(run, *TINY))]
            resuming = (run / "run.json").exists()
            with subprocess.Popen(
                args + ["--resume"] * resuming, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            ) as process:
                n_before = self.n_files(run)
                while process.poll() is None and self.n_files(run) < n_before + 2 + attempt % 3:
                    time.sleep(0.001)
                if process.poll() is None:
                    process.send_signal(signal.SIGKILL)
                err = process.stderr.read().decode()
            if process.returncode == 0:
                break
            self.assertEqual(process.returncode, -signal.SIGKILL, err)
        else:
            self.fail("60 processes did not finish a run")
        self.assertGreater(attempt, 2)
        self.assertEqual(self.plans(run), whole)

    @staticmethod
    def n_files(folder):
        return sum(1 for path in folder.rglob("*.json") if path.is_file()) if folder.exists() else 0

    def test_a_finished_run_resumes_to_the_same(self):
        run = self.finished_run("again")
        before = self.plans(run)
        done = self.call("compress", self.tiny, "-o", run, "--resume", seconds=20)
        self.assertEqual(done.returncode, 0, done.err)
        self.assertEqual(self.plans(run), before)

    def test_full_disk(self):
        whole = self.plans(self.finished_run("room"))
        run = self.folder / "full"

        def little_room():  # no file may be larger: samples fit, profiles do not
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))

        done = subprocess.run(
            [BIN, *map(str, self.options(run, *TINY))], stdin=subprocess.DEVNULL, capture_output=True, preexec_fn=little_room
        )
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn("File too large", done.stderr.decode().splitlines()[-1])
        self.assertIn(str(run), done.stderr.decode().splitlines()[-1])
        self.assertEqual([str(path) for path in run.rglob("*.tmp*")], [])
        done = self.call(*self.options(run, *TINY, *(["--resume"] if (run / "run.json").exists() else [])))
        self.assertEqual(done.returncode, 0, done.err)
        self.assertEqual(self.plans(run), whole)


class Refusals(CompressTest):
    def test_options(self):
        run = self.folder / "options"
        for options, mentions in (
            (("--density", "0"), ["--density"]),
            (("--density", "1"), ["--density"]),
            (("--density", "0.5,0.5"), ["twice"]),
            (("--density", "x"), ["--density"]),
            (("--lengths", "256,256"), ["twice"]),
            (("--lengths", "100"), ["100"]),
            (("--lengths", "512", "--extend", "256"), ["--extend"]),
            (("--kinds", "no-such-kind"), ["no-such-kind", "passkey-natural"]),
            (("--kinds", "document"), ["--documents"]),
            (("--samples", "0"), ["--samples"]),
            (("--weights", "text"), ["--weights"]),
            (("--weights", "text=-1"), ["text"]),
            (("--influence", "x"), ["x"]),
            (("--loss", "x"), ["x"]),
            (("--plan", "dense"), ["--plan"]),
        ):
            self.check_error(*self.options(run, *options), status=2, mentions=mentions)
        self.check_error(*self.options(run, "--kv", "q8"), status=2, mentions=["--kv"])
        self.check_error("compress", self.tiny, status=2, mentions=["--output"])

    def test_lengths_beyond_the_model(self):
        run = self.folder / "long"
        self.check_error(*self.options(run, "--lengths", "256", "--extend", "1024"), mentions=["1024", "512"])

    def test_texts_and_documents(self):
        lengths = ("--lengths", "256", "--extend", "512", "--kinds", "text")
        missing = self.folder / "missing.txt"
        self.check_error("compress", self.tiny, "-o", self.folder / "a", *lengths, "--text", missing, mentions=["missing.txt"])
        little = self.write("little.txt", "Too little.")
        self.check_error("compress", self.tiny, "-o", self.folder / "b", *lengths, "--text", little, mentions=["320", "--text"])
        for name, contents, mentions in (
            ("broken.jsonl", "{", ["line 1"]),
            ("field.jsonl", '{"context": "a"}\n', ["line 1", "question"]),
            ("empty.jsonl", "", []),
        ):
            path = self.write(name, contents)
            self.check_error(*self.options(self.folder / "c", *lengths, "--documents", path), mentions=[name, *mentions])
        short = self.write("short.jsonl", json.dumps({"context": "few words", "question": "What?"}) + "\n")
        options = ("--lengths", "256", "--extend", "512", "--documents", short)
        done = self.call(*self.options(self.folder / "d", *options))
        self.assertEqual(done.returncode, 1)
        self.assertIn("document", done.err.splitlines()[-1])
        self.assertFalse((self.folder / "d" / "run.json").exists())

    def test_a_model_that_answers_nothing(self):
        options = ("--kinds", "passkey-repeated", "--lengths", "400", "--extend", "0", "--density", "0.5")
        done = self.call(*self.options(self.folder / "nothing", *options))
        self.assertEqual(done.returncode, 1)
        self.assertIn("no sample of 400 tokens was accepted", done.err.splitlines()[-1])
        log = (self.folder / "nothing" / "log.txt").read_text()  # given up after the tries for the first of two samples
        self.assertIn("passkey-repeated: 0 of 3 samples accepted", log)

    def test_a_density_below_every_rule(self):
        options = ("--kinds", "text", "--lengths", "256", "--extend", "512", "--samples", "1", "--density", "0.05")
        done = self.call(*self.options(self.folder / "sparse", *options))
        self.assertEqual(done.returncode, 1)
        self.assertIn("smallest", done.err.splitlines()[-1])
        self.assertFalse((self.folder / "sparse" / "run.json").exists())  # said at once: the folder takes another try

    def test_folders(self):
        run = self.finished_run("taken")
        self.check_error(*self.options(run, *TINY), status=2, mentions=["--resume"])
        self.check_error(*self.options(self.folder / "none", *TINY, "--resume"), status=2, mentions=["no run"])
        self.check_error(*self.options(run, "--density", "0.4", "--resume"), status=2, mentions=["densities", "0.4"])
        self.check_error(*self.options(self.write("file", "a"), *TINY), mentions=["file"])
        other = self.write("other.gguf", tiny_model.model_bytes(general__name="another")[0])
        self.check_error("compress", other, "-o", run, "--resume", mentions=["this run is of the model"])
        damaged = json.loads((run / "run.json").read_text())
        damaged["format_version"] = 99
        (run / "run.json").write_text(json.dumps(damaged))
        self.check_error("compress", self.tiny, "-o", run, "--resume", mentions=["run.json", "99"])

    def test_one_process_at_a_time(self):
        run = self.folder / "two"
        args = [BIN, *map(str, self.options(run, *TINY))]
        with subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as first:
            while not (run / "run.json").exists() and first.poll() is None:
                time.sleep(0.001)
            first.send_signal(signal.SIGSTOP)
            try:
                self.check_error("compress", self.tiny, "-o", run, "--resume", mentions=["another process", str(run)])
            finally:
                first.send_signal(signal.SIGCONT)
            first.stderr.read()
        self.assertEqual(first.returncode, 0)


@unittest.skipUnless(MODEL, "POLYSPAN_MODEL names no model")
@unittest.skipIf(TIME_FACTOR > 1, "half a minute, and ten times that in a sanitizer")
class DefaultModel(CompressTest):
    def test_it_beats_uniform_on_what_it_was_made_for(self):
        """A run of seconds: 512 tokens, one sample a kind. Retrieval of a key at half the cache survives."""
        run = self.folder / "default"
        options = ("--lengths", "512", "--extend", "0", "--density", "0.5", "--samples", "1", "--steps", "2")
        result = self.call_json("compress", MODEL, "-o", run, *options, seconds=280)
        plan = result["plans"][0]
        self.assertLess(plan["loss_above_dense"], 0.5 * plan["uniform_loss_above_dense"])
        evaluation = ("eval", MODEL, "--task", "passkey", "--lengths", "512", "--samples", "6", "--seed", "5")
        found = self.call_json(*evaluation, "--plan", plan["file"])["rows"][0]["accuracy"]
        uniform = self.call_json(*evaluation, "--plan", "uniform:0.5")["rows"][0]["accuracy"]
        self.assertGreater(found, uniform)


if __name__ == "__main__":
    if not (shutil.which(BIN) or os.access(BIN, os.X_OK)):
        sys.exit(f"compress_test: no program {BIN}; set POLYSPAN_BIN")
    unittest.main(verbosity=1)
