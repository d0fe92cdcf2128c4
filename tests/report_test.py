"""Tests of `polyspan report` by the command line, on invented run directories (make_run_dir.py).

usage: POLYSPAN_BIN=build/release/bin/polyspan python3 tests/report_test.py [CLASS.TEST]
"""

import html.parser
import json
import math
import os
import pathlib
import re
import shutil
import sys
import unittest

import cli_test
import make_run_dir

SECTIONS = ["spans", "influence", "front", "validation", "retrieval", "cost", "origin"]
TRAINING_SECTIONS = ["loss", "evaluation", "speed", "experts", "gates", "memory", "origin"]
ROOT = pathlib.Path(__file__).resolve().parent.parent
VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(html.parser.HTMLParser):
    """Checks that tags are balanced, and collects what a test asks about."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.problems, self.ids, self.text, self.attributes = [], [], [], [], []
        self.feed(text)
        self.close()
        if self.open:
            self.problems.append(f"left open: {self.open}")

    def handle_starttag(self, tag, attributes):
        self.attributes += [(tag, *attribute) for attribute in attributes]
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.attributes += [(tag, *attribute) for attribute in attributes]

    def handle_endtag(self, tag):
        if not self.open or self.open[-1] != tag:
            self.problems.append(f"</{tag}> at {self.getpos()}, open: {self.open[-3:]}")
        else:
            self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)


class ReportTest(cli_test.CliTest):
    def make(self, folder_name, measured=False, finished=True, **options):
        folder = self.folder / folder_name
        shutil.rmtree(folder, ignore_errors=True)
        make_run_dir.Run(**{"layers": 4, "heads": 6, "kv_heads": 3, **options}).write(folder, measured, finished)
        return folder

    def report(self, folder, *args, seconds=60, sections=SECTIONS):
        out = self.folder / "page.html"
        out.unlink(missing_ok=True)
        done = self.call("report", folder, "-o", out, *args, seconds=seconds)
        self.assertEqual(done.returncode, 0, done.err)
        self.assertEqual(done.out, "")
        text = out.read_text("utf-8")
        page = Page(text)
        self.assertEqual(page.problems, [])
        self.assertEqual(sorted(set(page.ids)), sorted(page.ids))
        for section in sections:
            self.assertIn(section, page.ids)
        for tag, name, value in page.attributes:
            self.assertNotIn(name, ("src", "srcset", "onload", "onclick", "action"))
            if name in ("href", "xlink:href"):
                self.assertTrue(value.startswith("#") and value[1:] in page.ids, value)
            self.assertIsNone(re.search(r"https?:|//|nan\b|inf\b", value or ""), (tag, name, value))
        self.assertIsNone(re.search(r"https?:|@import|url\(", text))
        page.all = "".join(page.text)
        return page

    def check_bad(self, folder, mentions):
        out = self.folder / "none.html"
        self.check_error("report", folder, "-o", out, mentions=mentions)
        self.assertFalse(out.exists())

    def change(self, folder, name, change):
        path = folder / name
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))


class Pages(ReportTest):
    def test_help_shows_examples(self):
        done = self.call("report", "--help")
        self.assertEqual((done.returncode, done.err), (0, ""))
        self.assertIn("polyspan report ", done.out)

    def test_whole_run(self):
        page = self.report(self.make("whole", measured=True))
        for words in ("SmolLM2 135M Instruct", "2025-11-02", "won: its held-out loss", "Winner:", "uniform", "two-valued",
                      "passkey-natural", "Decode", "Prefill", "Example 9000", "2 min 31 s"):
            self.assertIn(words, page.all)
        self.assertNotIn("not finished", page.all)
        self.assertNotIn("--measure", page.all)
        again = self.report(self.folder / "whole")
        self.assertEqual(page.all, again.all)

    def test_what_was_not_measured_says_how(self):
        page = self.report(self.make("bare"))
        self.assertEqual(page.all.count("--measure models/SmolLM2-135M-Instruct.Q4_1.gguf"), 2)

    def test_query_heads(self):
        page = self.report(self.make("query", per_query_head=True))
        self.assertIn("A KV head keeps the longest span", page.all)
        self.assertIn("query head 5", page.all)

    def test_one_length_and_one_head(self):
        self.report(self.make("small", layers=1, heads=1, kv_heads=1, lengths=(512,), extend=(), densities=(0.5,)))

    def test_lengths(self):
        page = self.report(self.make("lengths"), "--lengths", "3000,600")
        self.assertIn("3,000 tokens", page.all)
        self.check_error("report", self.folder / "lengths", "-o", self.folder / "x.html", "--lengths", "0", status=2)
        self.check_error("report", self.folder / "lengths", "-o", self.folder / "x.html", "--lengths", "9,9", status=2)

    def test_unfinished_runs_show_what_is_there(self):
        for part in ("plans", "validation", "search", "candidates", "profile", "samples.jsonl", "log.txt"):
            with self.subTest(part):
                folder = self.make("part", finished=False)
                path = folder / part
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                if part == "samples.jsonl":
                    shutil.rmtree(folder / "profile")
                self.assertIn("This run is not finished", self.report(folder).all)
        for path in list(folder.iterdir()):
            if path.name != "run.json":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.assertIn("the plan of density 0.25", self.report(folder).all)

    def test_hostile_names(self):
        evil = "</title></svg><script>alert('x')</script>\"&\u2028\t"
        page = self.report(self.make("evil", measured=True, name=evil, file=evil, architecture=evil, quantization=evil))
        self.assertEqual([tag for tag, name, _ in page.attributes if tag == "script"], [])
        self.assertEqual((self.folder / "page.html").read_text("utf-8").count("<script"), 1)
        self.assertIn("<script>alert('x')</script>\"&", page.all)


class Errors(ReportTest):
    def test_no_run(self):
        empty = self.folder / "empty"
        empty.mkdir(exist_ok=True)
        self.check_bad(empty, ["run.json", "no such file"])
        self.check_bad(self.folder / "missing", ["missing"])
        self.check_bad(self.write("file.json", "{}"), ["file.json", "no directory"])

    def test_wrong_files(self):
        nan = float("nan")
        for name, change, mentions in (
            ("run.json", lambda d: d.update(format_version=1), ["version 1"]),
            ("run.json", lambda d: d["model"].update(n_layers="4"), ["model.n_layers", "4"]),
            ("run.json", lambda d: d.pop("options"), ["options"]),
            ("run.json", lambda d: d["options"].update(densities=[nan]), ["broken json"]),
            ("search/0.5.json", lambda d: d.update(format_version=9), ["version 9"]),
            ("search/0.5.json", lambda d: d["rounds"][0]["curves"][1]["loss"].pop(), ["curves[1].loss", "12 heads"]),
            ("search/0.5.json", lambda d: d["front"][0]["losses"].append(1), ["front[0].losses", "4 numbers"]),
            ("search/0.5.json", lambda d: d["rounds"][0]["curves"][0]["loss"].__setitem__(0, nan), ["broken json"]),
            ("validation/0.25.json", lambda d: d.update(winner="nobody"), ["winner", "nobody"]),
            ("validation/0.25.json", lambda d: d["rows"][0].update(loss=None), ["rows[0].loss", "null"]),
            ("plans/0.5.json", lambda d: d["alphas"].pop(), ["0.5.json"]),
            ("plans/0.5.json", lambda d: d.update(n_kv_heads=2), ["0.5.json"]),
            ("measured/passkey-dense-1024.json", lambda d: d["rows"][0].update(accuracy=2), ["accuracy"]),
        ):
            with self.subTest(name=name, mentions=mentions):
                folder = self.make("wrong", measured=True)
                self.change(folder, name, change)
                self.check_bad(folder, [name.split("/")[-1], *mentions])

    def test_cut_files(self):
        folder = self.make("cut", measured=True)
        for name in ("run.json", "search/0.5.json", "validation/0.5.json", "plans/0.25.json",
                     "candidates/0.5/uniform.json", "profile/dense/1024-copy-0.json", "measured/speed-dense-1024.json"):
            path = folder / name
            whole = path.read_bytes()
            for length in (0, 1, len(whole) // 3, len(whole) // 2, len(whole) - 3):
                path.write_bytes(whole[:length])
                self.check_bad(folder, [path.name])
            path.write_bytes(whole)
        self.report(folder)

    def test_output_that_cannot_be_written(self):
        folder = self.make("output")
        self.check_error("report", folder, "-o", self.folder / "no" / "page.html", mentions=["page.html"])
        self.check_error("report", folder, "-o", self.folder, mentions=[str(self.folder)])
        self.check_error("report", folder, status=2, mentions=["output"])


class Training(ReportTest):
    """Folders of training runs with invented metrics, of the toy configuration with every part on."""

    LAYERS = 8

    def entry(self, step):
        use = [0.25 + 0.2 * math.sin(step / 90), 0.25 - 0.2 * math.sin(step / 90), 0.25, 0.25]
        entry = {"type": "step", "step": step, "stage": "all", "loss": 1 + 4 * math.exp(-step / 200), "lr": 1e-3,
                 "grad_norm": 1 + 0.5 * math.sin(step), "tokens_per_s": 2000.0, "balance_loss": 4.1, "z_loss": 0.5}
        for layer in range(self.LAYERS):
            entry[f"multipliers.{layer}"] = [0.8 + layer * step / 1e5, 0.2, 0.5]
            if layer % 2 == 1:
                entry[f"moe.use.{layer}"] = use
        entry.update({"workspace.touched.2": 0.5, "workspace.touched.5": 0.75, "pkm.gate.4": 0.12,
                      "pkm.values_read.4": 2048})
        return entry

    def make_training(self, name="training", last=800):
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        shutil.copy(ROOT / "bench" / "hydra" / "hydra-toy.toml", folder / "config.toml")
        lines = [{"type": "run", "step": 0, "device": "cpu", "processor": "Example 9000", "threads": 2,
                  "libtorch": "1.13.1"}]
        for step in range(10, last + 1, 10):
            lines.append(self.entry(step))
            if step % 100 == 0:
                lines.append({"type": "eval", "step": step, "stage": "all", "loss": 1.5, "accuracy": step / 1000})
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return folder

    def test_whole_run(self):
        page = self.report(self.make_training(), sections=TRAINING_SECTIONS)
        for words in ("A training run", "step 800 of 800", "accuracy 80%", "Example 9000", "ssm and window", "experts",
                      "d_expert = 512", "layer 7", "Share of the 4,096 values"):
            self.assertIn(words, page.all + str(page.attributes))
        self.assertNotIn("not finished", page.all)

    def test_unfinished_run(self):
        page = self.report(self.make_training(last=300), sections=TRAINING_SECTIONS)
        self.assertIn("This run is not finished", page.all)
        folder = self.make_training(last=10)
        self.assertIn("There is no evaluation yet", self.report(folder, sections=TRAINING_SECTIONS).all)

    def test_missing_and_cut_files(self):
        folder = self.make_training()
        metrics = folder / "metrics.jsonl"
        whole = metrics.read_bytes()
        for length, line in ((1, "line 1"), (len(whole) // 2, "line "), (len(whole) - 1, "line 89"), (0, "no step")):
            metrics.write_bytes(whole[:length])
            self.check_bad(folder, ["metrics.jsonl", line])
        metrics.write_bytes(whole.replace(b'"loss": 1.5', b'"loss": NaN', 1))
        self.check_bad(folder, ["metrics.jsonl line 12", "broken json"])
        metrics.unlink()
        self.check_bad(folder, ["metrics.jsonl", "no such file", "polyspan train"])
        metrics.write_bytes(whole)
        config = folder / "config.toml"
        text = config.read_text()
        config.write_text(text.replace("d_model", "d_modle"))
        self.check_bad(folder, ["config.toml:7", "d_modle", "d_model?"])
        config.unlink()
        self.check_bad(folder, ["config.toml", "no such file"])
        metrics.unlink()
        self.check_bad(folder, ["run.json", "metrics.jsonl", "neither"])

    def test_options_of_compress_are_refused(self):
        folder, out = self.make_training(), self.folder / "x.html"
        self.check_error("report", folder, "-o", out, "--lengths", "512", status=2, mentions=["--lengths"])
        self.check_error("report", folder, "-o", out, "--measure", self.tiny, status=2, mentions=["--measure"])


class Measure(ReportTest):
    TINY = {"layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 64, "lengths": (440,), "extend": (500, 9000),
            "densities": (0.5,), "name": "tiny", "context": 512, "quantization": "F32"}

    def make_tiny(self, **changes):
        folder = self.make("tiny", **{**self.TINY, **changes})
        self.change(folder, "run.json", lambda d: d["model"].update(fingerprint=""))
        return folder

    def test_measures_and_goes_on(self):
        folder = self.make_tiny()
        page = self.report(folder, "--measure", self.tiny, "-t", "2")
        self.assertNotIn("--measure", page.all)
        self.assertIn("A cell is 2 prompts", page.all)
        files = sorted(path.name for path in (folder / "measured").iterdir())
        self.assertEqual(files, sorted(f"{kind}-{plan}-{length}.json" for kind in ("passkey", "speed")
                                       for plan in ("dense", "0.5-uniform", "0.5-plan") for length in (440, 500)))
        document = json.loads((folder / "measured" / "passkey-0.5-plan-500.json").read_text())
        self.assertEqual((document["task"], document["plan_name"], document["density"]), ("passkey", "plan", 0.5))
        self.assertEqual((document["rows"][0]["length"], document["rows"][0]["n"]), (500, 10))
        # What is there is kept; what is missing is measured; more prompts replace fewer.
        times = {path.name: path.stat().st_mtime_ns for path in (folder / "measured").iterdir()}
        (folder / "measured" / "passkey-dense-440.json").unlink()
        self.report(folder, "--measure", self.tiny)
        changed = {path.name for path in (folder / "measured").iterdir() if times[path.name] != path.stat().st_mtime_ns}
        self.assertEqual(changed, {"passkey-dense-440.json"})
        self.assertIn("A cell is 2 and 4 prompts", self.report(folder, "--measure", self.tiny, "--samples", "2", "--lengths", "440").all)

    def test_another_plan_is_measured_again(self):
        folder = self.make_tiny()
        self.report(folder, "--measure", self.tiny, "--lengths", "440")
        shutil.copy(folder / "candidates" / "0.5" / "two-valued.json", folder / "plans" / "0.5.json")
        self.assertIn("of plans that the run no longer has", self.report(folder).all)
        self.assertNotIn("of plans that the run no longer has", self.report(folder, "--measure", self.tiny, "--lengths", "440").all)

    def test_another_model_is_refused(self):
        for changes, mentions in (({"name": "other"}, ["tiny", "other"]), ({"layers": 3}, ["layers", "3"]),
                                  ({"quantization": "Q4_1"}, ["F32", "Q4_1"])):
            folder = self.make_tiny(**changes)
            out = self.folder / "none.html"
            self.check_error("report", folder, "-o", out, "--measure", self.tiny, mentions=mentions)
            self.assertFalse(out.exists())
        folder = self.make("tiny", **self.TINY)  # with a fingerprint that is not this file's
        self.check_error("report", folder, "-o", out, "--measure", self.tiny, mentions=["fingerprint", "5e1f-00c4"])
        folder = self.make_tiny()
        self.check_error("report", folder, "-o", out, "--measure", self.tiny, "--lengths", "600", mentions=["600", "512"])
        self.check_error("report", folder, "-o", out, "--measure", self.folder / "no.gguf", mentions=["no.gguf"])


if __name__ == "__main__":
    if not (shutil.which(cli_test.BIN) or os.access(cli_test.BIN, os.X_OK)):
        sys.exit(f"report_test: no program {cli_test.BIN}; set POLYSPAN_BIN")
    unittest.main(verbosity=1)
