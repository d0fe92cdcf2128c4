"""Tests of the whole program, by its command line (contract: README, `polyspan --help`).

usage: POLYSPAN_BIN=build/release/bin/polyspan python3 tests/cli_test.py [CLASS.TEST]
POLYSPAN_MODEL: the default model (tools/fetch-model); its tests are skipped without it.
POLYSPAN_TIME_FACTOR: multiplies the time allowed to an error (sanitizers, slow machines).
"""

import json
import math
import os
import pathlib
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import unittest

import tiny_model

BIN = os.environ.get("POLYSPAN_BIN", "polyspan")
MODEL = os.environ.get("POLYSPAN_MODEL")
TIME_FACTOR = float(os.environ.get("POLYSPAN_TIME_FACTOR", "1"))


def child_cpu_seconds():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class CliTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="polyspan-cli-"))
        cls.tiny = cls.write("tiny.gguf", tiny_model.model_bytes()[0])

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder)

    @classmethod
    def write(cls, name, contents):
        path = cls.folder / name
        path.write_bytes(contents if isinstance(contents, bytes) else contents.encode())
        return str(path)

    def call(self, *args, seconds=120):
        start, start_cpu = time.monotonic(), child_cpu_seconds()
        done = subprocess.run(
            [BIN, *map(str, args)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=seconds * TIME_FACTOR,
        )
        done.seconds, done.cpu_seconds = time.monotonic() - start, child_cpu_seconds() - start_cpu
        done.out, done.err = done.stdout.decode("utf-8"), done.stderr.decode("utf-8", "replace")
        return done

    def call_json(self, *args, seconds=120):
        done = self.call(*args, "--json", seconds=seconds)
        self.assertEqual(done.returncode, 0, f"{args}: {done.err}")
        return json.loads(done.out)  # exactly one document, or this throws

    def check_error(self, *args, status=1, mentions=()):
        """An error as it should be: its status, one line that says what, at once, and nothing on standard output."""
        with self.subTest(args=[str(arg)[:80] for arg in args]):
            done = self.call(*args, seconds=20)
            said = f"status {done.returncode}, stderr: {done.err[:500]!r}"
            self.assertEqual(done.returncode, status, said)
            self.assertEqual(len(done.err.splitlines()), 1, said)
            self.assertTrue(done.err.endswith("\n"), said)
            self.assertGreater(len(done.err.strip()), 15, said)
            self.assertEqual(done.out, "", said)
            for word in ("terminate called", "Assertion", "internal error", "AddressSanitizer", "runtime error"):
                self.assertNotIn(word, done.err)
            for word in mentions:
                self.assertIn(word.lower(), done.err.lower())
            # Of the processor, since other tests run beside this one; the clock only catches what waits for something.
            self.assertLess(done.cpu_seconds, 1.0 * TIME_FACTOR, said)
            self.assertLess(done.seconds, 5.0 * TIME_FACTOR, said)


class Usage(CliTest):
    def test_unknown_options_and_commands(self):
        self.check_error("run", self.tiny, "-p", "a", "--no-such-option", status=2, mentions=["--no-such-option"])
        self.check_error("no-such-command", status=2)
        self.check_error("inspect", self.tiny, "too", "many", status=2)
        self.check_error("run", status=2)

    def test_values_that_are_none(self):
        for option, value in (
            ("--kv", "f13"),
            ("-n", "x"),
            ("-n", "-1"),
            ("--ctx", "x"),
            ("--ctx", "-5"),
            ("--temp", "x"),
            ("--temp", "-1"),
            ("--temp", "nan"),
            ("--top-p", "2"),
            ("--top-k", "-1"),
            ("-t", "x"),
            ("-t", "-1"),
            ("--seed", "x"),
            ("--skip-below", "x"),
            ("--device", "gpu"),
            ("--device", "cuda:x"),
        ):
            self.check_error("run", self.tiny, "-p", "a", option, value, status=2, mentions=[value])
        self.check_error("run", self.tiny, "-p", "a", "--skip-below", "0.5", mentions=["no paths to skip"])
        for option, value in (("--prompt", "x"), ("--prompt", "-1"), ("--depth", "x"), ("--gen", "x"), ("--reps", "0")):
            self.check_error("bench", self.tiny, option, value, status=2, mentions=[option])
        self.check_error("eval", self.tiny, "--task", "no-such-task", status=2, mentions=["no-such-task"])

    def test_a_gpu_that_is_not_there(self):
        for command in (("run", self.tiny, "-p", "a"), ("bench", self.tiny), ("eval", self.tiny, "--task", "passkey")):
            self.check_error(*command, "--device", "cuda:99", mentions=["--device cpu"])

    def test_huge_numbers_do_not_wrap(self):
        for option in ("-n", "--ctx", "--seed", "-t", "--top-k"):
            # A long answer ends at the context: once is enough.
            for value in (2**31, 2**63 - 1, 10**30) if option == "-n" else (2**31, 2**32 + 1, 2**63 - 1, 2**63, 2**64):
                with self.subTest(option=option, value=value):
                    done = self.call("run", self.tiny, "-p", "a", "--temp", "0", option, value)
                    self.assertIn(done.returncode, (0, 1, 2), done.err)
                    self.assertNotRegex(done.err, "-[0-9]{6}|internal error|runtime error")
                    if done.returncode != 0:
                        self.assertEqual(len(done.err.splitlines()), 1, done.err)

    def test_prompt_and_file_exclude_each_other(self):
        self.check_error("run", self.tiny, "-p", "a", "-f", self.write("prompt.txt", "a"), status=2)

    def test_help_shows_examples(self):
        for command in ("run", "chat", "bench", "eval", "inspect"):
            with self.subTest(command):
                done = self.call(command, "--help")
                self.assertEqual(done.returncode, 0)
                self.assertEqual(done.err, "")
                self.assertIn(f"polyspan {command} ", done.out)
        self.assertEqual(self.call("--help").returncode, 0)


class BadModel(CliTest):
    def check_model(self, name, contents, mentions=()):
        path = self.write(name, contents)
        self.check_error("run", path, "-p", "a", "-n", "1", mentions=[path, *mentions])
        self.check_error("inspect", path)

    def test_files_that_are_no_model(self):
        self.check_error("run", self.folder / "missing.gguf", "-p", "a", mentions=["missing.gguf"])
        self.check_error("run", self.folder, "-p", "a", mentions=[str(self.folder)])
        self.check_error("inspect", self.folder / "missing.gguf", mentions=["missing.gguf"])
        self.check_error("bench", self.folder / "missing.gguf", mentions=["missing.gguf"])
        self.check_error("eval", self.folder / "missing.gguf", "--task", "passkey", mentions=["missing.gguf"])
        self.check_model("empty.gguf", b"")
        self.check_model("magic.gguf", tiny_model.model_bytes(magic=b"GGML")[0])
        self.check_model("text.gguf", "this is no model\n" * 100)

    def test_truncation_at_every_boundary(self):
        data, ends = tiny_model.model_bytes()
        lengths = {1, 3, 4, 7, 8, 15, 16, 23, 24, 25, 40, len(data) - 1, len(data) // 2, (ends[1] + ends[2]) // 2}
        for end in ends:
            lengths |= {end - 1, end, end + 1}
        for length in sorted(lengths):
            self.check_error("run", self.write("cut.gguf", data[:length]), "-p", "a", mentions=["cut.gguf"])

    def test_headers_that_lie(self):
        for name, changes in (
            ("version", {"version": 1}),
            ("version99", {"version": 99}),
            ("tensors", {"n_tensors": 1 << 60}),
            ("keys", {"n_metadata": 1 << 60}),
            ("more", {"n_tensors": 30}),
            ("type", {"tensor_type": 99}),
            ("offset", {"shift": 1 << 40}),
            ("wrap", {"shift": (1 << 64) - (1 << 24)}),
            ("odd", {"shift": 4}),
        ):
            self.check_model(f"{name}.gguf", tiny_model.model_bytes(**changes)[0])
        data = bytearray(tiny_model.model_bytes()[0])
        struct.pack_into("<Q", data, 24, 1 << 61)  # the length of the first key
        self.check_model("key.gguf", bytes(data))
        # Tensors that the header does not count: a valid file, but no model.
        fewer = self.write("fewer.gguf", tiny_model.model_bytes(n_tensors=3)[0])
        self.check_error("run", fewer, "-p", "a", mentions=["fewer.gguf"])

    def test_tensors_that_do_not_fit(self):
        full = tiny_model.tensors()
        for i in (0, 1, 2, 3, len(full) - 1):
            name, dims = full[i]
            path = self.write("missing_tensor.gguf", tiny_model.model_bytes(full[:i] + full[i + 1 :])[0])
            self.check_error("run", path, "-p", "a", mentions=[name])
            wider = [*full[:i], (name, (dims[0] * 2, *dims[1:])), *full[i + 1 :]]
            path = self.write("wrong_shape.gguf", tiny_model.model_bytes(wider)[0])
            self.check_error("run", path, "-p", "a", mentions=[name])
        path = self.write("twice.gguf", tiny_model.model_bytes(full + full[:1])[0])
        self.check_error("run", path, "-p", "a", mentions=[full[0][0]])

    def test_metadata_that_does_not_fit(self):
        for name, changes, mentions in (
            ("architecture", {"general__architecture": "no-such-arch"}, ["no-such-arch"]),
            ("no_architecture", {"general__architecture": None}, ["general.architecture"]),
            ("heads", {"llama__attention__head_count": 0}, []),
            ("kv", {"llama__attention__head_count_kv": 3}, []),
            ("layers", {"llama__block_count": 1 << 31}, []),
            ("no_layers", {"llama__block_count": None}, ["llama.block_count"]),
            ("width", {"llama__embedding_length": 4000000000}, []),
            ("context", {"llama__context_length": 0}, []),
            ("tokenizer", {"tokenizer__ggml__model": "no-such-tokenizer"}, ["no-such-tokenizer"]),
            ("pre", {"tokenizer__ggml__pre": "no-such-pre"}, ["no-such-pre"]),
            ("tokens", {"tokenizer__ggml__tokens": tiny_model.TOKENS[:-9]}, []),
            ("types", {"tokenizer__ggml__token_type": [1, 1]}, []),
            ("merges", {"tokenizer__ggml__merges": ["no-such merge"]}, []),
            ("eos", {"tokenizer__ggml__eos_token_id": 1 << 30}, []),
        ):
            path = self.write(f"{name}.gguf", tiny_model.model_bytes(**changes)[0])
            self.check_error("run", path, "-p", "a", mentions=mentions)


class BadPlan(CliTest):
    def check_plan(self, name, contents, mentions=()):
        path = self.write(name, contents)
        self.check_error("run", self.tiny, "-p", "a", "--plan", path, mentions=[name, *mentions])

    def test_plan_files(self):
        row, other = [0, 0, 0, 0], [1, 1, 1, 1]
        good = {"alphas": [row, row], "betas": [other, other]}
        self.check_plan("broken.json", json.dumps(good)[:-5], ["broken json"])
        self.check_plan("empty.json", "")
        self.check_plan("array.json", "[1, 2]")
        self.check_plan(
            "nan.json", json.dumps({**good, "alphas": [row, [0, math.nan, 0, 0]]}), ["layer 1, head 1", "NaN"]
        )
        self.check_plan("beta.json", json.dumps({**good, "betas": [other, [1, 1, 1.5, 1]]}), ["layer 1, head 2", "1.5"])
        self.check_plan(
            "negative.json", json.dumps({"alphas": [row, [-9, 0, 0, 0]], "betas": [other, row]}), ["layer 1, head 0"]
        )
        self.check_plan("text.json", json.dumps({**good, "alphas": [row, [0, "x", 0, 0]]}), ["layer 1, head 1"])
        self.check_plan("layers.json", json.dumps({"alphas": [row] * 3, "betas": [other] * 3}), ["3 layers", "2"])
        self.check_plan(
            "heads.json", json.dumps({"alphas": [[0] * 3] * 2, "betas": [[1] * 3] * 2}), ["3 heads", "4", "2"]
        )
        self.check_plan("rows.json", json.dumps({**good, "betas": [other, [1, 1]]}), ["layer 1", "2", "4"])
        self.check_plan("no_betas.json", json.dumps({"alphas": [row, row]}), ["betas"])
        self.check_plan("deep.json", '{"x":' + "[" * 100000, ["nested"])
        self.check_error("run", self.tiny, "-p", "a", "--plan", self.folder / "none.json", mentions=["none.json"])
        self.check_error("inspect", self.write("bad.json", '{"alphas": 3}'), mentions=["bad.json"])

    def test_built_in_plans(self):
        for density in ("0", "-1", "1.5", "nan", "x", ""):
            self.check_error("run", self.tiny, "-p", "a", "--plan", f"uniform:{density}", mentions=["density"])
        self.check_error("run", self.tiny, "-p", "a", "--plan", "no-such-plan", mentions=["no-such-plan"])


class BadInput(CliTest):
    def test_prompts(self):
        self.check_error("run", self.tiny, "-p", "", mentions=["prompt"])
        self.check_error("run", self.tiny, "-f", self.write("empty.txt", ""), mentions=["prompt"])
        self.check_error("run", self.tiny, "-f", self.folder / "missing.txt", mentions=["missing.txt"])
        self.check_error("run", self.tiny, "-f", self.folder, mentions=[str(self.folder)])

    def test_prompt_longer_than_the_context(self):
        # One token a byte: 600 of a model made for 512, and 100 where --ctx asks for 64.
        self.check_error("run", self.tiny, "-p", "x" * 600, mentions=["600", "512"])
        self.check_error("run", self.tiny, "-p", "x" * 100, "--ctx", "64", mentions=["100", "64"])

    def test_context_that_cannot_be_held(self):
        self.check_error("run", self.tiny, "-p", "a", "--ctx", str(10**12))

    def test_evaluation(self):
        self.check_error(
            "eval", self.tiny, "--task", "ppl", "--text", self.folder / "missing.txt", mentions=["missing.txt"]
        )
        self.check_error("eval", self.tiny, "--task", "ppl", "--text", self.write("short.txt", "a"), "--ctx", "256")
        self.check_error("eval", self.tiny, "--task", "ppl", "--lengths", "256,600", mentions=["600", "512"])
        for task in ("passkey", "longeval", "ruler"):
            self.check_error("eval", self.tiny, "--task", task, "--lengths", "400,600", mentions=["600", "512"])
            self.check_error("eval", self.tiny, "--task", task, "--lengths", "60", mentions=["60 tokens"])
        text = self.write("little.txt", "One sentence. Another one.")
        ruler = ("eval", self.tiny, "--task", "ruler", "--kinds", "niah_single_2", "--lengths", "500")
        self.check_error(*ruler, "--text", text, mentions=["--text"])

    def test_evaluation_options(self):
        for options, mentions in (
            (("ruler", "--kinds", "vt,no-such-kind"), ["no-such-kind", "niah_single_1"]),
            (("ruler", "--keys", "2"), ["--keys", "ruler"]),
            (("ppl", "--depths", "5"), ["--depths", "ppl"]),
            (("passkey", "--kinds", "vt"), ["--kinds", "passkey"]),
            (("passkey", "--keys", "0"), ["--keys", "0"]),
            (("ppl", "--answers", "a.jsonl"), ["--answers", "ppl"]),
            (("passkey", "--samples", "0"), ["--samples", "0"]),
            (("passkey", "--lengths", "400,400"), ["400", "twice"]),
            (("passkey", "--lengths", "0"), ["0"]),
            (("passkey", "--seed", "-1"), ["-1"]),
            (("longbench",), ["--data"]),
            (("passkey", "--compare"), ["--compare", "--plan"]),
        ):
            self.check_error("eval", self.tiny, "--task", *options, status=2, mentions=mentions)

    def test_evaluation_data(self):
        good = json.dumps({"dataset": "qasper", "input": "i", "context": "c", "answers": ["a"], "all_classes": None})
        for name, contents, mentions in (
            ("empty.jsonl", "", []),
            ("broken.jsonl", good + "\n{", ["line 2"]),
            ("other.jsonl", good + "\n" + good.replace("qasper", "no-such-set"), ["line 2", "no-such-set"]),
            ("field.jsonl", good + "\n\n" + good.replace("answers", "replies"), ["line 3", "answers"]),
        ):
            path = self.write(name, contents)
            self.check_error("eval", self.tiny, "--task", "longbench", "--data", path, mentions=[name, *mentions])
        self.check_error("eval", self.tiny, "--task", "longeval", "--data", path, mentions=["field.jsonl", "prompt"])
        missing = self.folder / "missing.jsonl"
        self.check_error("eval", self.tiny, "--task", "longbench", "--data", missing, mentions=["missing.jsonl"])


class TinyModel(CliTest):
    """The shape of every command's JSON, on the tiny model."""

    def check_number(self, value, minimum=0.0):
        self.assertIsInstance(value, (int, float))
        self.assertTrue(math.isfinite(value) and value >= minimum, value)

    def check_run(self, result):
        self.assertIsInstance(result["text"], str)
        for key in ("prompt_tokens", "generated_tokens", "kv_bytes"):
            self.assertIsInstance(result[key], int)
        for key in ("prefill_tokens_per_s", "decode_tokens_per_s"):
            self.check_number(result[key])

    def test_run(self):
        for plan in ("dense", "uniform:0.5"):
            for kv in ("f16", "bf16", "q8"):
                with self.subTest(plan=plan, kv=kv):
                    result = self.call_json("run", self.tiny, "-p", "x" * 300, "-n", "8", "--plan", plan, "--kv", kv)
                    self.check_run(result)
                    self.assertLessEqual(result["generated_tokens"], 8)
                    self.assertGreaterEqual(result["prompt_tokens"], 300)

    def test_run_tells_how_likely_its_tokens_were(self):
        greedy = ["run", self.tiny, "-p", "the same", "-n", "6", "--temp", "0"]
        plain, told = self.call_json(*greedy), self.call_json(*greedy, "--logprobs", "3")
        self.assertNotIn("logprobs", plain)
        self.assertEqual(plain["tokens"], told["tokens"])
        self.assertEqual([entry["token"] for entry in told["logprobs"]], told["tokens"])
        for entry in told["logprobs"]:
            self.assertEqual(entry["top"][0]["token"], entry["token"])
            logprobs = [likely["logprob"] for likely in entry["top"]]
            self.assertEqual(logprobs, sorted(logprobs, reverse=True))
            self.assertEqual(len(logprobs), 3)
            self.assertLess(sum(math.exp(logprob) for logprob in logprobs), 1)
        self.check_error("run", self.tiny, "-p", "x", "--logprobs", "3", status=2, mentions=["--json"])

    def test_run_of_one_token(self):
        self.check_run(self.call_json("run", self.tiny, "-p", "x", "-n", "1"))

    def test_a_file_is_a_prompt(self):
        by_file = self.call_json("run", self.tiny, "-f", self.write("same.txt", "the same"), "-n", "4", "--temp", "0")
        by_text = self.call_json("run", self.tiny, "-p", "the same", "-n", "4", "--temp", "0")
        self.assertEqual(by_file["text"], by_text["text"])
        self.assertEqual(by_file["prompt_tokens"], by_text["prompt_tokens"])

    def test_seeds_and_threads_repeat(self):
        options = ("run", self.tiny, "-p", "the and the", "-n", "40", "--temp", "1.0", "--seed", "7")
        first = self.call_json(*options, "-t", "1")["text"]
        self.assertEqual(first, self.call_json(*options, "-t", "2")["text"])
        self.assertNotEqual(first, self.call_json(*options[:-1], "8")["text"])

    def test_a_plan_of_full_spans_is_dense(self):
        full = {"alphas": [[0] * 4] * 2, "betas": [[1] * 4] * 2}
        plan = self.write("full.json", json.dumps(full))
        options = ("run", self.tiny, "-p", "and " * 60, "-n", "20", "--temp", "0")
        dense, planned = self.call_json(*options), self.call_json(*options, "--plan", plan)
        self.assertEqual(dense["text"], planned["text"])
        self.assertEqual(dense["kv_bytes"], planned["kv_bytes"])

    def test_bench(self):
        result = self.call_json(
            "bench",
            self.tiny,
            "--prompt",
            "64,128",
            "--gen",
            "4",
            "--depth",
            "0,64",
            "--reps",
            "2",
            "--plan",
            "uniform:0.5",
            "-t",
            "2",
        )
        for key in ("model", "plan", "threads", "isa"):
            self.assertIn(key, result)
        self.assertEqual(result["threads"], 2)
        rows = result["rows"]
        for test, n_tokens, depth in (("prefill", 64, 0), ("prefill", 128, 0), ("decode", 4, 0), ("decode", 4, 64)):
            found = [row for row in rows if (row["test"], row["n_tokens"], row["depth"]) == (test, n_tokens, depth)]
            self.assertEqual(len(found), 1, f"{test} {n_tokens} {depth} in {rows}")
            self.check_number(found[0]["tokens_per_s"], 1e-9)
            self.assertIsInstance(found[0]["kv_bytes"], int)
            self.assertEqual(len(found[0]["repeats"]), 2)
        # The depths in turn: the same rows.
        turns = self.call_json("bench", self.tiny, "--gen", "4", "--depth", "64,0", "--reps", "3", "--in-turn")["rows"]
        self.assertEqual([(row["test"], row["depth"], len(row["repeats"])) for row in turns],
                         [("decode", 64, 3), ("decode", 0, 3)])

    def test_perplexity(self):
        text = self.write("text.txt", "the quick brown fox and the lazy dog, again and again. " * 30)
        result = self.call_json("eval", self.tiny, "--task", "ppl", "--text", text, "--ctx", "256", "--windows", "2")
        self.assertEqual(result["task"], "ppl")
        for row in result["rows"]:
            self.check_number(row["perplexity"], 1.0)
            self.assertGreater(row["n"], 0)
            self.assertEqual(row["length"], 256)

    def check_rows(self, rows, lengths, fields):
        self.assertEqual([row["length"] for row in rows], lengths)
        for row in rows:
            for field in ("accuracy", "density"):
                self.check_number(row[field])
                self.assertLessEqual(row[field], 1)
            self.assertGreater(row["kv_bytes"], 0)
            for field in fields:
                self.assertIn(field, row)

    def test_passkey(self):
        options = ("eval", self.tiny, "--task", "passkey", "--lengths", "450,500", "--samples", "2")
        result = self.call_json(*options)
        self.assertEqual((result["task"], result["plan"], result["keys"]), ("passkey", "dense", 1))
        self.check_rows(result["rows"], [450, 500], ["repeated", "natural"])
        self.assertNotIn("compare", result)
        for row in result["rows"]:
            self.assertEqual((row["n"], row["repeated"]["n"], row["natural"]["n"]), (4, 2, 2))
            self.assertNotIn("depths", row)
        grid = self.call_json(*options, "--depths", "3")
        for row in grid["rows"]:
            self.assertEqual(row["n"], 12)
            self.assertEqual([(cell["depth"], cell["n"]) for cell in row["depths"]], [(0, 4), (0.5, 4), (1, 4)])

    def test_compare(self):
        # Spans 64, 64 + N/4, N/2, N: the density differs from length to length.
        rules = {"n_kv_heads": 2, "sink": 4, "alphas": [[64, 64], [0, 0]], "betas": [[0, 0.25], [0.5, 1]]}
        plan, answers = self.write("mixed.json", json.dumps(rules)), self.folder / "answers.jsonl"
        result = self.call_json(
            "eval", self.tiny, "--task", "passkey", "--lengths", "450,500", "--samples", "1",
            "--plan", plan, "--compare", "--answers", answers,
        )
        compare = result["compare"]
        self.assertEqual(list(compare), ["dense", "uniform", plan])
        lines = [json.loads(line) for line in answers.read_text().splitlines()]
        self.assertEqual(
            [(line["plan"], line["length"], line["kind"]) for line in lines],
            [(name, length, kind) for name in compare for length in (450, 500) for kind in ("repeated", "natural")],
        )
        for line in lines:
            self.assertEqual(line["score"], float(line["output"].lstrip().startswith(line["wanted"][0])))
            self.assertTrue(0 <= line["place"] <= 1 and line["tokens"] < line["length"])
        self.assertEqual(compare[plan], result["rows"])
        for rows in compare.values():
            self.check_rows(rows, [450, 500], ["repeated", "natural"])
        densities = [row["density"] for row in compare[plan]]
        self.assertGreater(densities[0] - densities[1], 0.005)
        for mine, uniform, dense in zip(compare[plan], compare["uniform"], compare["dense"]):
            self.assertAlmostEqual(mine["density"], uniform["density"], delta=0.005)
            self.assertEqual(dense["density"], 1)
        self.assertEqual(list(result["effective_context"]), ["uniform", plan])
        for context in result["effective_context"].values():  # a model that finds nothing has none
            self.assertEqual((context["tokens"], context["times_mean_span"]), (0, 0))
        text = self.write("text.txt", "the quick brown fox and the lazy dog, again and again. " * 30)
        result = self.call_json(
            "eval", self.tiny, "--task", "ppl", "--text", text, "--lengths", "300,500", "--plan", plan, "--compare"
        )
        for name, rows in result["compare"].items():
            self.assertEqual([row["length"] for row in rows], [300, 500], name)
        ppl = ("eval", self.tiny, "--task", "ppl", "--text", text, "--ctx", "300", "--compare")
        uniform = self.call_json(*ppl, "--plan", "uniform:0.5")
        self.assertEqual(list(uniform["compare"]), ["dense", "uniform", "uniform:0.5"])
        self.assertEqual(uniform["compare"]["uniform"], uniform["rows"])
        table = self.call(*ppl, "--plan", plan)
        for word in ("dense", "uniform", "mixed.json", "perplexity", "300 tokens"):
            self.assertIn(word, table.out)

    def test_longeval(self):
        record = {"prompt": "line a-b: REGISTER_CONTENT is <5>\nWhich?", "expected_number": 5, "num_lines": 1}
        path = self.write("lines.jsonl", "".join(json.dumps(record) + "\n" for _ in range(3)))
        for options, n in (((), 3), (("--samples", "2"), 2)):
            rows = self.call_json("eval", self.tiny, "--task", "longeval", "--data", path, *options)["rows"]
            self.assertEqual([row["n"] for row in rows], [n])
        rows = self.call_json("eval", self.tiny, "--task", "longeval", "--lengths", "500", "--samples", "2")["rows"]
        self.check_rows(rows, [500], [])

    def test_ruler(self):
        options = ("eval", self.tiny, "--task", "ruler", "--lengths", "500", "--samples", "1")
        options += ("--kinds", "niah_single_1,qa_1")
        result = self.call_json(*options)
        self.check_rows(result["rows"], [500], ["kinds"])
        self.assertEqual(list(result["rows"][0]["kinds"]), ["niah_single_1", "qa_1"])
        self.assertIn("SQuAD", result["note"])
        self.assertEqual(result, self.call_json(*options, "-t", "2"))

    def test_longbench(self):
        records = [
            {"dataset": "hotpotqa", "input": "i", "context": "word " * 500, "answers": ["a", "b"], "all_classes": None},
            {"dataset": "trec", "input": "i", "context": "c", "answers": ["X"], "all_classes": ["X", "Y"]},
        ]
        paths = [self.write(f"{i}.jsonl", json.dumps(record)) for i, record in enumerate(records)]
        options = ("eval", self.tiny, "--task", "longbench", "--lengths", "400,512")
        rows = self.call_json(*options, "--data", *paths)["rows"]
        self.check_rows(rows, [400, 512], ["datasets"])
        for row in rows:
            metrics = {name: cell["metric"] for name, cell in row["datasets"].items()}
            self.assertEqual(metrics, {"hotpotqa": "token F1", "trec": "classification accuracy"})

    def test_inspect_of_the_model(self):
        result = self.call_json("inspect", self.tiny)
        for key, value in (
            ("architecture", "llama"),
            ("n_layers", 2),
            ("n_heads", 4),
            ("n_kv_heads", 2),
            ("head_dim", 64),
            ("context_length", 512),
        ):
            self.assertEqual(result[key], value, key)
        n_values = sum(math.prod(dims) for _, dims in tiny_model.tensors())
        self.assertEqual(result["parameters"], n_values)
        self.assertIn("F32", result["quantisation"])

    def test_inspect_of_a_plan(self):
        rules = {"n_kv_heads": 2, "alphas": [[0, 0], [0, 0]], "betas": [[1, 0.5], [0.5, 0]]}
        # Spans 1024, 512, 512, 64; kept with the sink of 64: 1024, 576, 576, 128 of 4 x 1024. The published form names
        # no sink and is described as its authors do: spans alone.
        for name, plan, density in (("own", {**rules, "sink": 64}, 2304 / 4096), ("published", rules, 2112 / 4096)):
            with self.subTest(name):
                path = self.write(f"{name}.json", json.dumps(plan))
                rows = self.call_json("inspect", path, "--length", "1024")["densities"]
                row = [row for row in rows if row["length"] == 1024][0]
                self.assertAlmostEqual(row["density"], density, places=6)
                self.assertIn("kv_bytes", row)


@unittest.skipUnless(MODEL, "POLYSPAN_MODEL names no model")
class DefaultModel(CliTest):
    def test_inspect(self):
        result = self.call_json("inspect", MODEL)
        for key, value in (
            ("architecture", "llama"),
            ("n_layers", 30),
            ("n_heads", 9),
            ("n_kv_heads", 3),
            ("head_dim", 64),
            ("context_length", 8192),
            ("parameters", 134515008),
        ):
            self.assertEqual(result[key], value, key)
        self.assertIn("Q4_1", result["quantisation"])

    def test_run_answers(self):
        result = self.call_json("run", MODEL, "-p", "The capital of France is", "-n", "8", "--temp", "0")
        self.assertIn("Paris", result["text"])
        self.assertEqual(result["generated_tokens"], 8)

    def test_plans_save_memory(self):
        prompt = self.write("long.txt", "The grass is green. The sky is blue. The sun is yellow. " * 140)
        options = ("run", MODEL, "-f", prompt, "-n", "4", "--temp", "0")
        dense, half = self.call_json(*options), self.call_json(*options, "--plan", "uniform:0.5")
        self.assertGreater(dense["prompt_tokens"], 1900)
        self.assertLess(half["kv_bytes"], dense["kv_bytes"])
        small = self.call_json(*options, "--kv", "q8")
        self.assertLess(small["kv_bytes"], 0.6 * dense["kv_bytes"])

    def test_bad_plans_and_prompts(self):
        self.check_error("run", MODEL, "-p", "word " * 9000, mentions=["8192"])
        plan = self.write("other.json", json.dumps({"alphas": [[0] * 9] * 32, "betas": [[1] * 9] * 32}))
        self.check_error("run", MODEL, "-p", "a", "--plan", plan, mentions=["32 layers", "30"])
        with open(MODEL, "rb") as file:
            head = file.read(4 << 20)
        self.check_error("run", self.write("cut.gguf", head), "-p", "a", mentions=["cut.gguf"])


if __name__ == "__main__":
    if not (shutil.which(BIN) or os.access(BIN, os.X_OK)):
        sys.exit(f"cli_test: no program {BIN}; set POLYSPAN_BIN")
    unittest.main(verbosity=1)
